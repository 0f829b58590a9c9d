import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from modeling_util import make_cfg, num_params
from torch import nn

from auto_panoptic.modeling import Choices
from auto_panoptic.modeling.backbones.builders import build_shufflenet_backbone
from auto_panoptic.modeling.backbones.shufflenet import ShuffleBlock, ShuffleNetV2, make_norm, shuffle_split
from auto_panoptic.modeling.backbones.widths import WIDTHS, Width, width_from_config
from auto_panoptic.space import BACKBONE_OPS, Architecture, op, resolve_architecture_path

BN = make_norm("BN")
GENOTYPES = {"COCO": "auto_panoptic_coco", "ADE": "auto_panoptic_ade20k", "DetNAS": "detnas_coco"}


def build(width, ops, **kwargs):
    width = WIDTHS[width]
    return ShuffleNetV2(
        stem_channels=width.stem,
        stage_channels=width.channels,
        stage_repeats=width.repeats,
        ops=BACKBONE_OPS,
        choices=None if ops is None else Choices({f"backbone.{i}": o.name for i, o in enumerate(ops)}),
        **kwargs,
    )


def count_macs(model, size=224):
    """Multiply-adds of all convolutions, counted by hooks while the model runs."""
    total = 0

    def hook(conv, inputs, output):
        nonlocal total
        kernel = conv.kernel_size[0] * conv.kernel_size[1] * conv.in_channels // conv.groups
        total += kernel * output.numel()

    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(hook)
    model.eval()(torch.empty(1, 3, size, size, device="meta"))
    return total


@pytest.mark.parametrize(
    "method, kept, main",
    [(1, [0, 4, 1, 5], [2, 6, 3, 7]), (2, [0, 2, 4, 6], [1, 3, 5, 7])],
)
def test_shuffle_split_indices(method, kept, main):
    x = torch.arange(8.0).view(1, 8, 1, 1).expand(2, 8, 3, 5)
    a, b = shuffle_split(x, method)
    assert a.shape == b.shape == (2, 4, 3, 5)
    assert a[1, :, 2, 4].tolist() == kept
    assert b[1, :, 2, 4].tolist() == main
    with torch.inference_mode():
        last = shuffle_split(x.contiguous(memory_format=torch.channels_last), method)
    assert torch.equal(last[0], a) and torch.equal(last[1], b)
    assert all(half.stride(1) <= 2 < half.stride(3) for half in last)  # a pixel's channels are neighbours
    # The inverse permutation restores the input.
    inverse = torch.tensor(kept + main).argsort()
    assert torch.equal(torch.cat([a, b], 1)[:, inverse], x)


