"""The best total score that a budget of MACs and parameters allows; the score-against-MACs front.

Scores and costs are sums over the sites, so this is a multiple-choice knapsack (:mod:`.knapsack`). Costs are
integers; scores are made integers first (:func:`_integers`).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import UserError
from ..space import CostTables
from .knapsack import States, solve

COSTS = ("macs", "params")
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([kKMG]?)")
_UNITS = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9}
_SCORE_BITS = 40  # of the integer range of total scores
FRONT_STATES = 1 << 16  # of a score-against-MACs front

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Point:
    """One choice for every site.

    Attributes:
        indices: operator index per site, in site order.
        score: sum of the sites' scores.
        macs, params: of the whole network.
        bound: no choice within the limits scores more; equal to or above ``score``.
        exact: proved to be the best; if not, it is the best found, and ``bound`` says how far from it the
            best can be at most.
    """

    indices: tuple[int, ...]
    score: float
    macs: int
    params: int
    bound: float
    exact: bool = True


def parse_amount(text: str, option: str) -> int:
    """Read ``3.5G``, ``24M``, ``600k`` or ``1200`` (decimal units).

    Raises:
        UserError: it is none of these, not positive, or not whole.
    """
    match = _AMOUNT.fullmatch(str(text).strip())
    expected = f"{option} is {text!r}: expected a positive number, optionally with k, M or G, e.g. 3.5G"
    if not match:
        raise UserError(expected)
    whole, _, decimals = match[1].partition(".")
    amount, rest = divmod(int(whole + decimals) * _UNITS[match[2]], 10 ** len(decimals))
    if rest or not amount:
        raise UserError(f"{expected}; it must come to a whole number")
    return amount


def check_budget(costs: CostTables, max_macs: int | None = None, max_params: int | None = None) -> None:
    """Refuse limits that no architecture meets, as :func:`best_under_budget` does, before any search."""
    limits = _limits(max_macs, max_params)
    if limits:
        _, tables, fixed = _tables([np.zeros(len(row)) for row in costs.sites], costs)
        _feasible(tables, fixed, limits)


def best_under_budget(
    scores: Sequence[np.ndarray],
    costs: CostTables,
    max_macs: int | None = None,
    max_params: int | None = None,
) -> Point:
    """The choice with the highest total score within the limits.

    Of equal total scores the one with the fewest of the limited costs wins (MACs before parameters), then
    the one with the lowest indices, the first site first. Scores that are not whole or half numbers count to
    a precision of 2**-39 of the range of the total. Where that is not proved, see :class:`Point`, a warning
    is logged.

    Args:
        scores: per site an (operators,) array; minus infinity bars an operator.
        costs: of the same space.
        max_macs, max_params: limits for the whole network, inclusive; at least one.

    Raises:
        UserError: no architecture is within the limits; names the smallest feasible one.
    """
    limits = _limits(max_macs, max_params)
    if not limits:
        raise ValueError("no limit: give max_macs or max_params")
    allowed, tables, fixed = _tables(scores, costs)
    columns = [COSTS.index(name) for name in limits]
    used = [table[:, columns] for table in tables]
    start = _feasible(tables, fixed, limits)
    most = [sum(int(table[:, c].max()) for table in tables) for c in columns]
    room = np.array(
        [min(limits[name] - fixed[c], m) for name, c, m in zip(limits, columns, most, strict=True)],
        dtype=np.int64,
    )
    values, scale, offset = _integers([s[a] for s, a in zip(scores, allowed, strict=True)])
    picked, bound, exact = solve(values, used, room, start)
    point = _point(scores, allowed, tables, fixed, picked, bound / scale + offset, exact)
    if not exact:
        logger.warning(
            "the architecture under the budget is the best found, not proved to be the best: total score "
            "%.9g, at most %.3g below the best",
            *(point.score, point.bound - point.score),
        )
    return point


def pareto_front(scores: Sequence[np.ndarray], costs: CostTables) -> list[Point]:
    """All choices that no other one matches in score with fewer MACs, or in MACs with more score.

    One choice for each pair of score and MACs, that with the lowest indices; ascending in both. Scores count
    as in :func:`best_under_budget`. Beyond 2**16 partial choices every second is left out: the points are
    then not all, nor need each be the best of its MACs; a warning is logged and none is marked exact.
    """
    allowed, tables, fixed = _tables(scores, costs)
    values, _, _ = _integers([s[a] for s, a in zip(scores, allowed, strict=True)])
    used = [table[:, :1] for table in tables]
    room = np.array([sum(int(t.max()) for t in used)], dtype=np.int64)
    states, exact = States(len(room)), True
    for value, cost in zip(values, used, strict=True):
        states.extend(value, cost, room)
        states.drop_dominated()
        while len(states.score) > FRONT_STATES:
            exact = False
            rank = np.argsort(np.argsort(states.cost[:, 0], kind="stable"))
            states.keep((rank % 2 == 0) | (rank == len(rank) - 1))
    if not exact:
        logger.warning("the score-against-MACs front is too long: some of its points are left out")
    order = np.argsort(states.cost[:, 0], kind="stable")
    picks = states.picks()[order]
    return [_point(scores, allowed, tables, fixed, row, None, exact) for row in picks]


def _limits(max_macs: int | None, max_params: int | None) -> dict[str, int]:
    limits = zip(COSTS, (max_macs, max_params), strict=True)
    return {name: limit for name, limit in limits if limit is not None}


def _tables(scores, costs):
    """Indices of the allowed operators, their (operators, 2) costs per site, and the fixed cost."""
    allowed = [np.flatnonzero(np.isfinite(s)) for s in scores]
    tables = [
        np.array([(c.macs, c.params) for c in row.values()], dtype=np.int64)[a]
        for row, a in zip(costs.sites, allowed, strict=True)
    ]
    fixed = tuple(sum(getattr(c, name) for c in costs.fixed.values()) for name in COSTS)
    return allowed, tables, fixed


def _point(scores, allowed, tables, fixed, picked, bound, exact) -> Point:
    indices = tuple(int(a[i]) for a, i in zip(allowed, picked, strict=True))
    macs, params = (
        fixed[c] + sum(int(table[i, c]) for table, i in zip(tables, picked, strict=True)) for c in range(2)
    )
    score = float(sum(s[i] for s, i in zip(scores, indices, strict=True)))
    return Point(indices, score, macs, params, score if bound is None else max(score, float(bound)), exact)


def _integers(scores: list[np.ndarray]) -> tuple[list[np.ndarray], float, float]:
    """Scores as integers from 0: (integers, scale, offset) with score total = integer total / scale + offset.

    Exact for multiples of one half, such as ranks; others are rounded to 2**-40 of the total's range.
    """
    offset = float(sum(s.min() for s in scores))
    shifted = [s - s.min() for s in scores]
    scale = 2.0
    if any((s * scale != np.rint(s * scale)).any() for s in shifted):
        span = sum(s.max() for s in shifted)
        scale = 2.0 ** (_SCORE_BITS - np.ceil(np.log2(span)))
    return [np.rint(s * scale).astype(np.int64) for s in shifted], scale, offset


def _feasible(tables, fixed, limits) -> np.ndarray:
    """Some choice within the limits; UserError if there is none."""
    least = {name: fixed[c] + sum(int(t[:, c].min()) for t in tables) for c, name in enumerate(COSTS)}
    for name, limit in limits.items():
        if limit < least[name]:
            raise UserError(
                f"--max-{name} {limit:,}: no architecture is that small; the smallest "
                f"feasible value is {least[name]}"
            )
    if len(limits) == 1:
        column = COSTS.index(*limits)
        return np.array([int(t[:, column].argmin()) for t in tables])
    # Fewest MACs within the parameters: the same problem with MACs saved as the score.
    saved = [t[:, 0].max() - t[:, 0] for t in tables]
    room = np.array([min(limits["params"] - fixed[1], sum(int(t[:, 1].max()) for t in tables))])
    start = np.array([int(np.lexsort((t[:, 0], t[:, 1]))[0]) for t in tables])
    picked, _, exact = solve(saved, [t[:, 1:] for t in tables], room, start)
    macs = fixed[0] + sum(int(t[i, 0]) for t, i in zip(tables, picked, strict=True))
    if macs > limits["macs"]:
        if not exact:
            raise UserError(
                f"--max-macs {limits['macs']:,} with --max-params {limits['params']:,}: no architecture "
                f"within both was found; with that many parameters {macs} MACs are feasible"
            )
        raise UserError(
            f"--max-macs {limits['macs']:,} with --max-params {limits['params']:,}: each is feasible, both "
            f"together are not; with that many parameters the smallest feasible value of --max-macs is {macs}"
        )
    return picked
