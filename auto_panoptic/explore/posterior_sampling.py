"""Candidates drawn from what earlier ones say (Thompson sampling)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ..space import Architecture, SearchSpace
from .estimators import observations
from .fairness import fair_cycle
from .policies import POLICY_REGISTRY, Breeding, Generation
from .posterior import RidgePosterior


@POLICY_REGISTRY.register
class PosteriorSampling(Breeding):
    """Fair cycles, then rounds of candidates drawn from :class:`RidgePosterior` of all rounds before.

    A drawn candidate is the best architecture under one draw of the effects of all operators, so operators
    are tried as often as they may be the best of their sites. SPREAD is that of the draws: 1 is the
    posterior's own (Thompson sampling), 0 takes the best architecture as far as is known; in between, fewer
    sites at a time leave the best. After a draw that was a candidate already comes the same with one operator
    changed. The first candidates are those of FAIR_CYCLES fair cycles, whatever the size of a round. Where 10
    draws per place bring no new architecture random ones take the places; of a space nearly used up a round
    is shorter, possibly empty.
    """

    name = "posterior"
    node = "POSTERIOR"
    keys = {"ROUNDS": 50, "CANDIDATES_PER_ROUND": 6, "FAIR_CYCLES": 2, "SPREAD": 0.5}
    selects = "ridge"
    own_scores = True

    def __init__(self, space: SearchSpace, seed: int, settings: Mapping):
        super().__init__(space, seed, settings)
        self.settings |= {key: settings[key] for key in ("fair_cycles", "spread")}

    def candidates(self, cycle: int, history: Sequence[Generation] = ()) -> list[Architecture]:
        rng = np.random.default_rng([self.seed, cycle])
        past = {a.choices: (a, fitness) for generation in history[:cycle] for a, fitness in generation}
        found: dict[tuple[str, ...], None] = {}
        visited = set(past)
        for choices in self._fair(cycle):
            if choices not in visited:
                found[choices] = None
        visited |= found.keys()
        data = observations(self.space, [list(past.values())])
        sizes = [len(site.ops) for site in self.space.sites]
        posterior = RidgePosterior(data.choices[data.ok], data.fitness[data.ok], sizes)
        draws = self._posterior_draws(posterior, rng, visited)
        self._draw(lambda: next(draws), self.models - len(found), found, visited)
        return self._filled(cycle, rng, found, visited)

    def _fair(self, cycle: int) -> Iterator[tuple[str, ...]]:
        """Those of the fair cycles that fall into this round."""
        length = self.space.cycle_length
        last = min((cycle + 1) * self.models, self.settings["fair_cycles"] * length)
        for number in range(cycle * self.models, last):
            yield fair_cycle(self.space, self.seed, number // length)[number % length].choices

    def _posterior_draws(
        self, posterior: RidgePosterior, rng: np.random.Generator, visited: set
    ) -> Iterator[tuple[str, ...]]:
        """Draws without end; after one that is in ``visited``, the same with another operator at one site."""
        sites = self.space.sites
        while True:
            for row in posterior.draw(rng, self.models, self.settings["spread"]).tolist():
                choices = tuple(site.names[i] for site, i in zip(sites, row, strict=True))
                taken = choices in visited
                yield choices
                if taken and sites:
                    i = int(rng.integers(len(sites)))
                    swap = sites[i].names[rng.integers(len(sites[i].ops))]
                    yield (*choices[:i], swap, *choices[i + 1 :])
