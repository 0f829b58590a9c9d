"""Trimming of small stuff and the IoU of stuff in final panoptic maps, against brute force."""

import numpy as np
import pytest
import torch
from detectron2.structures import Instances

from auto_panoptic.evaluation import Overlap, PanopticQuality, StuffIoU
from auto_panoptic.modeling.fusion import combine

CATEGORIES = [{"id": i, "isthing": int(i < 4)} for i in (1, 2, 3, 7, 8, 9)]
STUFF = {7, 8, 9}


def _random_image(rng):
    """A pair of maps with void, crowds, ids without a record and several segments of a class."""
    h, w = rng.integers(8, 24, 2)
    gt, pred = (np.kron(rng.integers(0, 7, (h, w)), np.ones((2, 3), int)) for _ in range(2))
    truth = [
        {"id": i, "category_id": int(rng.choice([1, 2, 7, 8, 9])), "iscrowd": int(rng.uniform() < 0.2)}
        for i in range(1, 6)
    ]
    pred = np.where(rng.uniform(size=pred.shape) < 0.7, gt, pred) * (rng.uniform(size=pred.shape) < 0.9)
    predicted = [{"id": i, "category_id": int(rng.choice([1, 3, 7, 8, 9]))} for i in range(1, 7)]
    return pred, predicted, gt, truth


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(7)
    return [_random_image(rng) for _ in range(60)]


def _iou(overlaps) -> StuffIoU:
    metric = StuffIoU(CATEGORIES)
    for overlap in overlaps:
        metric.add(overlap)
    return metric


def _brute_force(images) -> dict:
    """{category: IoU in percent} with one mask per class and image."""
    counts = {c: [0, 0, 0] for c in STUFF}
    for pred, predicted, gt, truth in images:
        for c in STUFF:
            a = np.isin(gt, [s["id"] for s in truth if s["category_id"] == c])
            b = np.isin(pred, [s["id"] for s in predicted if s["category_id"] == c]) & (gt != 0)
            for k, mask in enumerate((a & b, a | b, a)):
                counts[c][k] += int(mask.sum())
    return {c: 100 * i / u if true else float("nan") for c, (i, u, true) in counts.items()}


def test_iou_equals_brute_force(images):
    found, expected = _iou(Overlap.of(*image) for image in images).compute(), _brute_force(images)
    assert found["per_class"] == expected
    assert found["IoU_st"] == pytest.approx(np.mean(list(expected.values())), abs=1e-12)
    assert 5 < found["IoU_st"] < 95


def test_iou_of_parts_is_exactly_that_of_the_whole(images):
    overlaps = [Overlap.of(*image) for image in images]
    merged = _iou(overlaps[::3]).merge(_iou(overlaps[1::3])).merge(_iou(overlaps[2::3]))
    assert merged.compute() == _iou(overlaps).compute()


def test_iou_by_hand():
    """Stuff 7 has 10 pixels: 6 found, 1 called 8, 3 left void; 2 pixels of a thing and 4 of void called 7.

    Class 8 does not occur in the truth and is not averaged; its pixel costs class 7.
    """
    gt = np.array([[1] * 10 + [2] * 2 + [0] * 4])
    pred = np.array([[1] * 6 + [2] * 1 + [0] * 3 + [1] * 2 + [1] * 4])
    truth = [{"id": 1, "category_id": 7}, {"id": 2, "category_id": 1}]
    found = _iou([Overlap.of(pred, [{"id": 1, "category_id": 7}, {"id": 2, "category_id": 8}], gt, truth)])
    assert found.compute()["IoU_st"] == found.compute()["per_class"][7] == pytest.approx(100 * 6 / 12)
    assert np.isnan(found.compute()["per_class"][8])
    assert np.isnan(_iou([]).compute()["IoU_st"])


def test_iou_is_that_of_the_merged_map_not_of_the_semantic_head():
    """The head finds the stuff perfectly; a wrong instance then hides a quarter of it."""
    truth = [{"id": 1, "category_id": 7}]
    gt = np.ones((4, 4), int)
    instances = Instances((4, 4))
    instances.scores, instances.pred_classes = torch.tensor([0.9]), torch.tensor([0])
    instances.pred_masks = torch.zeros(1, 4, 4, dtype=torch.bool)
    instances.pred_masks[0, 0] = True
    options = {"overlap": 0.5, "stuff_area": 0, "score": 0.5, "high_score": 0.7, "instance_area": 0}
    semantic = torch.ones(4, 4, dtype=torch.int64)
    for found, expected in ((instances, 75.0), (instances[:0], 100.0)):
        ids, segments = combine("detectron2", found, semantic, **options)
        records = [{"id": s["id"], "category_id": 1 if s["isthing"] else 7} for s in segments]
        assert _iou([Overlap.of(ids.numpy(), records, gt, truth)]).compute()["IoU_st"] == expected


# ------------------------------------------------------------------ trimming


def _trimmed(image, area):
    """Trimming done on the map itself, class by class."""
    pred, predicted, gt, truth = image
    pred = pred.copy()
    for c in STUFF:
        mask = np.isin(pred, [s["id"] for s in predicted if s["category_id"] == c])
        if mask.sum() < area:
            pred[mask] = 0
    return pred, predicted, gt, truth


def _trim(overlap, area):
    return overlap.without(overlap.small_stuff(STUFF, area))


