"""How sure the choice at a site is: intervals for the difference between two operators' effects.

Student's t on a randomised complete block design. In a fair cycle every site with P operators gets a fresh
random permutation of them for each run of P candidates, independent of all other sites: a run is a block.
The residuals then have the right variance and the right number of degrees of freedom. A bootstrap over
candidates would break the balance between the sites that most of the precision comes from.

Assumptions: the fitness of a candidate does not depend on when it was evaluated, or does so by a constant per
block; the effects of the other sites together are roughly normal. Candidates that a policy chooses by earlier
results, as evolution does, are no random design: their intervals describe the spread of the data only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

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
        half = stdtrit(self.freedom, (1 + level) / 2) * error
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
