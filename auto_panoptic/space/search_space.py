"""The search space: an ordered list of sites, each with the operators it may take."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from ..errors import UserError
from .ops import BACKBONE_OPS, GROUPS, HEAD_OPS, INTER_OPS, OpSpec, op, ratio_op
from .widths import width_from_config

if TYPE_CHECKING:
    import numpy as np

    from .architecture import Architecture

PARTS = ("backbone", "mask", "sem_seg", "attention")
# The parts that a meta-architecture can have; all of them if it is not listed.
META_ARCHITECTURE_PARTS = {
    "BackboneClassifier": ("backbone",),
    "GeneralizedRCNN": ("backbone", "mask"),
    "SemanticSegmentor": ("backbone", "sem_seg"),
    "PanopticFPN": ("backbone", "mask", "sem_seg"),
}
BACKBONE_BUILDERS = ("build_shufflenet_fpn_backbone", "build_shufflenet_backbone")


@dataclass(frozen=True)
class ChoiceSite:
    """A place in the network where one of several operators is chosen.

    Attributes:
        name: stable name, e.g. ``backbone.12``, ``mask.0``, ``sem_seg.2``, ``attention.f2b.3``.
        ops: the candidates in index order. Names are accepted and looked up.
    """

    name: str
    ops: tuple[OpSpec, ...]

    def __post_init__(self):
        if not isinstance(self.name, str) or not self.name:
            raise UserError(f"site name {self.name!r}: expected a non-empty string such as 'backbone.0'")
        if isinstance(self.ops, str) or not isinstance(self.ops, Sequence):
            raise UserError(f"site '{self.name}': operators are {self.ops!r}, expected a list of names")
        ops = tuple(o if isinstance(o, OpSpec) else op(o) for o in self.ops)
        names = [o.name for o in ops]
        if not ops:
            raise UserError(f"site '{self.name}' has no operator: list at least one")
        if len(set(names)) != len(names):
            raise UserError(f"site '{self.name}' lists an operator twice: {', '.join(names)}")
        if len({o.group for o in ops}) > 1:
            kinds = ", ".join(f"{o.name} ({o.group})" for o in ops)
            raise UserError(f"site '{self.name}' mixes operators of different parts of the network: {kinds}")
        object.__setattr__(self, "ops", ops)

    @property
    def group(self) -> str:
        """``backbone``, ``head`` or ``inter``: the index list the site's choice is written to."""
        return self.ops[0].group

    @property
    def part(self) -> str:
        """``backbone``, ``mask``, ``sem_seg`` or ``attention``: what stands before the name's first dot."""
        return part_of(self.name)

    @property
    def names(self) -> tuple[str, ...]:
        """The operator names in index order."""
        return tuple(o.name for o in self.ops)

    def index(self, name: str) -> int:
        """Index of the operator called ``name``.

        Raises:
            UserError: the site has no such operator.
        """
        if name not in self.names:
            raise UserError(
                f"site '{self.name}' has operator {name!r}: expected one of {', '.join(self.names)}"
            )
        return self.names.index(name)


