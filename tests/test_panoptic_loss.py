"""The panoptic loss: matching, targets and losses against loops over pairs and pixels, and its limits."""

import math

import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks

from auto_panoptic.systems.unified import dynamic_potential, lovasz_softmax, propagate
from auto_panoptic.systems.unified.panoptic_loss import (
    IGNORED,
    KINDS,
    match_detections,
    one_to_one,
    panoptic_loss,
    panoptic_targets,
)

STUFF = [3, 4]  # things are 0 to 2


def ground_truth(*entries, size=(16, 24)):
    """Instances of a ground truth; each entry is (class, (x0, y0, x1, y1)), and its mask fills the box."""
    truth = Instances(size)
    masks = torch.zeros(len(entries), *size, dtype=torch.bool)
    for mask, (_, (x0, y0, x1, y1)) in zip(masks, entries, strict=True):
        mask[y0:y1, x0:x1] = True
    truth.gt_boxes = Boxes(torch.tensor([box for _, box in entries], dtype=torch.float32).view(-1, 4))
    truth.gt_classes = torch.tensor([c for c, _ in entries], dtype=torch.int64)
    truth.gt_masks = BitMasks(masks)
    return truth


def labels_of(truth, stuff=3):
    """A label map: stuff, and what the masks cover; those of the first instance lie on top."""
    labels = torch.full(truth.image_size, stuff)
    for mask, c in reversed(list(zip(truth.gt_masks.tensor, truth.gt_classes.tolist(), strict=True))):
        labels[mask] = c
    return labels


# ------------------------------------------------------------------ matching


def literal_matches(values):
    matches = [-1] * len(values)
    pairs = [(-v, d, g) for d, row in enumerate(values) for g, v in enumerate(row) if v > 0]
    for _, d, g in sorted(pairs):
        if matches[d] < 0 and g not in matches:
            matches[d] = g
    return matches


def literal_iou(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    overlap = max(0, width) * max(0, height)
    return overlap / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap)


@pytest.mark.parametrize("levels", [3, 10**6])
def test_matching_is_the_greedy_one(levels):
    """With 3 levels most values are equal."""
    rng = np.random.default_rng(levels)
    for _ in range(200):
        shape = rng.integers(0, 9, 2)
        values = rng.integers(0, levels, shape) * (rng.random(shape) < 0.7) / levels
        assert one_to_one(torch.tensor(values)).tolist() == literal_matches(values.tolist())


def test_matching_needs_the_class_and_more_than_half():
    truth = ground_truth((0, (0, 0, 10, 10)), (1, (0, 0, 10, 10)), (1, (10, 0, 20, 10)))
    boxes = torch.tensor([[0.0, 0, 10, 9], [10, 0, 20, 5], [10, 0, 20, 6], [0, 0, 10, 8], [0, 0, 10, 10]])
    for classes, expected in (([1] * 5, [-1, -1, 2, -1, 1]), ([0, 1, 0, 1, 2], [0, -1, -1, 1, -1])):
        assert match_detections(boxes, torch.tensor(classes), truth).tolist() == expected


def test_matching_of_random_boxes():
    rng = np.random.default_rng(0)
    for _ in range(30):
        sides = rng.integers(1, 5, (12, 2)), rng.integers(0, 4, (12, 2))
        boxes = np.concatenate([sides[1], sides[1] + sides[0]], axis=1)
        classes = rng.integers(0, 2, 12)
        truth = ground_truth(*((int(c), b.tolist()) for c, b in zip(classes[:5], boxes[:5], strict=True)))
        iou = np.array([[literal_iou(a, b) for b in boxes[:5].tolist()] for a in boxes[5:].tolist()])
        iou[(iou <= 0.5) | (classes[5:, None] != classes[:5])] = 0
        ours = match_detections(torch.tensor(boxes[5:]).float(), torch.tensor(classes[5:]), truth)
        assert ours.tolist() == literal_matches(iou.tolist())


@pytest.mark.parametrize("detections, instances", [(0, 0), (3, 0), (0, 3)])
def test_nothing_to_match(detections, instances):
    truth = ground_truth(*[(0, (0, 0, 4, 4))] * instances)
    boxes, classes = torch.ones(detections, 4), torch.zeros(detections, dtype=torch.int64)
    assert match_detections(boxes, classes, truth).tolist() == [-1] * detections


