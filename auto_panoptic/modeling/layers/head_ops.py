"""Operators of the searched head layers: OpSpec -> convolution, GroupNorm(32) or another norm, ReLU.

Structures, paddings and initialisation follow the reference code.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from auto_panoptic.space import OpSpec

from .deform import deform_conv2d

GROUPS = 32


class ModulatedDeformConv2d(nn.Module):
    """Deformable convolution v2: k x k taps at learned offsets, each weighted by a learned mask.

    A k x k convolution predicts 3 k^2 channels: the first 2 k^2 are (y, x) offsets per tap, the last k^2
    become the mask through a sigmoid. It starts at zero, hence the first output is 0.5 * conv(x) + bias.
    Not ``modulated`` it is v1: offsets alone, 2 k^2 channels, and the first output is conv(x) + bias.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, modulated: bool = True):
        super().__init__()
        self.kernel = kernel
        self.modulated = modulated
        self.padding = (kernel - 1) // 2
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        channels = (3 if modulated else 2) * kernel**2
        self.offset_mask = nn.Conv2d(in_channels, channels, kernel, padding=self.padding)
        bound = (in_channels * kernel**2) ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.zeros_(self.offset_mask.weight)
        nn.init.zeros_(self.offset_mask.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, in, H, W) -> (N, out, H, W); N may be 0."""
        offset, mask = self.offset_mask(x), None
        if self.modulated:
            offset, mask = offset.split([2 * self.kernel**2, self.kernel**2], dim=1)
            mask = mask.sigmoid()
        return deform_conv2d(x, offset, self.weight, self.bias, padding=self.padding, mask=mask)

    def macs(self, inputs: tuple, output: torch.Tensor) -> int:
        """Multiply-adds of one call beside those of the offsets, as of a plain convolution."""
        return output.numel() * self.weight[0].numel()

    def extra_repr(self) -> str:
        channels = f"{self.weight.shape[1]}, {self.weight.shape[0]}"
        return f"{channels}, kernel_size={self.kernel}, padding={self.padding}"


def _xavier(module: nn.Module) -> nn.Module:
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.xavier_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
    return module


def _depthwise(ci: int, co: int, kernel: int) -> nn.Module:
    """Depthwise k x k, then 1x1, nothing in between."""
    return _xavier(
        nn.Sequential(nn.Conv2d(ci, ci, kernel, padding=(kernel - 1) // 2, groups=ci), nn.Conv2d(ci, co, 1))
    )


def _dense(ci: int, co: int, kernel: int, dilation: int = 1) -> nn.Module:
    return _xavier(nn.Conv2d(ci, co, kernel, padding=(kernel - 1) // 2 * dilation, dilation=dilation))


# How to build an operator of a kind: (input channels, output channels, kernel) -> module that keeps the size.
HEAD_OP_BUILDERS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "dwconv": _depthwise,
    "atconv": partial(_dense, dilation=2),
    "dfconv": ModulatedDeformConv2d,
    "conv": _dense,  # of the paper's plain baseline
}


class HeadOp(nn.Sequential):
    """Convolution -> norm -> ReLU, as ``conv``, ``norm`` and ``relu``. Stride 1, size preserved."""

    def __init__(self, conv: nn.Module, norm: nn.Module):
        super().__init__()
        self.conv = conv
        self.norm = norm
        self.relu = nn.ReLU(inplace=True)


def build_head_op(
    spec: OpSpec,
    in_channels: int,
    out_channels: int,
    modulated: bool = True,
    norm: nn.Module | None = None,
) -> nn.Module:
    """Build one candidate of a searched head layer: a :class:`HeadOp`, or nothing for the kind ``identity``.

    Args:
        spec: an operator of a kind in :data:`HEAD_OP_BUILDERS`.
        in_channels: input channels.
        out_channels: output channels; without ``norm`` a multiple of 32.
        modulated: whether deformable operators are v2.
        norm: the layer after the convolution; None: GroupNorm(32).

    Raises:
        ValueError: unknown kind, or channels that GroupNorm(32) cannot divide, or that no layer can change.
    """
    if spec.kind == "identity":
        if in_channels != out_channels:
            raise ValueError(
                f"a head layer from {in_channels} to {out_channels} channels cannot be left out; name the "
                "others' sites in NAS.SPACE.SITES"
            )
        return nn.Identity()
    if spec.kind not in HEAD_OP_BUILDERS:
        kinds = sorted(HEAD_OP_BUILDERS)
        raise ValueError(f"operator {spec.name!r} of kind {spec.kind!r}: expected one of {kinds}")
    if norm is None and out_channels % GROUPS:
        raise ValueError(
            f"a head operator has {out_channels} output channels; GroupNorm needs a multiple of {GROUPS}"
        )
    build = HEAD_OP_BUILDERS[spec.kind]
    if build is ModulatedDeformConv2d:
        build = partial(build, modulated=modulated)
    conv = build(in_channels, out_channels, spec.kernel)
    return HeadOp(conv, norm or nn.GroupNorm(GROUPS, out_channels, eps=1e-5))
