"""The dynamic potential: the published cases, and a loop over detections and pixels."""

import pytest
import torch
from detectron2.layers import paste_masks_in_image
from detectron2.structures import Boxes

from auto_panoptic.systems.unified import dynamic_potential
from auto_panoptic.systems.unified.potential import VARIANTS, paste_masks

ROAD, CAR, SKY = 0, 1, 2


def literal_potential(variant, semantic, stuff, boxes, classes, scores, masks, weight=0.0):
    """The potential of one image, one channel and one pixel after the other."""
    _, height, width = semantic.shape
    out = torch.zeros(len(stuff) + len(boxes), height, width, dtype=semantic.dtype)
    for y in range(height):
        for x in range(width):
            for j, label in enumerate(stuff):
                out[j, y, x] = semantic[label, y, x]
            for k, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
                v = semantic[classes[k], y, x].item()
                value = weight * v
                if x0 <= x + 0.5 < x1 and y0 <= y + 0.5 < y1:
                    m = masks[k, y, x].item()
                    value += scores[k].item() * {"A": v, "B": v * m, "C": v + m}[variant]
                out[len(stuff) + k, y, x] = value
    return out


def random_case(detections, seed=0, height=7, width=9):
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    semantic = (rand(5, height, width) * 3).softmax(dim=0)
    corners = rand(detections, 2, 2) * torch.tensor([width + 2, height + 2]) - 1
    boxes = torch.cat([corners.min(dim=1).values, corners.max(dim=1).values], dim=1)
    classes = torch.randint(0, 3, (detections,), generator=generator)
    return semantic, [3, 4], boxes, classes, rand(detections), rand(detections, height, width)


def one_pixel(car, road, score, mask=None, box=((0.0, 0.0, 1.0, 1.0),)):
    """Arguments for one pixel with probabilities of car and road and one detected car."""
    semantic = torch.tensor([road, car, 1 - car - road]).view(3, 1, 1)
    masks = None if mask is None else torch.full((1, 1, 1), mask)
    return semantic, [ROAD, SKY], torch.tensor(box), torch.tensor([CAR]), torch.tensor([score]), masks


@pytest.mark.parametrize("variant, value", [("A", 0.72), ("B", 0.36), ("C", 1.17)])
def test_values_of_the_variants(variant, value):
    semantic, stuff, boxes, classes, scores, masks = one_pixel(0.8, 0.15, 0.9, 0.5)
    inside = dynamic_potential(variant, semantic, stuff, boxes, classes, scores, masks)
    assert inside.flatten().tolist() == pytest.approx([0.15, 0.05, value], abs=1e-6)
    outside = dynamic_potential(variant, semantic, stuff, boxes + 1, classes, scores, masks)
    assert outside[2].item() == 0 and torch.equal(outside[:2], semantic[stuff])


@pytest.mark.parametrize(
    "car, road, score, things, winner",
    [
        (0.45, 0.55, 0.9, {"B": 0.3645, "C": 1.215}, {"B": "road", "C": "car"}),
        (0.05, 0.95, 0.6, {"B": 0.027, "C": 0.57}, {"B": "road", "C": "road"}),
    ],
)
def test_variant_c_lifts_what_the_semantic_map_misses(car, road, score, things, winner):
    for variant, value in things.items():
        psi = dynamic_potential(variant, *one_pixel(car, road, score, 0.9)).flatten()
        assert psi[2].item() == pytest.approx(value, abs=1e-6)
        assert ("road", "sky", "car")[psi.argmax()] == winner[variant]


@pytest.mark.parametrize("detections", [0, 1, 6])
@pytest.mark.parametrize("variant", VARIANTS)
def test_it_is_the_literal_one(variant, detections):
    for seed in range(4):
        case = random_case(detections, seed)
        psi = dynamic_potential(variant, *case)
        assert psi.shape == (2 + detections, 7, 9)
        torch.testing.assert_close(psi, literal_potential(variant, *case), rtol=0, atol=1e-15)
        torch.testing.assert_close(
            dynamic_potential(variant, *case, global_weight=0.3),
            literal_potential(variant, *case, weight=0.3),
            rtol=0,
            atol=1e-15,
        )


