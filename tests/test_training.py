"""One iteration is one fair cycle: alignment, schedule, and resuming as if nothing was."""

import json

import pytest
import torch
from toy import TOY_NET, make_config

from auto_panoptic.explore import fair_cycle
from auto_panoptic.modeling import choice_blocks
from auto_panoptic.space import SearchSpace
from auto_panoptic.training import AutoPanopticTrainer, FairCycleTrainer, loop

ITERATIONS = 5
SCHEDULE = ("SOLVER.MAX_ITER", ITERATIONS, "SOLVER.WARMUP_ITERS", 2, "SOLVER.STEPS", (4,))


# ------------------------------------------------------------------ a whole run of the trainer


class Recorder:
    """What a run did: the batch and path of every pass, every optimizer step and its learning rate."""

    def __init__(self, monkeypatch, trainer):
        self.events = []
        self.uses = {}
        apply_architecture, batch = loop.apply_architecture, FairCycleTrainer.batch

        def record_path(model, architecture):
            self.events.append(("pass", architecture.choices))
            apply_architecture(model, architecture)

        def record_batch(trainer, number):
            self.events.append(("batch", number))
            return batch(trainer, number)

        def record_step(optimizer, *_):
            self.events.append(("step", [group["lr"] for group in optimizer.param_groups]))

        monkeypatch.setattr(loop, "apply_architecture", record_path)
        monkeypatch.setattr(FairCycleTrainer, "batch", record_batch)
        trainer.optimizer.register_step_pre_hook(record_step)
        for site, block in choice_blocks(trainer.model).items():
            for name, candidate in block.candidates.items():
                self.uses[site, name] = 0
                candidate.register_forward_hook(lambda *_, key=(site, name): self._used(key))

    def _used(self, key):
        self.uses[key] += 1

    def of(self, kind):
        return [value for what, value in self.events if what == kind]


def make_trainer(folder, shapes, *options, resume=False):
    cfg = make_config(folder, shapes, *TOY_NET, *SCHEDULE, *options)
    (folder / "output").mkdir(exist_ok=True)
    torch.manual_seed(0)
    trainer = AutoPanopticTrainer(cfg)
    trainer.resume_or_load(resume=resume)
    return trainer


class Killed(Exception):
    pass


def kill_in_pass(monkeypatch, trainer, number):
    """Make the run die in its ``number``-th pass, counted from the start of the schedule."""
    batch = trainer._trainer.batch

    def dying(n):
        if n == number:
            raise Killed
        return batch(n)

    monkeypatch.setattr(trainer._trainer, "batch", dying)
    with pytest.raises(Killed):
        trainer.train()


def expected_events(space):
    """Each step is preceded by rows 0..11 of one fair cycle, on the batches in their order."""
    events = []
    for iteration in range(ITERATIONS):
        for row, architecture in enumerate(fair_cycle(space, 0, iteration)):
            events += [("batch", 12 * iteration + row), ("pass", architecture.choices)]
        events.append("step")
    return events


def without_rates(events):
    return ["step" if event[0] == "step" else event for event in events]


# Warm-up over two iterations from a tenth of the rate, then a tenth of it from iteration 4 on.
RATES = [0.001, 0.0055, 0.01, 0.01, 0.001]


def test_every_step_consumes_exactly_one_fair_cycle(tmp_path, shapes, monkeypatch):
    trainer = make_trainer(tmp_path, shapes)
    recorder = Recorder(monkeypatch, trainer)
    space = trainer._trainer.space
    trainer.train()
    assert without_rates(recorder.events) == expected_events(space)
    # Activation counts: 12 N / P.
    images = trainer.cfg.SOLVER.IMS_PER_BATCH
    assert recorder.uses == {
        (site.name, name): images * 12 * ITERATIONS // len(site.ops)
        for site in space.sites
        for name in site.names
    }
    # The schedule moves once per iteration, not once per pass.
    steps = recorder.of("step")
    assert all(set(rates) == {rates[0]} for rates in steps)
    assert [rates[0] for rates in steps] == pytest.approx(RATES, rel=1e-9)


