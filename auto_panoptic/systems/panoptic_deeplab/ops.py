"""Operators of decoder stages and head convolutions: OpSpec -> module in which norm and ReLU follow.

Structures and initialisation of the published ones are Detectron2's.
"""

import fvcore.nn.weight_init as weight_init
from detectron2.layers import Conv2d, DepthwiseSeparableConv2d, get_norm
from torch import nn
from torch.nn import functional as F

from auto_panoptic.modeling.layers.head_ops import HEAD_OP_BUILDERS, build_head_op
from auto_panoptic.space import OpSpec

__all__ = ["build_op", "dense", "separable"]


def separable(in_channels: int, out_channels: int, kernel: int, norm: str) -> DepthwiseSeparableConv2d:
    """Depthwise k x k, then 1x1, each with norm and ReLU."""
    return DepthwiseSeparableConv2d(
        in_channels,
        out_channels,
        kernel_size=kernel,
        padding=kernel // 2,
        norm1=norm,
        activation1=F.relu,
        norm2=norm,
        activation2=F.relu,
    )


def dense(in_channels: int, out_channels: int, kernel: int, norm: str) -> Conv2d:
    """A k x k convolution with norm and ReLU; with a bias where there is no norm."""
    layer = Conv2d(
        in_channels,
        out_channels,
        kernel_size=kernel,
        padding=kernel // 2,
        bias=norm == "",
        norm=get_norm(norm, out_channels),
        activation=F.relu,
    )
    weight_init.c2_xavier_fill(layer)
    return layer


# How to build one layer of a kind, and how many there are.
_LAYERS = {"sepconv": (separable, 1), "sepconv_twice": (separable, 2), "conv_twice": (dense, 2)}


def build_op(
    spec: OpSpec, in_channels: int, out_channels: int, norm: str, between: int | None = None
) -> nn.Module:
    """Build one operator; stride 1, size preserved.

    Args:
        spec: of a kind above, or one of the head operators, whose GroupNorm ``norm`` replaces.
        in_channels: input channels.
        out_channels: output channels.
        norm: name of a norm in Detectron2, "" for none.
        between: channels between two layers, ``out_channels`` by default.

    Raises:
        ValueError: unknown kind.
    """
    if spec.kind not in _LAYERS:
        if spec.kind not in HEAD_OP_BUILDERS:
            kinds = ", ".join(sorted({*_LAYERS, *HEAD_OP_BUILDERS}))
            raise ValueError(f"operator {spec.name!r} of kind {spec.kind!r}: expected one of {kinds}")
        layer = get_norm(norm, out_channels) or nn.Identity()
        return build_head_op(spec, in_channels, out_channels, norm=layer)
    build, count = _LAYERS[spec.kind]
    if count == 1:
        return build(in_channels, out_channels, spec.kernel, norm)
    between = between or out_channels
    return nn.Sequential(
        build(in_channels, between, spec.kernel, norm), build(between, out_channels, spec.kernel, norm)
    )
