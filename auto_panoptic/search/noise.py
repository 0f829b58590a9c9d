"""How much a ranking means: the spread of the candidates against the noise of scoring on few images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class RankingNoise:
    """Spread and noise of the candidates' PQ, all in PQ points.

    Attributes:
        spread: standard deviation of PQ over the candidates, as observed.
        noise: standard deviation that a candidate's PQ *relative to the others* has from the choice of
            images alone (paired bootstrap: all candidates are scored on the same resampled images).
        signal: standard deviation of PQ that is left when the noise is taken out of the spread.
    """

    spread: float
    noise: float

    @property
    def signal(self) -> float:
        return float(np.sqrt(max(self.spread**2 - self.noise**2, 0.0)))

    @property
    def reliability(self) -> float:
        """Share of the observed variance that is not image noise: 0 = the ranking is chance, 1 = exact."""
        return self.signal**2 / self.spread**2 if self.spread else 0.0

    def to_json(self) -> dict:
        names = ("spread", "noise", "signal", "reliability")
        return {name: getattr(self, name) for name in names}

    def sentence(self) -> str:
        share = round(100 * self.reliability)
        verdict = "hardly" if share < 50 else "in part" if share < 80 else "well"
        return (
            f"Order of these candidates in the supernet, by PQ: {verdict} resolved. {share} % of the "
            f"variance is signal (standard deviation {self.spread:.2f}, of which image noise "
            f"{self.noise:.2f}, bootstrap over the search images)."
        )


def ranking_noise(fitness: Sequence[float], resampled: Sequence[Sequence[float]]) -> RankingNoise:
    """Compare spread and noise.

    Args:
        fitness: PQ of n >= 2 candidates.
        resampled: (n, B) PQ of each candidate on the same B bootstrap samples of the images.
    """
    table = np.asarray(resampled, dtype=float)
    centred = table - table.mean(axis=0, keepdims=True)
    n = len(table)
    # Centring takes 1/n of each candidate's own noise away; n / (n - 1) gives it back.
    noise = np.sqrt((centred.var(axis=1, ddof=1)).mean() * n / (n - 1))
    return RankingNoise(spread=float(np.std(fitness, ddof=1)), noise=float(noise))
