"""Auto-DeepLab, found by search, and Auto-DeepLab+ of the supplement's section 2.

The network is that of DeepLab's own code: a stem and 12 cells of five blocks. Shape shorthand: N images of
H x W pixels, F filters, a cell of level l has F * 2^l channels in each of its five blocks and stride 4 * 2^l.
"""

from __future__ import annotations

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from torch import nn
from torch.nn import functional as F

from .encoder import Encoder, synchronised

LEVELS = (0, 0, 0, 1, 2, 1, 2, 2, 3, 3, 2, 1)
# The five blocks of a cell add two operators each: (kind, kernel, input). Input 0 is the output of the cell
# before, 1 that of the one before it, 2 and more are the cell's own blocks.
BLOCKS = (
    (("atrous", 5, 1), ("separable", 3, 0)),
    (("separable", 3, 1), ("atrous", 3, 0)),
    (("separable", 3, 3), ("separable", 3, 1)),
    (("separable", 5, 4), ("separable", 5, 2)),
    (("separable", 5, 3), ("atrous", 5, 5)),
)
OUTPUTS = {2: "res2", 5: "res3", 7: "res4", 11: "res5"}  # by cell


class AutoDeepLab(Encoder):
    """Outputs res2, res3, res4 and res5 with strides 4, 8, 16 and 8: the encoder's output is res5.

    Initialisation is PyTorch's, whose range is that of the original. BatchNorm has the original's epsilon.
    """

    def __init__(self, *, filters: int = 20, keep_last_stride: bool = True, in_channels: int = 3):
        """
        Args:
            filters: F; 20 is the small network, 32 and 48 are the larger ones.
            keep_last_stride: False is Auto-DeepLab+: the cell that creates stride 32 and the next one stay at
                stride 16, and the upsampling after them is left out. Filters stay, and so do dilations.
            in_channels: of the image.
        """
        super().__init__()
        first = nn.Sequential(*_conv_norm(in_channels, 64, 3, stride=2), nn.ReLU())
        self.stem = nn.ModuleList([nn.Sequential(*first, *_conv_norm(64, 64, 3))])
        self.stem.append(nn.Sequential(nn.ReLU(), *_conv_norm(64, 128, 3, stride=2)))
        self.strides = [min(4 * 2**level, 32 if keep_last_stride else 16) for level in LEVELS]
        before = [4, *self.strides]
        self.cells, channels, outputs = nn.ModuleList(), [64, 128], {}
        for i, level in enumerate(LEVELS):
            width, halve = filters * 2**level, self.strides[i] > before[i]
            self.cells.append(_Cell(channels[-1], channels[-2], width, stride=2 if halve else 1))
            channels.append(len(BLOCKS) * width)
            if i in OUTPUTS:
                outputs[OUTPUTS[i]] = (channels[-1], self.strides[i])
        self.set_outputs(outputs)
        self.settings = {"MODEL.AUTO_DEEPLAB.KEEP_LAST_STRIDE": keep_last_stride}

    @property
    def size_divisibility(self) -> int:
        """Images are padded to it, so that each map is twice as large as the next."""
        return 32

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """(N, 3, H, W) -> {"res2": (N, 5F, H/4, W/4), ..., "res5": (N, 10F, H/8, W/8)}; of res5 the ReLU."""
        before = self.stem[0](x)
        x = self.stem[1](before)
        outputs, sizes = {}, {4: x.shape[-2:]}
        for i, (cell, stride) in enumerate(zip(self.cells, self.strides, strict=True)):
            if i and stride < self.strides[i - 1]:  # as large as an earlier map of this stride
                x = _resized(x, sizes[stride])
            x, before = cell(x, before), x
            sizes.setdefault(stride, x.shape[-2:])
            if i in OUTPUTS:
                outputs[OUTPUTS[i]] = x
        return {**outputs, "res5": F.relu(x)}


class _Cell(nn.Module):
    """(N, ci, h, w) and the output of the cell before -> (N, 5 * width, h / stride, w / stride)."""

    def __init__(self, ci: int, before: int, width: int, stride: int):
        super().__init__()
        self.squeeze = nn.Sequential(nn.ReLU(), *_conv_norm(ci, width, 1))
        self.squeeze_before = nn.Identity()
        if before != width:
            self.squeeze_before = nn.Sequential(nn.ReLU(), *_conv_norm(before, width, 1))
        self.blocks = nn.ModuleList(
            nn.ModuleList(
                {"atrous": _Atrous, "separable": _separable}[kind](width, kernel, stride if source < 2 else 1)
                for kind, kernel, source in pair
            )
            for pair in BLOCKS
        )

    def forward(self, x: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        before = self.squeeze_before(_resized(before, x.shape[-2:]))
        states = [self.squeeze(x), before]
        for (left, right), pair in zip(self.blocks, BLOCKS, strict=True):
            states.append(left(states[pair[0][2]]) + right(states[pair[1][2]]))
        return torch.cat(states[2:], dim=1)


class _Atrous(nn.Sequential):
    """ReLU, convolution of dilation 2, BN; with stride 2 the map is halved first, and dilation is 1."""

    def __init__(self, width: int, kernel: int, stride: int):
        super().__init__(nn.ReLU(), *_conv_norm(width, width, kernel, dilation=3 - stride))
        self.stride = stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.stride == 2:
            x = _resized(x, [-(-side // 2) for side in x.shape[-2:]])
        return super().forward(x)


def _separable(width: int, kernel: int, stride: int) -> nn.Sequential:
    """Twice: ReLU, depthwise convolution, 1x1 convolution, BN; the first has the stride."""
    layers = []
    for step in (stride, 1):
        layers += [nn.ReLU(), nn.Conv2d(width, width, kernel, step, kernel // 2, groups=width, bias=False)]
        layers += _conv_norm(width, width, 1)
    return nn.Sequential(*layers)


def _conv_norm(ci: int, co: int, kernel: int, *, stride: int = 1, dilation: int = 1) -> list[nn.Module]:
    padding = dilation * (kernel // 2)
    return [nn.Conv2d(ci, co, kernel, stride, padding, dilation, bias=False), nn.BatchNorm2d(co, eps=1e-3)]


def _resized(x: torch.Tensor, size) -> torch.Tensor:
    """``x`` with (height, width) ``size``, by bilinear interpolation with aligned corners."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=True)


@BACKBONE_REGISTRY.register()
def build_auto_deeplab_backbone(cfg, input_shape: ShapeSpec) -> AutoDeepLab:
    """The Auto-DeepLab that MODEL.AUTO_DEEPLAB describes."""
    node = cfg.MODEL.AUTO_DEEPLAB
    encoder = AutoDeepLab(
        filters=node.FILTERS, keep_last_stride=node.KEEP_LAST_STRIDE, in_channels=input_shape.channels
    )
    return synchronised(encoder, node.NORM, cfg)
