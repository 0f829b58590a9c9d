"""The search space, an ordered list of sites with the operators each may take; and one choice from all."""

from __future__ import annotations

import hashlib
import json
import math
import os
import runpy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError
from .ops import GROUPS, OpSpec, op

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class ChoiceSite:
    """A place in the network where one of several operators is chosen.

    Attributes:
        name: stable name: the part of the network, a dot, and the place there, such as ``decoder.2``.
        ops: the candidates in index order. Names are accepted and looked up.
    """

    name: str
    ops: tuple[OpSpec, ...]

    def __post_init__(self):
        if not isinstance(self.name, str) or not self.name:
            raise UserError(f"site name {self.name!r}: expected a non-empty string such as 'decoder.2'")
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
        """The index list that the site's choice is written to."""
        return self.ops[0].group

    @property
    def part(self) -> str:
        """The part of the network: what stands before the name's first dot."""
        return part_of(self.name)

    @cached_property
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
        """The paper's space: 56 sites."""
        table = Path(__file__).parents[1] / "systems" / "panoptic_fpn" / "published_space.py"
        return cls.from_dict(runpy.run_path(str(table))["SPACE"])

    @classmethod
    def from_config(cls, cfg) -> SearchSpace:
        """See :func:`auto_panoptic.modeling.choice.configured_space`."""
        from ..modeling.choice import configured_space

        return configured_space(cfg)

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

    @cached_property
    def groups(self) -> tuple[str, ...]:
        """The index lists: the published ones, then others in the order of their first sites."""
        return tuple(dict.fromkeys((*GROUPS, *(site.group for site in self.sites))))

    def group(self, group: str) -> tuple[ChoiceSite, ...]:
        """The sites of an index list, in order."""
        return tuple(site for site in self.sites if site.group == group)

    def random(self, rng: np.random.Generator) -> Architecture:
        """An architecture drawn uniformly."""
        return self.architecture([int(rng.integers(len(site.ops))) for site in self.sites])

    def architecture(self, choices) -> Architecture:
        """An :class:`Architecture` of this space.

        Args:
            choices: the index lists ``{"backbone": [...], "head": [...], "inter": [...]}``; or
                ``{site: operator name}``; or one index or operator name per site, in site order.
        """
        if isinstance(choices, Architecture):
            return Architecture.from_names(self, choices.names(), choices.provenance)
        if isinstance(choices, Mapping):
            by_name = all(isinstance(value, str) for value in choices.values())
            return (Architecture.from_names if by_name else Architecture.from_indices)(self, choices)
        choices = list(choices)
        if len(choices) != len(self.sites):
            raise UserError(f"{len(choices)} choices for {len(self.sites)} sites: give one per site")
        names = [
            choice if isinstance(choice, str) else op_at(site, choice)
            for site, choice in zip(self.sites, choices, strict=True)
        ]
        return Architecture(self, tuple(names))

    def describe_sites(self) -> str:
        """The sites in words, runs of equal domains joined: ``decoder.0..9 (4 operators), ...``."""
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
            notes.append(f"only in the first: {some(missing)}")
        if extra := [name for name in theirs if name not in ours]:
            notes.append(f"only in the second: {some(extra)}")
        changed = [name for name in ours if name in theirs and ours[name] != theirs[name]]
        if changed:
            first, second = (", ".join(d[changed[0]]) for d in (ours, theirs))
            notes.append(f"operators of {some(changed)} differ, e.g. {changed[0]}: {first} / {second}")
        if not notes and list(ours) != list(theirs):
            notes.append("the sites are the same but in another order")
        return "; ".join(notes)


@dataclass(frozen=True)
class Architecture:
    """An immutable mapping from site to operator.

    Two architectures are equal if their spaces and choices are; provenance does not count.

    Attributes:
        space: the space it belongs to.
        choices: one operator name per site, in site order.
        provenance: where it comes from: free-form, JSON-compatible.
    """

    space: SearchSpace
    choices: tuple[str, ...]
    provenance: dict = field(default_factory=dict, compare=False)

    def __post_init__(self):
        object.__setattr__(self, "choices", tuple(self.choices))
        if len(self.choices) != len(self.space.sites):
            raise UserError(
                f"{len(self.choices)} choices for {len(self.space.sites)} sites: give one per site"
            )
        for site, name in zip(self.space.sites, self.choices, strict=True):
            site.index(name)

    @cached_property
    def _ops(self) -> dict[str, OpSpec]:
        return {
            site.name: site.ops[site.index(name)]
            for site, name in zip(self.space.sites, self.choices, strict=True)
        }

    def __getitem__(self, site: str) -> OpSpec:
        """The operator at ``site``."""
        self.space.site(site)
        return self._ops[site]

    def names(self) -> dict[str, str]:
        """{site name: operator name}, in site order."""
        return {site.name: name for site, name in zip(self.space.sites, self.choices, strict=True)}

    def indices(self) -> dict[str, list[int]]:
        """The index lists: the published ``backbone``, ``head`` and ``inter``, then those of other groups."""
        result = {group: [] for group in self.space.groups}
        for site, name in zip(self.space.sites, self.choices, strict=True):
            result[site.group].append(site.index(name))
        return result

    @classmethod
    def from_names(cls, space: SearchSpace, names: Mapping[str, str], provenance: dict | None = None):
        """Build from {site name: operator name}, which must cover the sites of ``space`` exactly."""
        for name in names:
            space.site(name)
        for site in space.sites:
            if site.name not in names:
                raise UserError(
                    f"site '{site.name}' has no operator: expected one of {', '.join(site.names)}"
                )
        return cls(space, tuple(names[site.name] for site in space.sites), dict(provenance or {}))

    @classmethod
    def from_indices(
        cls, space: SearchSpace, indices: Mapping[str, Sequence[int]], provenance: dict | None = None
    ):
        """Build from the index lists; a group without sites may be left out."""
        if unknown := [key for key in indices if key not in space.groups]:
            raise UserError(f"unknown index list {unknown[0]!r}: expected {', '.join(space.groups)}")
        chosen = {}
        for group in space.groups:
            sites = space.group(group)
            values = indices.get(group, ())
            if isinstance(values, str | Mapping) or not hasattr(values, "__len__"):
                raise UserError(f"'{group}' is {values!r}: expected a list of {len(sites)} indices")
            if len(values) != len(sites):
                raise UserError(f"'{group}' has {len(values)} indices: expected {len(sites)}, one per site")
            for site, index in zip(sites, values, strict=True):
                chosen[site.name] = op_at(site, index)
        return cls(space, tuple(chosen[site.name] for site in space.sites), dict(provenance or {}))

    def save(self, path: str | os.PathLike) -> None:
        """Write the architecture file, whole or not at all.

        Raises:
            UserError: the file cannot be written.
        """
        from .architecture_file import save

        save(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike, space: SearchSpace | None = None) -> Architecture:
        """Read an architecture file; see :func:`auto_panoptic.space.architecture_file.load`."""
        from .architecture_file import load

        return load(path, space)


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


def some(names: list[str], limit: int = 3) -> str:
    """The first of some names, and how many there are more."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
