"""How good each operator of each site is, estimated from evaluated candidates in three ways."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import UserError, one_of
from ..space import Architecture, SearchSpace
from .scoreboard import Scoreboard

ESTIMATORS = ("ranks", "mean", "ridge")
Cycles = Sequence[Sequence[tuple[Architecture, float | None]]]
# Candidate ridge penalties, as multiples of the mean eigenvalue of the centred Gram matrix.
PENALTIES = np.logspace(-3, 3, 61)


@dataclass(frozen=True)
class Observations:
    """Evaluated candidates as arrays, in the order of the cycles.

    Attributes:
        choices: (n, sites) operator indices.
        fitness: (n,) fitness, NaN where the candidate failed.
        cycle: (n,) number of the cycle.
    """

    choices: np.ndarray
    fitness: np.ndarray
    cycle: np.ndarray

    @property
    def ok(self) -> np.ndarray:
        """(n,) whether the candidate was evaluated."""
        return np.isfinite(self.fitness)


def observations(space: SearchSpace, cycles: Cycles) -> Observations:
    """The candidates of ``cycles`` as arrays; UserError if one belongs to another space."""
    tables = [{name: i for i, name in enumerate(site.names)} for site in space.sites]
    choices, fitness, numbers = [], [], []
    for number, cycle in enumerate(cycles):
        for architecture, value in cycle:
            if architecture.space != space:
                raise UserError(
                    f"an architecture of another space: {space.difference(architecture.space)}; "
                    "select from candidates of one search"
                )
            choices.append([t[name] for t, name in zip(tables, architecture.choices, strict=True)])
            fitness.append(value if value is not None and math.isfinite(value) else math.nan)
            numbers.append(number)
    return Observations(
        np.array(choices, dtype=np.int64).reshape(len(choices), len(space.sites)),
        np.array(fitness, dtype=float),
        np.array(numbers, dtype=np.int64),
    )


def operator_scores(
    space: SearchSpace,
    cycles: Cycles,
    estimator: str,
    data: Observations | None = None,
    mode: str = "exact",
) -> list[np.ndarray]:
    """Scores of every operator of every site; only differences within a site matter.

    Args:
        space: the search space.
        cycles: per cycle its (architecture, fitness) pairs; fitness None or NaN for a failed candidate.
        estimator:
            ``ranks``: the points of :class:`Scoreboard` (paper). Failed candidates rank last.
            ``mean``: mean fitness of the candidates that use the operator, minus that of all candidates.
            ``ridge``: effects of all operators fitted together, see :func:`ridge_scores`.
            The last two leave failed candidates out, and score an operator that no other candidate used
            with minus infinity.
        data: :func:`observations` of the cycles, if at hand.
        mode: of the scoreboard.

    Returns:
        One (operators,) array per site, in site order.
    """
    one_of("--estimator", estimator, ESTIMATORS)
    if estimator == "ranks":
        board = Scoreboard.of(space, cycles, mode)
        return [np.array([row["score"] for row in rows], dtype=float) for rows in board.table().values()]
    data = data or observations(space, cycles)
    estimate = mean_scores if estimator == "mean" else ridge_scores
    sizes = [len(site.ops) for site in space.sites]
    return estimate(data.choices[data.ok], data.fitness[data.ok], sizes)


def mean_scores(choices: np.ndarray, fitness: np.ndarray, sizes: Sequence[int]) -> list[np.ndarray]:
    """Mean fitness per operator, minus the mean over all candidates.

    ``choices`` are (n, sites) operator indices, ``fitness`` (n,) finite, ``sizes`` the operators per site.
    """
    centred = fitness - fitness.mean()
    return [
        _seen(
            column, size, np.bincount(column, centred, size) / np.maximum(np.bincount(column, None, size), 1)
        )
        for column, size in zip(choices.T, sizes, strict=True)
    ]


def ridge_scores(choices: np.ndarray, fitness: np.ndarray, sizes: Sequence[int]) -> list[np.ndarray]:
    """Main effects by ridge regression on one-hot operators, with one penalty for all and a free intercept.

    The penalty is that of :data:`PENALTIES` with the highest restricted likelihood of the fitness, given
    independent normal effects and noise. Effects are centred per site over the operators seen.

    Args and returns as :func:`mean_scores`.
    """
    n = len(fitness)
    gram = np.zeros((n, n))
    for column in choices.T:
        gram += column[:, None] == column[None, :]
    gram -= gram.mean(axis=0)
    gram -= gram.mean(axis=1, keepdims=True)
    centred = fitness - fitness.mean()
    # The centred matrix has the constant vector, which belongs to the intercept, among its null vectors;
    # with eigenvalue -1 it comes first and is left out.
    values, vectors = np.linalg.eigh((gram + gram.T) / 2 - 1 / n)
    values, vectors = np.maximum(values[1:], 0), vectors[:, 1:]
    weights = np.zeros(n)
    if n > 1 and values.sum() > 0:
        rotated = vectors.T @ centred
        penalty, _ = ridge_penalty(values, rotated)
        weights = vectors @ (rotated / (values + penalty))
    scores = []
    for column, size in zip(choices.T, sizes, strict=True):
        effects = np.bincount(column, weights, size)
        seen = np.bincount(column, None, size) > 0
        scores.append(_seen(column, size, effects - effects[seen].mean()))
    return scores


def ridge_penalty(values: np.ndarray, rotated: np.ndarray) -> tuple[float, float]:
    """The penalty of :data:`PENALTIES` with the highest restricted likelihood; of equal ones the largest.

    ``values`` are the eigenvalues of the centred Gram matrix, ``rotated`` the fitness along its eigenvectors.
    Returned with it is the misfit: over the number of values it is the variance of an effect.
    """
    grid = PENALTIES * values.mean()
    total = values + grid[:, None]
    misfit = (rotated**2 / total).sum(axis=1)
    if not misfit.any():  # all candidates are equal
        return grid[-1], 0.0
    loss = len(values) * np.log(misfit) + np.log(total).sum(axis=1)
    best = len(grid) - 1 - np.argmin(loss[::-1])
    return grid[best], misfit[best]


def _seen(column: np.ndarray, size: int, scores: np.ndarray) -> np.ndarray:
    return np.where(np.bincount(column, None, size) > 0, scores, -np.inf)
