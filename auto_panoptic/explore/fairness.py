"""How the paths of a supernet are drawn: strictly fair (paper, algorithm 1, PERMUTE) or uniformly random."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np

from ..errors import at_least
from ..space import Architecture, SearchSpace


def cycle_indices(space: SearchSpace, seed: int, cycle: int) -> np.ndarray:
    """The operator indices of one fair cycle; see :func:`fair_cycle`.

    Returns:
        (E, sites) integers: row j is model j, column i holds the indices of ``space.sites[i]``.
    """
    at_least("seed", seed, 0)
    at_least("cycle", cycle, 0)
    rng = np.random.default_rng([seed, cycle])
    length = space.cycle_length
    columns = np.empty((length, len(space.sites)), dtype=np.int64)
    first = 0
    # One call draws the permutations of consecutive sites with equally many operators, in site order.
    for paths, run in itertools.groupby(len(site.ops) for site in space.sites):
        sites = len(list(run))
        ordered = np.broadcast_to(np.arange(paths), (sites * length // paths, paths))
        columns[:, first : first + sites] = rng.permuted(ordered, axis=1).reshape(sites, length).T
        first += sites
    return columns


def fair_cycle(space: SearchSpace, seed: int, cycle: int) -> list[Architecture]:
    """The models of one fair cycle.

    Each site with P operators gets E / P independent random permutations of them, one after the other,
    where E = ``space.cycle_length``; column j over all sites is model j. So every operator of every site
    occurs exactly E / P times in the cycle, and once in each aligned run of P models.

    A pure function of its arguments: all processes compute the same cycle, and resuming needs no state.

    Of a space without sites the cycle holds one empty architecture.
    """
    names = [site.names for site in space.sites]
    return [
        Architecture(space, tuple(site[i] for site, i in zip(names, row, strict=True)))
        for row in cycle_indices(space, seed, cycle).tolist()
    ]


def uniform_path(space: SearchSpace, seed: int, iteration: int) -> Architecture:
    """A uniformly random architecture, a pure function of the arguments (DetNAS's ImageNet stage)."""
    at_least("seed", seed, 0)
    at_least("iteration", iteration, 0)
    return space.random(np.random.default_rng([seed, iteration]))


def sampled_paths(space: SearchSpace, seed: int, iteration: int, sampling: str) -> list[Architecture]:
    """The architectures that one training iteration runs: a fair cycle, or one uniform path."""
    if sampling == "uniform":
        return [uniform_path(space, seed, iteration)]
    return fair_cycle(space, seed, iteration)


def passes_per_iteration(space: SearchSpace, sampling: str) -> int:
    """How many architectures :func:`sampled_paths` returns."""
    return 1 if sampling == "uniform" else space.cycle_length


def pass_counts(architectures: Iterable[Architecture]) -> dict[str, dict[str, int]]:
    """How often each operator of each site is used: {site: {operator name: n}}, zeros included."""
    counts: dict[str, dict[str, int]] = {}
    for architecture in architectures:
        if not counts:
            counts = {site.name: dict.fromkeys(site.names, 0) for site in architecture.space.sites}
        for site, name in architecture.names().items():
            counts[site][name] += 1
    return counts