@pytest.mark.parametrize("area", [0, 1, 100, 250, 10**6])
def test_trimming_equals_trimming_of_the_map(images, area):
    for image in images:
        overlap = _trim(Overlap.of(*image), area)
        expected = Overlap.of(*_trimmed(image, area))
        assert overlap.areas == expected.areas and overlap.predicted == expected.predicted
        sums = {}
        for g, p, n in overlap.pairs:
            sums[g, p] = sums.get((g, p), 0) + n
        assert sums == {(g, p): n for g, p, n in expected.pairs}
        for metric in (_iou, _quality):
            assert repr(metric([overlap]).compute()) == repr(metric([expected]).compute())


def _quality(overlaps) -> PanopticQuality:
    quality = PanopticQuality(CATEGORIES)
    for overlap in overlaps:
        quality.add(overlap)
    return quality


def test_trimming_is_idempotent_and_leaves_things_alone(images):
    changed = 0
    for image in images:
        overlap = Overlap.of(*image)
        once = _trim(overlap, 200)
        assert _trim(once, 200) == once and _trim(overlap, 0) == overlap
        changed += once != overlap
        for p, segment in overlap.predicted.items():
            if segment["category_id"] not in STUFF:
                assert once.predicted[p] == segment and once.areas[p] == overlap.areas[p]
    assert changed > 20


def test_the_threshold_is_a_least_area_and_counts_a_class_as_a_whole():
    pred = np.array([[1] * 4 + [2] * 3 + [3] * 6])
    records = [{"id": 1, "category_id": 7}, {"id": 2, "category_id": 7}, {"id": 3, "category_id": 8}]
    overlap = Overlap.of(pred, records, pred * 0, [])
    found = [overlap.small_stuff(STUFF, area) for area in (6, 7, 8)]
    assert found == [set(), {3}, {1, 2, 3}]


def test_one_stray_segment_costs_recognition_but_hardly_iou():
    """40 stray pixels of an absent class beside 100,000 right ones."""
    gt = np.ones((250, 400), int)
    gt[125:] = 2
    pred = gt.copy()
    pred[0, :40] = 3
    truth = [{"id": 1, "category_id": 7}, {"id": 2, "category_id": 8}]
    other = np.full((250, 400), 4)
    images = [
        Overlap.of(pred, [*truth, {"id": 3, "category_id": 9}], gt, truth),
        Overlap.of(other, [{"id": 4, "category_id": 9}], other, [{"id": 4, "category_id": 9}]),
    ]
    after = [_trim(image, 2048) for image in images]
    recognition = [_quality(overlaps).compute()["RQ_st"] for overlaps in (images, after)]
    assert recognition == [pytest.approx(100 * (1 + 1 + 1 / 1.5) / 3), 100.0]
    iou = [_iou(overlaps).compute()["IoU_st"] for overlaps in (images, after)]
    assert iou[0] != iou[1] and abs(iou[1] - iou[0]) < 0.1  # percent


@pytest.mark.parametrize("stray, change", [(40, 1), (0, -1)])
def test_trimming_moves_the_iou_either_way(stray, change):
    """A false segment that is trimmed leaves the union, a right one the intersection."""
    gt = np.ones((100, 100), int)
    gt[0, :90] = 2  # 90 pixels of class 8
    pred = gt.copy()
    pred[50, :stray] = 3
    truth = [{"id": 1, "category_id": 7}, {"id": 2, "category_id": 8}]
    image = Overlap.of(pred, [*truth, {"id": 3, "category_id": 9}], gt, truth)
    other = Overlap.of(np.full((9, 9), 4), [{"id": 4, "category_id": 9}], np.full((9, 9), 4), [
        {"id": 4, "category_id": 9}
    ])  # fmt: skip
    area = 80 if stray else 95
    before, after = (_iou([x, other]).compute()["per_class"] for x in (image, _trim(image, area)))
    moved = {c for c in STUFF if before[c] != after[c]}
    assert moved == ({9} if stray else {8})
    (category,) = moved
    assert np.sign(after[category] - before[category]) == change


@pytest.mark.parametrize("method", ["detectron2", "reference"])
def test_trimming_equals_the_limit_in_merging(method):
    """What --trim-study relies on: merging with a limit, or without one and trimming at it."""
    rng = np.random.default_rng(1)
    options = {"overlap": 0.5, "score": 0.5, "high_score": 0.7, "instance_area": 0}
    limits = (30, 60, 90, 130)
    fewer = 0
    for _ in range(20):
        instances = Instances((20, 30))
        instances.scores = torch.as_tensor(rng.uniform(0.4, 1, 3))
        instances.pred_classes = torch.as_tensor(rng.integers(0, 3, 3))
        masks = np.zeros((3, 20, 30), bool)
        for mask, (y, x) in zip(masks, rng.integers(0, 15, (3, 2)), strict=True):
            mask[y : y + 8, x : x + 9] = True
        instances.pred_masks = torch.as_tensor(masks)
        semantic = torch.as_tensor(np.kron(rng.integers(0, 4, (4, 6)), np.ones((5, 5), int)))

        def maps(limit, instances=instances, semantic=semantic):
            ids, segments = combine(method, instances, semantic, stuff_area=limit, **options)
            category = {s["id"]: s["category_id"] + (1 if s["isthing"] else 6) for s in segments}
            return ids.numpy(), [{"id": i, "category_id": c} for i, c in category.items()]

        for limit in limits:
            limited, full = (Overlap.of(*maps(m), semantic.numpy(), []) for m in (limit, 1))
            trimmed = _trim(full, limit)
            fewer += trimmed != full

            def by_class(overlap):
                return sorted((g, overlap.predicted[p]["category_id"], n) for g, p, n in overlap.pairs if p)

            assert by_class(trimmed) == by_class(limited)
    assert fewer > 20
