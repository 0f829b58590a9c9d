"""Supernet, search, retraining and evaluation through the commands, twice: the same in the end."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pipeline_run import run_pipeline
from report_util import Page
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from auto_panoptic.explore import Ledger
from auto_panoptic.report import write_report
from auto_panoptic.space import Architecture

pytestmark = pytest.mark.slow  # twice the whole way, a minute on two cores
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def runs(tmp_path_factory, shapes):
    """(folder of the first run, what it left, what the second left); the second in its own process."""
    first, second = tmp_path_factory.mktemp("first"), tmp_path_factory.mktemp("second")
    process = subprocess.Popen(
        [sys.executable, str(HERE / "pipeline_run.py"), str(second), str(shapes)],
        env={**os.environ, "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        found = run_pipeline(first, shapes)
        output, _ = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 0, output
    return first, found, json.loads((second / "found.json").read_text())


def test_each_stage_leaves_its_artefacts(runs):
    folder, found, _ = runs
    for stage in ("supernet", "retrain"):
        for name in ("model_final.pth", "last_checkpoint", "metrics.json", "config.yaml", "log.txt"):
            assert (folder / stage / name).stat().st_size > 0
    records = Ledger(folder / "search/ledger.jsonl").records
    assert [(r["cycle"], r["index"], r["status"]) for r in records] == [(0, i, "ok") for i in range(12)]
    for record in records:
        assert 0 <= record["metrics"]["PQ"] <= 100
        assert record["macs"] > 0 and record["params"] > 0 and record["seconds"]["evaluation"] > 0
    assert len({r["metrics"]["mIoU"] for r in records}) == 12
    board = json.loads((folder / "search/scoreboard.json").read_text())
    for rows in board["sites"].values():
        assert sum(row["score"] for row in rows) == 66
        assert sum(row["count"] for row in rows) == 12
    architecture = Architecture.load(folder / "search/architecture.json")
    assert list(architecture.choices) == found["architecture"]


def test_the_retrained_model_holds_the_selected_operators_only(runs):
    folder, found, _ = runs
    space = torch.load(folder / "retrain/model_final.pth", weights_only=True)["space"]
    assert {site: ops for site, ops in space.items()} == {
        site: [name] for site, name in Architecture.load(folder / "search/architecture.json").names().items()
    }


def test_all_metrics_are_reported(runs):
    _, found, _ = runs
    for key in ("PQ", "SQ", "RQ", "PQ_th", "SQ_th", "RQ_th", "PQ_st", "SQ_st", "RQ_st"):
        assert 0 <= float(found["retrained"][f"panoptic_seg/{key}"]) <= 100
    assert {"bbox/AP", "segm/AP", "sem_seg/mIoU"} <= set(found["retrained"])
    assert float(found["retrained"]["sem_seg/mIoU"]) > 10  # 17 if the most frequent class filled every image


def test_evaluating_the_checkpoint_gives_what_training_reported(runs):
    _, found, _ = runs
    assert found["evaluated"] == found["retrained"]


def test_every_evaluation_leaves_pictures_which_the_report_shows(runs):
    """Of the path, of the retrained network and of its evaluation; TensorBoard has those of the training."""
    folder = runs[0]
    places = ("search", "retrain/inference", "evaluated/inference")
    sites = json.loads((folder / "search/architecture.json").read_text())["sites"]
    for place in places:
        (record,) = (folder / place).glob("pictures_*/pictures.json")
        assert json.loads(record.read_text())["operators"] == sites
        assert len(list(record.parent.glob("best_1_*"))) == 4
    text = Page(write_report(folder).read_text()).text["pictures"]
    for title in ("network trained in evaluated, ", "network trained in retrain, ", "path of the supernet, "):
        assert title in text
    board = EventAccumulator(str(folder / "retrain"), {"images": 0})
    board.Reload()
    assert any(tag.endswith("/best 1") for tag in board.Tags()["images"])
    assert {"panoptic_seg/PQ", "total_loss", "lr"} <= set(board.Tags()["scalars"])


def test_the_same_seed_gives_the_same_bits(runs):
    """Weights, every score of the search and every metric, in two processes of one thread on one machine."""
    _, first, second = runs
    assert len(set(first["weights"])) == 2 and len(first["scores"]) == 12
    assert first == second
