"""Cost of any architecture of a space: a fixed cost plus one table entry per site."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import NamedTuple

from .space import SearchSpace


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
        latency: measured times of the same space, a :class:`.LatencyTable`; None where there are none.
    """

    latency = None

    def __init__(
        self, space: SearchSpace, fixed: Mapping[str, Cost], sites: Mapping[str, Mapping[str, Cost]]
    ):
        self.space = space
        self.fixed = dict(fixed)
        self.sites = tuple({op.name: sites[site.name][op.name] for op in site.ops} for site in space.sites)
        self._start = sum(self.fixed.values(), ZERO)

    def cost(self, architecture) -> Cost:
        """Cost of one architecture.

        Args:
            architecture: an :class:`Architecture` of the space (or of another one with the same sites and
                operators that the space has), one index per site in site order, or the index lists.

        Raises:
            UserError: no architecture of the space.
        """
        if getattr(architecture, "space", None) != self.space:
            architecture = self.space.architecture(architecture)
        rows = zip(self.sites, architecture.choices, strict=True)
        return sum((row[name] for row, name in rows), self._start)

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

    def _extreme(self, choose) -> Cost:
        pairs = ([choose(cost[i] for cost in row.values()) for row in self.sites] for i in range(2))
        return self._start + Cost(*(sum(values) for values in pairs))


def _cost(pair) -> Cost:
    macs, params = pair
    if any(isinstance(v, bool) or not isinstance(v, int) or v < 0 for v in pair):
        raise ValueError(f"{pair!r}: expected two integers >= 0")
    return Cost(macs, params)
