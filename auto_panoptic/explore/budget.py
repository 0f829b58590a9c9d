"""The best total score that a budget of MACs, parameters and time allows; the score-against-MACs front.

Scores and costs are sums over the sites, so this is a multiple-choice knapsack, an integer program for HiGHS.
Costs are integers; scores are made integers first (:func:`_integers`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from ..errors import UserError
from ..space import CostTables, milliseconds

COSTS = ("macs", "params", "latency")  # the last in nanoseconds
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([kKMG]?)")
_UNITS = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9}
_SCORE_BITS = 40  # of the integer range of total scores
BITS = 14  # of a digit of the integers given to HiGHS
NODE_LIMIT = 2000  # of branch and bound: some seconds. Not a time limit: equal inputs give equal results
FRONT_STATES = 1 << 16  # of a score-against-MACs front

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Point:
    """One choice for every site.

    Attributes:
        indices: operator index per site, in site order.
        score: sum of the sites' scores.
        macs, params: of the whole network.
        latency: its predicted nanoseconds; None without a table of times.
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
    latency: int | None = None


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


def check_budget(
    costs: CostTables,
    max_macs: int | None = None,
    max_params: int | None = None,
    max_latency: int | None = None,
) -> None:
    """Refuse limits that no architecture meets, as :func:`best_under_budget` does, before any search."""
    limits = _limits(max_macs, max_params, max_latency)
    if limits:
        _, tables, fixed = _tables([np.zeros(len(row)) for row in costs.sites], costs)
        _feasible(tables, fixed, limits)


def best_under_budget(
    scores: Sequence[np.ndarray],
    costs: CostTables,
    max_macs: int | None = None,
    max_params: int | None = None,
    max_latency: int | None = None,
    warn: bool = True,
) -> Point:
    """The choice with the highest total score within the limits.

    Of equal total scores one with the fewest MACs wins, or where these are not limited with the fewest
    parameters, or the least time. Scores that are not whole or half numbers count to a precision of 2**-39 of
    the range of the total. Where that is not proved, see :class:`Point`, a warning is logged if ``warn``.

    Args:
        scores: per site an (operators,) array; minus infinity bars an operator.
        costs: of the same space; with their ``latency`` for a limit of it.
        max_macs, max_params, max_latency: limits for the whole network, inclusive; at least one.

    Raises:
        UserError: no architecture is within the limits; names the smallest feasible one.
    """
    limits = _limits(max_macs, max_params, max_latency)
    if not limits:
        raise ValueError("no limit: give max_macs, max_params or max_latency")
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
    picked, bound, exact = _solve(values, used, room, start)
    point = _point(scores, allowed, tables, fixed, picked, bound / scale + offset, exact)
    if warn and not exact:
        logger.warning(
            "the architecture under the budget is the best found, not proved to be the best: total score "
            "%.9g, at most %.3g below the best",
            *(point.score, point.bound - point.score),
        )
    return point


def cheapest_near(
    scores: Sequence[np.ndarray],
    costs: CostTables,
    best: Sequence[int],
    allowance: float,
    max_macs: int | None = None,
    max_params: int | None = None,
    max_latency: int | None = None,
) -> Point:
    """The choice with the fewest MACs whose total score is at most ``allowance`` below that of ``best``.

    Of equally many MACs that with the highest score wins. It keeps the limits, which ``best``, operator
    indices, keeps. Scores count as in :func:`best_under_budget`. ``exact`` says whether it is proved that
    none has fewer MACs; ``bound`` is the score of ``best``.
    """
    limits = _limits(max_macs, max_params, max_latency)
    allowed, tables, fixed = _tables(scores, costs)
    values, scale, _ = _integers([s[a] for s, a in zip(scores, allowed, strict=True)])
    start = np.array([np.searchsorted(a, i) for a, i in zip(allowed, best, strict=True)], dtype=np.int64)
    columns = [COSTS.index(name) for name in limits]
    missed = [v.max() - v for v in values]
    used = [np.column_stack((m, t[:, columns])) for m, t in zip(missed, tables, strict=True)]
    most = sum((u.max(axis=0) for u in used), np.zeros(1 + len(columns), dtype=np.int64))
    behind = sum(int(m[i]) for m, i in zip(missed, start, strict=True))
    rooms = [behind + int(max(allowance, 0) * scale), *(limits[COSTS[c]] - fixed[c] for c in columns)]
    room = np.array([min(r, int(m)) for r, m in zip(rooms, most, strict=True)], dtype=np.int64)
    saved = [t[:, 0].max() - t[:, 0] for t in tables]
    picked, _, exact = _solve(saved, used, room, start)
    ceiling = sum(float(row[i]) for row, i in zip(scores, best, strict=True))
    return _point(scores, allowed, tables, fixed, picked, ceiling, exact)


