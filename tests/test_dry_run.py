"""``--dry-run`` says what would run and what it needs, and writes nothing."""

import re

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from test_cli import tree
from toy import _own_logging, error_line, make_config, run_script, write_config

from auto_panoptic.data.drawn.shapes import SIZES, register_shapes
from auto_panoptic.data.few import few_images
from auto_panoptic.data.labels import data_set_for
from auto_panoptic.explore import Ledger
from auto_panoptic.search import dry_run as search_dry_run
from auto_panoptic.space import SearchSpace
from auto_panoptic.training import AtomicCheckpointer, dry_run, train


def said(capfd) -> dict:
    """{first word: text} of what a dry run says."""
    text = re.sub("\n {14}", " ", capfd.readouterr().out)
    return {line[:13].strip(): line[14:] for line in text.splitlines()[1:]}


@pytest.fixture
def steps(monkeypatch):
    """Two steps are enough."""
    monkeypatch.setattr(dry_run, "ENOUGH", 0.0)


def test_a_supernet(tmp_path, shapes, capfd, steps):
    config = write_config(tmp_path / "toy.yaml", shapes)
    before = tree(tmp_path)
    run_script("train_net", "--config-file", config, "--dry-run", "SOLVER.MAX_ITER", 7000, "SOLVER.STEPS", ())
    lines = said(capfd)
    assert tree(tmp_path) == before
    model = r"AutoPanopticFPN, a supernet of \d+ sites, \d{3},\d{3} parameters, on cpu"
    assert re.fullmatch(model, lines["trains"])
    assert lines["on"] == "toy_panoptic_nas_train (14 images)"
    # By hand: 7000 * 12 passes * 2 images = 168,000 = 12,000 * 14.
    passes = "7,000, each 12 passes over 2 images; in all 168,000 images, 12000.0 epochs"
    assert lines["iterations"] == passes and lines["starts from"] == "random weights"
    assert lines["evaluated on"] == "nothing" and lines["writes to"] == str(tmp_path / "output")
    time = r"([\d.]+) hours .* at ([\d.]+) s for an iteration \(mean of 1\)"
    hours, step = re.fullmatch(time, lines["time"]).groups()
    assert float(hours) == pytest.approx(7000 * float(step) / 3600, rel=0.05)
    assert re.match(r"[\d.]+ MB for 5 checkpoints of [\d.]+ MB; [\d.,]+ GB are free", lines["disk"])


def test_a_resumed_training_with_evaluations(tmp_path, shapes, capfd, steps):
    file = tmp_path / "architecture.json"
    SearchSpace.from_config(make_config(tmp_path, shapes)).random(np.random.default_rng(0)).save(file)
    config = write_config(tmp_path / "toy.yaml", shapes)
    options = ["NAS.ARCHITECTURE", file, "SOLVER.STEPS", "()", "TEST.METRICS", "('pq',)"]
    with _own_logging():
        train(config, [*options, "SOLVER.MAX_ITER", "1", "DATASETS.TEST", "()"])
    before = tree(tmp_path)
    options += ["SOLVER.MAX_ITER", "5", "TEST.EVAL_PERIOD", "2", "DATASETS.TEST", "()"]
    capfd.readouterr()
    run_script("train_net", "--config-file", config, "--dry-run", "--resume", *options)
    lines = said(capfd)
    assert tree(tmp_path) == before
    assert lines["iterations"].startswith("4, each a batch of 2 images; in all 10 images, 0.7 epochs")
    assert lines["starts from"] == f"{tmp_path}/output/model_final.pth, 1 iterations are done"
    (written,) = (tmp_path / "output").glob("bundle.pth")
    bundle = float(re.search(r" ([\d.]+) MB for the bundle;", lines["disk"])[1])
    assert bundle <= written.stat().st_size / 1e6 < 1.3 * bundle  # it has names and a config, too


