"""Cost of any architecture of a space: a fixed cost plus one table entry per site."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from functools import cached_property
from typing import NamedTuple

from ..errors import UserError
from .space import Architecture, SearchSpace, op_at


class Cost(NamedTuple):
    """Multiply-adds of one image, and parameters."""

    macs: int
    params: int

    def __add__(self, other):
        return Cost(self.macs + other[0], self.params + other[1])


ZERO = Cost(0, 0)


def backbone_cost(*args, **kwargs) -> Cost:
    """That of the paper: :func:`auto_panoptic.systems.panoptic_fpn.published.backbone_cost`."""
    from ..systems.panoptic_fpn import published

    return published.backbone_cost(*args, **kwargs)


class CostTables:
    """Costs of the architectures of one space.

    Attributes:
        space: the search space.
        fixed: {part of the network: :class:`Cost` of what no choice changes}.
        sites: per site, in site order, {operator name: :class:`Cost`}.
    """

    def __init__(
        self, space: SearchSpace, fixed: Mapping[str, Cost], sites: Mapping[str, Mapping[str, Cost]]
    ):
        self.space = space
        self.fixed = dict(fixed)
        self.sites = tuple({op.name: sites[site.name][op.name] for op in site.ops} for site in space.sites)
        self._by_index = tuple(tuple(row.values()) for row in self.sites)
        self._start = sum(self.fixed.values(), ZERO)

    def cost(self, architecture) -> Cost:
        """Cost of one architecture.

        Args:
            architecture: an :class:`Architecture` of the space (or of another one with the same sites and
                operators that the space has), one index per site in site order, or the index lists.

        Raises:
            UserError: no architecture of the space.
        """
        macs, params = self._start
        if isinstance(architecture, Architecture):
            for row, name in zip(self.sites, self._names(architecture), strict=True):
                cost = row[name]
                macs += cost[0]
                params += cost[1]
            return Cost(macs, params)
        indices = self._flat(architecture)
        for position, (row, index) in enumerate(zip(self._by_index, indices, strict=True)):
            if index.__class__ is not int or not 0 <= index < len(row):
                op_at(self.space.sites[position], index)  # raises unless it is another kind of integer
            cost = row[index]
            macs += cost[0]
            params += cost[1]
        return Cost(macs, params)

    def to_json(self) -> dict:
        """{"fixed": {part: [MACs, parameters]}, "sites": {site: {operator: [MACs, parameters]}}}."""
        rows = zip(self.space.sites, self.sites, strict=True)
        return {
            "fixed": {part: list(cost) for part, cost in self.fixed.items()},
            "sites": {site.name: {op: list(cost) for op, cost in row.items()} for site, row in rows},
        }

    @classmethod
    def from_json(cls, content: Mapping) -> CostTables:
        """Inverse of :meth:`to_json`.

        Raises:
            ValueError: the content is not of that form.
        """
        try:
            fixed = {part: _cost(pair) for part, pair in content["fixed"].items()}
            sites = {
                site: {op: _cost(pair) for op, pair in row.items()} for site, row in content["sites"].items()
            }
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not the tables of costs: {type(error).__name__} {error}") from None
        return cls(SearchSpace.from_dict({site: list(row) for site, row in sites.items()}), fixed, sites)

    @cached_property
    def minimum(self) -> Cost:
        """Fewest MACs and fewest parameters over the space; two different architectures may have them."""
        return self._extreme(min)

    @cached_property
    def maximum(self) -> Cost:
        """Most MACs and most parameters over the space; two different architectures may have them."""
        return self._extreme(max)

    @cached_property
    def mean(self) -> Cost:
        """Mean over all architectures of the space, correctly rounded to floats."""
        rows = [[Fraction(sum(c[i] for c in row), len(row)) for row in self._by_index] for i in range(2)]
        return Cost(*(float(self._start[i] + sum(rows[i])) for i in range(2)))

    @cached_property
    def standard_deviation(self) -> Cost:
        """Standard deviation over all architectures of the space, whose sites are independent."""
        rows = [[_variance([cost[i] for cost in row]) for row in self._by_index] for i in range(2)]
        return Cost(*(math.sqrt(sum(variances)) for variances in rows))

    def _extreme(self, choose) -> Cost:
        pairs = ([choose(cost[i] for cost in row) for row in self._by_index] for i in range(2))
        return self._start + Cost(*(sum(values) for values in pairs))

    def _names(self, architecture: Architecture) -> tuple[str, ...]:
        """The choices in the order of our sites."""
        space = architecture.space
        if space is self.space or space.fingerprint == self.space.fingerprint:
            return architecture.choices
        return self.space.architecture(architecture).choices

    def _flat(self, indices) -> list[int]:
        """One index per site from the index lists or from a sequence."""
        if isinstance(indices, Mapping):
            flat = [None] * len(self.sites)
            for group, positions in self._groups.items():
                values = indices.get(group, ())
                if len(values) != len(positions) or not indices.keys() <= self._groups.keys():
                    Architecture.from_indices(self.space, indices)  # raises and says which list is wrong
                for position, index in zip(positions, values, strict=True):
                    flat[position] = index
            return flat
        indices = indices.tolist() if hasattr(indices, "tolist") else indices
        if len(indices) != len(self.sites):
            raise UserError(f"{len(indices)} choices for {len(self.sites)} sites: give one index per site")
        return indices

    @cached_property
    def _groups(self) -> dict[str, list[int]]:
        """{index list: positions of its sites}."""
        sites = self.space.sites
        return {g: [i for i, site in enumerate(sites) if site.group == g] for g in self.space.groups}


def _variance(values: list[int]) -> Fraction:
    mean = Fraction(sum(values), len(values))
    return sum((value - mean) ** 2 for value in values) / len(values)


def _cost(pair) -> Cost:
    macs, params = pair
    if any(isinstance(v, bool) or not isinstance(v, int) or v < 0 for v in pair):
        raise ValueError(f"{pair!r}: expected two integers >= 0")
    return Cost(macs, params)
