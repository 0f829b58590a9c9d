"""Post-processing of Panoptic-DeepLab beside Detectron2's own, value by value."""

import numpy as np
import pytest
import torch
from detectron2.projects.panoptic_deeplab import post_processing as detectron2
from detectron2.structures import BitMasks
from torch.nn import functional as F

from auto_panoptic.systems.panoptic_deeplab import (
    find_centers,
    group_pixels,
    instances_of,
    panoptic_segmentation,
    post_processing,
)

VOID = -1
DIVISOR = 1000


def random_case(seed):
    """(centers, offsets); offsets are often whole numbers, and centres close, so that many pixels tie."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(2, 40, size=2)
    count = rng.integers(1, 30)
    centers = np.stack([rng.integers(0, height, count), rng.integers(0, width, count)], axis=1)
    offsets = rng.normal(0, rng.choice([0.5, 10, 3000]), size=(2, height, width))
    if seed % 3 == 0:
        offsets = offsets.round()
    if seed % 3 == 1:  # far away the distances to all centres are few different numbers
        offsets = offsets * 1e5
    return torch.from_numpy(centers), torch.from_numpy(offsets.astype(np.float32))


def random_outputs(seed, size=None, classes=5):
    """(semantic, heatmap, offsets) as a network might give them, with equal scores and noise."""
    rng = np.random.default_rng(seed)
    height, width = size or rng.integers(8, 40, size=2)
    coarse = rng.integers(0, classes, size=(height // 4 + 1, width // 4 + 1))
    semantic = coarse.repeat(4, 0).repeat(4, 1)[:height, :width]
    heatmap = rng.random((1, height, width)) - 0.25
    heatmap = (8 * heatmap).round() / 8 if seed % 2 else heatmap
    offsets = rng.normal(0, 4, size=(2, height, width))
    return torch.from_numpy(semantic.copy()), *(torch.from_numpy(a).float() for a in (heatmap, offsets))


def detectron2_map(semantic, heatmap, offsets, things, stuff_area, **options):
    panoptic, centers = detectron2.get_panoptic_segmentation(
        semantic[None], heatmap, offsets, set(things), DIVISOR, stuff_area, VOID, **options
    )
    return panoptic[0], centers[0]


def same_partition(panoptic, segments, expected):
    """Every segment covers exactly the pixels of one of Detectron2's labels, of its class."""
    pairs = torch.stack([panoptic.long().flatten(), expected.flatten()]).unique(dim=1).T.tolist()
    assert len(pairs) == len({p for p, _ in pairs}) == len({e for _, e in pairs})
    labels = dict(pairs)
    assert labels.pop(0, VOID) == VOID
    assert {s["id"]: s["category_id"] for s in segments} == {p: e // DIVISOR for p, e in labels.items()}
    assert all(s["area"] == int((panoptic == s["id"]).sum()) for s in segments)


@pytest.fixture(params=["cpu", "accelerator"])
def grouping(request, monkeypatch):
    """Either way of finding the nearest centre, here on a CPU, in parts of a few pixels."""
    if request.param == "accelerator":
        monkeypatch.setattr(post_processing, "_running_minimum", post_processing._of_distances)
    monkeypatch.setattr(post_processing, "_DISTANCES", 1000)
    monkeypatch.setattr(post_processing, "_CHUNK", 100)


@pytest.mark.parametrize("first", range(0, 600, 100))
@pytest.mark.usefixtures("grouping")
def test_pixels_are_grouped_as_detectron2_groups_them(first):
    ties = 0
    for seed in range(first, first + 100):
        centers, offsets = random_case(seed)
        expected = detectron2.group_pixels(centers, offsets)[0]
        found = group_pixels(centers, offsets)
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected), seed
        mask = torch.from_numpy(np.random.default_rng(seed).random(found.shape) < 0.5)
        assert torch.equal(group_pixels(centers, offsets, mask), expected * mask), seed
        ties += int((group_pixels(centers.flip(0), offsets) != len(centers) + 1 - expected).sum())
    assert ties > 1000  # pixels with several nearest centres


@pytest.mark.usefixtures("grouping")
def test_different_squares_with_one_root_tie():
    """2800^2 + 51^2 is 2766^2 + 438^2 + 1, but in float32 the roots of both are equal."""
    centers = torch.tensor([[2800, 51], [2766, 438]])
    squares = (centers**2).sum(dim=1).numpy().astype(np.float32)
    assert squares[0] > squares[1] and np.sqrt(squares[0]) == np.sqrt(squares[1])
    offsets = torch.zeros(2, 1, 1)
    assert group_pixels(centers, offsets).item() == 1 == detectron2.group_pixels(centers, offsets).item()


