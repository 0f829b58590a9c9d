"""BatchNorm folded into convolutions: the same function, the original untouched."""

import copy

import pytest
import torch
from detectron2.layers import Conv2d
from modeling_util import assert_same_outputs, inference, make_cfg, make_input, make_model
from torch import nn

from auto_panoptic.modeling import Choices
from auto_panoptic.modeling.backbones.shufflenet import ShuffleNetV2
from auto_panoptic.modeling.fold import folded
from auto_panoptic.space import BACKBONE_OPS


def with_statistics(model):
    """Running statistics and affine parameters as after a training: not 0 and 1."""
    generator = torch.Generator().manual_seed(3)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor, low, high in (
                (layer.running_mean, -0.5, 0.5),
                (layer.running_var, 0.5, 2.0),
                (layer.weight.data, 0.5, 1.5),
                (layer.bias.data, -0.5, 0.5),
            ):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)
    return model


def test_by_hand():
    """y = 2 (3x + 1 - 4) / sqrt(3 + 1) + 5 = 3x + 2."""
    conv, norm = nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1, eps=1.0)
    for tensor, value in (
        (conv.weight.data, 3.0),
        (conv.bias.data, 1.0),
        (norm.running_mean, 4.0),
        (norm.running_var, 3.0),
        (norm.weight.data, 2.0),
        (norm.bias.data, 5.0),
    ):
        tensor.fill_(value)
    result = folded(nn.Sequential(conv, norm))
    assert (result[0].weight.item(), result[0].bias.item()) == (3.0, 2.0)
    assert isinstance(result[1], nn.Identity)


def test_by_hand_in_one_layer():
    """y = relu(2 (3x + 1 - 4) / sqrt(3 + 1) + 5) = relu(3x + 2)."""
    layer = Conv2d(1, 1, 1, norm=nn.BatchNorm2d(1, eps=1.0), activation=nn.functional.relu)
    values = [(layer.weight, 3), (layer.bias, 1), (layer.norm.running_mean, 4), (layer.norm.running_var, 3)]
    for tensor, value in (*values, (layer.norm.weight, 2), (layer.norm.bias, 5)):
        tensor.data.fill_(value)
    result = folded(layer)
    assert (result.weight.item(), result.bias.item(), result.norm) == (3.0, 2.0, None)
    assert result(torch.tensor([[[[-1.0]], [[1.0]]]]).view(2, 1, 1, 1)).flatten().tolist() == [0.0, 5.0]
    assert layer.norm is not None


def test_a_norm_that_ends_in_an_activation_stays():
    class Rectified(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x).relu()

    network = nn.Sequential(nn.Conv2d(1, 4, 1), Rectified(4)).eval()
    x = torch.randn(2, 1, 5, 5)
    assert (network(x) == 0).any() and torch.equal(folded(network)(x), network(x))


def test_the_backbone_keeps_its_function_and_loses_its_norm_layers():
    choices = Choices({f"backbone.{i}": spec.name for i, spec in enumerate(BACKBONE_OPS)})
    torch.manual_seed(0)
    backbone = ShuffleNetV2(
        stem_channels=8,
        stage_channels=[16, 24, 32, 48],
        stage_repeats=[1, 1, 1, 1],
        ops=BACKBONE_OPS,
        choices=choices,
    )
    backbone = with_statistics(backbone.double()).train()
    before = copy.deepcopy(backbone.state_dict())
    result = folded(backbone)
    assert not [m for m in result.modules() if isinstance(m, nn.BatchNorm2d)]
    assert backbone.training and not result.training
    after = backbone.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[k], before[k]) for k in before)
    image = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    expected, found = inference(backbone, image), inference(result, image)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-10, atol=1e-10)


def test_the_whole_network_gives_the_same_result():
    model = with_statistics(make_model(make_cfg("NAS.SPACE.HEAD_OPS", ["dwconv_3x3"])))
    inputs = [make_input()]
    assert_same_outputs(inference(folded(model), inputs), inference(model, inputs), tolerance=1e-4)


class Backwards(nn.Sequential):
    """Its order is not that of its layers."""

    def forward(self, x):
        for layer in reversed(self):
            x = layer(x)
        return x


class Twice(nn.Module):
    """One convolution with two norms, and a sum that needs what a norm takes."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(4))
        self.again = nn.BatchNorm2d(3)

    def forward(self, x):
        x = self.norms[1](self.convs[0](self.norms[0](self.convs[0](x))))
        x = self.convs[1](x)
        x = x + self.norms[2](x)
        return self.again(self.norms[3](self.again(self.convs[2](x))))


class Undecided(nn.Module):
    """What it does depends on its input."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        y = self.conv(x)
        return self.norm(y) if x.sum() > 0 else y


@pytest.mark.parametrize("make", [Twice, Undecided])
def test_what_cannot_be_folded_keeps_its_function(make):
    network = with_statistics(make().double())
    image = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    result = folded(network)
    norms = [sum(isinstance(m, nn.BatchNorm2d) for m in net.modules()) for net in (network, result)]
    assert norms[0] == norms[1]
    for x in (image, -image):
        torch.testing.assert_close(inference(result, x), inference(network, x), rtol=0, atol=0)


@pytest.mark.parametrize("inside", [True, False])
def test_a_layer_of_two_blocks_stays(inside):
    shared = Conv2d(3, 3, 1, norm=nn.BatchNorm2d(3) if inside else None)
    norms = [shared.norm, shared.norm] if inside else [nn.BatchNorm2d(3), nn.BatchNorm2d(3)]
    network = nn.Sequential(*(nn.Sequential(shared, norm, nn.Tanh()) for norm in norms))
    network = with_statistics(network)
    image = torch.randn(2, 3, 5, 5)
    assert torch.equal(inference(folded(network), image), inference(network, image))


@pytest.mark.parametrize("block", ["BasicBlock", "Bottleneck"])
def test_residual_blocks_of_timm(block):
    kind = getattr(pytest.importorskip("timm.models.resnet"), block)
    shortcut = nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), nn.BatchNorm2d(8))
    network = with_statistics(kind(3, 8 // kind.expansion, downsample=shortcut).double())
    image = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    result = folded(network)
    assert not [m for m in result.modules() if isinstance(m, nn.BatchNorm2d)]
    torch.testing.assert_close(inference(result, image), inference(network, image), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "layers",
    [
        nn.Sequential(Conv2d(3, 3, 1, activation=nn.functional.relu), nn.BatchNorm2d(3)),
        Backwards(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)),
        nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)),
        nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, affine=False)),
    ],
    ids=["activation", "other order", "no running statistics", "no affine parameters"],
)
def test_layers_of_any_model_keep_their_function(layers):
    torch.manual_seed(0)
    for buffer in layers[1].buffers():
        if buffer.ndim:
            buffer.copy_(torch.rand(3) + 0.5)
    image = torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(inference(folded(layers), image), inference(layers, image))
