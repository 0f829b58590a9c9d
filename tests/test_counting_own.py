"""Counting in models and layers that this package does not know."""

import logging

import numpy as np
import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool
from modeling_util import make_cfg, make_model, num_params
from test_counting import inferred_macs, rows
from torch import nn

from auto_panoptic.modeling import ChoiceBlock, apply_architecture
from auto_panoptic.modeling.choice import space_of
from auto_panoptic.modeling.counting import configured_costs, count
from auto_panoptic.modeling.extract import extract


class Tiny(Backbone):
    """Five plain convolutions and a searched one."""

    channels = (3, 16, 24, 32, 48, 64)

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
            for a, b in zip(self.channels, self.channels[1:], strict=False)
        )
        candidates = {"conv_3x3": nn.Conv2d(64, 64, 3, padding=1), "atconv_3x3": nn.Conv2d(64, 64, 1)}
        self.block = ChoiceBlock("tiny.0", candidates)

    def forward(self, x):
        out = {}
        for i, layer in enumerate(self.layers, start=1):
            x = layer(x)
            out[f"res{i}"] = x
        return {**out, "res5": self.block(x)}

    def output_shape(self):
        return {f"res{i}": ShapeSpec(channels=self.channels[i], stride=2**i) for i in range(2, 6)}


def test_a_backbone_of_ones_own(monkeypatch):
    """Registered as Detectron2 documents it, with searched heads and a site of its own."""

    def build_tiny_fpn(cfg, input_shape):
        node = cfg.MODEL.FPN
        return FPN(Tiny(), node.IN_FEATURES, node.OUT_CHANNELS, norm=node.NORM, top_block=LastLevelMaxPool())

    monkeypatch.setitem(BACKBONE_REGISTRY._obj_map, "build_tiny_fpn", build_tiny_fpn)
    cfg = make_cfg("MODEL.BACKBONE.NAME", "build_tiny_fpn")
    row = rows(configured_costs(cfg, (64, 64)))["tiny.0"]
    assert row == {"conv_3x3": (4 * 9 * 4096, 9 * 4096 + 64), "atconv_3x3": (4 * 4096, 4096 + 64)}
    model = make_model(cfg).eval()
    for op in row:
        architecture = space_of(model).random(np.random.default_rng(0)).names() | {"tiny.0": op}
        architecture = space_of(model).architecture(architecture)
        apply_architecture(model, architecture)
        macs = inferred_macs(model)
        assert count(model, (50, 96)).cost(architecture) == (macs, num_params(extract(model, architecture)))


class Toy(nn.Module):
    """A meta-architecture of whatever layers; they run one after the other."""

    device = torch.device("cpu")

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, batch):
        x = batch[0]["image"][None]
        for layer in self.layers:
            x = layer(x)
        return [{"sem_seg": x[0]}]


class Twice(nn.Module):
    """Work that its type does not tell, and a child whose work counts as usual."""

    def __init__(self):
        super().__init__()
        self.weight, self.child = nn.Parameter(torch.zeros(3, 3)), nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.child(torch.einsum("nchw,dc->ndhw", x, self.weight))

    def macs(self, inputs, output):
        return 3 * output.numel()


def test_layers_of_ones_own(caplog):
    """They say what they do; what cannot be counted is named; the model is left as it was."""

    def state(model):
        hooks = [(dict(m._forward_hooks), dict(m._forward_pre_hooks)) for m in model.modules()]
        return hooks, [m.training for m in model.modules()]

    shared = nn.Conv2d(3, 3, 1, bias=False)
    two = nn.Sequential(shared, nn.Conv2d(3, 3, 3, 1, 1))
    block = ChoiceBlock("a.0", {"conv_3x3": shared, "atconv_3x3": two})
    unknown = nn.Identity()
    unknown.weight = nn.Parameter(torch.zeros(2, 2))
    model = Toy(Twice(), block, nn.ConvTranspose2d(3, 6, 2, 2, groups=3), unknown)
    block.train(False)
    before = state(model)
    with caplog.at_level(logging.WARNING):
        tables = count(model, (4, 5))
    assert state(model) == before
    assert tables.fixed == {"layers": (20 * (9 + 9 + 3 * 8), 9 + 12 + 30 + 4)}
    assert rows(tables) == {"a.0": {"conv_3x3": (20 * 9, 9), "atconv_3x3": (20 * (9 + 81), 9 + 84)}}
    assert "leave out layers.3: inference does not call it" in caplog.text


def test_what_cannot_be_counted():
    inner = ChoiceBlock("b.0", {"conv_3x3": nn.Conv2d(3, 3, 1)})
    nested = Toy(ChoiceBlock("a.0", {"conv_3x3": nn.Sequential(inner)}))
    with pytest.raises(ValueError, match="site 'b.0' lies within 'a.0'"):
        count(nested, (8, 8))
    for size in ((0, 8), (8,), (8.0, 8), (True, 8)):
        with pytest.raises(ValueError, match="image size"):
            count(Toy(), size)
    with pytest.raises(RuntimeError, match="expected input"):  # a fault of the model, on its own device
        count(Toy(nn.Conv2d(4, 4, 1)), (8, 8))