@pytest.mark.usefixtures("grouping")
def test_grouping_by_hand():
    centers = torch.tensor([[0, 0], [0, 4], [0, 4]])
    offsets = torch.zeros(2, 1, 5)
    assert group_pixels(centers, offsets).tolist() == [[1, 1, 1, 2, 2]]  # pixel 2 is between both
    offsets[1, 0, 0] = 3.0
    assert group_pixels(centers, offsets).tolist() == [[2, 1, 1, 2, 2]]
    mask = torch.tensor([[True, True, False, False, True]])
    assert group_pixels(centers, offsets, mask).tolist() == [[2, 1, 0, 0, 2]]
    assert group_pixels(centers[:0], offsets).tolist() == [[0] * 5]
    assert group_pixels(centers, offsets, mask & False).tolist() == [[0] * 5]
    offsets[:] = float("nan")
    assert group_pixels(centers, offsets).tolist() == [[1] * 5]


@pytest.mark.usefixtures("grouping")
def test_halves_are_grouped_in_float32():
    centers = torch.tensor([[0, 4094], [0, 4095]])
    offsets = torch.zeros(2, 1, 4096)
    for dtype in (torch.float16, torch.bfloat16):
        assert group_pixels(centers, offsets.to(dtype))[0, -2:].tolist() == [1, 2]


@pytest.mark.parametrize("kernel", [1, 3, 7])
@pytest.mark.parametrize("top_k", [None, 1, 5, 30])
@pytest.mark.parametrize("threshold", [0.1, -0.5])
def test_centers_are_those_of_detectron2(kernel, top_k, threshold):
    for seed in range(20):
        heatmap = torch.randn(1, 13, 17, generator=torch.Generator().manual_seed(seed))
        heatmap = heatmap if seed % 2 else (4 * heatmap).round() / 4  # equal scores
        heatmap[0, 3, 5] = float("nan") if seed == 7 else heatmap[0, 3, 5]
        expected = detectron2.find_instance_center(heatmap.clone(), threshold, kernel, top_k)
        assert torch.equal(find_centers(heatmap, threshold, kernel, top_k), expected), seed


def test_of_k_best_scores_the_last_one_is_left_out():
    heatmap = torch.zeros(1, 1, 9)
    heatmap[0, 0, ::4] = torch.tensor([0.5, 0.9, 0.7])
    assert find_centers(heatmap, 0.1, 3, 3).tolist() == [[0, 4], [0, 8]]
    assert find_centers(heatmap, 0.1, 3, 4).tolist() == [[0, 0], [0, 4], [0, 8]]
    assert find_centers(heatmap, 0.1, 3, 200).tolist() == [[0, 0], [0, 4], [0, 8]]  # Detectron2 fails


@pytest.mark.parametrize("stuff_area", [0, 1, 40])
@pytest.mark.parametrize("top_k", [None, 3, 20])
def test_panoptic_maps_are_those_of_detectron2(stuff_area, top_k):
    options, kinds = {"threshold": 0.3, "nms_kernel": 3, "top_k": top_k}, set()
    for seed in range(60):
        semantic, heatmap, offsets = random_outputs(seed)
        heatmap = heatmap.clamp(max=0.2) if seed % 10 == 0 else heatmap
        expected, expected_centers = detectron2_map(semantic, heatmap, offsets, [0, 2], stuff_area, **options)
        panoptic, segments, centers = panoptic_segmentation(
            semantic, heatmap, offsets, [0, 2], stuff_area, **options
        )
        assert panoptic.dtype == torch.int32
        assert torch.equal(centers, expected_centers)
        same_partition(panoptic, segments, expected)
        assert [s["id"] for s in segments] == list(range(1, len(segments) + 1))
        things = [s for s in segments if s["isthing"]]
        assert [s["instance_id"] for s in things] == list(range(len(things)))
        assert all(list(s["center"]) in centers.tolist() for s in things)
        kinds |= {s["isthing"] for s in segments} | ({"void"} if 0 in panoptic else set())
    assert kinds == {True, False, "void"}


