"""Keys of Detectron2 act in our training, or are refused before it starts; none is ignored."""

import itertools
import json
import logging
import re

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.utils.events import EventStorage
from toy import TOY_NET, make_config, run_script, write_config

from auto_panoptic.errors import UserError
from auto_panoptic.space import SearchSpace
from auto_panoptic.training import AutoPanopticTrainer, build_train_loader, check_training
from auto_panoptic.training.loader import PositionalBatchSampler

SCHEDULE = ("SOLVER.MAX_ITER", 2, "SOLVER.WARMUP_ITERS", 0, "SOLVER.STEPS", ())


@pytest.fixture
def fixed(tmp_path, shapes):
    """Options of a fixed network."""
    path = tmp_path / "architecture.json"
    space = SearchSpace.from_config(make_config(tmp_path, shapes))
    space.architecture([0] * len(space.sites)).save(path)
    return ("NAS.ARCHITECTURE", path)


def make_trainer(folder, shapes, *options, resume=False):
    (folder / "output").mkdir(exist_ok=True)
    torch.manual_seed(0)
    trainer = AutoPanopticTrainer(make_config(folder, shapes, *TOY_NET, *SCHEDULE, *options))
    trainer.resume_or_load(resume=resume)
    return trainer


# ------------------------------------------------------------------ refused

ROW = ["panoptic_seg", "PQ", 40.0, 0.5]


@pytest.mark.parametrize(
    "options, message",
    [
        (
            ("DATALOADER.SAMPLER_TRAIN", "NoSuchSampler"),
            "SAMPLER_TRAIN is 'NoSuchSampler'; expected one of Tra",
        ),
        (("TEST.EVAL_PERIOD", 5), "TEST.EVAL_PERIOD is 5, and this config builds a supernet.*set it to 0"),
        (
            ("TEST.PRECISE_BN.ENABLED", True),
            "TEST.PRECISE_BN.ENABLED is True, and .* supernet.*NAS.BN_RECALIB",
        ),
        (
            ("TEST.PRECISE_BN.NUM_ITER", 0),
            "TEST.PRECISE_BN.NUM_ITER is 0; expected a whole number of at least 1",
        ),
        (("TEST.EXPECTED_RESULTS", [ROW]), "TEST.EXPECTED_RESULTS is .* and this config builds a supernet"),
        (
            ("TEST.EXPECTED_RESULTS", [["PQ", 40.0]]),
            r"holds \['PQ', 40.0\]; expected \[task, metric, value, tol",
        ),
        (("TEST.EXPECTED_RESULTS", [ROW], "DATASETS.TEST", ()), r"of one data set, DATASETS.TEST is \[\]"),
        (
            ("SOLVER.REFERENCE_WORLD_SIZE", 3),
            "WORLD_SIZE is 3; expected 0 or a divisor of SOLVER.IMS_PER_BATCH",
        ),
        (("SOLVER.REFERENCE_WORLD_SIZE", -1), "SOLVER.REFERENCE_WORLD_SIZE is -1; expected a whole number"),
    ],
)
def test_what_cannot_be_obeyed_is_refused_before_anything_is_written(
    tmp_path, shapes, capfd, options, message
):
    path = write_config(tmp_path / "toy.yaml", shapes)
    with pytest.raises(SystemExit) as end:
        run_script("train_net", "--config-file", path, *TOY_NET, *SCHEDULE, *options)
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert end.value.code == 2 and len(lines) == 1
    assert re.search(message, lines[0]), lines[0]
    assert not (tmp_path / "output").exists()
    with pytest.raises(UserError, match=message):  # and by the trainer itself, in a script of one's own
        AutoPanopticTrainer(make_config(tmp_path, shapes, *TOY_NET, *SCHEDULE, *options))


# ------------------------------------------------------------------ samplers


def shares(cfg, names, batches=120):
    """Share of drawn images among ``names``."""
    drawn = [x["file_name"] for b in itertools.islice(build_train_loader(cfg, 0), batches) for x in b]
    return np.isin(drawn, list(names)).mean()


