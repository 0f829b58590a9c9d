"""Candidates drawn from what earlier ones say (Thompson sampling)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ..space import Architecture, CostTables, SearchSpace
from .budget import best_under_budget
from .estimators import observations
from .fairness import fair_cycle
from .policies import POLICY_REGISTRY, Breeding, Generation
from .posterior import RidgePosterior
from .selection import within_limits


@POLICY_REGISTRY.register
class PosteriorSampling(Breeding):
    """Fair cycles, then rounds of candidates drawn from :class:`RidgePosterior` of all rounds before.

    A drawn candidate is the best architecture under one draw of the effects of all operators, so operators
    are tried as often as they may be the best of their sites; within limits of the costs it is the best that
    keeps them, so that a search learns of those which it may select. SPREAD is that of the draws: 1 is the
    posterior's own (Thompson sampling), 0 takes the best architecture as far as is known; in between, fewer
    sites at a time leave the best. After a draw that was a candidate already comes the same with one operator
    changed. The first candidates are those of FAIR_CYCLES fair cycles, whatever the size of a round. Where 10
    draws per place bring no new architecture random ones take the places; of a space nearly used up a round
    is shorter, possibly empty. Limits bind neither these nor fair cycles: they tell of operators, too.
    """

    name = "posterior"
    node = "POSTERIOR"
    keys = {"ROUNDS": 50, "CANDIDATES_PER_ROUND": 6, "FAIR_CYCLES": 2, "SPREAD": 0.5}
    selects = "ridge"
    own_scores = True

    def __init__(self, space: SearchSpace, seed: int, settings: Mapping):
        super().__init__(space, seed, settings)
        self.settings |= {key: settings[key] for key in ("fair_cycles", "spread")}
        self._costs, self._limits = None, {}

    def keep(self, costs: CostTables, limits: Mapping[str, int]) -> None:
        self._costs, self._limits = costs, dict(limits)
        self.settings |= limits
        if "max_latency" in limits:
            times = json.dumps(costs.latency.to_json(), sort_keys=True).encode()
            self.settings["times"] = hashlib.sha256(times).hexdigest()[:16]

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
            for effects in posterior.draw_effects(rng, self.models, self.settings["spread"]):
                row = self._best(posterior.by_site(effects))
                choices = tuple(site.names[i] for site, i in zip(sites, row, strict=True))
                taken = choices in visited
                yield choices
                if taken and sites:
                    i = int(rng.integers(len(sites)))
                    swap = sites[i].names[rng.integers(len(sites[i].ops))]
                    near = (*choices[:i], swap, *choices[i + 1 :])
                    if self._keeps(near):
                        yield near

    def _best(self, scores: list[np.ndarray]) -> Sequence[int]:
        """The operators of the highest total score within the limits."""
        row = [int(s.argmax()) for s in scores]
        if self._keeps([site.names[i] for site, i in zip(self.space.sites, row, strict=True)]):
            return row
        return best_under_budget(scores, self._costs, **self._limits, warn=False).indices

    def _keeps(self, choices: Sequence[str]) -> bool:
        if not self._limits:
            return True
        return within_limits(self._costs, Architecture(self.space, tuple(choices)), self._limits)
