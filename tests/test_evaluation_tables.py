"""Results as tables, and predictions as files."""

import numpy as np
import pytest

from auto_panoptic.data.formats.panoptic_png import read_panoptic
from auto_panoptic.errors import UserError
from auto_panoptic.evaluation import per_class_table, results_table, trim_table
from auto_panoptic.evaluation.predictions import PredictionWriter

KEYS = [name + block for block in ("", "_th", "_st") for name in ("PQ", "SQ", "RQ")]


def test_saving_keeps_subfolders_and_names_what_fails(tmp_path):
    writer = PredictionWriter(str(tmp_path), "some/set")
    ids = np.array([[1, 0], [256**3 - 1, 300]])
    for name in ("a/x.png", "b/x.jpg", "x.png"):
        writer.add(1, name, ids, [])
    folder = tmp_path / "panoptic_some_set"
    names = ["a/x.png", "b/x.png", "x.png"]
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.png")) == [
        f"{folder.name}/{name}" for name in names
    ]
    assert [record["file_name"] for record in writer.records] == names
    for name in names:
        assert (read_panoptic(str(folder / name)) == ids).all()
    with pytest.raises(UserError, match=r"16777216 does not fit into a PNG; keep ids below 2\*\*24"):
        writer.add(2, "y.png", ids + 1, [])
    (tmp_path / "panoptic_b").write_text("in the way")
    with pytest.raises(UserError, match="cannot save predictions: .*choose another OUTPUT_DIR"):
        PredictionWriter(str(tmp_path), "b").add(1, "x.png", ids, [])
    writer.json_file.mkdir()
    with pytest.raises(UserError, match="some_set.json: cannot write: Is a directory; .*another place"):
        writer.finish([], {"images": [], "categories": []})
    assert not list(tmp_path.glob("*tmp*"))


def test_results_table():
    results = {
        "panoptic_seg": {
            **dict.fromkeys(KEYS, 50.0),
            **{"PQ": 61.234, "PQ_st": float("nan")},
        },
        "bbox": {"AP": 30.5, "AP50": 50.25},
        "segm": {"AP": float("nan")},
        "sem_seg": {"mIoU": 71.0},
    }
    expected = """\
|   panoptic |    PQ |    SQ |    RQ |
|-----------:|------:|------:|------:|
|        all | 61.23 | 50.00 | 50.00 |
|     things | 50.00 | 50.00 | 50.00 |
|      stuff |     - | 50.00 | 50.00 |

|   box AP |   box AP50 |   mask AP |   mask AP50 |   mIoU |
|---------:|-----------:|----------:|------------:|-------:|
|    30.50 |      50.25 |         - |           - |  71.00 |"""
    assert results_table(results) == expected
    assert results_table({}) == ""


def test_tables_of_details():
    panoptic = {**dict.fromkeys(KEYS, 50.0), "IoU_st": 43.219}
    for name, low, high in (("PQ", 48.04, 51.96), ("PQ_th", 47.0, 53.0), ("PQ_st", np.nan, np.nan)):
        panoptic |= {f"{name}_low": low, f"{name}_high": high}
    expected = """\
|   panoptic |                 PQ |    SQ |    RQ |
|-----------:|-------------------:|------:|------:|
|        all | 50.00 [48.0, 52.0] | 50.00 | 50.00 |
|     things | 50.00 [47.0, 53.0] | 50.00 | 50.00 |
|      stuff |              50.00 | 50.00 | 50.00 |

|   IoU stuff |
|------------:|
|       43.22 |"""
    assert results_table({"panoptic_seg": panoptic}) == expected
    expected = """\
|   stuff below (pixels) is void |   PQ stuff |   SQ stuff |   RQ stuff |   IoU stuff |   PQ all |
|-------------------------------:|-----------:|-----------:|-----------:|------------:|---------:|
|                              0 |      50.00 |      50.00 |      50.00 |       43.22 |    50.00 |
|                          2,048 |      61.50 |      50.00 |      50.00 |       43.22 |    50.00 |"""
    assert trim_table({0: panoptic, 2048: {**panoptic, "PQ_st": 61.5}}) == expected
    counts = {"TP": 3, "FP": 1, "FN": 0, "PQ": 80.0, "SQ": 90.0, "RQ": 88.888}
    absent = {**dict.fromkeys(counts, 0), "name": "cat", "isthing": True}
    expected = """\
|   class |   kind |    PQ |    SQ |    RQ |   IoU |   TP |   FP |   FN |
|--------:|-------:|------:|------:|------:|------:|-----:|-----:|-----:|
|     sky |  stuff | 80.00 | 90.00 | 88.89 | 70.00 |    3 |    1 |    0 |
|     cat |  thing |     - |     - |     - |     - |    0 |    0 |    0 |"""
    sky = {"name": "sky", "isthing": False, "IoU": 70.0, **counts}
    assert per_class_table({1: sky, 2: absent}) == expected
