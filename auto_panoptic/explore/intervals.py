"""How sure the choice at a site is: intervals for the difference between two operators' effects.

The intervals are Student's t on a block design, not a bootstrap. In a fair cycle every site with P operators
gets a fresh random permutation of them for each run of P candidates, independent of all other sites: a
randomised complete block design, whatever the rest of the network does. Since the other sites are balanced
in the same runs, much of their effect cancels within a block. Resampling candidates breaks that balance, and
pooling without blocks takes a quarter too little variance for four operators; the residuals of the block
design have the right size and the right number of degrees of freedom. In simulated searches of
5 cycles a percentile bootstrap over whole blocks covered 92.5 % at nominal 95, a studentised one 95.5 % with
intervals 8 % longer than these (95.2 %); with 2 cycles 85.6 %, and 95.1 % at 2.9 times the length.

Two assumptions remain. The fitness of a candidate does not depend on when it was evaluated, or does so by a
constant per block. And effects of the other sites together are roughly normal, as a sum over many sites is.
Candidates that a policy chooses by earlier results, as evolution does, are no random design: their intervals
describe the spread of the data only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LEVEL = 0.95


@dataclass(frozen=True)
class Effects:
    """Operator effects at one site, adjusted for blocks.

    Attributes:
        values: (operators,) effects relative to one another; NaN where there is no data.
        counts: (operators,) evaluated candidates that use each.
        covariance: (operators, operators) of the effects, to be used for contrasts only; None if the data
            leave no degree of freedom or do not connect all operators.
        freedom: degrees of freedom of the residuals.
    """

    values: np.ndarray
    counts: np.ndarray
    covariance: np.ndarray | None
    freedom: int

    def interval(self, first: int, second: int, level: float = LEVEL) -> tuple[float, float] | None:
        """Interval for effect ``first`` minus effect ``second``, operator indices; None if not estimable."""
        if self.covariance is None or not (self.counts[first] and self.counts[second]):
            return None
        c = self.covariance
        error = np.sqrt(max(c[first, first] + c[second, second] - 2 * c[first, second], 0.0))
        half = student_quantile((1 + level) / 2, self.freedom) * error
        difference = self.values[first] - self.values[second]
        return float(difference - half), float(difference + half)


def block_numbers(column: np.ndarray, size: int, cycle: np.ndarray) -> np.ndarray:
    """The block of every candidate, for one site.

    A cycle in which every aligned run of ``size`` candidates holds each operator once is cut into these
    runs; any other cycle is one block.

    Args:
        column: (n,) operator indices at the site, failed candidates included.
        size: number of operators of the site.
        cycle: (n,) cycle numbers, ascending.
    """
    blocks = np.empty(len(column), dtype=np.int64)
    following = 0
    for number in np.unique(cycle):
        rows = np.flatnonzero(cycle == number)
        runs = 1
        if len(rows) % size == 0:
            table = np.sort(column[rows].reshape(-1, size), axis=1)
            if (table == np.arange(size)).all():
                runs = len(table)
        blocks[rows] = following + np.repeat(np.arange(runs), len(rows) // runs)
        following += runs
    return blocks


def operator_effects(column: np.ndarray, size: int, blocks: np.ndarray, fitness: np.ndarray) -> Effects:
    """Least squares for operator + block.

    Args:
        column: (n,) operator indices.
        size: number of operators.
        blocks: (n,) block numbers.
        fitness: (n,) fitness, NaN for failed candidates, which are left out.
    """
    ok = np.isfinite(fitness)
    column, y = column[ok], fitness[ok] - fitness[ok].mean()
    _, blocks = np.unique(blocks[ok], return_inverse=True)
    counts = np.bincount(column, minlength=size)
    number = int(blocks.max()) + 1
    table = np.zeros((size, number))
    np.add.at(table, (column, blocks), 1)
    sizes, totals = np.bincount(blocks), np.bincount(blocks, y)
    # Normal equations of the operators with the blocks eliminated.
    information = np.diag(counts).astype(float) - (table / sizes) @ table.T
    adjusted = np.bincount(column, y, size) - table @ (totals / sizes)
    roots, vectors = np.linalg.eigh(information)
    regular = roots > 1e-9 * counts.max()
    rank = int(regular.sum())
    inverse = (vectors[:, regular] / roots[regular]) @ vectors[:, regular].T
    values = np.where(counts > 0, inverse @ adjusted, np.nan)
    freedom = len(y) - number - rank
    if freedom < 1 or rank < (counts > 0).sum() - 1:
        return Effects(values, counts, None, max(freedom, 0))
    residual = (y**2).sum() - (totals**2 / sizes).sum() - adjusted @ inverse @ adjusted
    return Effects(values, counts, inverse * (max(float(residual), 0.0) / freedom), freedom)


def student_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t, by bisection on its distribution function.

    Args:
        probability: between 0.5 and 1, excluded.
        freedom: positive integer.
    """
    key = (probability, freedom)
    if key not in _QUANTILES:
        low, high = 0.0, 1.0
        while _student_cdf(high, freedom) < probability:
            high *= 2
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if _student_cdf(middle, freedom) < probability else (low, middle)
        _QUANTILES[key] = (low + high) / 2
    return _QUANTILES[key]


_QUANTILES: dict[tuple[float, int], float] = {}


def _student_cdf(t: float, freedom: int) -> float:
    """P(T <= t): the finite sums for whole degrees of freedom (Abramowitz and Stegun, 26.7.3-4)."""
    angle = np.arctan2(t, np.sqrt(freedom))
    cosine, sine = np.cos(angle), np.sin(angle)
    term = total = 0.0
    if freedom % 2:
        if freedom > 1:
            term = total = cosine
            for k in range(3, freedom - 1, 2):
                term *= (k - 1) / k * cosine**2
                total += term
        return float(0.5 + (angle + sine * total) / np.pi)
    term = total = 1.0
    for k in range(2, freedom - 1, 2):
        term *= (k - 1) / k * cosine**2
        total += term
    return float(0.5 + sine * total / 2)
