"""A run that diverges stops, says where and what to type, and leaves nothing that is not finite."""

import re
import shlex

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn
from toy import TOY_NET, ToyNet, error_line, make_config, run_script, write_config

from auto_panoptic.errors import Diverged
from auto_panoptic.modeling.finite import finite_problem
from auto_panoptic.modeling.fold import folded
from auto_panoptic.space import SearchSpace
from auto_panoptic.training import AtomicCheckpointer, FairCycleTrainer, trainer
from auto_panoptic.training.loop import MOST_SKIPPED
from auto_panoptic.training.precision import Precision

NAN, INF = float("nan"), float("inf")


class Faulty(nn.Module):
    """What a sample's "fault" says goes wrong in its pass."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.norm = nn.BatchNorm1d(3)

    def forward(self, batch):
        fault = batch[0]["fault"]
        if isinstance(fault, Exception):
            raise fault
        loss = self.weight.sum()
        if fault == "gradient":  # of a root at 0
            loss = loss + (self.weight - self.weight.detach()).sum().sqrt()
        if fault == "statistics":
            self.norm.running_var[1] = INF
        return {"loss_a": loss, "loss_b": loss * (fault if isinstance(fault, float) else 0.5)}


def run(faults, lr=0.5, **options):
    model = Faulty()
    batches = [[{"file_name": f"{i}.png", "fault": fault}] for i, fault in enumerate(faults)]
    trainer = FairCycleTrainer(model, batches, torch.optim.SGD(model.parameters(), lr=lr), **options)
    with EventStorage():
        for trainer.iter in range(len(faults)):
            trainer.run_step()
    return trainer


@pytest.mark.parametrize(
    "fault, text",
    [
        (NAN, "losses loss_a 0.75, loss_b nan in pass 1 of 1 on images 1.png; no step was taken"),
        (-INF, "losses loss_a 0.75, loss_b -inf in pass"),
        (FloatingPointError("Boxes contain Inf/NaN."), "Inf/NaN. nan in pass 1 of 1 on images 1"),
        (AssertionError("Box tensor is infinite!"), "Box tensor is infinite! nan in pass 1 of 1 on images 1"),
        ("gradient", "the gradient of weight holds 3 of 3 values that are NaN or infinite after the step"),
        ("statistics", "norm.running_var holds 1 of 3 values that are NaN or infinite after the step"),
    ],
)
def test_the_iteration_the_losses_and_the_images_are_named(fault, text):
    with pytest.raises(Diverged) as error:
        run([None, fault])
    message = str(error.value)
    assert "diverged at iteration 1: " in message and text in message
    assert "losses of the latest step: loss_a " in message


@pytest.mark.parametrize("error", [RuntimeError("the info is gone"), AssertionError("shapes"), KeyError("x")])
def test_other_errors_stay_what_they_are(error):
    with pytest.raises(type(error), match=re.escape(str(error))):
        run([None, error])


@pytest.mark.parametrize("lr, text", [(1e38, "NaN or infinite"), (1e30, "weights are beyond float32")])
def test_a_step_that_is_too_long_is_found_at_once(lr, text):
    with pytest.raises(Diverged, match=f"iteration 0: .*{text}"):
        run([300.0], lr)


def test_endless_overflow_is_divergence():
    fp16 = Precision("cpu", torch.float16)
    trainer = run([*["gradient"] * (MOST_SKIPPED - 1), None, "gradient"], precision=fp16)
    assert trainer.skipped_steps == MOST_SKIPPED
    with pytest.raises(Diverged, match=f"float16 gradients overflowed in {MOST_SKIPPED} steps in a row"):
        run([None, *["gradient"] * MOST_SKIPPED], precision=fp16)


@pytest.mark.parametrize("where", ["weight", "statistics", "optimizer"])
def test_no_checkpoint_holds_what_is_not_finite(tmp_path, where):
    model = Faulty()
    model.register_buffer("mask", torch.tensor([-INF, 0.0]))  # no weight
    optimizer = torch.optim.Adam(model.parameters())
    checkpointer = AtomicCheckpointer(model, str(tmp_path), trainer=optimizer)
    sum(model([{"fault": None}]).values()).backward()
    optimizer.step()
    checkpointer.save("good")
    with torch.no_grad():
        if where == "weight":
            model.weight[1] = NAN
        if where == "statistics":
            model.norm.running_mean[0] = INF
        if where == "optimizer":
            optimizer.state[model.weight]["exp_avg_sq"][0] = INF
    with pytest.raises(Diverged, match="holds 1 of 3 values .* no checkpoint bad.pth was written"):
        checkpointer.save("bad")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["good.pth", "last_checkpoint"]


# ------------------------------------------------------------------ the command


def train(folder, shapes, *options):
    config = write_config(folder / "toy.yaml", shapes)
    run_script("train_net", "--config-file", config, *TOY_NET, "OUTPUT_DIR", folder / "output", *options)


def checkpoints(folder):
    return {path.name: torch.load(path, weights_only=True)["model"] for path in sorted(folder.glob("*.pth"))}


@pytest.mark.parametrize("sampling", ["fair", "uniform"])
@pytest.mark.parametrize("last", [True, False])
def test_one_line_and_the_remedy_works_when_typed(tmp_path, shapes, capfd, monkeypatch, sampling, last):
    """The last step diverges, or one before; the run goes on from the checkpoint of the first."""
    tmp_path = tmp_path / "a folder"
    tmp_path.mkdir()
    iterations = 2 if last else 4
    options = ("NAS.SAMPLING", sampling, "SOLVER.MAX_ITER", iterations, "SOLVER.CHECKPOINT_PERIOD", 1)
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(torch.optim.SGD, "step", _second_is_too_long(torch.optim.SGD.step))
        train(tmp_path, shapes, *options)
    assert end.value.code == 3
    message = error_line(capfd)
    assert "diverged at iteration 1: " in message and "train/" in message
    found = checkpoints(tmp_path / "output")
    assert list(found) == ["model_0000000.pth"] and not finite_problem(found["model_0000000.pth"])
    typed = shlex.split(message.partition("for example, ")[2])
    assert typed[:4] == ["OUTPUT_DIR", f"{tmp_path}/output_2", "SOLVER.BASE_LR", "0.001"]
    assert typed[4:6] == ["MODEL.WEIGHTS", f"{tmp_path}/output/model_0000000.pth"]
    train(tmp_path, shapes, *options, *typed)
    assert "model_final.pth" in checkpoints(tmp_path / "output_2")


def _second_is_too_long(step):
    calls = []

    def stepping(self, *args):
        calls.append(0)
        if len(calls) == 2:
            self.param_groups[0]["lr"] = 1e38
        return step(self, *args)

    return stepping


def test_a_path_is_named_in_a_fair_cycle(tmp_path, shapes, capfd, monkeypatch):
    forward, calls = ToyNet.forward, []

    def fifth_is_nan(model, batch):
        calls.append([sample["file_name"] for sample in batch])
        losses = forward(model, batch)
        return {**losses, "loss_fit": losses["loss_fit"] * (NAN if len(calls) == 5 else 1)}

    monkeypatch.setattr(ToyNet, "forward", fifth_is_nan)
    with pytest.raises(SystemExit) as end:
        train(tmp_path, shapes)
    message = error_line(capfd)
    assert end.value.code == 3 and len(calls) == 12
    expected = r'iteration 0: losses loss_fit nan, loss_noise \S+ in pass 5 of 12 \(path \{"backbone": \['
    assert re.search(expected, message)
    assert f"on images {', '.join(calls[4])}; no step was taken" in message
    assert not checkpoints(tmp_path / "output") and "MODEL.WEIGHTS" not in message


# ------------------------------------------------------------------ evaluation


@pytest.fixture(scope="module")
def network(tmp_path_factory, shapes):
    """Options of a fixed network."""
    folder = tmp_path_factory.mktemp("network")
    space = SearchSpace.from_config(make_config(folder, shapes))
    space.random(np.random.default_rng(0)).save(folder / "architecture.json")
    return "NAS.ARCHITECTURE", folder / "architecture.json", "TEST.METRICS", "['pq']"


def run_network(folder, shapes, *options):
    config = write_config(folder / "toy.yaml", shapes)
    run_script("train_net", "--config-file", config, *options, "OUTPUT_DIR", folder / "output")


@pytest.mark.parametrize("period", [1, 0])
def test_an_evaluation_within_the_training_stops_it(tmp_path, shapes, network, capfd, monkeypatch, period):
    """In the middle, before the checkpoint of the end; or at the end, after the checkpoint was saved."""

    def large(model):
        copy = folded(model)
        copy.sem_seg_head.predictor.weight.data *= 1e38
        return copy

    monkeypatch.setattr(trainer, "folded", large)
    with pytest.raises(SystemExit) as end:
        run_network(tmp_path, shapes, *network, "TEST.EVAL_PERIOD", period)
    message = error_line(capfd)
    assert end.value.code == 3 and "network's sem_seg_head.predictor, on images " in message
    assert ("MODEL.WEIGHTS" in message) == (period == 0)
    assert list(checkpoints(tmp_path / "output")) == ([] if period else ["model_final.pth"])
    assert "PQ" not in (tmp_path / "output/metrics.json").read_text()


def test_eval_only_scores_no_network_whose_outputs_overflow(tmp_path, shapes, network, capfd):
    cfg = make_config(tmp_path, shapes, *network[:2])
    model = build_model(cfg)
    model.roi_heads.box_head.fc2.weight.data.fill_(1e20)
    model.roi_heads.box_predictor.cls_score.weight.data.fill_(1e20)  # detections would vanish
    AtomicCheckpointer(model, str(tmp_path)).save("large")
    options = ("--eval-only", *network, "MODEL.WEIGHTS", tmp_path / "large.pth")
    with pytest.raises(SystemExit) as end:
        run_network(tmp_path, shapes, *options)
    assert end.value.code == 3 and "network's roi_heads.box_" in error_line(capfd)
    assert not (tmp_path / "output/metrics.json").exists()