def test_the_ground_truths_own_boxes_match_themselves():
    """Also two of one place and class: equal pairs go by index."""
    truth = ground_truth((0, (0, 0, 9, 9)), (0, (1, 0, 9, 9)), (0, (0, 0, 9, 9)), (2, (3, 3, 8, 12)))
    assert match_detections(truth.gt_boxes.tensor, truth.gt_classes, truth).tolist() == [0, 1, 2, 3]


# ------------------------------------------------------------------ targets


def literal_targets(labels, truth, matches, stuff, stride):
    height, width = labels.shape[0] // stride, labels.shape[1] // stride
    targets = torch.full((height, width), IGNORED)
    for i in range(height):
        for j in range(width):
            y, x = i * stride + stride // 2, j * stride + stride // 2
            label = labels[y, x].item()
            if label in stuff:
                targets[i, j] = stuff.index(label)
                continue
            for g, mask in enumerate(truth.gt_masks.tensor):
                inside = y < mask.shape[0] and x < mask.shape[1] and mask[y, x].item()
                if inside and truth.gt_classes[g] == label:
                    if g in matches:
                        targets[i, j] = len(stuff) + matches.index(g)
                    break
    return targets


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_targets_are_the_literal_ones(stride):
    """Overlapping and unlabelled instances, void, labels without an instance, and padding."""
    rng = np.random.default_rng(stride)
    for _ in range(25):
        count = int(rng.integers(0, 5))
        corners = np.sort(rng.integers(0, [25, 17], (count, 2, 2)), axis=1)
        entries = [(int(rng.integers(0, 3)), corner.flatten().tolist()) for corner in corners]
        truth = ground_truth(*entries)
        labels = torch.full((32, 32), 255)
        labels[:16, :24] = labels_of(truth)
        labels[:8, :8] = torch.tensor(rng.choice([0, 1, 3, 4, 255], (8, 8)))
        matches = [*rng.permutation(count)[: count // 2 + 1].tolist(), -1]
        ours = panoptic_targets(labels, truth, torch.tensor(matches), STUFF, stride)
        assert torch.equal(ours, literal_targets(labels, truth, matches, STUFF, stride))


def test_targets_by_hand():
    """Stuff; an instance with a detection, one without; void; a detection of nothing."""
    truth = ground_truth((0, (0, 0, 8, 16)), (2, (8, 0, 16, 16)))
    labels = labels_of(truth, stuff=4)
    labels[12:] = 255
    targets = panoptic_targets(labels, truth, torch.tensor([-1, 0]), STUFF)
    row = [3, 3, IGNORED, IGNORED, 1, 1]
    assert targets.tolist() == [row, row, row, [IGNORED] * 6]


def test_polygons_are_masks_too():
    truth = ground_truth((0, (0, 0, 8, 8)), (1, (8, 4, 16, 16)))
    labels, matches = labels_of(truth), torch.tensor([1, 0])
    expected = panoptic_targets(labels, truth, matches, STUFF)
    polygons = [
        [np.array([x0, y0, x1, y0, x1, y1, x0, y1])] for x0, y0, x1, y1 in truth.gt_boxes.tensor.tolist()
    ]
    truth.gt_masks = PolygonMasks(polygons)
    assert torch.equal(panoptic_targets(labels, truth, matches, STUFF), expected)
    assert expected.unique().tolist() == [0, 2, 3]


def test_more_than_255_channels():
    truth = ground_truth((0, (0, 0, 8, 8)))
    matches = torch.full((300,), -1)
    matches[253] = 0
    targets = panoptic_targets(labels_of(truth), truth, matches, STUFF)
    assert targets[0, 0] == 255 and panoptic_loss([torch.zeros(302, 4, 6)], [targets]) > 0


# ------------------------------------------------------------------ loss


def literal_cross_entropy(logits, targets):
    losses = []
    for x, y in zip(logits, targets, strict=True):
        for i, j in np.ndindex(*y.shape):
            if y[i, j] != IGNORED:
                exponentials = [math.exp(value) for value in x[:, i, j].tolist()]
                losses.append(-math.log(exponentials[y[i, j]] / sum(exponentials)))
    return sum(losses) / max(len(losses), 1)


def random_batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    channels = (2, 5, 4)
    logits = [torch.randn(c, 3, 4, generator=generator, dtype=torch.float64) for c in channels]
    targets = [torch.randint(-1, c, (3, 4), generator=generator) for c in channels]
    return logits, targets


def test_cross_entropy_is_the_mean_over_the_pixels_of_the_batch():
    logits, targets = random_batch()
    targets[2][:] = IGNORED
    assert panoptic_loss(logits, targets).item() == pytest.approx(
        literal_cross_entropy(logits, targets), abs=1e-12
    )


def test_lovasz_softmax_is_the_mean_over_the_images_that_count():
    logits, targets = random_batch()
    targets[1][:] = IGNORED
    expected = [
        lovasz_softmax(logits[b].softmax(dim=0).flatten(1).t(), targets[b].flatten(), IGNORED).item()
        for b in (0, 2)
    ]
    ours = panoptic_loss(logits, targets, "lovasz_softmax").item()
    assert ours == pytest.approx(sum(expected) / 2, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients(kind):
    logits, targets = random_batch()
    inputs = [x.requires_grad_() for x in logits]
    assert torch.autograd.gradcheck(lambda *x: panoptic_loss(x, targets, kind), inputs)


@pytest.mark.parametrize("kind", KINDS)
def test_without_pixels_that_count_it_is_zero_with_a_graph(kind):
    logits = [torch.randn(c, 3, 4, requires_grad=True) for c in (2, 4)]
    loss = panoptic_loss(logits, [torch.full((3, 4), IGNORED)] * 2, kind)
    loss.backward()
    assert loss.item() == 0 and all(torch.equal(x.grad, torch.zeros_like(x)) for x in logits)


def test_unknown_kind():
    with pytest.raises(ValueError, match="kind is 'dice'; expected one of cross_entropy, lovasz_softmax"):
        panoptic_loss([torch.zeros(1, 1, 1)], [torch.zeros(1, 1).long()], "dice")


def test_unmatched_detections_are_negatives():
    """The loss falls with the logits of a false detection and with nothing but the right channel's rising."""
    truth = ground_truth((0, (0, 0, 24, 16)))
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 24, 16]])
    matches = match_detections(boxes, torch.tensor([0, 0]), truth)
    targets = panoptic_targets(labels_of(truth), truth, matches, STUFF)
    assert targets.unique().tolist() == [3]
    logits = torch.zeros(4, 4, 6, requires_grad=True)
    panoptic_loss([logits], [targets]).backward()
    assert (logits.grad[:3] > 0).all() and (logits.grad[3] < 0).all()


