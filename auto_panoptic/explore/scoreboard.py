"""Path-priority scores: from ranked models to the best operator of every site (paper, section 3.4)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import UserError, one_of
from ..space import Architecture, SearchSpace

MODES = ("exact", "reference")


@dataclass
class _Tally:
    """What the scoreboard knows about one operator of one site."""

    score: float = 0.0
    count: int = 0  # models that used it, failed ones included
    fitness_sum: float = 0.0
    fitness_count: int = 0

    @property
    def mean(self) -> float | None:
        return self.fitness_sum / self.fitness_count if self.fitness_count else None


class Scoreboard:
    """Scores of every operator of every site over any number of cycles.

    Within a cycle of K models, the model at position p = 0..K-1 of the ranking by fitness gives K - 1 - p
    points to each operator it uses. A fair cycle of 12 thus adds 66 points to every site.

    Modes:
        ``exact`` (default): fitness at full precision; models of equal fitness share the mean of their
        positions' points; operators of equal score are ordered by mean fitness, then by lower index.
        ``reference``: as the reference code: fitness rounded to two decimals, equal models keep their order
        in the cycle, and of operators with equal score the last wins (a sort read backwards).

    A model whose fitness is None or not finite has failed. In both modes it ranks below all others; failed
    models share the mean points of the last positions, and add nothing to an operator's mean fitness.
    """

    def __init__(self, space: SearchSpace, mode: str = "exact"):
        self.space = space
        self.mode = one_of("NAS.SCOREBOARD", mode, MODES)
        self.cycles = 0
        self.models = 0
        self.failed = 0
        self._tallies = {site.name: {name: _Tally() for name in site.names} for site in space.sites}

    @classmethod
    def of(
        cls,
        space: SearchSpace,
        cycles: Sequence[Sequence[tuple[Architecture, float | None]]],
        mode: str = "exact",
    ) -> Scoreboard:
        """The scoreboard of all ``cycles`` of (architecture, fitness) pairs; empty ones do not count."""
        board = cls(space, mode)
        for cycle in filter(None, cycles):
            board.add_cycle([a for a, _ in cycle], [f for _, f in cycle])
        return board

    def add_cycle(self, architectures: Sequence[Architecture], fitness: Sequence[float | None]) -> None:
        """Score one cycle.

        Args:
            architectures: the models of the cycle, in the order in which they were generated.
            fitness: the fitness of each, higher is better; None or NaN for a model that failed.
        """
        if len(architectures) != len(fitness) or not architectures:
            raise UserError(
                f"{len(architectures)} architectures and {len(fitness)} fitness values: give pairs"
            )
        for architecture in architectures:
            if architecture.space != self.space:
                difference = self.space.difference(architecture.space)
                raise UserError(f"an architecture of another space than the scoreboard's: {difference}")
        values = [float(f) if f is not None and math.isfinite(f) else None for f in fitness]
        for architecture, value, points in zip(architectures, values, self._points(values), strict=True):
            for site, name in architecture.names().items():
                tally = self._tallies[site][name]
                tally.score += points
                tally.count += 1
                if value is not None:
                    tally.fitness_sum += value
                    tally.fitness_count += 1
        self.cycles += 1
        self.models += len(values)
        self.failed += sum(value is None for value in values)

    def _points(self, values: list[float | None]) -> list[float]:
        reference = self.mode == "reference"
        keys = [-math.inf if v is None else round(v, 2) if reference else v for v in values]
        order = sorted(range(len(keys)), key=lambda i: -keys[i])  # stable: equal models keep their order
        points = [0.0] * len(keys)
        start = 0
        while start < len(order):
            end = start + 1
            if not reference or values[order[start]] is None:
                while end < len(order) and keys[order[end]] == keys[order[start]]:
                    end += 1
            shared = len(keys) - 1 - (start + end - 1) / 2  # mean over positions start..end-1
            for i in order[start:end]:
                points[i] = shared
            start = end
        return points

    def table(self) -> dict[str, list[dict]]:
        """{site: [{"op", "score", "count", "mean"}, ...]} in index order.

        ``count`` is the number of models that used the operator; ``mean`` their mean fitness, None if all
        failed.
        """
        return {
            site: [
                {"op": name, "score": t.score, "count": t.count, "mean": t.mean}
                for name, t in tallies.items()
            ]
            for site, tallies in self._tallies.items()
        }

    def select(self) -> Architecture:
        """The operator with most points at every site.

        Raises:
            UserError: there is nothing to rank, since no model was added or all of them failed.
        """
        if self.models == self.failed:
            raise UserError(
                f"nothing to select from: {self.models} candidates, {self.failed} of them failed; "
                "mend the cause named in the ledger and search again"
            )
        rows = self.table().values()
        scores = [np.array([row["score"] for row in site], dtype=float) for site in rows]
        means = [np.array([row["mean"] for row in site], dtype=float) for site in rows]
        return self.space.architecture(best_operators(scores, means, self.mode))


def best_operators(
    scores: Sequence[np.ndarray], means: Sequence[np.ndarray], mode: str = "exact"
) -> list[int]:
    """Index of the best operator of every site.

    Args:
        scores: per site (operators,) scores.
        means: per site (operators,) mean fitness, or any function of it that keeps the order; NaN for none.
        mode: what decides between equal scores: ``exact``: the higher mean, then the lower index;
            ``reference``: the higher index.
    """
    if mode == "reference":
        return [len(score) - 1 - int(score[::-1].argmax()) for score in scores]
    # lexsort is stable and the last of its keys counts most
    return [
        int(np.lexsort((-np.nan_to_num(mean, nan=-np.inf), -score))[0])
        for score, mean in zip(scores, means, strict=True)
    ]
