"""What a message tells the user to type works when typed."""

import importlib
import sys

import pytest
from test_cli import refused
from toy import TOY_NET, make_config, write_config

import train_net
from auto_panoptic.errors import UserError
from auto_panoptic.evaluation import check_metrics
from auto_panoptic.evaluation.expected import check_expected_results
from auto_panoptic.search.executors import ray
from auto_panoptic.training.precision import check_precision
from auto_panoptic.training.trainer import check_supernet

EXPECTED = [["panoptic_seg", "PQ", 41.5, 0.2]]
METRICS = ("pq",)
PRECISE = "TEST.PRECISE_BN.ENABLED"


HALF = ("SOLVER.AMP.ENABLED", True, "SOLVER.AMP.DTYPE", "float16")
OFFICIAL = ("TEST.PANOPTIC_EVALUATOR", "detectron2", "TEST.STUFF_AREA", 9)
NO_SET = ("TEST.EXPECTED_RESULTS", EXPECTED, "DATASETS.TEST", ())


def metrics(cfg):
    check_metrics(cfg, METRICS)


@pytest.mark.parametrize("check, options, remedy, typed", [
    (check_precision, HALF, "set SOLVER.AMP.ENABLED to False", ("SOLVER.AMP.ENABLED", False)),
    (check_precision, HALF, "use 'bfloat16'", ("SOLVER.AMP.DTYPE", "bfloat16")),
    (check_supernet, ("TEST.EVAL_PERIOD", 5), "set it to 0", ("TEST.EVAL_PERIOD", 0)),
    (check_supernet, NO_SET, r"set it to \[\]", ("TEST.EXPECTED_RESULTS", "[]")),
    (check_supernet, (PRECISE, True), "set it to False", (PRECISE, False)),
    (check_expected_results, NO_SET, r"set TEST.EXPECTED_RESULTS to \[\]", ("TEST.EXPECTED_RESULTS", "[]")),
    (metrics, OFFICIAL, "choose 'streaming'", ("TEST.PANOPTIC_EVALUATOR", "streaming")),
    (metrics, OFFICIAL, "set TEST.STUFF_AREA 0", ("TEST.STUFF_AREA", 0)),
])  # fmt: skip
def test_a_setting_that_is_named(tmp_path, shapes, check, options, remedy, typed):
    with pytest.raises(UserError, match=remedy):
        check(make_config(tmp_path, shapes, *options))
    check(make_config(tmp_path, shapes, *options, *typed))


def test_libraries_that_are_missing(tmp_path, shapes, monkeypatch):
    options = ("TEST.PANOPTIC_EVALUATOR", "detectron2")
    monkeypatch.setitem(sys.modules, "panopticapi.evaluation", None)
    with pytest.raises(UserError, match="pip install --no-deps panopticapi-lite, or set (.*)") as error:
        check_metrics(make_config(tmp_path, shapes, *options), METRICS)
    remedy = str(error.value).rpartition("or set ")[2].split()
    check_metrics(make_config(tmp_path, shapes, *options, *remedy), METRICS)
    check_metrics(make_config(tmp_path, shapes, *options), ("ap",))
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'ray>=2.40', or leave --workers out"):
        ray.import_ray()


def test_the_search_asks_for_ray_before_anything_else(tmp_path, capfd, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.chdir(tmp_path)
    assert "--workers needs Ray" in refused(capfd, tmp_path, "search_net", "--workers", 2)


def test_what_an_evaluation_lacks(tmp_path, shapes, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ("train_net", "--config-file", write_config(tmp_path / "toy.yaml", shapes), "--eval-only")
    line = refused(capfd, tmp_path, *command, *TOY_NET)
    assert "add MODEL.WEIGHTS path/to/model_final.pth" in line
    weights = ("MODEL.WEIGHTS", "path/to/model_final.pth")
    assert "add NAS.ARCHITECTURE FILE" in refused(capfd, tmp_path, *command, *TOY_NET, *weights)
    line = refused(capfd, tmp_path, *command[:-1], "--per-class", *TOY_NET)
    assert line.endswith("goes with --eval-only; add that, or leave --per-class out")
    assert importlib.import_module("train_net") is train_net