def test_images_of_rare_classes_are_repeated(tmp_path, shapes):
    """As often as Detectron2's factors say: sqrt(threshold / frequency) of the rarest class of the image."""
    options = ("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler", "DATALOADER.REPEAT_THRESHOLD", 0.9)
    cfg = make_config(tmp_path, shapes, *options)
    check_training(cfg)
    dicts = DatasetCatalog.get(cfg.DATASETS.TRAIN[0])
    classes = [{a["category_id"] for a in d["annotations"]} for d in dicts]
    frequency = {c: sum(c in own for own in classes) / len(dicts) for c in set().union(*classes)}
    factors = [max([max(1, (0.9 / frequency[c]) ** 0.5) for c in own], default=1) for own in classes]
    rare = {d["file_name"] for d, f in zip(dicts, factors, strict=True) if f > np.mean(factors)}
    expected = sum(f for d, f in zip(dicts, factors, strict=True) if d["file_name"] in rare) / sum(factors)
    plain = shares(make_config(tmp_path, shapes), rare)
    assert shares(cfg, rare) == pytest.approx(expected, abs=0.02) and expected > plain + 0.03


def test_a_repeating_stream_is_skipped_exactly_and_shared_out():
    repeats = np.array([1, 1, 2.5, 1, 3.2])
    whole = list(itertools.islice(PositionalBatchSampler(5, 2, 3, repeats=repeats), 40))
    later = PositionalBatchSampler(5, 2, 3, start=17, repeats=repeats)
    assert list(itertools.islice(later, 23)) == whole[17:]
    flat = [element for batch in whole for element in batch]
    assert [position for position, _ in flat] == list(range(80))
    ranks = [PositionalBatchSampler(5, 1, 3, repeats=repeats, rank=r, world_size=2) for r in range(2)]
    pairs = zip(*(itertools.islice(rank, 40) for rank in ranks), strict=True)
    assert [a + b for a, b in pairs] == whole


# ------------------------------------------------------------------ the reference number of processes


def test_settings_for_other_processes_are_scaled(tmp_path, shapes):
    """A quarter of the images and of the rate, four times the steps; what runs is what config.yaml says."""
    options = ("SOLVER.REFERENCE_WORLD_SIZE", 4, "SOLVER.IMS_PER_BATCH", 8, "SOLVER.BASE_LR", 0.04)
    options += ("SOLVER.MAX_ITER", 1, "SOLVER.CHECKPOINT_PERIOD", 1)
    trainer = make_trainer(tmp_path, shapes, *options)
    solver = trainer.cfg.SOLVER
    assert (solver.IMS_PER_BATCH, solver.BASE_LR, solver.MAX_ITER, trainer.max_iter) == (2, 0.01, 4, 4)
    assert (solver.CHECKPOINT_PERIOD, solver.REFERENCE_WORLD_SIZE) == (4, 1)
    assert len(next(iter(trainer.data_loader))) == 2
    path = write_config(tmp_path / "toy.yaml", shapes)
    run_script("train_net", "--config-file", path, *TOY_NET, *SCHEDULE, *options)
    run_script("train_net", "--config-file", path, "--resume", *TOY_NET, *SCHEDULE, *options)
    saved = torch.load(tmp_path / "output/model_final.pth", weights_only=True)
    assert saved["trainer"]["iteration"] == 3 and saved["settings"]["SOLVER.IMS_PER_BATCH"] == "2"
    assert "IMS_PER_BATCH: 2\n" in (tmp_path / "output/config.yaml").read_text()


def test_a_period_that_is_on_stays_on(tmp_path, shapes):
    cfg = make_config(tmp_path, shapes, "SOLVER.REFERENCE_WORLD_SIZE", 1, "SOLVER.CHECKPOINT_PERIOD", 1)
    scaled = AutoPanopticTrainer.auto_scale_workers(cfg, 8)
    assert scaled.SOLVER.CHECKPOINT_PERIOD == 1 and scaled.TEST.EVAL_PERIOD == 0


# ------------------------------------------------------------------ expected results


class Constant(AutoPanopticTrainer):
    @classmethod
    def test(cls, cfg, model, evaluators=None):
        return {"panoptic_seg": {"PQ": 40.25, "SQ": float("nan")}}


