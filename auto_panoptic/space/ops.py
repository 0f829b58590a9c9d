"""The operators a site may take. Attributes are stated here; nothing is ever parsed from a name."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import UserError


@dataclass(frozen=True)
class OpSpec:
    """One candidate operator.

    Attributes:
        name: stable name used in files, configs and state dicts.
        kind: what to build: ``shuffle`` and ``xception`` blocks (backbone); ``dwconv`` (depthwise separable),
            ``dfconv`` (modulated deformable), ``atconv`` (dense, dilation 2) and ``conv`` (plain) layers
            (heads); ``se`` (squeeze-and-excitation gate, inter-modular attention).
        kernel: kernel size k of a k x k operator, 0 for ``se``.
        ratio: reduction ratio r of an ``se`` gate, otherwise 0.
    """

    name: str
    kind: str
    kernel: int = 0
    ratio: int = 0

    @property
    def group(self) -> str:
        """The part of the genotype this operator belongs to: ``backbone``, ``head`` or ``inter``."""
        return GROUP_OF_KIND[self.kind]


GROUPS = ("backbone", "head", "inter")
GROUP_OF_KIND = {
    "shuffle": "backbone",
    "xception": "backbone",
    "dwconv": "head",
    "dfconv": "head",
    "atconv": "head",
    "conv": "head",
    "se": "inter",
}


def ratio_op(ratio: int) -> OpSpec:
    """The attention gate with the reduction ratio ``ratio`` >= 1, named ``r{ratio}``."""
    if isinstance(ratio, bool) or not isinstance(ratio, int) or ratio < 1:
        raise UserError(f"reduction ratio {ratio!r}: expected an integer >= 1, e.g. 4, 8 or 16")
    return OpSpec(f"r{ratio}", "se", ratio=ratio)


def effective_ratio(spec: OpSpec, legacy: bool = False) -> int:
    """What the hidden layer of an attention gate divides its channels by.

    Args:
        spec: an operator of kind "se".
        legacy: as the reference code, which takes the last digit of the ratio: 4, 8 and 6 for 4, 8 and 16.

    Raises:
        UserError: the last digit is 0.
    """
    ratio = spec.ratio % 10 if legacy else spec.ratio
    if ratio == 0:
        raise UserError(
            f"MODEL.CROSS_ATTENTION.RATIOS holds {spec.ratio}, whose last digit LEGACY_RATIO would divide "
            "by; use ratios that do not end in 0, or LEGACY_RATIO False"
        )
    return ratio


# The order is that of the reference code, in which the published index lists are written. (The paper's table
# lists the head operators as depthwise, atrous, deformable; decoding with that order gives other networks.)
BACKBONE_OPS = (
    OpSpec("shuffle_3x3", "shuffle", kernel=3),
    OpSpec("shuffle_5x5", "shuffle", kernel=5),
    OpSpec("shuffle_7x7", "shuffle", kernel=7),
    OpSpec("xception_3x3", "xception", kernel=3),
)
HEAD_OPS = (
    OpSpec("dwconv_3x3", "dwconv", kernel=3),
    OpSpec("dwconv_5x5", "dwconv", kernel=5),
    OpSpec("dfconv_3x3", "dfconv", kernel=3),
    OpSpec("dfconv_5x5", "dfconv", kernel=5),
    OpSpec("atconv_3x3", "atconv", kernel=3),
    OpSpec("atconv_5x5", "atconv", kernel=5),
)
INTER_OPS = tuple(ratio_op(ratio) for ratio in (4, 8, 16))
# Not in the paper's space: the ordinary convolution of its "plain" baseline.
EXTRA_OPS = (OpSpec("conv_3x3", "conv", kernel=3),)

_BY_NAME = {spec.name: spec for spec in BACKBONE_OPS + HEAD_OPS + INTER_OPS + EXTRA_OPS}


def op(name: str) -> OpSpec:
    """Look an operator up by name; attention gates exist for every ratio (``r4``, ``r6``, ...).

    Raises:
        UserError: there is no such operator; the message lists those there are.
    """
    if isinstance(name, str):
        if name in _BY_NAME:
            return _BY_NAME[name]
        digits = name[1:]
        if name[:1] == "r" and digits.isascii() and digits.isdigit() and digits[0] != "0":
            return ratio_op(int(digits))
    raise UserError(f"unknown operator {name!r}: expected one of {', '.join(_BY_NAME)}, or r<ratio>")