def test_an_evaluation_and_a_search(tmp_path, shapes, capfd, monkeypatch):
    for module in (dry_run, search_dry_run):  # on a slow machine these would be hours
        monkeypatch.setattr(module, "duration", lambda seconds: f"{seconds:.0f} s")
    config = write_config(tmp_path / "toy.yaml", shapes)
    cfg, weights = make_config(tmp_path, shapes), tmp_path / "model_final.pth"
    AtomicCheckpointer(build_model(cfg), str(tmp_path)).save("model_final")
    space = SearchSpace.from_config(cfg)
    space.random(np.random.default_rng(0)).save(tmp_path / "architecture.json")
    command = "--config-file", config, "--dry-run"
    before = tree(tmp_path)
    options = "NAS.ARCHITECTURE", tmp_path / "architecture.json", "MODEL.WEIGHTS", weights
    run_script("train_net", *command, "--eval-only", *options)
    lines = said(capfd)
    assert lines["evaluates"].startswith("AutoPanopticFPN, ") and lines["weights"] == str(weights)
    assert lines["evaluated on"] == "toy_panoptic_val (4 images)"
    assert lines["statistics"] == "of 8 training images: the weights are a supernet's"
    measured = r"\d+ s, at [\d.]+ s for an image \(measured on 4\) and \d+ s for the statistics"
    assert re.fullmatch(measured, lines["time"])

    run_script("search_net", *command, "--weights", weights, "--cycles", 3)
    lines = said(capfd)
    assert tree(tmp_path) == before
    assert lines["searches"] == "36 candidates (path_priority, 3 cycles of 12)"
    assert lines["scored by"] == "pq on toy_panoptic_nas_val (6 images)"
    assert lines["statistics"] == "of 8 training images for each candidate"
    times = re.fullmatch(
        r"(\d+) s; for a candidate: recalibration ([\d.]+) s, evaluation ([\d.]+) s", lines["time"]
    )
    total, *each = map(float, times.groups())
    assert total == pytest.approx(36 * sum(each), abs=1)

    # By hand: the finalists, 3 or with the best candidate 4, are trained for 4 steps, two of them, and what
    # may come of the first trainings, twice for 8; then the best and 2 random ones twice for 8.
    finals = "--finals", 3, "--final-steps", 8, "--controls", 2
    run_script("search_net", *command, "--weights", weights, *finals)
    lines = said(capfd)
    assert tree(tmp_path) == before
    text = r"(\d+) to (\d+) trainings, with 2 random networks; in all at most (\d+) steps of ([\d.]+) s, "
    text += r"together (\d+) s"
    numbers = re.fullmatch(text, lines["finals"]).groups()
    assert numbers[:3] == ("13", "16", str(4 * 4 + 6 * 8 + 6 * 8))
    assert int(numbers[4]) >= int(numbers[2]) * float(numbers[3]) - 1
    total, *each = map(float, re.findall(r"[\d.]+", lines["time"]))
    assert total == pytest.approx(12 * sum(each) + int(numbers[4]), abs=2)
    assert re.match(r"[\d.]+ MB, [\d.]+ MB of it for the bundle; ", lines["disk"])

    run_script("search_net", *command[:2], "--weights", weights)
    assert len(Ledger(tmp_path / "output/search/ledger.jsonl").records) == 12
    before = tree(tmp_path)
    capfd.readouterr()
    run_script("search_net", *command, "--weights", weights, "--cycles", 3, "--resume")
    lines = said(capfd)
    assert tree(tmp_path) == before and lines["searches"].startswith("24 candidates")
    assert lines["recorded"] == "12 others"


@pytest.mark.parametrize(
    "seconds, text", [(89, "89 s"), (504, "0.14 hours (08:24)"), (9e5, "250.00 hours (250:00:00)")]
)
def test_times_and_sizes_for_people(seconds, text):
    assert dry_run.duration(seconds) == text
    assert (dry_run.size(26_543_210), dry_run.size(1_234_567_890_123)) == ("26.5 MB", "1,234.6 GB")


def test_nothing_to_measure_for_rescore(tmp_path, shapes, capfd):
    config = write_config(tmp_path / "toy.yaml", shapes)
    with pytest.raises(SystemExit):
        run_script("search_net", "--config-file", config, "--rescore", "--dry-run")
    assert "leave out --dry-run" in error_line(capfd)


def test_a_built_in_set_that_is_not_drawn_yet(tmp_path, shapes, monkeypatch, forget_data_sets):
    """A few of its images are drawn elsewhere, and afterwards the names mean the whole set again."""
    root = tmp_path / "shapes"
    register_shapes(root, prefix="undrawn")
    cfg = make_config(tmp_path, shapes)
    cfg.defrost()
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST, cfg.DATASETS.SEARCH = ("undrawn_train",), ("undrawn_val",), ()
    names = [data_set_for(cfg, name) for name in ("undrawn_train", "undrawn_val")]
    loaders = [DatasetCatalog[name] for name in names]
    with few_images(cfg, 3) as counts:
        assert counts == {"undrawn_train": SIZES["nas_train"] + SIZES["nas_val"], "undrawn_val": SIZES["val"]}
        records = [DatasetCatalog.get(name) for name in names]
        assert [len(found) for found in records] == [3, 3]
        assert not records[0][0]["file_name"].startswith(str(tmp_path))
    assert [DatasetCatalog[name].func for name in names] == [loader.func for loader in loaders]
    assert not root.exists()