@pytest.mark.parametrize(
    "row, wrong",
    [
        (ROW, ""),
        (["panoptic_seg", "PQ", 41.0, 0.5], "panoptic_seg/PQ is 40.25, expected 41.0 +- 0.5"),
        (["panoptic_seg", "SQ", 41.0, 0.5], "panoptic_seg/SQ is nan, expected 41.0 +- 0.5"),
        (["bbox", "AP", 1.0, 100.0], "bbox/AP is None, expected 1.0 +- 100.0"),
    ],
)
def test_expected_results_are_compared(tmp_path, shapes, fixed, row, wrong):
    (tmp_path / "output").mkdir()
    options = (*TOY_NET, *SCHEDULE, *fixed, "TEST.EXPECTED_RESULTS", [ROW, row])
    trainer = Constant(make_config(tmp_path, shapes, *options))
    trainer.resume_or_load(resume=False)
    if not wrong:
        assert trainer.train() == {"panoptic_seg": trainer.last_results["panoptic_seg"]}
        return
    with pytest.raises(SystemExit, match="error: results are not those of TEST.EXPECTED_RESULTS") as end:
        trainer.train()
    assert end.value.code.endswith(f": {wrong}")  # a text: Python prints it and exits with 1
    assert (tmp_path / "output/model_final.pth").exists()


def test_expected_results_of_an_evaluation(tmp_path, shapes, fixed, capfd):
    path = write_config(tmp_path / "toy.yaml", shapes)
    run_script("train_net", "--config-file", path, *SCHEDULE, *fixed, "DATASETS.TEST", ())
    arguments = (
        "--config-file",
        path,
        "--eval-only",
        *fixed,
        "MODEL.WEIGHTS",
        tmp_path / "output/model_final.pth",
    )
    run_script("train_net", *arguments, "TEST.EXPECTED_RESULTS", [["panoptic_seg", "PQ", 50.0, 50.0]])
    with pytest.raises(SystemExit, match="panoptic_seg/PQ is .*, expected 101.0"):
        run_script("train_net", *arguments, "TEST.EXPECTED_RESULTS", [["panoptic_seg", "PQ", 101.0, 0.5]])
    assert "PQ" in capfd.readouterr().out  # the table is printed first


# ------------------------------------------------------------------ precise statistics


def test_precise_statistics_of_a_fixed_network(tmp_path, shapes, fixed):
    """Computed over NUM_ITER batches of our loader, saved with the model, and the same after a resume."""
    options = ("MODEL.META_ARCHITECTURE", "AutoPanopticFPN", *fixed, "DATASETS.TEST", ())
    options += ("TEST.PRECISE_BN.ENABLED", True, "TEST.PRECISE_BN.NUM_ITER", 3, "TEST.EVAL_PERIOD", 1)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    make_trainer(tmp_path / "a", shapes, *options, "SOLVER.MAX_ITER", 1).train()
    make_trainer(tmp_path / "a", shapes, *options, resume=True).train()
    trainer = make_trainer(tmp_path / "b", shapes, *options)
    trainer.train()
    resumed, straight = (
        torch.load(tmp_path / f"{run}/output/model_final.pth", weights_only=True)["model"] for run in "ab"
    )
    for name, value in resumed.items():
        torch.testing.assert_close(value, straight[name], rtol=0, atol=0, msg=name)
    name, norm = next((n, m) for n, m in trainer.model.named_modules() if isinstance(m, torch.nn.BatchNorm2d))
    pixels = []
    norm.register_forward_pre_hook(lambda _, inputs: pixels.append(inputs[0].transpose(0, 1).flatten(1)))
    with torch.no_grad(), EventStorage():
        for batch in itertools.islice(build_train_loader(trainer.cfg, 0), 3):
            trainer.model(batch)
    torch.testing.assert_close(
        straight[f"{name}.running_mean"], torch.cat(pixels, 1).mean(1), rtol=1e-4, atol=1e-5
    )


def test_what_precise_statistics_cannot_do_is_found_at_the_start(tmp_path, shapes, fixed):
    """The toy network uses its layer once per image."""
    options = (*fixed, "DATASETS.TEST", (), "TEST.PRECISE_BN.ENABLED", True)
    trainer = make_trainer(tmp_path, shapes, *options)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    with pytest.raises(UserError, match="TEST.PRECISE_BN.ENABLED does not work .* BN layers are reused"):
        trainer.train()
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_finished_run_says_that_nothing_is_left(tmp_path, shapes, caplog):
    make_trainer(tmp_path, shapes).train()
    for steps in (2, 1):
        trainer = make_trainer(tmp_path, shapes, "SOLVER.MAX_ITER", steps, resume=True)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            trainer.train()
        assert f"Nothing is left to train: the run in {tmp_path}/output has done 2 iterations" in caplog.text
    assert not [json.loads(x) for x in (tmp_path / "output/metrics.json").read_text().splitlines()][2:]