@dataclass(frozen=True)
class SearchSpace:
    """An immutable, hashable, ordered collection of :class:`ChoiceSite`; empty for a model without sites."""

    sites: tuple[ChoiceSite, ...]

    def __post_init__(self):
        object.__setattr__(self, "sites", tuple(self.sites))
        seen = set()
        for site in self.sites:
            if site.name in seen:
                raise UserError(f"the search space lists site '{site.name}' twice")
            seen.add(site.name)

    @classmethod
    def default(cls) -> SearchSpace:
        """The paper's space: 40 backbone, 4 mask, 3 semantic, 4 + 5 attention sites."""
        return _build(40, BACKBONE_OPS, 4, 3, HEAD_OPS, 4, 5, INTER_OPS)

    @classmethod
    def from_config(cls, cfg) -> SearchSpace:
        """The space of the model that ``cfg`` describes; ``NAS.ARCHITECTURE`` plays no part in it.

        It holds the sites of those parts of the model that are ours; with Detectron2's own backbone and
        heads it is empty.
        """
        node, model = cfg.NAS.SPACE, cfg.MODEL
        ours = {
            "backbone": model.BACKBONE.NAME in BACKBONE_BUILDERS,
            "mask": model.MASK_ON and model.ROI_MASK_HEAD.NAME == "SearchableMaskHead",
            "sem_seg": model.SEM_SEG_HEAD.NAME == "SearchableSemSegFPNHead",
            "attention": model.CROSS_ATTENTION.ENABLED,
        }
        parts = [p for p in META_ARCHITECTURE_PARTS.get(model.META_ARCHITECTURE, PARTS) if ours[p]]
        return _build(
            width_from_config(cfg).num_layers if "backbone" in parts else 0,
            _domain(node.BACKBONE_OPS, "NAS.SPACE.BACKBONE_OPS", "backbone", BACKBONE_OPS),
            model.ROI_MASK_HEAD.NUM_CONV if "mask" in parts else 0,
            model.SEM_SEG_HEAD.NUM_LAYERS if "sem_seg" in parts else 0,
            _domain(node.HEAD_OPS, "NAS.SPACE.HEAD_OPS", "head", (*HEAD_OPS, op("conv_3x3"))),
            len(model.SEM_SEG_HEAD.IN_FEATURES) if "attention" in parts else 0,
            len(model.RPN.IN_FEATURES) if "attention" in parts else 0,
            tuple(ratio_op(r) for r in model.CROSS_ATTENTION.RATIOS),
        )

    @classmethod
    def from_dict(cls, sites: Mapping[str, Sequence[str]]) -> SearchSpace:
        """Inverse of :meth:`to_dict`."""
        if not isinstance(sites, Mapping):
            raise UserError(f"search space: got {type(sites).__name__}, expected {{site: [operator, ...]}}")
        return cls(tuple(ChoiceSite(name, ops) for name, ops in sites.items()))

    def to_dict(self) -> dict[str, list[str]]:
        """{site name: [operator names in index order]}, in site order."""
        return {site.name: list(site.names) for site in self.sites}

    @cached_property
    def fingerprint(self) -> str:
        """First 12 hexadecimal digits of the SHA-256 of :meth:`to_dict`; order counts."""
        text = json.dumps(list(self.to_dict().items()), separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @cached_property
    def cardinality(self) -> int:
        """Exact number of architectures. 4**40 * 6**7 * 3**9 (about 6.66e33) for the default space."""
        return math.prod(len(site.ops) for site in self.sites)

    @cached_property
    def cycle_length(self) -> int:
        """Models in a fair cycle: least common multiple of the domain sizes, lcm(4, 6, 3) = 12 by default.

        1 for an empty space.
        """
        return math.lcm(*(len(site.ops) for site in self.sites))

    @cached_property
    def _by_name(self) -> dict[str, ChoiceSite]:
        return {site.name: site for site in self.sites}

    def site(self, name: str) -> ChoiceSite:
        """The site called ``name``."""
        if name not in self._by_name:
            raise UserError(f"no site {name!r} in the search space: it has {self.describe_sites()}")
        return self._by_name[name]

    @cached_property
    def parts(self) -> tuple[str, ...]:
        """The parts of the network that have sites, in order."""
        return tuple(dict.fromkeys(site.part for site in self.sites))

    def group(self, group: str) -> tuple[ChoiceSite, ...]:
        """The sites of ``backbone``, ``head`` or ``inter``, in order."""
        return tuple(site for site in self.sites if site.group == group)

    def random(self, rng: np.random.Generator) -> Architecture:
        """An architecture drawn uniformly."""
        return self.architecture([int(rng.integers(len(site.ops))) for site in self.sites])

    def architecture(self, choices) -> Architecture:
        """An :class:`Architecture` of this space.

        Args:
            choices: the three index lists ``{"backbone": [...], "head": [...], "inter": [...]}``; or
                ``{site: operator name}``; or one index or operator name per site, in site order.
        """
        from .architecture import Architecture

        if isinstance(choices, Architecture):
            return Architecture.from_names(self, choices.names(), choices.provenance)
        if isinstance(choices, Mapping):
            is_index_lists = bool(choices) and all(key in GROUPS for key in choices)
            build = Architecture.from_indices if is_index_lists else Architecture.from_names
            return build(self, choices)
        choices = list(choices)
        if len(choices) != len(self.sites):
            raise UserError(f"{len(choices)} choices for {len(self.sites)} sites: give one per site")
        names = [
            choice if isinstance(choice, str) else op_at(site, choice)
            for site, choice in zip(self.sites, choices, strict=True)
        ]
        return Architecture(self, tuple(names))

    def describe_sites(self) -> str:
        """The sites in words, runs of equal domains joined: ``backbone.0..39 (4 operators), ...``."""
        runs: list[list[ChoiceSite]] = []
        for site in self.sites:
            prefix = site.name.rpartition(".")[0]
            if runs and runs[-1][0].name.rpartition(".")[0] == prefix and runs[-1][0].ops == site.ops:
                runs[-1].append(site)
            else:
                runs.append([site])
        parts = []
        for run in runs:
            last = f"..{run[-1].name.rpartition('.')[2]}" if len(run) > 1 else ""
            parts.append(f"{run[0].name}{last} ({len(run[0].ops)} operators)")
        return ", ".join(parts) or "none"

    def difference(self, other: SearchSpace) -> str:
        """One line naming the first differences; empty if the spaces are equal."""
        ours, theirs = self.to_dict(), other.to_dict()
        notes = []
        if missing := [name for name in ours if name not in theirs]:
            notes.append(f"only in the first: {_some(missing)}")
        if extra := [name for name in theirs if name not in ours]:
            notes.append(f"only in the second: {_some(extra)}")
        changed = [name for name in ours if name in theirs and ours[name] != theirs[name]]
        if changed:
            first, second = (", ".join(d[changed[0]]) for d in (ours, theirs))
            notes.append(f"operators of {_some(changed)} differ, e.g. {changed[0]}: {first} / {second}")
        if not notes and list(ours) != list(theirs):
            notes.append("the sites are the same but in another order")
        return "; ".join(notes)


def part_of(site: str) -> str:
    """The part of the network that a site name begins with."""
    return site.partition(".")[0]


def op_at(site: ChoiceSite, index: int) -> str:
    """Name of the operator with this index, which may be a numpy integer."""
    if isinstance(index, bool) or not hasattr(index, "__index__"):
        raise UserError(f"site '{site.name}' has index {index!r}: expected an integer 0..{len(site.ops) - 1}")
    if not 0 <= index < len(site.ops):
        raise UserError(
            f"site '{site.name}' has index {index}: expected 0..{len(site.ops) - 1} ({', '.join(site.names)})"
        )
    return site.names[index]


def _some(names: list[str], limit: int = 3) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _domain(names, key: str, group: str, allowed: tuple[OpSpec, ...]) -> tuple[OpSpec, ...]:
    valid = [o.name for o in allowed]
    for name in names:
        if name not in valid:
            raise UserError(f"{key} has {name!r}: expected {group} operators among {', '.join(valid)}")
    if not names or len(set(names)) != len(names):
        raise UserError(f"{key} is {list(names)}: expected at least one operator, each once")
    return tuple(op(name) for name in names)


def _build(backbone, backbone_ops, mask, sem_seg, head_ops, f2b, b2f, inter_ops) -> SearchSpace:
    sites = [ChoiceSite(f"backbone.{i}", backbone_ops) for i in range(backbone)]
    sites += [ChoiceSite(f"mask.{i}", head_ops) for i in range(mask)]
    sites += [ChoiceSite(f"sem_seg.{i}", head_ops) for i in range(sem_seg)]
    sites += [ChoiceSite(f"attention.f2b.{i}", inter_ops) for i in range(f2b)]
    sites += [ChoiceSite(f"attention.b2f.{i}", inter_ops) for i in range(b2f)]
    return SearchSpace(tuple(sites))
