"""Strictly fair sampling (paper, algorithm 1, PERMUTE)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ..errors import UserError
from ..space import Architecture, SearchSpace


def fair_cycle(space: SearchSpace, seed: int, cycle: int) -> list[Architecture]:
    """The models of one fair cycle.

    Each site with P operators gets E / P independent random permutations of them, one after the other,
    where E = ``space.cycle_length``; column j over all sites is model j. So every operator of every site
    occurs exactly E / P times in the cycle, and once in each aligned run of P models.

    A pure function of its arguments: all processes compute the same cycle, and resuming needs no state.

    Args:
        space: the search space.
        seed: non-negative integer.
        cycle: number of the cycle, from 0.

    Returns:
        ``space.cycle_length`` architectures.
    """
    for name, value in (("seed", seed), ("cycle", cycle)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 0:
            raise UserError(f"{name} is {value!r}: expected an integer >= 0")
    rng = np.random.default_rng([seed, cycle])
    columns = []
    for site in space.sites:
        paths = len(site.ops)
        permutations = [rng.permutation(paths) for _ in range(space.cycle_length // paths)]
        columns.append([site.ops[i].name for i in np.concatenate(permutations)])
    return [Architecture(space, choices) for choices in zip(*columns, strict=True)]


def pass_counts(architectures: Iterable[Architecture]) -> dict[str, dict[str, int]]:
    """How often each operator of each site is used: {site: {operator name: n}}, zeros included."""
    counts: dict[str, dict[str, int]] = {}
    for architecture in architectures:
        if not counts:
            counts = {site.name: dict.fromkeys(site.names, 0) for site in architecture.space.sites}
        for site, name in architecture.names().items():
            counts[site][name] += 1
    return counts
