"""Streaming panoptic quality against panopticapi and hand-made cases."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from auto_panoptic.errors import UserError
from auto_panoptic.evaluation import PanopticQuality
from auto_panoptic.evaluation.overlap import count_pairs

CATEGORIES = [
    {"id": i, "name": f"c{i}", "isthing": int(i < 4), "supercategory": "s", "color": [i, i, i]}
    for i in (1, 2, 3, 7, 8, 9)
]
THING, OTHER, STUFF = 1, 2, 7


def _segment(segment_id, category, area=None, crowd=0):
    entry = {"id": segment_id, "category_id": category, "iscrowd": crowd}
    return entry if area is None else {**entry, "area": area}


def _gt(ids, segments):
    return [_segment(i, c, int((ids == i).sum()), crowd) for i, c, crowd in segments]


def _line(*runs):
    """A map of one row from (id, length) pairs."""
    return np.concatenate([np.full(n, i, np.int32) for i, n in runs])[None]


def _counts(pred, pred_segments, gt, gt_segments, category=THING):
    quality = PanopticQuality(CATEGORIES)
    quality.update(pred, [_segment(*s) for s in pred_segments], gt, _gt(gt, gt_segments))
    entry = quality.compute()["per_class"][category]
    return entry["TP"], entry["FP"], entry["FN"]


# ------------------------------------------------------------------ overlaps


@pytest.mark.parametrize("low, high", [(0, 3), (0, 2**24), (2**29, 2**31)])
def test_pairs_are_counted(low, high):
    """Also ids so large that pair and length do not fit into one number; odd sizes; no pixel at all."""
    rng = np.random.default_rng(5)
    for shape in [(1, 1), (7, 9), (1, 40), (16, 16), (0, 3)]:
        values = rng.integers(low, high, 3)
        gt, pred = rng.choice(values, shape), rng.choice(values, shape)
        pairs, counts = np.unique(np.stack([gt.ravel(), pred.ravel()]), axis=1, return_counts=True)
        assert count_pairs(gt, pred) == list(zip(*pairs.tolist(), counts.tolist(), strict=True))


# ------------------------------------------------------------------ hand-computable cases


def test_toy_numbers():
    """Matched IoUs 0.8 and 0.6, one false positive, two misses: PQ = 1.4 / 3.5."""
    gt = _line((1, 10), (2, 10), (3, 5), (4, 5), (5, 20))
    pred = _line((11, 8), (13, 2), (12, 6), (13, 4), (13, 10), (13, 20))
    quality = PanopticQuality(CATEGORIES)
    truth = _gt(gt, [(1, THING, 0), (2, THING, 0), (3, THING, 0), (4, THING, 0), (5, STUFF, 0)])
    quality.update(pred, [_segment(11, THING), _segment(12, THING), _segment(13, THING)], gt, truth)
    result = quality.compute()
    assert result["per_class"][THING] == {
        "PQ": pytest.approx(40.0, abs=1e-12),
        "SQ": pytest.approx(70.0, abs=1e-12),
        "RQ": pytest.approx(100 * 2 / 3.5, abs=1e-12),
        "TP": 2,
        "FP": 1,
        "FN": 2,
    }
    # The stuff segment is missed: the averages run over two classes, things over one.
    assert result["PQ"] == pytest.approx(20.0, abs=1e-12)
    assert result["PQ_th"] == pytest.approx(40.0, abs=1e-12) and result["PQ_st"] == 0.0


@pytest.mark.parametrize("overlap, expected", [(50, (0, 1, 1)), (51, (1, 0, 0))])
def test_match_needs_more_than_half(overlap, expected):
    gt, pred = _line((1, 100)), _line((5, overlap), (0, 100 - overlap))
    assert _counts(pred, [(5, THING)], gt, [(1, THING, 0)]) == expected


@pytest.mark.parametrize("on_void, expected", [(50, (0, 1, 0)), (51, (0, 0, 0))])
def test_prediction_on_void_is_ignored_beyond_half(on_void, expected):
    gt, pred = _line((0, on_void), (2, 100 - on_void)), _line((5, 100))
    assert _counts(pred, [(5, THING)], gt, [(2, OTHER, 0)]) == expected


def test_void_is_left_out_of_the_union():
    gt, pred = _line((1, 10), (0, 30)), _line((5, 40))
    assert _counts(pred, [(5, THING)], gt, [(1, THING, 0)]) == (1, 0, 0)


def test_miss_counts_even_where_the_prediction_is_void():
    gt, pred = _line((1, 10)), _line((0, 10))
    assert _counts(pred, [], gt, [(1, THING, 0)]) == (0, 0, 1)


def test_crowd_stays_in_the_union():
    """An instance plus as much of a crowd of its class: IoU is 0.5, no match."""
    gt, pred = _line((1, 10), (2, 10)), _line((5, 20))
    assert _counts(pred, [(5, THING)], gt, [(1, THING, 0), (2, THING, 1)]) == (0, 1, 1)


def test_crowd_forgives_its_own_class_only_and_is_no_miss():
    gt, pred = _line((2, 20)), _line((5, 20))
    assert _counts(pred, [(5, THING)], gt, [(2, THING, 1)]) == (0, 0, 0)
    assert _counts(pred, [(5, THING)], gt, [(2, OTHER, 1)]) == (0, 1, 0)


def test_only_the_last_crowd_of_a_class_forgives():
    gt, pred = _line((2, 20), (3, 20)), _line((5, 20), (6, 20))
    assert _counts(pred, [(5, THING), (6, THING)], gt, [(2, THING, 1), (3, THING, 1)]) == (0, 1, 0)


def test_void_and_crowd_forgive_together():
    gt, pred = _line((0, 30), (2, 30), (3, 40)), _line((5, 100))
    assert _counts(pred, [(5, THING)], gt, [(2, THING, 1), (3, OTHER, 0)]) == (0, 0, 0)


def test_true_pixels_without_a_record_are_neither_void_nor_segment():
    gt, pred = _line((9, 20)), _line((5, 20))
    assert _counts(pred, [(5, THING)], gt, []) == (0, 1, 0)


def test_stuff_is_not_merged():
    gt, pred = _line((1, 20), (2, 20)), _line((5, 40))
    assert _counts(pred, [(5, STUFF)], gt, [(1, STUFF, 0), (2, STUFF, 0)], STUFF) == (0, 1, 2)


@pytest.mark.parametrize("area", [0, 1, 5, 20, -3, "10", None, float("nan")])
def test_areas_are_counted_whatever_the_records_say(area):
    gt, pred = _line((1, 10), (2, 5)), _line((1, 8), (2, 7))
    segments = [_segment(1, THING), _segment(2, STUFF)]
    right, found = PanopticQuality(CATEGORIES), PanopticQuality(CATEGORIES)
    right.update(pred, segments, gt, segments)
    found.update(pred, segments, gt, [{**segment, "area": area} for segment in segments])
    assert found.compute() == right.compute()
    assert found.compute()["SQ"] == pytest.approx(100 * (8 / 10 + 5 / 7) / 2, abs=1e-12)


def test_area_is_counted_without_a_record_of_it():
    gt = _line((1, 10), (2, 5))
    quality = PanopticQuality(CATEGORIES)
    segments = [_segment(1, THING), _segment(2, STUFF)]
    quality.update(gt, segments, gt, segments)
    assert quality.compute()["PQ"] == 100.0


def test_blocks_without_classes_are_nan():
    gt = _line((1, 10))
    quality = PanopticQuality([c for c in CATEGORIES if c["isthing"]])
    assert np.isnan(quality.compute()["PQ"])  # no image yet
    quality.update(gt, [_segment(1, THING)], gt, _gt(gt, [(1, THING, 0)]))
    result = quality.compute()
    assert result["PQ"] == result["PQ_th"] == 100.0
    assert np.isnan([result["PQ_st"], result["SQ_st"], result["RQ_st"]]).all()


def test_predicted_record_without_pixels_is_ignored():
    gt = _line((1, 10))
    quality = PanopticQuality(CATEGORIES)
    quality.update(gt, [_segment(1, THING), _segment(2, STUFF)], gt, _gt(gt, [(1, THING, 0)]))
    assert quality.compute()["per_class"][STUFF]["FP"] == 0 and quality.compute()["PQ"] == 100.0


def test_large_ids_and_unsigned_maps():
    big = 256**3 - 1
    gt, pred = _line((big, 10), (1, 4)).astype(np.uint32), _line((big, 10), (2, 4)).astype(np.int64)
    segments = [(big, THING), (2, STUFF)]
    assert _counts(pred, segments, gt, [(big, THING, 0), (1, STUFF, 0)]) == (1, 0, 0)


# ------------------------------------------------------------------ wrong input


@pytest.mark.parametrize(
    "pred, segments, message",
    [
        (_line((1, 9)), [_segment(1, THING)], "differ in size"),
        (_line((1, 10)), [], r"ids \[1\] without a record"),
        (_line((1, 10)), [_segment(1, 4)], "category_id 4"),
        (_line((1, 10)), [_segment(1, THING), _segment(1, OTHER)], "two predicted segments"),
        (_line((0, 10)), [_segment(0, THING)], "id 0"),
        (_line((1, 10)).astype(float), [_segment(1, THING)], "integers"),
        (_line((-1, 10)), [], "negative"),
        (
            _line((1, 10)),
            [{"id": 1, "label_id": THING}],
            "'label_id': 1.* expected integers",
        ),
        (_line((1, 10)), [{"id": "1", "category_id": THING}], "a predicted segment is {'id': '1'"),
        (_line((1, 10)), [{"id": 1, "category_id": 1.0}], "a predicted segment is .*1.0"),
        (_line((1, 10)), [None], "a predicted segment is None"),
    ],
)
def test_wrong_predictions_are_named(pred, segments, message):
    gt = _line((1, 10))
    quality = PanopticQuality(CATEGORIES)
    with pytest.raises(UserError, match=message):
        quality.update(pred, segments, gt, _gt(gt, [(1, THING, 0)]))
    assert quality.num_images == 0 and np.isnan(quality.compute()["PQ"])  # nothing was counted


def test_records_of_other_libraries_are_understood():
    """Ids that are integers of numpy or torch."""
    gt = _line((1, 10))
    for integer in (np.int32, torch.tensor):
        quality = PanopticQuality(CATEGORIES)
        quality.update(gt, [{"id": integer(1), "category_id": integer(THING)}], gt, _gt(gt, [(1, THING, 0)]))
        assert quality.compute()["PQ"] == 100
    with pytest.raises(UserError, match="every category needs 'id' and 'isthing'"):
        PanopticQuality([{"id": 1, "name": "cat"}])


def test_unknown_true_category_is_named():
    gt = _line((1, 10))
    with pytest.raises(UserError, match="a true segment has category_id 5"):
        PanopticQuality(CATEGORIES).update(gt * 0, [], gt, _gt(gt, [(1, 5, 0)]))


def test_merging_different_categories_is_refused():
    with pytest.raises(UserError, match="different categories"):
        PanopticQuality(CATEGORIES).merge(PanopticQuality(CATEGORIES[:2]))


# ------------------------------------------------------------------ panopticapi as the oracle


def _blobs(rng, h, w, k):
    """A random map of up to k regions, ids 0..k-1."""
    seeds = rng.uniform(0, 1, (k, 2)) * (h, w)
    y, x = np.mgrid[:h, :w]
    return np.argmin([(y - a) ** 2 + (x - b) ** 2 for a, b in seeds], axis=0)


def _random_pair(rng):
    """A truth and a perturbed prediction with void, crowds and unlisted true ids."""
    h, w = rng.integers(12, 32, 2)
    k = int(rng.integers(1, 9))
    regions = _blobs(rng, h, w, k)
    new_ids = rng.choice(2**24 - 1, k, replace=False) + 1
    new_ids[rng.uniform(size=k) < 0.2] = 0
    gt = new_ids[regions]
    truth = []
    for i in np.unique(gt).tolist():
        if i and rng.uniform() < 0.95:
            category = CATEGORIES[rng.integers(len(CATEGORIES))]["id"]
            truth.append(_segment(i, category, int((gt == i).sum()), int(rng.uniform() < 0.25)))
    kind = rng.uniform()
    if kind < 0.1:  # nothing predicted
        return gt, truth, np.zeros_like(gt), []
    shifted = np.roll(regions, tuple(rng.integers(-2, 3, 2)), (0, 1)) if kind < 0.8 else _blobs(rng, h, w, k)
    pred_ids = rng.choice(2**24 - 1, k, replace=False) + 1
    pred_ids[rng.uniform(size=k) < 0.15] = 0
    pred = pred_ids[shifted]
    true_category = {s["id"]: s["category_id"] for s in truth}
    guesses = {p: true_category.get(g) for p, g in zip(pred_ids.tolist(), new_ids.tolist(), strict=True)}
    predicted = []
    for i in np.unique(pred).tolist():
        if i:
            guess = guesses[i] if rng.uniform() < 0.8 else None
            predicted.append(_segment(i, guess or CATEGORIES[rng.integers(len(CATEGORIES))]["id"]))
    return gt, truth, pred, predicted


def _write(folder, name, pairs):
    (folder / name).mkdir()
    annotations = []
    for i, (ids, segments) in enumerate(pairs):
        rgb = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=-1).astype(np.uint8)
        Image.fromarray(rgb).save(folder / name / f"{i}.png")
        annotations.append({"image_id": i, "file_name": f"{i}.png", "segments_info": segments})
    images = [{"id": i} for i in range(len(pairs))]
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    (folder / f"{name}.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def random_pairs():
    rng = np.random.default_rng(11)
    return [_random_pair(rng) for _ in range(520)]


def test_equals_panopticapi(random_pairs, tmp_path, monkeypatch):
    evaluation = pytest.importorskip("panopticapi.evaluation")
    single = evaluation.pq_compute_single_core
    monkeypatch.setattr(evaluation, "pq_compute_multi_core", lambda *arguments: single(0, *arguments))
    _write(tmp_path, "gt", [(gt, truth) for gt, truth, _, _ in random_pairs])
    _write(tmp_path, "pred", [(pred, predicted) for _, _, pred, predicted in random_pairs])
    arguments = [str(tmp_path / n) for n in ("gt.json", "pred.json", "gt", "pred")]
    expected = evaluation.pq_compute(*arguments)

    quality = PanopticQuality(CATEGORIES)
    for gt, truth, pred, predicted in random_pairs:
        quality.update(pred, predicted, gt, truth)
    result = quality.compute()
    for block, suffix in (("All", ""), ("Things", "_th"), ("Stuff", "_st")):
        for name in ("pq", "sq", "rq"):
            assert result[name.upper() + suffix] == pytest.approx(100 * expected[block][name], abs=1e-9)
    for category, values in expected["per_class"].items():
        for name, value in values.items():
            assert result["per_class"][category][name.upper()] == pytest.approx(100 * value, abs=1e-9)
    counts = np.array([[c["TP"], c["FP"], c["FN"]] for c in result["per_class"].values()]).sum(0)
    assert (counts > 50).all()  # the cases exercise every branch


def test_each_random_pair_equals_panopticapi(random_pairs, tmp_path):
    """Per image, so that errors cannot cancel."""
    evaluation = pytest.importorskip("panopticapi.evaluation")
    _write(tmp_path, "gt", [(gt, truth) for gt, truth, _, _ in random_pairs])
    _write(tmp_path, "pred", [(pred, predicted) for _, _, pred, predicted in random_pairs])
    truths = json.loads((tmp_path / "gt.json").read_text())["annotations"]
    predictions = json.loads((tmp_path / "pred.json").read_text())["annotations"]
    categories = {c["id"]: c for c in CATEGORIES}
    for pair, truth, prediction in zip(random_pairs, truths, predictions, strict=True):
        expected = evaluation.pq_compute_single_core(
            0, [(truth, prediction)], str(tmp_path / "gt"), str(tmp_path / "pred"), categories
        )
        quality = PanopticQuality(CATEGORIES)
        quality.update(pair[2], pair[3], pair[0], pair[1])
        for category, found in quality.compute()["per_class"].items():
            want = expected[category]
            assert (found["TP"], found["FP"], found["FN"]) == (want.tp, want.fp, want.fn)
            assert found["SQ"] * found["TP"] == pytest.approx(100 * want.iou, abs=1e-9)