def pareto_front(scores: Sequence[np.ndarray], costs: CostTables) -> list[Point]:
    """All choices that no other one matches in score with fewer MACs, or in MACs with more score.

    One choice for each pair of score and MACs, that with the lowest indices; ascending in both. Scores count
    as in :func:`best_under_budget`. Beyond 2**16 partial choices every second is left out: the points are
    then not all, nor need each be the best of its MACs; a warning is logged and none is marked exact.
    """
    allowed, tables, fixed = _tables(scores, costs)
    values, _, _ = _integers([s[a] for s, a in zip(scores, allowed, strict=True)])
    total, macs = np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64)
    picks, exact = np.zeros((1, 0), dtype=np.int64), True  # of the partial choices, in the order of indices
    for value, table in zip(values, tables, strict=True):
        total, macs = (total[:, None] + value).ravel(), (macs[:, None] + table[:, 0]).ravel()
        order = np.lexsort((-total, macs))  # stable: of equal ones the first
        ranked = total[order]
        keep = order[np.r_[True, ranked[1:] > np.maximum.accumulate(ranked)[:-1]]]
        while len(keep) > FRONT_STATES:
            keep, exact = np.append(keep[:-1:2], keep[-1]), False
        keep.sort()
        parent, operator = np.divmod(keep, len(value))
        total, macs, picks = total[keep], macs[keep], np.column_stack((picks[parent], operator))
    if not exact:
        logger.warning("the score-against-MACs front is too long: some of its points are left out")
    return [_point(scores, allowed, tables, fixed, row, None, exact) for row in picks[np.argsort(macs)]]


def _limits(max_macs: int | None, max_params: int | None, max_latency: int | None) -> dict[str, int]:
    limits = zip(COSTS, (max_macs, max_params, max_latency), strict=True)
    return {name: limit for name, limit in limits if limit is not None}


def _tables(scores, costs):
    """Indices of the allowed operators, their (operators, costs) per site, and the fixed costs."""
    allowed = [np.flatnonzero(np.isfinite(s)) for s in scores]
    rows = [[tuple(cost) for cost in row.values()] for row in costs.sites]
    fixed = tuple(sum(getattr(c, name) for c in costs.fixed.values()) for name in COSTS[:2])
    if costs.latency is not None:
        times = [costs.latency.sites[site.name].values() for site in costs.space.sites]
        rows = [[(*c, t) for c, t in zip(*pair, strict=True)] for pair in zip(rows, times, strict=True)]
        fixed = (*fixed, costs.latency.fixed)
    tables = [np.array(row, dtype=np.int64)[a] for row, a in zip(rows, allowed, strict=True)]
    return allowed, tables, fixed


def _point(scores, allowed, tables, fixed, picked, bound, exact) -> Point:
    indices = tuple(int(a[i]) for a, i in zip(allowed, picked, strict=True))
    macs, params, *latency = (
        start + sum(int(table[i, c]) for table, i in zip(tables, picked, strict=True))
        for c, start in enumerate(fixed)
    )
    score = float(sum(s[i] for s, i in zip(scores, indices, strict=True)))
    bound = score if bound is None else max(score, float(bound))
    return Point(indices, score, macs, params, bound, exact, *latency)


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
    for name, limit in limits.items():
        column = COSTS.index(name)
        least = fixed[column] + sum(int(t[:, column].min()) for t in tables)
        if limit < least:
            what = "fast" if name == "latency" else "small"
            raise UserError(
                f"--max-{name} {shown(name, limit)}: no architecture is that {what}; the smallest "
                f"feasible value is {_typed(name, least)}"
            )
    (name, limit), *others = limits.items()
    column = COSTS.index(name)
    if not others:
        return np.array([int(t[:, column].argmin()) for t in tables])
    # The least of the first within the others: the same problem with what is saved as the score.
    start = _feasible(tables, fixed, dict(others))
    columns = [COSTS.index(other) for other, _ in others]
    room = np.array(
        [
            min(most - fixed[c], sum(int(t[:, c].max()) for t in tables))
            for c, (_, most) in zip(columns, others, strict=True)
        ]
    )
    saved = [t[:, column].max() - t[:, column] for t in tables]
    picked, _, exact = _solve(saved, [t[:, columns] for t in tables], room, start)
    least = fixed[column] + sum(int(t[i, column]) for t, i in zip(tables, picked, strict=True))
    if least > limit:
        asked = " with ".join(f"--max-{n} {shown(n, most)}" for n, most in limits.items())
        both = "both" if len(limits) == 2 else "all"
        problem = f"each is feasible, {both} together are not" if exact else f"none within {both} was found"
        raise UserError(
            f"{asked}: {problem}; with the others the smallest feasible value of --max-{name} is "
            f"{_typed(name, least)}"
        )
    return picked


