"""Decoders of the unified network, its semantic loss, and the loss of its masks."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from modeling_util import num_params
from torch.nn import functional as F

from auto_panoptic.errors import UserError
from auto_panoptic.modeling import Choices
from auto_panoptic.modeling.layers.head_ops import build_head_op
from auto_panoptic.space import HEAD_OPS, op
from auto_panoptic.systems.unified import AffinityHead, UnifiedSemSegHead, lovasz_hinge, lovasz_softmax
from auto_panoptic.systems.unified.roi_heads import lovasz_mask_loss

SHAPES = {f"p{i}": ShapeSpec(channels=32, stride=2**i) for i in (2, 3, 4, 5)}

PLAIN = (op("conv_3x3"),)


def features(n=2, size=16, channels=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        f"p{i}": torch.randn(n, channels, size >> (i - 2), size >> (i - 2), generator=generator)
        for i in (2, 3, 4, 5)
    }


def make_head(kind=UnifiedSemSegHead, ops=PLAIN, dims=(64, 32), seed=0, **options):
    torch.manual_seed(seed)
    defaults = {"num_classes": 5} if kind is UnifiedSemSegHead else {"dim": 8, "stride": 8}
    return kind(SHAPES, ops=ops, dims=dims, **defaults | options)


def by_definition(head, levels):
    """Layers on every level, resized to the finest, concatenated, a 1x1 convolution."""
    outputs = []
    for name in ("p2", "p3", "p4", "p5"):
        x = levels[name]
        for block in head.blocks:
            x = block(x)
        outputs.append(F.interpolate(x, size=levels["p2"].shape[-2:], mode="bilinear", align_corners=False))
    return F.conv2d(torch.cat(outputs, dim=1), head.predictor.weight, head.predictor.bias)


def test_decoder_by_definition():
    head, levels = make_head(), features()
    torch.testing.assert_close(head.decode(levels), by_definition(head, levels))
    logits, losses = head.eval()(levels)
    full = F.interpolate(by_definition(head, levels), scale_factor=4, mode="bilinear", align_corners=False)
    torch.testing.assert_close(logits, full)
    assert losses == {}


@pytest.mark.parametrize("stride", [4, 8, 16])
def test_affinity_features_are_averages(stride):
    head, levels = make_head(AffinityHead, stride=stride), features()
    q = head(levels)
    n = 16 * 4 // stride
    assert q.shape == (2, 8, n, n)
    full = by_definition(head, levels)
    expected = full.reshape(2, 8, n, stride // 4, n, stride // 4).mean(dim=(3, 5))
    torch.testing.assert_close(q, expected)


@pytest.mark.parametrize("modulated, per_tap", [(True, 3), (False, 2)])
def test_params_of_the_published_decoder(modulated, per_tap):
    """COCO: three deformable layers 256 -> 256 -> 128 -> 128, 512 concatenated channels."""
    shapes = {name: ShapeSpec(channels=256, stride=shape.stride) for name, shape in SHAPES.items()}
    with torch.device("meta"):
        head = UnifiedSemSegHead(
            shapes, ops=(op("dfconv_3x3"),), dims=[256, 128, 128], num_classes=133, modulated=modulated
        )
    layers = sum(
        (ci * 9 + 1) * co + (ci * 9 + 1) * 9 * per_tap + 2 * co
        for ci, co in ((256, 256), (256, 128), (128, 128))
    )
    assert num_params(head.blocks) == layers
    assert num_params(head.predictor) == 513 * 133


def test_deformable_v1_begins_as_a_convolution():
    torch.manual_seed(0)
    layer = build_head_op(op("dfconv_3x3"), 32, 32, modulated=False).conv
    x = torch.randn(2, 32, 9, 7)
    torch.testing.assert_close(layer(x), F.conv2d(x, layer.weight, layer.bias, padding=1))
    plain = build_head_op(op("dfconv_3x3"), 32, 32).conv
    plain.load_state_dict({**plain.state_dict(), "weight": layer.weight, "bias": layer.bias})
    torch.testing.assert_close(plain(x), F.conv2d(x, layer.weight / 2, layer.bias, padding=1))


def test_sites_and_weights_of_both_decoders():
    semantic, affinity = make_head(ops=HEAD_OPS), make_head(AffinityHead, ops=HEAD_OPS)
    assert [block.site for block in semantic.blocks] == ["sem_seg.0", "sem_seg.1"]
    assert [block.site for block in affinity.blocks] == ["affinity.0", "affinity.1"]
    assert all(block.ops == HEAD_OPS for head in (semantic, affinity) for block in head.blocks)
    fixed = make_head(ops=HEAD_OPS, choices=Choices({"sem_seg.0": "atconv_3x3", "sem_seg.1": "dwconv_5x5"}))
    assert [list(block.candidates) for block in fixed.blocks] == [["atconv_3x3"], ["dwconv_5x5"]]
    assert {name for name, _ in fixed.named_parameters()} <= {name for name, _ in semantic.named_parameters()}


def test_levels_that_no_decoder_can_serve():
    with pytest.raises(ValueError, match="finest level of a decoder is 'p3' of stride 8; expected stride 4"):
        UnifiedSemSegHead({"p3": SHAPES["p3"]}, ops=PLAIN, dims=[32], num_classes=5)
    unequal = {**SHAPES, "p5": ShapeSpec(channels=64, stride=32)}
    with pytest.raises(ValueError, match="equal channels"):
        UnifiedSemSegHead(unequal, ops=PLAIN, dims=[32], num_classes=5)


# ------------------------------------------------------------------ semantic loss


@pytest.mark.parametrize("loss", ["cross_entropy", "lovasz_softmax"])
def test_semantic_loss_by_definition(loss):
    head, levels = make_head(loss=loss, loss_weight=0.2), features()
    targets = torch.randint(0, 5, (2, 64, 64), generator=torch.Generator().manual_seed(1))
    targets[0, :40] = 255
    logits = F.interpolate(by_definition(head, levels), scale_factor=4, mode="bilinear", align_corners=False)
    rows, labels = logits.permute(0, 2, 3, 1).reshape(-1, 5), targets.flatten()
    if loss == "cross_entropy":
        valid = labels != 255
        expected = -rows.log_softmax(1)[valid, labels[valid]].mean()
    else:
        expected = lovasz_softmax(rows.softmax(1), labels)
    _, losses = head(levels, targets)
    torch.testing.assert_close(losses["loss_sem_seg"], 0.2 * expected)
    targets[:] = 255
    nothing = head(levels, targets)[1]["loss_sem_seg"]
    nothing.backward()
    assert nothing == 0 and all((p.grad == 0).all() for p in head.parameters())


def test_unknown_semantic_loss():
    with pytest.raises(UserError, match="LOSS.SEMANTIC is 'focal'; expected one of cross_entropy, lovasz"):
        make_head(loss="focal")


# ------------------------------------------------------------------ loss of masks


def regions(polygons=False):
    """Two images with one and two regions; the boxes are the masks' own, so that crops are all inside."""
    found = []
    for corners in ([(0, 0, 8, 8)], [(0, 0, 4, 8), (4, 4, 8, 8)]):
        masks = torch.zeros(len(corners), 16, 16, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(masks, corners, strict=True):
            mask[y0:y1, x0:x1] = True
        shapes = [[[x0, y0, x1, y0, x1, y1, x0, y1]] for x0, y0, x1, y1 in corners]
        image = Instances((16, 16))
        image.proposal_boxes = Boxes(torch.tensor([[0.0, 0.0, 8.0, 8.0]] * len(corners)))
        image.gt_masks = PolygonMasks(shapes) if polygons else BitMasks(masks)
        image.gt_classes = torch.arange(len(corners))
        found.append(image)
    return found


@pytest.mark.parametrize("polygons", [False, True])
@pytest.mark.parametrize("classes", [1, 3])
def test_mask_loss_is_the_mean_over_the_regions(classes, polygons):
    logits = torch.randn(3, classes, 8, 8, generator=torch.Generator().manual_seed(0))
    targets = torch.zeros(3, 8, 8)
    targets[0], targets[1, :, :4], targets[2, 4:, 4:] = 1, 1, 1
    chosen = [0, 0, 1] if classes > 1 else [0, 0, 0]
    alone = [
        lovasz_hinge(x[c].flatten(), y.flatten()) for x, c, y in zip(logits, chosen, targets, strict=True)
    ]
    torch.testing.assert_close(lovasz_mask_loss(logits, regions(polygons)), torch.stack(alone).mean())


def test_mask_loss_without_regions():
    logits = torch.zeros(0, 3, 8, 8, requires_grad=True)
    empty = [x[[]] for x in regions()]
    loss = lovasz_mask_loss(logits, empty)
    loss.backward()
    assert loss == 0 and logits.grad.shape == logits.shape
