"""Which architectures to evaluate next."""

from __future__ import annotations

from ..errors import UserError
from ..space import Architecture, SearchSpace
from .fairness import fair_cycle


def path_priority_candidates(
    space: SearchSpace, seed: int, cycle: int, models_per_cycle: int | None = None
) -> list[Architecture]:
    """The models that search cycle ``cycle`` evaluates and ranks together.

    Args:
        space: the search space.
        seed: non-negative integer.
        cycle: number of the search cycle, from 0.
        models_per_cycle: a multiple of ``space.cycle_length`` (the default): so many fair cycles follow one
            another. No two search cycles share a fair cycle.

    Returns:
        ``models_per_cycle`` architectures; each operator of a site with P operators occurs in exactly
        ``models_per_cycle`` / P of them.
    """
    length = space.cycle_length
    if models_per_cycle is None:
        models_per_cycle = length
    if models_per_cycle < 1 or models_per_cycle % length:
        nearest = max(1, round(models_per_cycle / length)) * length
        raise UserError(
            f"NAS.MODELS_PER_CYCLE is {models_per_cycle}: expected a multiple of {length}, the fair cycle "
            f"length of this search space ({space.describe_sites()}), e.g. {nearest}"
        )
    cycles = models_per_cycle // length
    return [a for i in range(cycles) for a in fair_cycle(space, seed, cycle * cycles + i)]
