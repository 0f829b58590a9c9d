import pytest
import torch
import torch.nn.functional as F
from modeling_util import num_params
from torch import nn

from auto_panoptic.modeling.layers.head_ops import ModulatedDeformConv2d, build_head_op
from auto_panoptic.space import HEAD_OPS, op

ALL_OPS = [*HEAD_OPS, op("conv_3x3")]
by_name = {"ids": lambda spec: spec.name}


@pytest.mark.parametrize(
    "name, params",
    [
        ("dwconv_3x3", (68864, 35712, 18048)),
        ("dwconv_5x5", (72960, 39808, 20096)),
        ("atconv_3x3", (590592, 295296, 147840)),
        ("atconv_5x5", (1639168, 819584, 409984)),
        ("dfconv_3x3", (652827, 357531, 178971)),
        ("dfconv_5x5", (2119243, 1299659, 650059)),
        ("conv_3x3", (590592, 295296, 147840)),
    ],
)
def test_params(name, params):
    with torch.device("meta"):
        built = [build_head_op(op(name), *size) for size in ((256, 256), (256, 128), (128, 128))]
    assert tuple(num_params(module) for module in built) == params


@pytest.mark.parametrize("spec", ALL_OPS, **by_name)
@pytest.mark.parametrize("size", [(7, 9), (2, 3), (14, 14)])
def test_size_is_preserved(spec, size):
    assert build_head_op(spec, 8, 32)(torch.randn(2, 8, *size)).shape == (2, 32, *size)


@pytest.mark.parametrize("spec", ALL_OPS, **by_name)
def test_ends_with_group_norm_and_relu(spec):
    torch.manual_seed(0)
    layer = build_head_op(spec, 16, 64)
    assert [name for name, _ in layer.named_children()] == ["conv", "norm", "relu"]
    kinds = [type(m) for m in layer.modules()]
    assert kinds.count(nn.GroupNorm) == kinds.count(nn.ReLU) == 1
    assert kinds[-2:] == [nn.GroupNorm, nn.ReLU]
    assert (layer.norm.num_groups, layer.norm.eps) == (32, 1e-5)

    x = torch.randn(2, 16, 12, 12)
    before = layer.norm(layer.conv(x)).reshape(2, 32, -1)
    torch.testing.assert_close(before.mean(-1), torch.zeros(2, 32), atol=1e-4, rtol=0)
    torch.testing.assert_close(before.var(-1, unbiased=False), torch.ones(2, 32), atol=1e-2, rtol=0)
    output = layer(x)
    assert output.min() == 0 < output.max()


@pytest.mark.parametrize(
    "name, touched", [("atconv_3x3", [-2, 0, 2]), ("atconv_5x5", [-4, -2, 0, 2, 4]), ("conv_3x3", [-1, 0, 1])]
)
def test_impulse_response(name, touched):
    layer = build_head_op(op(name), 1, 32)
    x = torch.zeros(1, 1, 17, 17)
    x[0, 0, 8, 8] = 1
    response = layer.conv(x)[0].abs().sum(0)
    rows, columns = response.nonzero(as_tuple=True)
    assert sorted(set((rows - 8).tolist())) == sorted(set((columns - 8).tolist())) == touched
    assert len(rows) == len(touched) ** 2


def test_identity_is_no_layer():
    layer = build_head_op(op("identity"), 64, 64)
    x = torch.randn(2, 64, 5, 5)
    assert torch.equal(layer(x), x) and not list(layer.parameters())
    with pytest.raises(ValueError, match="from 64 to 96 channels cannot be left out"):
        build_head_op(op("identity"), 64, 96)


@pytest.mark.parametrize("kernel", [3, 5])
def test_depthwise_structure(kernel):
    first, second = build_head_op(op(f"dwconv_{kernel}x{kernel}"), 8, 32).conv
    assert (first.groups, first.kernel_size, first.out_channels) == (8, (kernel, kernel), 8)
    assert (second.groups, second.kernel_size, second.out_channels) == (1, (1, 1), 32)
    assert first.bias is not None and second.bias is not None


@pytest.mark.parametrize("kernel", [3, 5])
def test_fresh_deformable_operator_is_half_a_convolution(kernel):
    torch.manual_seed(0)
    layer = ModulatedDeformConv2d(6, 4, kernel)
    nn.init.normal_(layer.bias)
    x = torch.randn(2, 6, 9, 11)
    expected = 0.5 * F.conv2d(x, layer.weight, padding=kernel // 2) + layer.bias[:, None, None]
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kernel", [3, 5])
def test_first_channels_are_offsets_and_last_the_mask(kernel):
    taps = kernel**2
    layer = ModulatedDeformConv2d(3, 2, kernel)
    assert layer.offset_mask.out_channels == 3 * taps
    x = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        layer.offset_mask.bias[: 2 * taps : 2] = 1  # y + 1 for every tap: the image one row up
        layer.offset_mask.bias[2 * taps :] = 100  # mask 1
    shifted = F.pad(x, (0, 0, 0, 1))[:, :, 1:]
    inner = slice(kernel, -kernel) if kernel < 4 else slice(3, 5)
    expected = F.conv2d(shifted, layer.weight, layer.bias, padding=kernel // 2)
    torch.testing.assert_close(layer(x)[..., inner, :], expected[..., inner, :], atol=1e-5, rtol=1e-5)


def test_initialisation():
    torch.manual_seed(0)
    deformable = ModulatedDeformConv2d(64, 64, 3)
    bound = (64 * 9) ** -0.5
    assert deformable.weight.abs().max().item() == pytest.approx(bound, rel=1e-3)
    assert deformable.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert not any(p.any() for p in (deformable.bias, *deformable.offset_mask.parameters()))

    atrous = build_head_op(op("atconv_3x3"), 64, 32).conv
    assert atrous.weight.std().item() == pytest.approx((2 / (9 * (64 + 32))) ** 0.5, rel=0.02)
    for spec in ALL_OPS:
        if spec.kind != "dfconv":
            convs = [m for m in build_head_op(spec, 64, 32).modules() if isinstance(m, nn.Conv2d)]
            assert not any(m.bias.any() for m in convs)


@pytest.mark.parametrize("spec", ALL_OPS, **by_name)
def test_zero_batch(spec):
    layer = build_head_op(spec, 8, 32)
    x = torch.zeros(0, 8, 14, 14, requires_grad=True)
    output = layer(x)
    assert output.shape == (0, 32, 14, 14)
    output.sum().backward()
    for parameter in layer.parameters():
        assert torch.equal(parameter.grad, torch.zeros_like(parameter))


def test_errors():
    with pytest.raises(ValueError, match="'shuffle_3x3' of kind 'shuffle'"):
        build_head_op(op("shuffle_3x3"), 32, 32)
    with pytest.raises(ValueError, match="multiple of 32"):
        build_head_op(op("dwconv_3x3"), 32, 48)
