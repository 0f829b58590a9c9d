"""Random architectures of a given cost: the control that shows what a search is worth."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from ..errors import UserError
from ..space import Architecture, CostTables

TOLERANCE = 0.02  # of the multiply-adds
_PARTS = 4  # cells of the grid per site and tolerance
_DRAWS = 200  # for each control, before there are too few of them


def random_of_equal_cost(
    costs: CostTables, macs: int, number: int, seed: int, other_than: Collection[Architecture] = ()
) -> list[Architecture]:
    """Different architectures, drawn uniformly from all whose multiply-adds are ``macs`` to within 2 %.

    Costs are rounded to a grid and the architectures of each rounded total counted, site by site; a draw
    walks back through the counts. Draws whose exact cost lies outside are thrown away, so the grid leaves no
    trace.

    Args:
        costs: of the space.
        macs: of the whole network.
        number: how many.
        seed: decides the draws.
        other_than: architectures that are not wanted.

    Raises:
        UserError: there are not so many, or they could not be found.
    """
    low, high = int(np.ceil(macs * (1 - TOLERANCE))), int(macs * (1 + TOLERANCE))
    tables = [np.array([cost.macs for cost in row.values()], dtype=np.int64) for row in costs.sites]
    least = [int(table.min()) for table in tables]
    fixed = sum(cost.macs for cost in costs.fixed.values()) + sum(least)
    cell = max(1, int(macs * TOLERANCE / (_PARTS * max(len(tables), 1))))
    steps = [(table - smallest + cell // 2) // cell for table, smallest in zip(tables, least, strict=True)]
    # Rounding moves a total by at most half a cell per site.
    first = max(0, (low - fixed) // cell - len(tables) // 2 - 1)
    last = (high - fixed) // cell + len(tables) // 2 + 1
    counts = [np.ones(1)]  # of the first sites: architectures by rounded cost
    for step in steps:
        grown = np.zeros(len(counts[-1]) + int(step.max()))
        for s in step:
            grown[s : s + len(counts[-1])] += counts[-1]
        counts.append(grown[: max(last + 1, 1)])
    totals = np.cumsum(np.where(np.arange(len(counts[-1])) < first, 0, counts[-1]))
    found: dict[Architecture, None] = {}
    rng = np.random.default_rng(seed)
    for _ in range(_DRAWS * number if totals[-1] else 0):
        architecture = costs.space.architecture(_walk_back(rng, totals, counts, steps))
        if low <= costs.cost(architecture).macs <= high and architecture not in other_than:
            found[architecture] = None
        if len(found) == number:
            return list(found)
    raise UserError(
        f"found {len(found)} other architectures with {macs:,} multiply-adds to within {TOLERANCE:.0%}, and "
        f"{number} are wanted; ask for at most so many, or for another cost"
    )


def _walk_back(rng, totals: np.ndarray, counts: list[np.ndarray], steps: list[np.ndarray]) -> list[int]:
    """One index per site; every architecture that ``totals``, a running sum, counts is equally likely."""

    def draw(sums: np.ndarray) -> int:
        return int(np.searchsorted(sums, rng.random() * sums[-1], side="right"))

    total, indices = draw(totals), []
    for before, step in zip(reversed(counts[:-1]), reversed(steps), strict=True):
        rest = total - step
        inside = (rest >= 0) & (rest < len(before))
        indices.append(draw(np.cumsum(np.where(inside, before[np.where(inside, rest, 0)], 0))))
        total = int(rest[indices[-1]])
    return indices[::-1]
