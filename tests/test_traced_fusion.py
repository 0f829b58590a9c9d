"""Merging as stored in exported networks: the same maps and segments as merging itself."""

import numpy as np
import pytest
import torch
from detectron2.layers import paste_masks_in_image
from detectron2.structures import Instances

from auto_panoptic.modeling.fusion import METHODS, combine
from auto_panoptic.modeling.traced_fusion import merged

LABELS = 5


def random_case(rng, count):
    """Boxes, masks, scores (best first, some equal), classes, labels, and thresholds that matter."""
    height, width = (int(side) for side in rng.integers(12, 40, 2))
    corners = rng.uniform(-3, 1, (count, 2)) + rng.uniform(0, 1, (count, 2)) * [width, height]
    boxes = np.concatenate([corners, corners + rng.uniform(2, 20, (count, 2))], axis=1)
    boxes = boxes.clip(0, [width, height, width, height])
    scores = np.sort(rng.choice([0.3, 0.5, 0.6, 0.725, 0.73, 0.9, rng.random()], count))[::-1].copy()
    blocks = rng.integers(0, LABELS, (5, 5))
    labels = np.kron(blocks, np.ones((8, 8), dtype=np.int64))[:height, :width]
    tensors = (
        torch.tensor(boxes, dtype=torch.float32),
        torch.rand(count, 1, 7, 7, generator=torch.Generator().manual_seed(int(rng.integers(1 << 30)))),
        torch.tensor(scores, dtype=torch.float32),
        torch.from_numpy(rng.integers(0, 4, count)),
        torch.from_numpy(labels),
    )
    options = {
        "overlap": float(rng.choice([0.0, 0.25, 0.5, 1.0])),
        "stuff_area": int(rng.choice([0, 1, 20, 64])),
        "score": float(rng.choice([0.0, 0.5])),
        "high_score": 0.725,
        "instance_area": int(rng.choice([0, 1, 30])),
    }
    return tensors, options


def expected(method, tensors, options):
    boxes, masks, scores, classes, labels = tensors
    instances = Instances(tuple(labels.shape))
    instances.scores, instances.pred_classes = scores, classes
    instances.pred_masks = paste_masks_in_image(masks[:, 0], boxes, tuple(labels.shape))
    panoptic, segments = combine(method, instances, labels, **options)
    return panoptic, [[s["id"], s["category_id"], int(s["isthing"])] for s in segments]


def assert_same(found, wanted):
    assert torch.equal(found[0], wanted[0]) and found[0].dtype == wanted[0].dtype
    assert found[1].tolist() == wanted[1]


@pytest.mark.parametrize("method", METHODS)
def test_equal_to_merging(method):
    rng, segments = np.random.default_rng(0), 0
    for _ in range(80):
        tensors, options = random_case(rng, int(rng.integers(0, 9)))
        wanted = expected(method, tensors, options)
        assert_same(merged(method, *tensors, LABELS, **options), wanted)
        segments += len(wanted[1])
    assert segments > 300


@pytest.mark.parametrize("method", METHODS)
def test_equal_to_merging_once_traced(method):
    """Traced on one case it serves others, with another number of instances, none among them."""
    rng = np.random.default_rng(1)
    example, options = random_case(rng, 3)
    traced = torch.jit.trace(
        lambda *tensors: merged(method, *tensors, LABELS, **options), example, check_trace=False
    )
    for count in (3, 8, 0, 1, 5, 8):
        tensors, _ = random_case(rng, count)
        assert_same(traced(*tensors), expected(method, tensors, options))


def test_unknown_method():
    tensors, options = random_case(np.random.default_rng(2), 2)
    with pytest.raises(ValueError, match="'best'.*detectron2, supplement, reference"):
        merged("best", *tensors, LABELS, **options)