def shown(name: str, value: int) -> str:
    """A cost of :data:`COSTS` for people."""
    return milliseconds(value) if name == "latency" else f"{value:,}"


def _typed(name: str, value: int) -> str:
    """A cost as an option takes it."""
    return milliseconds(value) if name == "latency" else str(value)


def _solve(values, costs, room, start) -> tuple[np.ndarray, float, bool]:
    """The choice of the highest total value within ``room``, an upper bound, and whether it is proved.

    Of equal ones it has the least first cost; ``start``, if the node limit comes before a better one.
    """
    if not values:
        return start, 0.0, True
    value, usage = np.concatenate(values), np.concatenate([c - c.min(axis=0) for c in costs])
    spare = room - sum(c.min(axis=0) for c in costs)
    missed = np.concatenate([v.max() - v for v in values])
    first = np.cumsum([0, *(len(v) for v in values)])[:-1]
    ceiling = sum(int(v.max()) for v in values)

    def lowest(goal, at_least):
        """The lowest goal of the choices whose value is ``at_least`` so much."""
        return _lowest(goal, np.column_stack((usage, missed)), np.array([*spare, ceiling - at_least]), first)

    picked, bound, exact = lowest(missed, 0)
    if picked is None or value[picked].sum() < value[first + start].sum():
        picked, exact = first + start, False
    best = int(value[picked].sum())
    if not exact:
        return picked - first, max(float(best), ceiling - bound), False
    while best < ceiling:  # ask another program whether there is a better one
        better, *_ = lowest(missed, best + 1)
        if better is None:
            break
        picked, best = better, int(value[better].sum())
    cheaper, *_ = lowest(usage[:, 0], best)
    if cheaper is not None and usage[cheaper, 0].sum() < usage[picked, 0].sum():
        picked = cheaper
    return picked - first, float(best), True


def _lowest(goal, usage, spare, first) -> tuple[np.ndarray | None, float, bool]:
    """The choice of the lowest total ``goal``, an integer program for HiGHS.

    HiGHS computes with floats and a tolerance of 1e-6, so every limit is written in digits of base 2**14 with
    integer carries. Its presolve is off: near a limit it has cut off the best choice and called another one
    optimal (HiGHS 1.12, about one in a thousand small spaces). ``first`` are the places of the sites' first
    operators. Returned are the operators' places, checked in integers, None if none was found; a lower bound
    of the goal; whether it is reached.
    """
    count, limits = usage.shape
    digits = max(1, -(-int(spare.max()).bit_length() // BITS))
    carry = np.kron(np.eye(digits, digits - 1, -1) - (1 << BITS) * np.eye(digits, digits - 1), np.eye(limits))
    one_each = np.repeat(np.eye(len(first)), np.diff(first, append=count), axis=1)
    unit = max(1.0, float(goal.max()) * len(first) / 2**20)
    with _silenced_stdout():
        result = milp(
            np.concatenate((goal / unit, np.zeros(carry.shape[1]))),
            integrality=1,
            bounds=Bounds(0, np.repeat([1, np.inf], [count, carry.shape[1]])),
            constraints=[
                LinearConstraint(np.hstack((one_each, np.zeros((len(first), carry.shape[1])))), 1, 1),
                LinearConstraint(np.hstack((_digits(usage.T, digits), carry)), ub=_digits(spare, digits)),
            ],
            options={"mip_rel_gap": 0, "node_limit": NODE_LIMIT, "presolve": False},
        )
    bound = 0.0 if result.mip_dual_bound is None else max(0.0, result.mip_dual_bound * unit)
    if result.x is None:
        return None, bound, False
    picked = np.flatnonzero(result.x[:count] > 0.5)
    if len(picked) != len(first) or (usage[picked].sum(axis=0) > spare).any():
        return None, bound, False
    return picked, bound, result.status == 0


def _digits(table: np.ndarray, digits: int) -> np.ndarray:
    """The digits of base 2**14 of each row, lowest first; what is left goes into the highest."""
    mask = (1 << BITS) - 1
    return np.concatenate(
        [*(table >> BITS * k & mask for k in range(digits - 1)), table >> BITS * (digits - 1)]
    )


@contextlib.contextmanager
def _silenced_stdout():
    """Send what C code prints to file descriptor 1 to nowhere: HiGHS does so whatever its options say."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
