"""Exact multiply-adds and parameters of the backbone, as a sum over its blocks.

Convolutions and the fully connected layer count k * k * C_in / groups * C_out multiply-adds per output
position; biases and normalisation count none. Parameters include the affine parameters of BatchNorm and the
stem's bias. The figures equal the reference code's per-operator table at its width (300M).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ..errors import UserError
from .ops import BACKBONE_OPS, OpSpec
from .space import Architecture, ChoiceSite, op_at
from .widths import Width, get_width

NUM_CLASSES = 1000  # of the ImageNet classifier


class Cost(NamedTuple):
    """Multiply-adds of one image, and parameters."""

    macs: int
    params: int

    def __add__(self, other):
        return Cost(self.macs + other[0], self.params + other[1])


def backbone_cost(
    indices,
    width: str | Width = "1.3G",
    size: tuple[int, int] = (224, 224),
    classifier: bool = False,
) -> Cost:
    """Cost of the backbone with one operator per block.

    Args:
        indices: one index (published order) or :class:`OpSpec` per block, or an :class:`Architecture`, or
            the three index lists, of which ``backbone`` counts.
        width: a name in ``WIDTHS`` or a :class:`Width`.
        size: height and width of the image in pixels.
        classifier: add the ImageNet classifier (1x1 convolution, pooling, 1000 outputs).

    Returns:
        (multiply-adds, parameters).
    """
    width = get_width(width)
    total = stem_cost(width, size)
    ops = _backbone_ops(indices, width)
    for layer, (spec, table) in enumerate(zip(ops, cost_table(width, size), strict=True)):
        if spec.name not in table:
            raise UserError(f"backbone.{layer} has operator {spec.name!r}: expected {', '.join(table)}")
        total += table[spec.name]
    return total + classifier_cost(width, size) if classifier else total


def supernet_params(width: str | Width = "1.3G") -> int:
    """Parameters of the backbone with all operators at every block, without classifier."""
    width = get_width(width)
    tables = cost_table(width)
    return stem_cost(width).params + sum(cost.params for table in tables for cost in table.values())


def cost_table(width: str | Width = "1.3G", size: tuple[int, int] = (224, 224)) -> list[dict[str, Cost]]:
    """{operator name: cost} of every block: adding one entry per block to the stem gives the backbone."""
    width = get_width(width)
    size = _half(_check_size(size))
    tables = []
    for c_in, c_out, stride in width.blocks():
        tables.append({spec.name: block_cost(spec, c_in, c_out, stride, size) for spec in BACKBONE_OPS})
        size = _half(size) if stride == 2 else size
    return tables


def stem_cost(width: Width, size: tuple[int, int] = (224, 224)) -> Cost:
    """3x3 convolution of stride 2 with bias, BatchNorm."""
    cost = _conv(3, width.stem, 3, 1, _half(_check_size(size)))
    return cost + (0, width.stem)


def classifier_cost(width: Width, size: tuple[int, int] = (224, 224), num_classes: int = NUM_CLASSES) -> Cost:
    """1x1 convolution with bias, BatchNorm, average pooling, fully connected layer."""
    size = level_size(size, 5)
    conv = _conv(width.channels[-1], width.classifier, 1, 1, size) + (0, width.classifier)
    return conv + (width.classifier * num_classes, (width.classifier + 1) * num_classes)


def block_cost(spec: OpSpec, c_in: int, c_out: int, stride: int, size: tuple[int, int]) -> Cost:
    """Cost of one block.

    Args:
        spec: a backbone operator.
        c_in, c_out: channels of the block's input and output; equal when ``stride`` is 1.
        stride: 1 (half of the channels passes through) or 2 (a projection takes the place of that half).
        size: height and width of the block's input.
    """
    out = _half(size) if stride == 2 else size
    branch_in = c_in if stride == 2 else c_in // 2
    mid, branch_out, k = c_out // 2, c_out - branch_in, spec.kernel
    if spec.kind == "shuffle":
        convs = [
            _conv(branch_in, mid, 1, 1, size),
            _conv(mid, mid, k, mid, out),
            _conv(mid, branch_out, 1, 1, out),
        ]
    else:
        convs = [
            _conv(branch_in, branch_in, k, branch_in, out),
            _conv(branch_in, mid, 1, 1, out),
            _conv(mid, mid, k, mid, out),
            _conv(mid, mid, 1, 1, out),
            _conv(mid, mid, k, mid, out),
            _conv(mid, branch_out, 1, 1, out),
        ]
    if stride == 2:
        convs += [_conv(c_in, c_in, k, c_in, out), _conv(c_in, c_in, 1, 1, out)]
    return sum(convs, Cost(0, 0))


def _conv(c_in: int, c_out: int, kernel: int, groups: int, out: tuple[int, int]) -> Cost:
    """Convolution without bias followed by BatchNorm; ``out`` is the size of its output."""
    weights = kernel * kernel * (c_in // groups) * c_out
    return Cost(weights * out[0] * out[1], weights + 2 * c_out)


def level_size(size: tuple[int, int], level: int) -> tuple[int, int]:
    """Size of the feature maps of stride 2**level: C2 has level 2, the maps of P6 have level 6."""
    size = _check_size(size)
    for _ in range(level):
        size = _half(size)
    return size


def _half(size: tuple[int, int]) -> tuple[int, int]:
    """Size after a convolution of stride 2, odd kernel k and padding k // 2."""
    return (size[0] + 1) // 2, (size[1] + 1) // 2


def _check_size(size) -> tuple[int, int]:
    if len(size) != 2 or any(isinstance(s, bool) or not isinstance(s, int) or s < 1 for s in size):
        raise UserError(f"image size {size!r}: expected (height, width), two integers >= 1")
    return tuple(size)


def _backbone_ops(indices, width: Width) -> list[OpSpec]:
    if isinstance(indices, Architecture):
        ops = [indices[site.name] for site in indices.space.group("backbone")]
    else:
        if isinstance(indices, Mapping):
            indices = indices["backbone"]
        ops = [
            entry if isinstance(entry, OpSpec) else _published(layer, entry)
            for layer, entry in enumerate(indices)
        ]
    if len(ops) != width.num_layers:
        raise UserError(
            f"{len(ops)} backbone operators: this width has {width.num_layers} blocks, give one for each"
        )
    return ops


def _published(layer: int, index: int) -> OpSpec:
    site = ChoiceSite(f"backbone.{layer}", BACKBONE_OPS)
    return BACKBONE_OPS[site.index(op_at(site, index))]
