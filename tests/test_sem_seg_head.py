import math

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling.meta_arch.semantic_seg import build_sem_seg_head
from modeling_util import make_cfg, num_params

from auto_panoptic.modeling import Choices
from auto_panoptic.space import HEAD_OPS, Architecture, resolve_architecture_path
from auto_panoptic.systems.panoptic_fpn.sem_seg_head import SearchableSemSegFPNHead

LEVELS = ("p2", "p3", "p4", "p5")


def shapes(channels=64, levels=LEVELS):
    return {name: ShapeSpec(channels=channels, stride=2 ** int(name[1])) for name in levels}


def build(ops=("dwconv_3x3", "atconv_3x3"), channels=64, conv_dim=32, num_classes=5, **kwargs):
    torch.manual_seed(0)
    return SearchableSemSegFPNHead(
        kwargs.pop("input_shape", shapes(channels)),
        ops=HEAD_OPS,
        choices=Choices({f"sem_seg.{i}": name for i, name in enumerate(ops)}),
        num_layers=len(ops),
        conv_dim=conv_dim,
        num_classes=num_classes,
        **kwargs,
    )


def pyramid(n=2, channels=64, h=16, w=24):
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(n, channels, h >> i, w >> i, generator=generator) for i, name in enumerate(LEVELS)
    }


def textbook_logits(head, features, gates, align_corners):
    """The paper's order: resize the subnet's features, attend, concatenate, classify, resize."""
    resized = []
    for name in LEVELS:
        x = features[name]
        for block in head.blocks:
            x = block(x)
        x = F.interpolate(x, size=features["p2"].shape[-2:], mode="bilinear", align_corners=align_corners)
        resized.append(x if gates is None else x + gates[name][:, :, None, None] * x)
    logits = F.conv2d(torch.cat(resized, dim=1), head.predictor.weight, head.predictor.bias)
    return F.interpolate(logits, scale_factor=4, mode="bilinear", align_corners=align_corners)


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("with_gates", [True, False])
def test_equals_the_textbook_order(align_corners, with_gates):
    head = build(align_corners=align_corners).eval()
    torch.nn.init.normal_(head.predictor.bias)
    features = pyramid()
    gates = {name: torch.rand(2, 32) for name in LEVELS} if with_gates else None
    logits, losses = head.predict(head.subnet(features), gates)
    assert losses == {}
    expected = textbook_logits(head, features, gates, align_corners)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    if gates is None:
        assert torch.equal(head(features)[0], logits)

    weights = torch.randn_like(logits)
    parameters = list(head.parameters())
    ours = torch.autograd.grad(logits, parameters, weights, retain_graph=True)
    theirs = torch.autograd.grad(expected, parameters, weights)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=2e-3, rtol=1e-4)


@pytest.mark.parametrize("classes, params", [(54, 27702), (51, 26163)])
def test_classifier(classes, params):
    head = build(conv_dim=128, num_classes=classes).eval()
    assert num_params(head.predictor) == params
    # The padded input is 64 x 96.
    assert head(pyramid(n=1))[0].shape == (1, classes, 64, 96)


@pytest.mark.parametrize("name, params", [("auto_panoptic_coco", 1025638), ("auto_panoptic_ade20k", 2128689)])
def test_params_of_published_subnets(name, params):
    architecture = Architecture.load(resolve_architecture_path(name))
    with torch.device("meta"):
        head = build([architecture[f"sem_seg.{i}"].name for i in range(3)], channels=256, conv_dim=128)
    assert num_params(head.blocks) == params


def test_one_set_of_weights_serves_all_levels():
    head = build()
    features = pyramid()
    outputs = head.subnet(features)
    assert {name: tuple(x.shape) for name, x in outputs.items()} == {
        name: (2, 32, *features[name].shape[-2:]) for name in LEVELS
    }
    # A level's output does not depend on the others, and equal inputs give equal outputs.
    same = head.subnet(dict.fromkeys(LEVELS, features["p3"]))
    for name in LEVELS:
        assert torch.equal(same[name], outputs["p3"])
    # The gradient of the shared weights is the sum over the levels.
    parameters = list(head.blocks.parameters())
    together = torch.autograd.grad(sum(x.sum() for x in outputs.values()), parameters, retain_graph=True)
    single = [torch.autograd.grad(outputs[name].sum(), parameters, retain_graph=True) for name in LEVELS]
    for i, gradient in enumerate(together):
        torch.testing.assert_close(gradient, sum(g[i] for g in single), atol=1e-4, rtol=1e-4)
        assert all(g[i].any() for g in single)


def test_loss_by_hand():
    head = build(num_classes=2, loss_weight=0.3, ignore_value=255)
    logits = torch.zeros(1, 2, 2, 2)
    logits[0, 1, 0, 0] = math.log(3)  # probabilities 1/4, 3/4
    targets = torch.tensor([[[1, 0], [255, 255]]])
    loss = head.losses(logits, targets)["loss_sem_seg"]
    assert loss.item() == pytest.approx(0.3 * (math.log(4 / 3) + math.log(2)) / 2)


def test_loss_without_labelled_pixel_is_zero():
    head = build().train()
    _, losses = head(pyramid(), torch.full((2, 64, 96), 255))
    assert losses["loss_sem_seg"].item() == 0
    losses["loss_sem_seg"].backward()
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in head.parameters())


def test_training_returns_the_loss_of_the_logits():
    head = build(loss_weight=0.3).train()
    targets = torch.randint(0, 5, (2, 64, 96))
    targets[0, :10] = 255
    results, losses = head(pyramid(), targets)
    assert results is None
    expected = 0.3 * F.cross_entropy(head.eval()(pyramid())[0], targets, ignore_index=255)
    torch.testing.assert_close(losses["loss_sem_seg"], expected)


def test_config():
    cfg = make_cfg("MODEL.SEM_SEG_HEAD.ALIGN_CORNERS", False, small=False)
    with torch.device("meta"):
        head = build_sem_seg_head(cfg, shapes(256, (*LEVELS, "p6")))
    assert head.in_features == list(LEVELS)
    assert [block.site for block in head.blocks] == ["sem_seg.0", "sem_seg.1", "sem_seg.2"]
    assert (head.loss_weight, head.align_corners, head.ignore_value) == (0.3, False, 255)
    assert tuple(head.predictor.weight.shape) == (54, 512, 1, 1)


@pytest.mark.parametrize(
    "input_shape, message",
    [
        ({}, "at least one level"),
        (shapes(levels=("p3", "p4")), "'p3', has stride 8; its common stride is 4"),
        (shapes() | {"p5": ShapeSpec(channels=32, stride=32)}, "equal channels"),
    ],
)
def test_errors(input_shape, message):
    with pytest.raises(ValueError, match=message):
        build(input_shape=input_shape)