# ------------------------------------------------------------------ all together


@pytest.mark.parametrize("variant", ["A", "B", "C"])
def test_from_probabilities_to_the_loss_pixel_by_pixel(variant):
    """Potential, affinity, matching, targets and loss of one image, all in plain Python."""
    generator = torch.Generator().manual_seed(0)

    def rand(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    truth = ground_truth((0, (0, 0, 12, 8)), (1, (12, 4, 24, 16)))
    labels = labels_of(truth)
    boxes = torch.tensor([[11.0, 4, 23, 15], [1, 0, 12, 9], [0, 8, 8, 16]], dtype=torch.float64)
    classes, scores, masks = torch.tensor([1, 0, 2]), rand(3), rand(3, 4, 6)
    semantic, features = (rand(5, 4, 6) * 4).softmax(dim=0), rand(3, 4, 6) * 3
    psi = dynamic_potential(variant, semantic, STUFF, boxes / 4, classes, scores, masks)
    targets = panoptic_targets(labels, truth, match_detections(boxes.float(), classes, truth), STUFF)
    ours = panoptic_loss([propagate(psi, features)], [targets]).item()

    pixels = [(y, x) for y in range(4) for x in range(6)]
    potential = {}
    for y, x in pixels:
        values = [semantic[c, y, x].item() for c in STUFF]
        for k, (x0, y0, x1, y1) in enumerate((boxes / 4).tolist()):
            v, m = semantic[classes[k], y, x].item(), masks[k, y, x].item()
            inside = x0 <= x + 0.5 < x1 and y0 <= y + 0.5 < y1
            values.append(scores[k].item() * {"A": v, "B": v * m, "C": v + m}[variant] if inside else 0.0)
        potential[y, x] = values
    losses = []
    for y, x in pixels:
        weights = [math.exp((features[:, y, x] @ features[:, v, u]).item() / 3**0.5) for v, u in pixels]
        spread = [
            sum(w * potential[p][c] for w, p in zip(weights, pixels, strict=True)) / sum(weights)
            for c in range(5)
        ]
        total = [math.exp(a + b) for a, b in zip(potential[y, x], spread, strict=True)]
        label = labels[4 * y + 2, 4 * x + 2].item()
        target = {0: 2 + 1, 1: 2 + 0, 3: 0}[label]  # the first detection is of the second instance
        losses.append(-math.log(total[target] / sum(total)))
    assert ours == pytest.approx(sum(losses) / len(losses), abs=1e-12)
