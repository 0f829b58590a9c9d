import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import build_box_head, build_mask_head
from detectron2.utils.events import EventStorage
from modeling_util import make_cfg, make_input, num_params
from torch import nn

from auto_panoptic.modeling import ChoiceBlock, Choices, choice_blocks
from auto_panoptic.space import HEAD_OPS, Architecture, resolve_architecture_path
from auto_panoptic.systems.panoptic_fpn.box_head import GroupNormBoxHead
from auto_panoptic.systems.panoptic_fpn.mask_head import SearchableMaskHead


def small_head(**options):
    torch.manual_seed(0)
    cfg = make_cfg(*(x for item in options.items() for x in item))
    return build_mask_head(cfg, ShapeSpec(channels=64, height=14, width=14))


@pytest.mark.parametrize("name, params", [("auto_panoptic_coco", 3435622), ("auto_panoptic_ade20k", 4960177)])
def test_params_of_published_layers(name, params):
    architecture = Architecture.load(resolve_architecture_path(name))
    with torch.device("meta"):
        head = SearchableMaskHead(
            ShapeSpec(channels=256),
            ops=HEAD_OPS,
            choices=Choices(architecture.names()),
            num_layers=4,
            conv_dim=256,
            num_classes=80,
        )
    assert num_params(head.blocks) == params
    # 2x2 deconvolution 256 -> 256 and 1x1 to the classes, both with bias.
    assert num_params(head) - params == 256 * 256 * 4 + 256 + 256 * 80 + 80


def test_structure():
    head = small_head()
    assert isinstance(head, SearchableMaskHead)
    assert [block.site for block in head.blocks] == ["mask.0", "mask.1"]
    assert all(list(block.candidates) == [spec.name for spec in HEAD_OPS] for block in head.blocks)
    assert (head.deconv.kernel_size, head.deconv.stride) == ((2, 2), (2, 2))
    # Kaiming normal, fan out: sqrt(2 / classes).
    assert head.predictor.weight.std().item() == pytest.approx((2 / 3) ** 0.5, rel=0.15)
    assert not head.predictor.bias.any() and not head.deconv.bias.any()


def test_logits_have_twice_the_resolution():
    assert small_head().layers(torch.randn(5, 64, 14, 14)).shape == (5, 3, 28, 28)


def test_class_agnostic():
    head = small_head(**{"MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK": True})
    assert head.layers(torch.randn(2, 64, 14, 14)).shape == (2, 1, 28, 28)


@pytest.mark.parametrize("spec", HEAD_OPS, ids=lambda s: s.name)
def test_no_regions(spec):
    head = small_head().train()
    for block in head.modules():
        if isinstance(block, ChoiceBlock):
            block.select(spec.name)
    x = torch.zeros(0, 64, 14, 14, requires_grad=True)
    assert head.layers(x).shape == (0, 3, 28, 28)
    empty = make_input(boxes=())["instances"]
    empty.proposal_boxes = empty.gt_boxes
    with EventStorage():
        loss = head(x, [empty])["loss_mask"]
    assert loss.item() == 0 and loss.requires_grad
    loss.backward()
    active = [block.candidates[spec.name] for block in head.blocks]
    for module in (*active, head.deconv, head.predictor):
        for parameter in module.parameters():
            assert torch.equal(parameter.grad, torch.zeros_like(parameter))


def test_loss_is_the_binary_cross_entropy_of_the_own_class():
    head = small_head().train()
    inputs = make_input(boxes=((0, 0, 28, 28), (4, 4, 60, 60)))["instances"]
    inputs.proposal_boxes = inputs.gt_boxes  # masks fill their boxes: every target is 1
    x = torch.randn(2, 64, 14, 14)
    for block in choice_blocks(head).values():
        block.select(block.active)
    with EventStorage():
        loss = head(x, [inputs])["loss_mask"]
    own = torch.stack([head.layers(x)[0, 0], head.layers(x)[1, 1]])
    torch.testing.assert_close(loss, torch.nn.functional.softplus(-own).mean())


def test_box_head():
    torch.manual_seed(0)
    cfg = make_cfg(small=False)
    head = build_box_head(cfg, ShapeSpec(channels=256, height=7, width=7))
    assert isinstance(head, GroupNormBoxHead)
    assert [type(m).__name__ for m in head] == ["Flatten", *["Linear", "GroupNorm", "ReLU"] * 2]
    assert all(m.bias is None for m in head if isinstance(m, nn.Linear))
    assert all(m.num_groups == 32 for m in head if isinstance(m, nn.GroupNorm))
    assert num_params(head) == 256 * 49 * 1024 + 1024 * 1024 + 4 * 1024
    assert head.output_shape.channels == 1024
    assert head(torch.randn(3, 256, 7, 7)).shape == (3, 1024)
    # Kaiming uniform with a = 1.
    assert head.fc1.weight.abs().max().item() == pytest.approx((3 / (256 * 49)) ** 0.5, rel=1e-3)
    output = head(torch.zeros(0, 256, 7, 7))
    assert output.shape == (0, 1024)
    output.sum().backward()
    assert not head.fc1.weight.grad.any()


@pytest.mark.parametrize("options", [("MODEL.ROI_BOX_HEAD.NUM_FC", 0), ("MODEL.ROI_BOX_HEAD.FC_DIM", 100)])
def test_box_head_errors(options):
    with pytest.raises(ValueError, match="at least one layer"):
        build_box_head(make_cfg(*options), ShapeSpec(channels=64, height=7, width=7))