def test_variant_a_reads_no_masks():
    *case, masks = random_case(3)
    assert torch.equal(dynamic_potential("A", *case), dynamic_potential("A", *case, masks))
    for variant in "BC":
        with pytest.raises(ValueError, match=f"variant {variant} needs masks"):
            dynamic_potential(variant, *case)
    with pytest.raises(ValueError, match="variant is 'D'; expected one of A, B, C"):
        dynamic_potential("D", *case, masks)


def test_the_centre_of_a_pixel_decides():
    semantic = torch.ones(1, 4, 4)
    cells = {
        (1.0, 1.0, 3.0, 3.0): {(1, 1), (1, 2), (2, 1), (2, 2)},  # as slices
        (0.6, 0.4, 1.6, 1.4): {(0, 1)},
        (0.5, 0.5, 1.5, 1.5): {(0, 0)},
        (0.9, 0.9, 1.1, 1.1): set(),
        (3.0, 3.0, 9.0, 9.0): {(3, 3)},
        (2.0, 2.0, 2.0, 2.0): set(),
    }
    boxes, classes = torch.tensor(list(cells)), torch.zeros(len(cells), dtype=torch.int64)
    psi = dynamic_potential("A", semantic, [], boxes, classes, torch.ones(len(cells)))
    assert [{tuple(p) for p in channel.nonzero().tolist()} for channel in psi] == list(cells.values())


def test_gradients_reach_scores_masks_and_probabilities():
    semantic, stuff, boxes, classes, scores, masks = random_case(4)
    weight = torch.tensor(0.3, dtype=torch.float64)
    leaves = [x.requires_grad_() for x in (semantic, scores, masks, weight)]
    for variant in VARIANTS:

        def psi(semantic, scores, masks, weight, variant=variant):
            return dynamic_potential(variant, semantic, stuff, boxes, classes, scores, masks, weight)

        assert torch.autograd.gradcheck(psi, leaves)


@pytest.mark.parametrize("detections", [0, 4])
@pytest.mark.parametrize("variant", VARIANTS)
def test_on_the_meta_device(variant, detections):
    semantic, stuff, *rest = random_case(detections)
    case = [semantic.to("meta"), torch.tensor(stuff), *(x.to("meta") for x in rest)]
    psi = dynamic_potential(variant, *case)
    assert psi.is_meta and psi.shape == (2 + detections, 7, 9)


# ------------------------------------------------------------------ masks


def test_pasted_masks_are_detectron2s():
    """Detectron2 returns masks cut at a threshold; eight of them tell the values apart."""
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(5, 28, 28, generator=generator)
    boxes = torch.tensor(
        [[0, 0, 20, 10], [3.3, 2.2, 9.9, 15.5], [-4, 5, 8, 40], [7, 7, 7.5, 30], [1, 1, 2, 2]]
    )
    pasted = paste_masks(masks, boxes, 24, 31)
    for threshold in torch.linspace(0.05, 0.95, 8).tolist():
        theirs = paste_masks_in_image(masks, Boxes(boxes), (24, 31), threshold)
        assert torch.equal(pasted >= threshold, theirs)


def test_pasted_masks_give_gradients_also_with_boxes_of_no_size():
    masks = torch.rand(3, 4, 4, dtype=torch.float64, requires_grad=True)
    boxes = torch.tensor([[1, 1, 5, 6], [2, 2, 2, 2], [3, 1, 3, 5]], dtype=torch.float64)
    boxes.requires_grad_()
    pasted = paste_masks(masks, boxes, 8, 9)
    (pasted * torch.rand(3, 8, 9)).sum().backward()
    assert pasted.isfinite().all() and masks.grad.isfinite().all() and masks.grad[0].any()
    assert boxes.grad is None
    assert torch.autograd.gradcheck(lambda x: paste_masks(x, boxes, 8, 9), masks)


def test_no_masks_to_paste():
    assert paste_masks(torch.zeros(0, 28, 28), torch.zeros(0, 4), 5, 6).shape == (0, 5, 6)
    assert paste_masks(torch.zeros(2, 28, 28, device="meta"), torch.zeros(2, 4, device="meta"), 5, 6).is_meta