def test_metrics_report_the_mean_of_the_passes(tmp_path, shapes, monkeypatch):
    trainer = make_trainer(tmp_path, shapes, "SOLVER.MAX_ITER", 1, "SOLVER.STEPS", ())
    seen = []
    forward = trainer.model.forward

    def recording(batch):
        losses = forward(batch)
        seen.append({name: float(value.detach()) for name, value in losses.items()})
        return losses

    monkeypatch.setattr(trainer.model, "forward", recording)
    trainer.train()
    (line,) = map(json.loads, (tmp_path / "output/metrics.json").read_text().splitlines())
    for name in ("loss_fit", "loss_noise"):
        assert line[name] == pytest.approx(sum(losses[name] for losses in seen) / 12, rel=1e-5)
    assert line["total_loss"] == pytest.approx(line["loss_fit"] + line["loss_noise"], rel=1e-6)
    assert line["passes"] == 12


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, shapes):
    """The final checkpoint and the losses of a run that nobody killed."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    make_trainer(folder, shapes).train()
    return torch.load(folder / "output/model_final.pth", weights_only=True)


def assert_same_state(ours, theirs):
    """Equal to the last bit, through all nested containers."""
    assert type(ours) is type(theirs)
    if isinstance(ours, torch.Tensor):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    elif isinstance(ours, dict):
        assert list(ours) == list(theirs)
        for key in ours:
            assert_same_state(ours[key], theirs[key])
    elif isinstance(ours, list | tuple):
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            assert_same_state(a, b)
    else:
        assert ours == theirs


@pytest.mark.parametrize("period, kill", [(1, 12 + 5), (2, 3 * 12 + 1), (3, 4 * 12 + 11)])
def test_a_killed_run_resumes_bit_for_bit(tmp_path, shapes, monkeypatch, uninterrupted, period, kill):
    """Weights, statistics, momentum and schedule; and the cycles after the resume are aligned again."""
    options = ("SOLVER.CHECKPOINT_PERIOD", period)
    first = make_trainer(tmp_path, shapes, *options)
    kill_in_pass(monkeypatch, first, kill)
    torch.manual_seed(12345)  # a new process starts with another generator
    second = make_trainer(tmp_path, shapes, *options, resume=True)
    done = kill // 12 // period * period
    assert second.start_iter == done
    recorder = Recorder(monkeypatch, second)
    second.train()
    assert without_rates(recorder.events) == expected_events(second._trainer.space)[25 * done :]
    assert [rates[0] for rates in recorder.of("step")] == pytest.approx(RATES[done:], rel=1e-9)
    assert_same_state(torch.load(tmp_path / "output/model_final.pth", weights_only=True), uninterrupted)


def test_killed_before_the_first_checkpoint_starts_anew(tmp_path, shapes, monkeypatch, uninterrupted):
    kill_in_pass(monkeypatch, make_trainer(tmp_path, shapes), 30)
    second = make_trainer(tmp_path, shapes, resume=True)
    second.train()
    assert_same_state(torch.load(tmp_path / "output/model_final.pth", weights_only=True), uninterrupted)


def test_without_resume_old_checkpoints_are_ignored(tmp_path, shapes):
    make_trainer(tmp_path, shapes).train()
    again = make_trainer(tmp_path, shapes, resume=False)
    assert again.start_iter == 0
    torch.manual_seed(0)
    fresh = AutoPanopticTrainer.build_model(again.cfg)
    assert_same_state(again.model.state_dict(), fresh.state_dict())


def test_a_finished_run_can_be_resumed_for_longer(tmp_path, shapes, uninterrupted):
    """Stopping after iteration 3 of a schedule and going on is the same as never stopping."""
    make_trainer(tmp_path, shapes, "SOLVER.MAX_ITER", 3).train()
    longer = make_trainer(tmp_path, shapes, resume=True)
    assert longer.start_iter == 3
    longer.train()
    assert_same_state(torch.load(tmp_path / "output/model_final.pth", weights_only=True), uninterrupted)


def test_the_panoptic_supernet_resumes_bit_for_bit(tmp_path, shapes, monkeypatch):
    """The same with the real model: sampled proposals and augmentation continue, too."""
    options = ("MODEL.META_ARCHITECTURE", "AutoPanopticFPN", "SOLVER.MAX_ITER", 2, "SOLVER.STEPS", ())
    options += ("SOLVER.CHECKPOINT_PERIOD", 1)
    final = []
    for name, kill in (("straight", None), ("killed", 12 + 7)):
        folder = tmp_path / name
        folder.mkdir()
        trainer = make_trainer(folder, shapes, *options)
        if kill is None:
            trainer.train()
        else:
            kill_in_pass(monkeypatch, trainer, kill)
            torch.manual_seed(777)
            make_trainer(folder, shapes, *options, resume=True).train()
        final.append(torch.load(folder / "output/model_final.pth", weights_only=True))
    assert_same_state(*final)


def test_other_seeds_train_other_weights(tmp_path, shapes, uninterrupted):
    """The comparisons above would notice: another seed of the data or of the cycles changes the weights."""
    for number, option in enumerate((("SEED", 1), ("NAS.SEED", 1))):
        folder = tmp_path / str(number)
        folder.mkdir()
        make_trainer(folder, shapes, *option).train()
        other = torch.load(folder / "output/model_final.pth", weights_only=True)["model"]
        assert not torch.equal(other["stem.weight"], uninterrupted["model"]["stem.weight"])


def test_a_supernet_is_not_evaluated_but_a_fixed_model_is(tmp_path, shapes):
    names = [type(hook).__name__ for hook in make_trainer(tmp_path, shapes)._hooks]
    assert "EvalHook" not in names and names[0] == "FairnessAudit"
    cfg = make_config(tmp_path, shapes, *TOY_NET)
    path = tmp_path / "architecture.json"
    space = SearchSpace.from_config(cfg)
    space.architecture([0] * len(space.sites)).save(path)
    fixed = make_trainer(tmp_path, shapes, "NAS.ARCHITECTURE", path)
    assert not fixed.is_supernet
    assert "EvalHook" in [type(hook).__name__ for hook in fixed._hooks]
