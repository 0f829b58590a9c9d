"""Evolutionary search over a supernet's paths: the paper's baseline, after DetNAS and SPOS."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ..errors import UserError
from ..space import Architecture, SearchSpace

logger = logging.getLogger(__name__)

# A parent pool or a small space may yield too few new architectures: so many draws per place, then it ends.
ATTEMPTS = 10

Generation = Sequence[tuple[Architecture, float | None]]


class Evolution:
    """Generations of mutants, crossings and random models (paper: population 50, 20 generations).

    Generation 0 is random. Every later one holds, in this order,

    - mutants: a uniformly chosen parent, each gene drawn anew with ``mutation_probability``;
    - crossings: of two uniformly chosen parents, each gene from either with probability 1/2;
    - random models, for the rest of the generation.

    Parents are the best ``parents`` of all models so far; failed ones never are. No architecture occurs
    twice. Each kind has 10 draws per place; where they do not suffice random models take the places, and
    where those do not either (the space is nearly used up) the generation is shorter, possibly empty.

    Attributes:
        cycles: number of generations.
        models: models in a full generation.
        settings: what the candidates depend on besides space and seed.
    """

    name = "evolution"
    uses_history = True
    selects = "best"

    def __init__(self, space: SearchSpace, seed: int, settings: Mapping):
        """Check and keep the settings.

        Args:
            space: what to search.
            seed: non-negative integer.
            settings: ``generations``, ``population``, ``parents`` (positive integers), ``mutation`` and
                ``crossover`` (shares of a generation; DetNAS: 0.4 and 0.4, SPOS: 0.5 and 0.5) and
                ``mutation_probability``.

        Raises:
            UserError: one of them is out of range; the message names it as NAS.EVOLUTION.KEY.
        """
        for key in ("generations", "population", "parents"):
            if settings[key] < 1:
                raise UserError(f"NAS.EVOLUTION.{key.upper()} is {settings[key]}; expected at least 1")
        for key in ("mutation", "crossover", "mutation_probability"):
            if not 0 <= settings[key] <= 1:
                raise UserError(f"NAS.EVOLUTION.{key.upper()} is {settings[key]}; expected 0 to 1")
        if settings["mutation"] + settings["crossover"] > 1 + 1e-9:
            raise UserError(
                f"NAS.EVOLUTION.MUTATION {settings['mutation']} and CROSSOVER {settings['crossover']} are "
                "shares of a generation; expected a sum of at most 1"
            )
        self.space, self.seed = space, seed
        self.cycles, self.models = settings["generations"], settings["population"]
        self.settings = {
            "population": self.models,
            "parents": settings["parents"],
            "mutation": math.floor(settings["mutation"] * self.models + 1e-9),
            "crossover": math.floor(settings["crossover"] * self.models + 1e-9),
            "mutation_probability": settings["mutation_probability"],
        }

    def candidates(self, cycle: int, history: Sequence[Generation]) -> list[Architecture]:
        """The models of generation ``cycle``, a pure function of space, seed, settings and arguments.

        Args:
            cycle: number of the generation, from 0.
            history: for each earlier generation its models with their fitness, None for a failed one.
        """
        rng = np.random.default_rng([self.seed, cycle])
        parents = [a.choices for a in best(history[:cycle], self.settings["parents"])]
        found: dict[tuple[str, ...], None] = {}
        visited = {a.choices for generation in history[:cycle] for a, _ in generation}
        if parents:
            self._draw(lambda: self._mutant(rng, parents), self.settings["mutation"], found, visited)
            self._draw(lambda: self._crossing(rng, parents), self.settings["crossover"], found, visited)
        self._draw(lambda: self._random(rng), self.models - len(found), found, visited)
        if len(found) < self.models:
            logger.warning(
                "generation %d has %d of %d candidates: %d of the space's %d architectures are taken",
                *(cycle, len(found), self.models, len(visited), self.space.cardinality),
            )
        return [Architecture(self.space, choices) for choices in found]

    def _draw(self, draw: Callable[[], tuple], quota: int, found: dict, visited: set) -> None:
        """Add up to ``quota`` new results of ``draw`` to ``found`` and ``visited``."""
        wanted = len(found) + quota
        for _ in range(ATTEMPTS * quota):
            if len(found) == wanted or len(visited) == self.space.cardinality:
                return
            choices = draw()
            if choices not in visited:
                visited.add(choices)
                found[choices] = None

    def _random(self, rng: np.random.Generator) -> tuple[str, ...]:
        indices = rng.integers([len(site.ops) for site in self.space.sites])
        return tuple(site.names[i] for site, i in zip(self.space.sites, indices, strict=True))

    def _mutant(self, rng: np.random.Generator, parents: list) -> tuple[str, ...]:
        parent = parents[rng.integers(len(parents))]
        anew = rng.random(len(parent)) < self.settings["mutation_probability"]
        fresh = self._random(rng)
        return tuple(new if use else old for old, new, use in zip(parent, fresh, anew, strict=True))

    def _crossing(self, rng: np.random.Generator, parents: list) -> tuple[str, ...]:
        first, second = (parents[i] for i in rng.integers(len(parents), size=2))
        coin = rng.random(len(first)) < 0.5
        return tuple(a if heads else b for a, b, heads in zip(first, second, coin, strict=True))


def best(history: Sequence[Generation], count: int) -> list[Architecture]:
    """The ``count`` architectures of highest fitness, best first, of equal ones the earliest; none failed."""
    scored = [(a, f) for generation in history for a, f in generation if f is not None and math.isfinite(f)]
    ranked = [a for a, _ in sorted(scored, key=lambda pair: -pair[1])]  # stable: equal ones keep their order
    first = {}
    for architecture in ranked:
        first.setdefault(architecture.choices, architecture)
    return list(first.values())[:count]
