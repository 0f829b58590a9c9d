"""What is written is JSON for every reader: an undefined number is null."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from detectron2.utils.events import EventStorage
from toy import make_config

from auto_panoptic.evaluation.tables import report_results
from auto_panoptic.files import write_json
from auto_panoptic.search.selection import candidates_noise
from auto_panoptic.training import AutoPanopticTrainer

NAN, INF = float("nan"), float("inf")


def strict(text):
    """As other readers than Python's take it."""

    def refuse(name):
        raise ValueError(name)

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("value", [NAN, INF, -INF, np.float64("nan"), np.float32("inf")])
def test_undefined_numbers_are_null(tmp_path, value):
    path = tmp_path / "file.json"
    write_json(path, {"a": [1, value, {"b": (value, 2.5)}], 3: np.array([0.5, value])})
    assert strict(path.read_text()) == {"a": [1, None, {"b": [None, 2.5]}], "3": [0.5, None]}
    write_json(path, [value, 0.1])
    assert strict(path.read_text()) == [None, 0.1]


def test_results_of_an_evaluation(tmp_path):
    report_results(str(tmp_path), {"val": {"panoptic_seg": {"PQ": 50.1, "PQ_st": NAN}}}, {"val": None})
    line = strict((tmp_path / "metrics.json").read_text())
    assert line == {"panoptic_seg/PQ": 50.1, "panoptic_seg/PQ_st": None}


def test_metrics_of_a_training(tmp_path, shapes):
    """Also those of its evaluations; numbers are the very ones that were put."""
    cfg = make_config(tmp_path, shapes)
    (tmp_path / "output").mkdir()
    trainer = AutoPanopticTrainer.__new__(AutoPanopticTrainer)
    trainer.cfg, trainer.max_iter = cfg, 1
    writers = trainer.build_writers()
    with EventStorage() as storage:
        storage.put_scalars(total_loss=1 / 3, **{"panoptic_seg/PQ_st": NAN}, smoothing_hint=False)
        for writer in writers:
            writer.write()
            writer.close()
    line = strict((tmp_path / "output/metrics.json").read_text())
    assert line == {"iteration": 0, "panoptic_seg/PQ_st": None, "total_loss": 1 / 3}


def test_the_noise_of_a_ranking_needs_all_resamples():
    """An older ledger holds null where PQ was undefined on a resample."""
    good = [SimpleNamespace(choices=i) for i in range(3)]
    metrics = [{"PQ": 50.0 + i, "bootstrap": [50.0, 51.0 + i, 52.0]} for i in range(3)]
    assert candidates_noise(list(zip(good, metrics, strict=True))).noise > 0
    for missing in ([50.0, None, 52.0], []):
        assert (
            candidates_noise(list(zip(good, [*metrics[:2], {"PQ": 1.0, "bootstrap": missing}], strict=True)))
            is None
        )