def test_a_group_gets_its_most_frequent_label_of_equal_ones_the_lowest():
    semantic = torch.tensor([[3, 3, 1, 1, 2, 4]])
    heatmap = torch.tensor([[[0.0, 0.5, 0, 0, 0, 0]]])
    offsets = torch.zeros(2, 1, 6)
    panoptic, segments, _ = panoptic_segmentation(semantic, heatmap, offsets, [1, 2, 3], 1)
    assert panoptic.tolist() == [[1, 1, 1, 1, 1, 2]]
    assert segments == [
        {"id": 1, "isthing": True, "category_id": 1, "area": 5, "instance_id": 0, "center": (0, 1)},
        {"id": 2, "isthing": False, "category_id": 4, "area": 1},
    ]
    panoptic, segments, _ = panoptic_segmentation(semantic, heatmap * 0, offsets, [1, 2, 3], 2)
    assert panoptic.tolist() == [[0] * 6] and segments == []  # no centre, little stuff


def detectron2_instances(panoptic, things, probabilities, heatmap):
    """As in ``PanopticDeepLab.forward``: {label: (score, box)}."""
    found = {}
    for label in panoptic.unique().tolist():
        if label != VOID and label // DIVISOR in things:
            mask = panoptic == label
            y, x = (int(v) for v in mask.nonzero().float().mean(dim=0))
            score = probabilities[label // DIVISOR][mask].mean() * heatmap[0, y, x]
            found[label] = score, BitMasks(mask[None]).get_bounding_boxes().tensor[0]
    return found


def test_instances_are_those_of_detectron2():
    options, compared = {"threshold": 0.3, "nms_kernel": 3, "top_k": 20}, 0
    for seed in range(40):
        semantic, heatmap, offsets = random_outputs(seed)
        logits = torch.randn(5, *semantic.shape, generator=torch.Generator().manual_seed(seed))
        probabilities = F.softmax(logits, dim=0)
        expected, _ = detectron2_map(semantic, heatmap, offsets, [0, 2], 0, **options)
        truth = detectron2_instances(expected, [0, 2], probabilities, heatmap)
        panoptic, segments, _ = panoptic_segmentation(semantic, heatmap, offsets, [0, 2], 0, **options)
        instances = instances_of(panoptic, segments, probabilities, heatmap)
        assert instances.image_size == tuple(semantic.shape)
        assert len(instances) == len(truth)
        for i in range(len(instances)):
            mask = instances.pred_masks[i]
            label = expected[mask][0].item()
            score, box = truth.pop(label)
            assert torch.equal(mask, expected == label)
            assert instances.pred_classes[i] == label // DIVISOR
            assert torch.equal(instances.pred_boxes.tensor[i], box)
            torch.testing.assert_close(instances.scores[i], score)
            compared += 1
    assert compared > 200


def test_scores_by_hand():
    """Item 46: two pixels of label 0 with probabilities 0.5 and 0.75, centre at x 3, centroid at x 2.5."""
    semantic = torch.tensor([[1, 1, 0, 0, 1]])
    heatmap = torch.tensor([[[0.0, 0.25, 0.5, 0.875, 0.0]]])
    probabilities = torch.tensor([[[0.0, 0.0, 0.5, 0.75, 0.0]], [[1.0, 1.0, 0.5, 0.25, 1.0]]])
    panoptic, segments, _ = panoptic_segmentation(semantic, heatmap, torch.zeros(2, 1, 5), [0], 0)

    def scores(*settings):
        return instances_of(panoptic, segments, probabilities, heatmap, *settings).scores.tolist()

    assert scores("objectness", "centroid") == [0.5]
    assert scores("objectness", "center") == [0.875]
    assert scores("class") == [0.625]
    assert scores("product", "centroid") == [0.5 * 0.625] == scores()
    assert scores("product", "center") == [0.875 * 0.625]


def test_no_instances_have_all_fields():
    semantic = torch.ones(4, 6, dtype=torch.int64)
    outputs = torch.zeros(1, 4, 6), torch.zeros(2, 4, 6)
    panoptic, segments, centers = panoptic_segmentation(semantic, *outputs, [0], 0)
    assert centers.shape == (0, 2) and len(segments) == 1
    for at in ("centroid", "center"):
        empty = instances_of(panoptic, segments, torch.ones(2, 4, 6), outputs[0], "product", at)
        assert len(empty) == 0
        assert empty.pred_masks.shape == (0, 4, 6) and empty.pred_boxes.tensor.shape == (0, 4)
