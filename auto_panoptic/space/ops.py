"""The operators that sites may take, a registry. Attributes are stated, nothing is parsed from a name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import UserError


@dataclass(frozen=True)
class OpSpec:
    """One candidate operator.

    Attributes:
        name: stable name used in files, configs and state dicts.
        kind: what to build: ``shuffle`` and ``xception`` blocks (backbone); ``dwconv`` (depthwise separable),
            ``dfconv`` (modulated deformable), ``atconv`` (dense, dilation 2) and ``conv`` (plain) layers
            (heads); ``sepconv`` and its ``sepconv_twice``, ``conv_twice``, ``identity`` (below); ``se``
            (squeeze-and-excitation gate, inter-modular attention); or another that the network which holds
            the site knows.
        group: the index list of an architecture that its choices go to: the published ``backbone``, ``head``
            and ``inter``, or any other.
        kernel: kernel size k of a k x k operator, 0 for ``se``.
        ratio: reduction ratio r of an ``se`` gate, otherwise 0.
    """

    name: str
    kind: str
    group: str
    kernel: int = 0
    ratio: int = 0


# The published index lists; those of other groups come after them.
GROUPS = ("backbone", "head", "inter")

_BY_NAME: dict[str, OpSpec] = {}


def register_ops(*specs: OpSpec) -> None:
    """Make operators known by name, in configs and in files.

    Raises:
        UserError: another operator has the name.
    """
    for spec in specs:
        if _find(spec.name) not in (None, spec):
            raise UserError(f"operator {spec.name!r} is registered already, as {_find(spec.name)}")
        _BY_NAME[spec.name] = spec


def ratio_op(ratio: int) -> OpSpec:
    """The attention gate with the reduction ratio ``ratio`` >= 1, named ``r{ratio}``."""
    if isinstance(ratio, bool) or not isinstance(ratio, int) or ratio < 1:
        raise UserError(f"reduction ratio {ratio!r}: expected an integer >= 1, e.g. 4, 8 or 16")
    return OpSpec(f"r{ratio}", "se", "inter", ratio=ratio)


# The order is that of the reference code, in which the published index lists are written. (The paper's table
# lists the head operators as depthwise, atrous, deformable; decoding with that order gives other networks.)
BACKBONE_OPS = (
    OpSpec("shuffle_3x3", "shuffle", "backbone", kernel=3),
    OpSpec("shuffle_5x5", "shuffle", "backbone", kernel=5),
    OpSpec("shuffle_7x7", "shuffle", "backbone", kernel=7),
    OpSpec("xception_3x3", "xception", "backbone", kernel=3),
)
HEAD_OPS = (
    OpSpec("dwconv_3x3", "dwconv", "head", kernel=3),
    OpSpec("dwconv_5x5", "dwconv", "head", kernel=5),
    OpSpec("dfconv_3x3", "dfconv", "head", kernel=3),
    OpSpec("dfconv_5x5", "dfconv", "head", kernel=5),
    OpSpec("atconv_3x3", "atconv", "head", kernel=3),
    OpSpec("atconv_5x5", "atconv", "head", kernel=5),
)
INTER_OPS = tuple(ratio_op(ratio) for ratio in (4, 8, 16))


def op(name: str) -> OpSpec:
    """Look an operator up by name; attention gates exist for every ratio (``r4``, ``r6``, ...).

    Raises:
        UserError: there is no such operator; the message lists those there are.
    """
    spec = _find(name)
    if spec is None:
        raise UserError(f"unknown operator {name!r}: expected one of {', '.join(_BY_NAME)}, or r<ratio>")
    return spec


def _find(name) -> OpSpec | None:
    if not isinstance(name, str):
        return None
    digits = name[1:]
    if name[:1] == "r" and digits.isascii() and digits.isdigit() and digits[0] != "0":
        return ratio_op(int(digits))
    return _BY_NAME.get(name)


def domain(names: Iterable[str], group: str, key: str) -> tuple[OpSpec, ...]:
    """The operators that a config lists under ``key`` for the sites of a group, in its order.

    Raises:
        UserError: an unknown operator, one of another group, one listed twice, or none.
    """
    known = [spec.name for spec in _BY_NAME.values() if spec.group == group]
    for name in names:
        if getattr(_find(name), "group", None) != group:
            raise UserError(f"{key} has {name!r}: expected {group} operators among {', '.join(known)}")
    if not names or len(set(names)) != len(names):
        raise UserError(f"{key} is {list(names)}: expected at least one operator, each once")
    return tuple(op(name) for name in names)


register_ops(*BACKBONE_OPS, *HEAD_OPS, *INTER_OPS)
# Not in the paper's space: the ordinary convolution of its "plain" baseline.
register_ops(OpSpec("conv_3x3", "conv", "head", kernel=3))
# Layers whose every convolution has a norm and a ReLU: a depthwise and a 1x1 one (``sepconv``); two of those;
# two dense ones.
register_ops(
    OpSpec("sep_3x3", "sepconv", "head", kernel=3),
    OpSpec("sep_5x5", "sepconv", "head", kernel=5),
    OpSpec("sep_3x3_twice", "sepconv_twice", "head", kernel=3),
    OpSpec("conv_3x3_twice", "conv_twice", "head", kernel=3),
)
# No layer: depth is searched. Only where input and output have the same size and channels.
register_ops(OpSpec("skip", "identity", "backbone"), OpSpec("identity", "identity", "head"))
