"""Multiply-adds and parameters of the parts that Detectron2 brings: they surround what is searched.

Conventions as in :mod:`auto_panoptic.space.network_cost`. A layer is followed by its bias or by a norm, which
``norm`` names as Detectron2's configs do: "" is a bias, "FrozenBN" has no parameters, all others two vectors.
"""

from __future__ import annotations

import math

from .cost import Cost, level_size
from .network import ResNet, SemSegHead


def conv_cost(c_in: int, c_out: int, taps: int, positions: int, groups: int = 1, norm: str = "") -> Cost:
    """Convolution and what follows it.

    Args:
        c_in, c_out: channels.
        taps: kernel positions, 9 for 3 x 3.
        positions: output positions, over all levels or regions.
        groups: groups of the convolution.
        norm: see the module.
    """
    weights = taps * (c_in // groups) * c_out
    return Cost(weights * positions, weights + c_out * {"": 1, "FrozenBN": 0}.get(norm, 2))


def linear_cost(c_in: int, c_out: int, norm: str = "") -> Cost:
    """Fully connected layer and what follows it, for one input."""
    return conv_cost(c_in, c_out, 1, 1, norm=norm)


def positions_of(size: tuple[int, int], levels) -> int:
    """Positions of the feature maps of these levels together, for an image of ``size``."""
    return sum(math.prod(level_size(size, level)) for level in levels)


def resnet_cost(resnet: ResNet, size: tuple[int, int]) -> Cost:
    """ResNet without classifier."""
    total = conv_cost(3, resnet.stem, 49, positions_of(size, [1]), norm=resnet.norm_of(1))
    c_in = resnet.stem
    for level, (blocks, c_out) in enumerate(zip(resnet.blocks, resnet.channels, strict=True), start=2):
        norm, after = resnet.norm_of(level), positions_of(size, [level])
        # Stage 2 follows the pooling of the stem and keeps its size.
        before = positions_of(size, [max(level - 1, 2)])
        for i in range(blocks):
            if c_in != c_out:
                total += conv_cost(c_in, c_out, 1, after, norm=norm)
            if resnet.basic:
                total += conv_cost(c_in, c_out, 9, after, norm=norm)
                total += conv_cost(c_out, c_out, 9, after, norm=norm)
            else:
                mid = resnet.bottleneck * 2 ** (level - 2)
                first = before if i == 0 and not resnet.stride_in_1x1 else after
                total += conv_cost(c_in, mid, 1, first, norm=norm)
                total += conv_cost(mid, mid, 9, after, resnet.groups, norm)
                total += conv_cost(mid, c_out, 1, after, norm=norm)
            c_in = c_out
    return total


def sem_seg_cost(head: SemSegHead, channels: int, size: tuple[int, int]) -> Cost:
    """Detectron2's SemSegFPNHead on FPN levels of ``channels``: own 3x3 convolutions per level, summed.

    A level of stride s has log2(s / 4) convolutions, at least one, with x2 upsampling after each.
    """
    finest = min(head.levels)
    total = conv_cost(head.dim, head.num_classes, 1, positions_of(size, [finest]))
    for level in head.levels:
        for i in range(max(1, level - finest)):
            c_in = channels if i == 0 else head.dim
            total += conv_cost(c_in, head.dim, 9, positions_of(size, [level - i]), norm=head.norm)
    return total