@pytest.mark.parametrize("spec", BACKBONE_OPS, ids=lambda s: s.name)
@pytest.mark.parametrize("ci, co, stride", [(16, 64, 2), (64, 64, 1), (72, 172, 2), (172, 172, 1)])
@pytest.mark.parametrize("size", [(8, 8), (10, 14)])
def test_block_output_shape(spec, ci, co, stride, size):
    block = ShuffleBlock(spec, ci, co, stride=stride, norm=BN)
    output = block(torch.randn(2, ci, *size))
    assert output.shape == (2, co, size[0] // stride, size[1] // stride)


@pytest.mark.parametrize("method", [1, 2])
@pytest.mark.parametrize("spec", BACKBONE_OPS, ids=lambda s: s.name)
def test_pass_through_half_is_untouched(spec, method):
    block = ShuffleBlock(spec, 8, 8, stride=1, norm=BN, shuffle_method=method)
    x = torch.randn(2, 8, 6, 6)
    kept, _ = shuffle_split(x, method)
    output = block(x)
    assert torch.equal(output[:, :4], kept)
    assert (kept < 0).any()  # no ReLU after the concatenation
    assert (output[:, 4:] >= 0).all()


def test_skip_leaves_the_shuffle():
    block = ShuffleBlock(op("skip"), 8, 8, stride=1, norm=BN)
    x = torch.randn(2, 8, 6, 6)
    assert torch.equal(block(x), torch.cat(shuffle_split(x), 1))
    assert not list(block.parameters())


def test_shuffle_branch_layers():
    block = ShuffleBlock(op("shuffle_5x5"), 8, 24, stride=2, norm=BN)
    assert [type(m).__name__ for m in block.main] == (
        ["Conv2d", "BatchNorm2d", "ReLU", "Conv2d", "BatchNorm2d", "Conv2d", "BatchNorm2d", "ReLU"]
    )
    convs = [m for m in block.main if isinstance(m, nn.Conv2d)]
    assert [(m.in_channels, m.out_channels, m.kernel_size[0], m.stride[0], m.groups) for m in convs] == [
        (8, 12, 1, 1, 1),
        (12, 12, 5, 2, 12),
        (12, 16, 1, 1, 1),
    ]
    projection = [m for m in block.projection if isinstance(m, nn.Conv2d)]
    assert [(m.out_channels, m.kernel_size[0], m.groups) for m in projection] == [(8, 5, 8), (8, 1, 1)]
    assert all(m.bias is None for m in block.modules() if isinstance(m, nn.Conv2d))


def test_xception_branch_layers():
    block = ShuffleBlock(op("xception_3x3"), 8, 24, stride=2, norm=BN)
    assert [type(m).__name__ for m in block.main] == (
        ["Conv2d", "BatchNorm2d", "Conv2d", "BatchNorm2d", "ReLU"] * 3
    )
    convs = [m for m in block.main if isinstance(m, nn.Conv2d)]
    assert [(m.in_channels, m.out_channels, m.kernel_size[0], m.stride[0], m.groups) for m in convs] == [
        (8, 8, 3, 2, 8),
        (8, 12, 1, 1, 1),
        (12, 12, 3, 1, 12),
        (12, 12, 1, 1, 1),
        (12, 12, 3, 1, 12),
        (12, 16, 1, 1, 1),
    ]


@pytest.mark.parametrize(
    "width, genotype, macs, params",
    [
        ("300M", 0, 262705856, 1473488),
        ("300M", 1, 280518336, 1530576),
        ("300M", 2, 307237056, 1616208),
        ("300M", 3, 325689280, 2189424),
        ("1.3G", "COCO", 1152748128, 6825840),
        ("1.3G", "ADE", 1243855200, 7845360),
        ("1.3G", "DetNAS", 1269181536, 8415216),
        ("1.3G", 0, 1036681632, 6244464),
        ("1.3G", 3, 1391231520, 9359208),
        ("3.8G", "COCO", 3572432416, 21627126),
        ("3.8G", "ADE", 3842661536, 24951932),
        ("3.8G", "DetNAS", 3937832864, 26724428),
    ],
)
def test_macs_and_params_of_built_networks(width, genotype, macs, params):
    if isinstance(genotype, int):
        ops = [BACKBONE_OPS[genotype]] * sum(WIDTHS[width].repeats)
    else:
        architecture = Architecture.load(resolve_architecture_path(GENOTYPES[genotype]))
        ops = [architecture[f"backbone.{i}"] for i in range(40)]
    with torch.device("meta"):
        model = build(width, ops)
    assert count_macs(model) == macs
    assert num_params(model) == params


def test_params_of_the_supernet():
    with torch.device("meta"):
        model = build("1.3G", None)
    assert num_params(model) == 28642008


@pytest.fixture(scope="module")
def small_backbone():
    torch.manual_seed(0)
    return build("300M", None)


def test_strides(small_backbone):
    outputs = small_backbone.eval()(torch.randn(1, 3, 64, 96))
    assert {name: tuple(x.shape) for name, x in outputs.items()} == {
        "res2": (1, 64, 16, 24),
        "res3": (1, 160, 8, 12),
        "res4": (1, 320, 4, 6),
        "res5": (1, 640, 2, 3),
    }
    shapes = small_backbone.output_shape()
    assert [s.stride for s in shapes.values()] == [4, 8, 16, 32]
    assert [s.channels for s in shapes.values()] == [64, 160, 320, 640]


def test_stem(small_backbone):
    conv, norm, relu = small_backbone.stem
    assert (conv.kernel_size, conv.stride, conv.padding) == ((3, 3), (2, 2), (1, 1))
    assert conv.bias is not None
    assert (norm.eps, norm.momentum) == (1e-5, 0.1)
    assert isinstance(relu, nn.ReLU)


def test_initialisation(small_backbone):
    stem = small_backbone.stem[0]
    assert stem.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert stem.bias.abs().max().item() == 0
    depthwise, pointwise = [], []
    for layer in small_backbone.blocks.modules():
        if isinstance(layer, nn.Conv2d):
            # Multiplied by the input channels per group, every weight has standard deviation 1.
            group = depthwise if layer.groups > 1 else pointwise
            group.append((layer.weight * layer.weight.shape[1]).flatten())
        elif isinstance(layer, nn.BatchNorm2d):
            assert torch.equal(layer.weight, torch.ones_like(layer.weight))
            assert torch.equal(layer.bias, torch.full_like(layer.bias, 1e-4))
            assert not layer.running_mean.any()
    for weights in (torch.cat(depthwise), torch.cat(pointwise)):
        assert weights.std().item() == pytest.approx(1, rel=0.02)
        assert weights.mean().item() == pytest.approx(0, abs=0.02)


def test_builder_reads_the_config():
    cfg = make_cfg("MODEL.SHUFFLENET.NORM_MOMENTUM", 0.01, "MODEL.SHUFFLENET.SHUFFLE_METHOD", 2)
    model = build_shufflenet_backbone(cfg, ShapeSpec(channels=3))
    norms = [m for m in model.modules() if isinstance(m, (nn.BatchNorm2d, nn.SyncBatchNorm))]
    # "SyncBN" in the config, a CPU device.
    assert {type(m) for m in norms} == {nn.BatchNorm2d}
    assert {m.momentum for m in norms} == {0.01}
    assert model.blocks[3].candidates["shuffle_3x3"].shuffle_method == 2
    cfg.MODEL.DEVICE = "cuda"
    model = build_shufflenet_backbone(cfg, ShapeSpec(channels=3))
    assert isinstance(model.stem[1], nn.SyncBatchNorm)


@pytest.mark.parametrize("freeze_at, stages", [(0, 0), (1, 0), (2, 1), (4, 3), (5, 4), (9, 4)])
def test_freezing(freeze_at, stages):
    """As ResNet.freeze of Detectron2: 1 freezes the stem, 2 the stem and res2, ..."""
    cfg = make_cfg("MODEL.BACKBONE.FREEZE_AT", freeze_at)
    model = build_shufflenet_backbone(cfg, ShapeSpec(channels=3)).train()
    frozen = ["stem."] if freeze_at else []
    frozen += [f"blocks.{i}." for i in range([0, 1, 2, 4, 5][stages])]
    assert {n for n, p in model.named_parameters() if not p.requires_grad} == {
        n for n, _ in model.named_parameters() if n.startswith(tuple(frozen))
    }
    before = {name: value.clone() for name, value in model.state_dict().items()}
    parameters = [p for p in model.parameters() if p.requires_grad]
    images = torch.randn(2, 3, 64, 64)
    if parameters:
        model(images)["res5"].square().mean().backward()
        torch.optim.SGD(parameters, lr=0.1).step()
    else:
        model(images)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert not any(name.startswith(tuple(frozen)) for name in changed)
    assert ("stem.1.running_mean" in changed) == ("stem.1.weight" in changed) == (freeze_at == 0)
    assert any(name.startswith("blocks.4.") for name in changed) == (stages < 4)


def test_the_shuffle_method_travels_with_the_weights():
    first, second = (
        build_shufflenet_backbone(make_cfg("MODEL.SHUFFLENET.SHUFFLE_METHOD", m), ShapeSpec(channels=3))
        for m in (1, 2)
    )
    weights = first.state_dict()
    first.load_state_dict(weights)
    with pytest.raises(ValueError, match=r"trained with shuffle method \[1\], this model has \[2\]"):
        second.load_state_dict(weights)
    del weights["_extra_state"]  # weights of old
    second.load_state_dict(weights)


def test_fpn_layers():
    backbone = build_backbone(make_cfg())
    shapes = backbone.output_shape()
    assert {name: (s.channels, s.stride) for name, s in shapes.items()} == {
        "p2": (64, 4), "p3": (64, 8), "p4": (64, 16), "p5": (64, 32), "p6": (64, 64)
    }  # fmt: skip
    convs = [backbone.get_submodule(f"fpn_{kind}{i}") for kind in ("lateral", "output") for i in (2, 3, 4, 5)]
    assert all(m.bias is None and m.norm.num_groups == 32 and m.activation is None for m in convs)
    outputs = backbone(torch.randn(1, 3, 64, 64))
    assert torch.equal(outputs["p6"], outputs["p5"][:, :, ::2, ::2])


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"spec": op("dwconv_3x3"), "ci": 8, "co": 8, "stride": 1}, "of kind 'dwconv'"),
        ({"spec": op("shuffle_3x3"), "ci": 8, "co": 10, "stride": 1}, "stride-1 block"),
        ({"spec": op("shuffle_3x3"), "ci": 8, "co": 8, "stride": 2}, "stride-2 block"),
        ({"spec": op("shuffle_3x3"), "ci": 6, "co": 6, "stride": 1, "shuffle_method": 2}, "divisible by 4"),
        ({"spec": op("shuffle_3x3"), "ci": 8, "co": 8, "stride": 1, "shuffle_method": 3}, "shuffle method 3"),
    ],
)
def test_block_errors(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ShuffleBlock(norm=BN, **kwargs)


def test_widths():
    assert WIDTHS["1.3G"] == Width(48, (96, 240, 480, 960), (8, 8, 16, 8), 1024)
    assert WIDTHS["3.8G"] == Width(72, (172, 432, 864, 1728), (8, 8, 16, 8), 1728)
    assert WIDTHS["300M"] == Width(16, (64, 160, 320, 640), (4, 4, 8, 4), 1024)
    assert width_from_config(make_cfg()) == Width(8, (16, 32, 48, 64), (1, 1, 2, 1))
