"""What evaluated candidates say of all operators at once: the posterior of the ridge regression.

The model is that of :func:`.ridge_scores`: fitness = a free constant + one effect per operator and site +
noise; effects and noise are independent normal. Given the penalty (the variance of the noise over that of an
effect) the effects are jointly normal, and ridge regression gives their mean.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .estimators import ridge_penalty


class RidgePosterior:
    """Joint distribution of the effects of all operators of all sites.

    Effects of all sites stand one after the other, in site and operator order: P in all.

    Attributes:
        mean: (P,) posterior mean. Centred per site it is that of :func:`.ridge_scores`, but for operators
            that no candidate used, which have the mean of the prior, 0.
        scale: standard deviation of an effect before any candidate; 1 where all fitness is equal, or of fewer
            than two candidates.
        penalty: variance of the noise over that of an effect; infinite where nothing was learned.
    """

    def __init__(self, choices: np.ndarray, fitness: np.ndarray, sizes: Sequence[int]):
        """Fit; arguments as of :func:`.ridge_scores`, of any number of candidates."""
        self.first = np.cumsum([0, *sizes])  # of each site's effects
        self._centre = np.zeros(int(self.first[-1]))  # the mean candidate
        n, total = len(fitness), int(self.first[-1])
        self.mean, self.scale, self.penalty = np.zeros(total), 1.0, np.inf
        self._root = np.eye(total)  # symmetric; its square is the covariance over scale squared
        self._design, self._fit = np.zeros((n, total)), np.zeros((total, n))  # values to effects
        if n < 2 or not np.ptp(fitness):
            return
        design = np.zeros((n, total))
        design[np.arange(n)[:, None], choices + self.first[:-1]] = 1
        self._centre = design.mean(axis=0)
        design -= self._centre  # the constant is free: it leaves with the means
        y = fitness - fitness.mean()
        values, vectors = np.linalg.eigh(design.T @ design)
        values = np.maximum(values, 0)
        moment = design.T @ y
        rank = min(n - 1, total)
        filled = np.zeros(n - 1)
        filled[:rank] = values[::-1][:rank]
        if not filled.sum():
            return
        # The fitness along the directions of the design, and what no effect explains, spread over the others.
        along = np.zeros(n - 1)
        regular = values > 1e-9 * values[-1]
        explained = np.zeros(total)
        explained[regular] = (vectors.T @ moment)[regular] ** 2 / values[regular]
        along[:rank] = explained[::-1][:rank]
        spare = n - 1 - int(regular.sum())
        if spare > 0:
            along[n - 1 - spare :] = max(y @ y - explained.sum(), 0.0) / spare
        self.penalty, misfit = ridge_penalty(filled, np.sqrt(along))
        self.scale = float(np.sqrt(misfit / (n - 1)))
        self.mean = vectors @ ((vectors.T @ moment) / (values + self.penalty))
        self._design, self._fit = design, (vectors / (values + self.penalty)) @ (vectors.T @ design.T)
        # Of all roots of the covariance this one does not depend on which eigenvectors span equal values, so
        # that draws are the same wherever they are made.
        self._root = (vectors * np.sqrt(self.penalty / (values + self.penalty))) @ vectors.T

    def covariance(self) -> np.ndarray:
        """(P, P) posterior covariance, in squared units of fitness."""
        return self.scale**2 * self._root @ self._root

    def difference(self, first: Sequence[int], second: Sequence[int]) -> tuple[float, float]:
        """Mean and standard deviation of an architecture's fitness minus another's; (sites,) operators."""
        return self._of(self._row(first) - self._row(second))

    def above_mean(self, first: Sequence[int], others: np.ndarray) -> tuple[float, float]:
        """As :meth:`difference`, of an architecture to the mean of others, (n, sites) operators."""
        return self._of(self._row(first) - np.mean([self._row(row) for row in others], axis=0))

    def standard_error(self, choices: Sequence[int]) -> float:
        """Standard deviation of an architecture's fitness above that of the mean candidate."""
        return self._of(self._row(choices) - self._centre)[1]

    def predicted(self, choices: np.ndarray) -> np.ndarray:
        """(n, sites) operators -> (n,) mean fitness above that of the mean candidate."""
        return self.mean[choices + self.first[:-1]].sum(axis=1) - self._centre @ self.mean

    def residuals(self, values: np.ndarray) -> np.ndarray:
        """(n, m) other values of the n candidates -> what is left by their effects, of the same penalty."""
        centred = values - values.mean(axis=0)
        return centred - self._design @ (self._fit @ centred)

    def _row(self, choices: Sequence[int]) -> np.ndarray:
        row = np.zeros(len(self.mean))
        row[np.asarray(choices, dtype=np.int64) + self.first[:-1]] = 1
        return row

    def _of(self, contrast: np.ndarray) -> tuple[float, float]:
        return float(contrast @ self.mean), float(self.scale * np.linalg.norm(self._root @ contrast))

    def draw_effects(self, rng: np.random.Generator, count: int, spread: float = 1.0) -> np.ndarray:
        """(count, P) draws of all effects; ``spread`` times the posterior's are their standard deviations."""
        normal = rng.standard_normal((count, len(self.mean)))
        return self.mean + spread * self.scale * normal @ self._root

    def by_site(self, effects: np.ndarray) -> list[np.ndarray]:
        """(..., P) effects -> (..., operators) of each site."""
        return np.split(effects, self.first[1:-1], axis=-1) if len(self.first) > 1 else []
