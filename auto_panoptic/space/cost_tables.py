"""Cost of any architecture of a space, as a fixed cost plus one table entry per site."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from functools import cached_property

from ..errors import UserError
from .cost import Cost
from .ops import GROUPS
from .space import Architecture, SearchSpace, op_at

ZERO = Cost(0, 0)


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
                operators that the space has), one index per site in site order, or the three index lists.
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

    def breakdown(self, architecture) -> dict[str, Cost]:
        """Cost of every part of the network, e.g. ``backbone``, ``fpn``, ``mask``; they sum to the whole."""
        if not isinstance(architecture, Architecture):
            architecture = self.space.architecture(architecture)
        parts = dict(self.fixed)
        for site, row, name in zip(self.space.sites, self.sites, self._names(architecture), strict=True):
            parts[site.part] = parts.get(site.part, ZERO) + row[name]
        return parts

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
        return Cost(*(float(m) for m in self._moments[0]))

    @cached_property
    def standard_deviation(self) -> Cost:
        """Standard deviation over all architectures of the space."""
        return Cost(*(math.sqrt(v) for v in self._moments[1]))

    @cached_property
    def supernet_params(self) -> int:
        """Parameters of the network with all operators at every site."""
        return self._start.params + sum(cost.params for row in self._by_index for cost in row)

    @cached_property
    def _moments(self):
        """Exact mean and variance of (MACs, parameters): a random architecture's sites are independent."""
        means, variances = [], []
        for i in range(2):
            mean, variance = Fraction(self._start[i]), Fraction(0)
            for row in self._by_index:
                average = Fraction(sum(cost[i] for cost in row), len(row))
                mean += average
                variance += sum((cost[i] - average) ** 2 for cost in row) / len(row)
            means.append(mean)
            variances.append(variance)
        return means, variances

    def _extreme(self, choose) -> Cost:
        return Cost(
            *(
                self._start[i] + sum(choose(cost[i] for cost in row) for row in self._by_index)
                for i in range(2)
            )
        )

    def _names(self, architecture: Architecture) -> tuple[str, ...]:
        """The choices in the order of our sites."""
        space = architecture.space
        if space is self.space or space.fingerprint == self.space.fingerprint:
            return architecture.choices
        return self.space.architecture(architecture).choices

    def _flat(self, indices):
        """One index per site from the three index lists or from a sequence."""
        if hasattr(indices, "tolist"):
            indices = indices.tolist()
        if not isinstance(indices, Mapping):
            if len(indices) != len(self.sites):
                raise UserError(
                    f"{len(indices)} choices for {len(self.sites)} sites: give one index per site"
                )
            return indices
        flat = [None] * len(self.sites)
        for group, positions in self._groups.items():
            values = indices.get(group, ())
            if len(values) != len(positions):
                break
            for position, index in zip(positions, values, strict=True):
                flat[position] = index
        else:
            if indices.keys() <= self._groups.keys():
                return flat
        Architecture.from_indices(self.space, indices)  # raises and says which list is wrong
        return flat

    @cached_property
    def _groups(self) -> dict[str, list[int]]:
        """{index list: positions of its sites}."""
        return {
            group: [i for i, site in enumerate(self.space.sites) if site.group == group] for group in GROUPS
        }
