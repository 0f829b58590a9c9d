"""Which architectures to evaluate next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from ..errors import UserError
from ..space import Architecture, SearchSpace
from .evolution import Evolution, Generation
from .fairness import fair_cycle


class Policy(Protocol):
    """The candidates of a search, cycle by cycle.

    Attributes:
        name: as on the command line.
        space: what to search.
        uses_history: whether candidates depend on how earlier cycles scored.
        selects: what is selected in the end: by "ranks" of paths, or the "best" evaluated candidate.
        cycles: number of cycles (generations).
        models: candidates of a cycle, at most.
        settings: what the candidates depend on besides space and seed; the number of cycles is not among
            them, for a search may be prolonged.
    """

    name: str
    space: SearchSpace
    uses_history: bool
    selects: str
    cycles: int
    models: int
    settings: dict

    def candidates(self, cycle: int, history: Sequence[Generation]) -> list[Architecture]:
        """Candidates of ``cycle``, a pure function of space, seed, settings and the arguments.

        Args:
            cycle: from 0.
            history: for each earlier cycle its architectures with their fitness, None for a failed one.
        """


class PathPriority:
    """Fair cycles, ranked; see :func:`path_priority_candidates`."""

    name = "path_priority"
    uses_history = False
    selects = "ranks"

    def __init__(self, space: SearchSpace, seed: int, settings: Mapping):
        self.space, self.seed = space, seed
        self.cycles, self.models = settings["cycles"], settings["models_per_cycle"]
        if self.cycles < 1:
            raise UserError(f"NAS.CYCLES is {self.cycles}; expected at least 1")
        _check_cycle_length(space, self.models)
        self.settings = {"models_per_cycle": self.models}

    def candidates(self, cycle: int, history: Sequence[Generation] = ()) -> list[Architecture]:
        return path_priority_candidates(self.space, self.seed, cycle, self.models)


class RandomSearch:
    """Uniformly random models, the best of which is selected (paper: 300)."""

    name = "random"
    uses_history = False
    selects = "best"

    def __init__(self, space: SearchSpace, seed: int, settings: Mapping):
        self.space, self.seed = space, seed
        self.cycles, self.models = settings["cycles"], settings["models_per_cycle"]
        for key in ("cycles", "models_per_cycle"):
            if settings[key] < 1:
                raise UserError(f"NAS.RANDOM.{key.upper()} is {settings[key]}; expected at least 1")
        self.settings = {"models_per_cycle": self.models}

    def candidates(self, cycle: int, history: Sequence[Generation] = ()) -> list[Architecture]:
        rng = np.random.default_rng([self.seed, cycle])
        return [self.space.random(rng) for _ in range(self.models)]


POLICIES = {policy.name: policy for policy in (PathPriority, RandomSearch, Evolution)}


def make_policy(name: str, space: SearchSpace, seed: int, settings: Mapping) -> Policy:
    """The policy called ``name``.

    Args:
        name: one of POLICIES.
        space: what to search.
        seed: non-negative integer.
        settings: for ``path_priority`` and ``random`` "cycles" and "models_per_cycle"; for ``evolution`` see
            :class:`Evolution`.

    Raises:
        UserError: unknown name, or a setting out of range.
    """
    if name not in POLICIES:
        raise UserError(f"NAS.POLICY is {name!r}; expected one of {', '.join(POLICIES)}")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise UserError(f"NAS.SEED is {seed!r}; expected an integer >= 0")
    return POLICIES[name](space, seed, settings)


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
    _check_cycle_length(space, models_per_cycle)
    cycles = models_per_cycle // length
    return [a for i in range(cycles) for a in fair_cycle(space, seed, cycle * cycles + i)]


def _check_cycle_length(space: SearchSpace, models_per_cycle: int) -> None:
    length = space.cycle_length
    if models_per_cycle < 1 or models_per_cycle % length:
        nearest = max(1, round(models_per_cycle / length)) * length
        raise UserError(
            f"NAS.MODELS_PER_CYCLE is {models_per_cycle}: expected a multiple of {length}, the fair cycle "
            f"length of this search space ({space.describe_sites()}), e.g. {nearest}"
        )
