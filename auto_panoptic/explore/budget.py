"""The best total score that a budget of MACs and parameters allows, exactly; the score-against-MACs front.

Scores and costs are sums over the sites, so this is a multiple-choice knapsack. A dynamic program over the
sites keeps the partial choices that can still be best: it drops those that cannot meet the limits, those
that another one matches in score and cost, and those whose upper bound lies below a known solution. All
three are exact; costs are integers, and scores are made integers first (:func:`_integers`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import UserError
from ..space import CostTables

COSTS = ("macs", "params")
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([kKMG]?)")
_UNITS = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9}
_SCORE_BITS = 40  # of the integer range of total scores


@dataclass(frozen=True)
class Point:
    """One choice for every site.

    Attributes:
        indices: operator index per site, in site order.
        score: sum of the sites' scores.
        macs, params: of the whole network.
        bound: no choice within the limits scores more; equal to or above ``score``.
    """

    indices: tuple[int, ...]
    score: float
    macs: int
    params: int
    bound: float


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
    scores = [np.zeros(len(row)) for row in costs.sites]
    if max_macs is not None or max_params is not None:
        best_under_budget(scores, costs, max_macs, max_params)


def best_under_budget(
    scores: Sequence[np.ndarray],
    costs: CostTables,
    max_macs: int | None = None,
    max_params: int | None = None,
) -> Point:
    """The choice with the highest total score within the limits.

    Of equal total scores the one with the fewest of the limited costs wins (MACs before parameters), then
    the one with the lowest indices, the first site first. Scores that are not whole or half numbers count to
    a precision of 2**-39 of the range of the total.

    Args:
        scores: per site an (operators,) array; minus infinity bars an operator.
        costs: of the same space.
        max_macs, max_params: limits for the whole network, inclusive; at least one.

    Raises:
        UserError: no architecture is within the limits; names the smallest feasible one.
    """
    limits = {name: limit for name, limit in zip(COSTS, (max_macs, max_params), strict=True)}
    limits = {name: limit for name, limit in limits.items() if limit is not None}
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
    picked, bound = _solve(values, used, room, start)
    return _point(scores, allowed, tables, fixed, picked, bound / scale + offset)


def pareto_front(scores: Sequence[np.ndarray], costs: CostTables) -> list[Point]:
    """All choices that no other one matches in score with fewer MACs, or in MACs with more score.

    One choice for each pair of score and MACs, that with the lowest indices; ascending in both. Scores count
    as in :func:`best_under_budget`.
    """
    allowed, tables, fixed = _tables(scores, costs)
    values, _, _ = _integers([s[a] for s, a in zip(scores, allowed, strict=True)])
    used = [table[:, :1] for table in tables]
    room = np.array([sum(int(t.max()) for t in used)], dtype=np.int64)
    states = _States(len(room))
    for value, cost in zip(values, used, strict=True):
        states.extend(value, cost, room)
        states.drop_dominated()
    order = np.argsort(states.cost[:, 0], kind="stable")
    picks = states.picks()[order]
    points = [_point(scores, allowed, tables, fixed, row, None) for row in picks]
    return points


def _tables(scores, costs):
    """Indices of the allowed operators, their (operators, 2) costs per site, and the fixed cost."""
    allowed = [np.flatnonzero(np.isfinite(s)) for s in scores]
    tables = [
        np.array([(c.macs, c.params) for c in row.values()], dtype=np.int64)[a]
        for row, a in zip(costs.sites, allowed, strict=True)
    ]
    fixed = tuple(sum(getattr(c, name) for c in costs.fixed.values()) for name in COSTS)
    return allowed, tables, fixed


def _point(scores, allowed, tables, fixed, picked, bound) -> Point:
    indices = tuple(int(a[i]) for a, i in zip(allowed, picked, strict=True))
    macs, params = (
        fixed[c] + sum(int(table[i, c]) for table, i in zip(tables, picked, strict=True)) for c in range(2)
    )
    score = float(sum(s[i] for s, i in zip(scores, indices, strict=True)))
    return Point(indices, score, macs, params, score if bound is None else max(score, float(bound)))


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
    room = np.array([limits["params"] - fixed[1]])
    start = np.array([int(np.lexsort((t[:, 0], t[:, 1]))[0]) for t in tables])
    picked, _ = _solve(saved, [t[:, 1:] for t in tables], room, start)
    macs = fixed[0] + sum(int(t[i, 0]) for t, i in zip(tables, picked, strict=True))
    if macs > limits["macs"]:
        raise UserError(
            f"--max-macs {limits['macs']:,} with --max-params {limits['params']:,}: each is feasible, both "
            f"together are not; with that many parameters the smallest feasible value of --max-macs is {macs}"
        )
    return picked


# ------------------------------------------------------------------------------------ the dynamic program


class _States:
    """Partial choices over the first sites, in the order of their indices, with their way back."""

    def __init__(self, costs: int):
        self.score = np.zeros(1, dtype=np.int64)
        self.cost = np.zeros((1, costs), dtype=np.int64)
        self._steps: list[tuple[np.ndarray, np.ndarray]] = []  # per site: parent state, operator

    def extend(self, value: np.ndarray, cost: np.ndarray, room: np.ndarray) -> None:
        """Add a site: every state with every operator that fits into ``room`` (costs,)."""
        count = len(value)
        score = (self.score[:, None] + value).reshape(-1)
        total = (self.cost[:, None] + cost).reshape(-1, cost.shape[1])
        parent = np.repeat(np.arange(len(self.score)), count)
        operator = np.tile(np.arange(count), len(self.score))
        self.score, self.cost = score, total
        self._steps.append((parent, operator))
        self.keep((total <= room).all(axis=1))

    def keep(self, mask: np.ndarray) -> None:
        self.score, self.cost = self.score[mask], self.cost[mask]
        parent, operator = self._steps[-1]
        self._steps[-1] = (parent[mask], operator[mask])

    def drop_dominated(self) -> None:
        """Drop states that another one matches in score and all costs; of equal ones keep the first.

        With one cost, all of them. With two, those dominated by a state of the same parameters or by one of
        a few good ones: dropping fewer costs time only.
        """
        keep = np.zeros(len(self.score), dtype=bool)
        order = np.lexsort((-self.score, *self.cost.T[::-1]))  # stable: by costs, then best score, then first
        score = self.score[order]
        if self.cost.shape[1] == 1:
            keep[order] = _is_record(score)
            self.keep(keep)
            return
        same = (self.cost[order][1:] == self.cost[order][:-1]).all(axis=1)
        keep[order] = np.concatenate(([True], ~same))
        self.keep(keep)
        for column in (0, 1):
            other = 1 - column
            order = np.lexsort((-self.score, self.cost[:, column], self.cost[:, other]))
            group = np.cumsum(np.concatenate(([0], np.diff(self.cost[order, other]) != 0)))
            keep = np.zeros(len(order), dtype=bool)
            keep[order] = _is_record(self.score[order] + group * (int(self.score.max()) + 1))
            self.keep(keep)
        strong = np.linspace(0, len(self.score) - 1, min(len(self.score), 64)).astype(int)
        dominated = np.zeros(len(self.score), dtype=bool)
        for i in strong:
            worse = (self.score <= self.score[i]) & (self.cost >= self.cost[i]).all(axis=1)
            worse[i] = False
            dominated |= worse
        self.keep(~dominated)

    def picks(self) -> np.ndarray:
        """(states, sites) operator of every state at every site."""
        rows = np.arange(len(self.score))
        columns = []
        for parent, operator in reversed(self._steps):
            columns.append(operator[rows])
            rows = parent[rows]
        return np.stack(columns[::-1], axis=1) if columns else np.zeros((len(rows), 0), dtype=np.int64)


def _is_record(score: np.ndarray) -> np.ndarray:
    """Whether each score is above all before it."""
    best = np.maximum.accumulate(score)
    return np.concatenate(([True], best[1:] > best[:-1]))


def _solve(values, costs, room, start) -> tuple[np.ndarray, float]:
    """Best choice within ``room`` and an upper bound of its value.

    Args:
        values: per site (operators,) integers from 0, total below 2**50.
        costs: per site (operators, C) integers, C 1 or 2.
        room: (C,) integers.
        start: a choice that fits.
    """
    prices, incumbent = _dual(values, costs, room, start)
    reduced = [np.stack([v - c @ p for p in prices], axis=1) for v, c in zip(values, costs, strict=True)]
    ahead = np.cumsum([r.max(axis=0) for r in reduced][::-1], axis=0)[::-1]
    ahead = np.concatenate((ahead, np.zeros((1, len(prices)))))  # most that the sites from i on can add
    least = np.cumsum([c.min(axis=0) for c in costs][::-1], axis=0)[::-1]
    least = np.concatenate((least, np.zeros((1, len(room)), dtype=np.int64)))
    states = _States(len(room))
    for i, (value, cost) in enumerate(zip(values, costs, strict=True)):
        states.extend(value, cost, room - least[i + 1])
        bound = states.score[:, None] + (room - states.cost) @ prices.T + ahead[i + 1]
        states.keep(bound.min(axis=1) >= incumbent - 1 - 1e-9 * abs(incumbent))  # the bounds are floats
        states.drop_dominated()
    best = np.lexsort((*states.cost.T[::-1], -states.score))[0]
    return states.picks()[best], float((room @ prices.T + ahead[0]).min())


def _dual(values, costs, room, start) -> tuple[np.ndarray, int]:
    """Prices of the costs with low upper bounds, and the best value met that fits.

    The bound at prices p >= 0 is convex in p: max over choices of (value - p * cost) + p * room. It holds for
    any prices, so how well they are found matters for speed only. Cutting planes on a line per cost, turn
    and turn about.

    Returns:
        (prices, C) prices and the value of the best choice met.
    """
    count = max((len(v) for v in values), default=1)
    score = np.full((len(values), count), -np.inf)
    cost = np.zeros((len(values), count, len(room)))
    for i, (v, c) in enumerate(zip(values, costs, strict=True)):
        score[i, : len(v)], cost[i, : len(v)] = v, c
    rows = np.arange(len(values))
    incumbent = int(sum(v[i] for v, i in zip(values, start, strict=True)))

    def bound(prices):
        nonlocal incumbent
        reduced = score - cost @ prices
        pick = reduced.argmax(axis=1)
        used = cost[rows, pick].sum(axis=0)
        if (used <= room).all():
            incumbent = max(incumbent, int(score[rows, pick].sum()))
        return reduced[rows, pick].sum() + prices @ room, room - used

    spread = np.maximum((cost.max(axis=1) - cost.min(axis=1)).sum(axis=0), 1)
    top = max(np.where(np.isfinite(score), score, 0).max(axis=1).sum(), 1)
    prices = np.zeros(len(room))
    kept = [prices.copy()]
    for _ in range(12 if len(room) > 1 else 1):
        for c in range(len(room)):
            low, high = 0.0, 1e3 * top / spread[c]
            for _ in range(40):  # where the slope changes its sign
                prices[c] = (low * high) ** 0.5 if low else high / 64
                value, slope = bound(prices)
                if slope[c] >= 0:
                    high = prices[c]
                else:
                    low = prices[c]
                if high < 1e-9 * top / spread[c]:
                    break
            prices[c] = 0.0 if not low else high
            kept.append(prices.copy())
    kept.sort(key=lambda p: bound(p)[0])
    return np.array(kept[:4]), incumbent
