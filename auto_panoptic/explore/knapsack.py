"""Multiple-choice knapsack with one or two costs, exactly: one operator per site, the highest total value.

A dynamic program over the sites keeps the partial choices that can still be best: it drops those that cannot
meet the limits, those that another one matches in value and cost, and those whose upper bound lies below a
known solution. It works from both ends, so that about the square root of the states does, and joins the two
sides by the bound: together they must come within the gap between it and the known solution.

The problem is NP-hard, so some values defeat it: where every value is the same linear function of two costs
each reachable pair of costs counts, 10**16 of them in the paper's space. So the states are limited, first to
few, which finds a good solution to prune with, then to more. The upper bounds of what the limit drops are
kept: the result is exact where they lie below it, and known to the difference where not. The limit is one
of states, not of time: equal inputs give equal results.
"""

from __future__ import annotations

import numpy as np

# First and second attempt: states of one side of the sites, and how many of them stay where it has more.
WIDTHS = ((1 << 10, 1 << 10), (1 << 16, 1 << 12))
MOST_PAIRS = 1 << 23  # of states of both sides


class States:
    """Partial choices over the first or, ``backward``, the last sites, in the order of their indices."""

    def __init__(self, costs: int, backward: bool = False):
        self.backward = backward
        self.score = np.zeros(1, dtype=np.int64)
        self.cost = np.zeros((1, costs), dtype=np.int64)
        self._steps: list[tuple[np.ndarray, np.ndarray]] = []  # the way back: per site parent state, operator

    def __len__(self) -> int:
        return len(self.score)

    def extend(self, value: np.ndarray, cost: np.ndarray, room: np.ndarray) -> None:
        """Add a site: every state with every operator that fits into ``room`` (costs,)."""
        count = len(value)
        state, operator = np.arange(len(self)), np.arange(count)
        if self.backward:  # this site comes first in the order
            parent, operator = np.tile(state, count), np.repeat(operator, len(self))
        else:
            parent, operator = np.repeat(state, count), np.tile(operator, len(self))
        self.score = self.score[parent] + value[operator]
        self.cost = self.cost[parent] + cost[operator]
        self._steps.append((parent, operator))
        self.keep((self.cost <= room).all(axis=1))

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
        if not columns:
            return np.zeros((len(rows), 0), dtype=np.int64)
        return np.stack(columns if self.backward else columns[::-1], axis=1)


def _is_record(score: np.ndarray) -> np.ndarray:
    """Whether each score is above all before it."""
    best = np.maximum.accumulate(score)
    return np.concatenate(([True], best[1:] > best[:-1]))


def solve(values, costs, room, start) -> tuple[np.ndarray, float, bool]:
    """Best choice within ``room``, an upper bound of all of them, whether the choice is proved the best.

    Args:
        values: per site (operators,) integers from 0, total below 2**50.
        costs: per site (operators, C) integers, C 1 or 2.
        room: (C,) integers.
        start: a choice that fits.
    """
    kept = _that_fit(costs, room)
    values, costs = ([t[k] for t, k in zip(table, kept, strict=True)] for table in (values, costs))
    start = np.array([np.flatnonzero(k == i)[0] for k, i in zip(kept, start, strict=True)], dtype=np.int64)
    prices, picked = _dual(values, costs, room, start)
    for width in WIDTHS:
        incumbent = sum(int(v[i]) for v, i in zip(values, picked, strict=True))
        found, lost, ceiling = _program(values, costs, room, prices, incumbent, *width)
        picked = picked if found is None else found
        best = sum(int(v[i]) for v, i in zip(values, picked, strict=True))
        if lost < best:
            break
    indices = np.array([k[i] for k, i in zip(kept, picked, strict=True)], dtype=np.int64)
    return indices, min(max(best, lost), ceiling), lost < best


def _that_fit(costs, room) -> list[np.ndarray]:
    """Indices of the operators that leave room for the cheapest of the other sites."""
    kept = [np.arange(len(c)) for c in costs]
    while True:
        least = np.array([c[k].min(axis=0) for c, k in zip(costs, kept, strict=True)])
        spare = room - least.sum(axis=0)
        fewer = [k[(c[k] - m <= spare).all(axis=1)] for c, k, m in zip(costs, kept, least, strict=True)]
        if all(len(a) == len(b) for a, b in zip(kept, fewer, strict=True)):
            return kept
        kept = fewer


def _program(values, costs, room, prices, incumbent, width, rest) -> tuple[np.ndarray | None, float, float]:
    """The dynamic program with at most ``width`` states of a side; where it has more, ``rest`` stay.

    Returns:
        The best choice of those kept, None if none reaches the incumbent; an upper bound of what was left
        out, minus infinity if nothing was; an upper bound of all choices.
    """
    most = np.array([(v[:, None] - c @ prices.T).max(axis=0) for v, c in zip(values, costs, strict=True)])
    least = np.array([c.min(axis=0) for c in costs])
    ceiling = room @ prices.T + most.sum(axis=0)
    known = incumbent - 1 - 1e-12 * float(np.abs(most).sum() + (room @ prices.T).max())  # bounds are floats
    rng = np.random.default_rng(0)
    sides = States(len(room)), States(len(room), backward=True)
    inside = [[], []]  # the sites of each
    lost = -np.inf

    def upper(side):
        """(states, prices) the most that each can come to, by each vector of prices."""
        others = most.sum(axis=0) - most[inside[side.backward]].sum(axis=0)
        return side.score[:, None] + (room - side.cost) @ prices.T + others

    def cut(side, count):
        """Keep the most promising; where many are equally so, some of all costs."""
        nonlocal lost, width
        bound = upper(side).min(axis=1)
        jitter = rng.random(len(side)) * (bound.max() - known) / 4
        order = np.argpartition(-(bound + jitter), count)
        lost = max(lost, float(bound[order[count:]].max()) + incumbent - known)
        mask = np.zeros(len(side), dtype=bool)
        mask[order[:count]] = True
        side.keep(mask)
        width = 2 * rest  # no longer exact: be quick

    low, high = 0, len(values)
    while low < high:
        side = sides[len(sides[0]) > len(sides[1])]
        low, high, site = (low, high - 1, high - 1) if side.backward else (low + 1, high, low)
        inside[side.backward].append(site)
        others = least.sum(axis=0) - least[inside[side.backward]].sum(axis=0)
        side.extend(values[site], costs[site], room - others)
        side.keep(upper(side).min(axis=1) >= known)
        if not len(side):
            return None, lost, float(ceiling.min())
        side.drop_dominated()
        if len(side) > width:
            cut(side, rest)
    first, last = sides
    while (ranges := _partners(first, last, room, prices[0], upper(first)[:, 0] - known))[3] > MOST_PAIRS:
        larger = max(sides, key=len)
        cut(larger, len(larger) // 2)
    pair = _best_pair(first, last, room, *ranges[:3])
    if pair is None:
        return None, lost, float(ceiling.min())
    return np.concatenate((first.picks()[pair[0]], last.picks()[pair[1]])), lost, float(ceiling.min())


def _partners(first: States, last: States, room, prices, spare) -> tuple[np.ndarray, ...]:
    """For each state of ``first`` those of ``last`` that may go with it.

    Args:
        prices: (C,) of the costs.
        spare: (states of ``first``,) their upper bounds at these prices minus the known solution. What a pair
            leaves unused of a cost takes its price off the bound.

    Returns:
        An order of ``last``, the first and behind the last place in it for each state, number of pairs.
    """
    choices = []
    for c in range(len(room)):
        order = np.argsort(last.cost[:, c], kind="stable")
        most = room[c] - first.cost[:, c]
        unused = np.minimum(spare, (room[c] + 1.0) * prices[c]) / prices[c] if prices[c] else room[c] + 1.0
        stop = np.searchsorted(last.cost[order, c], most, side="right")
        start = np.searchsorted(last.cost[order, c], most - np.int64(np.ceil(unused)) - 1)
        if len(room) == 1:  # no state dominates another: the dearest that fits is the best
            start = np.maximum(start, stop - 1)
        choices.append((order, start, stop, int((stop - start).sum())))
    return min(choices, key=lambda choice: choice[3])


def _best_pair(first: States, last: States, room, order, start, stop) -> tuple[int, int] | None:
    """Of the pairs that fit the best: highest score, then lowest costs, then the order of indices."""
    best, ends = None, np.cumsum(stop - start)
    chunk, row = 1 << 20, 0
    while row < len(ends):
        done = ends[row - 1] if row else 0
        upto = max(int(np.searchsorted(ends, done + chunk, side="right")), row + 1)
        count = (stop - start)[row:upto]
        a = np.repeat(np.arange(row, upto), count)
        b = order[np.arange(len(a)) + np.repeat(start[row:upto] - (np.cumsum(count) - count), count)]
        row = upto
        cost = first.cost[a] + last.cost[b]
        good = np.flatnonzero((cost <= room).all(axis=1))
        if not len(good):
            continue
        score = first.score[a[good]] + last.score[b[good]]
        good = good[score == score.max()]
        pick = good[np.lexsort((b[good], a[good], *cost[good].T[::-1]))[0]]
        found = (-int(score.max()), *cost[pick].tolist(), int(a[pick]), int(b[pick]))
        best = found if best is None else min(best, found)
    return None if best is None else best[-2:]


def _dual(values, costs, room, start) -> tuple[np.ndarray, np.ndarray]:
    """Prices of the costs with low upper bounds, and the best choice met that fits.

    The bound at prices p >= 0 is convex in p: max over choices of (value - p * cost) + p * room. It holds for
    any prices, so how well they are found matters for speed only. Cutting planes on a line per cost, that of
    the second price within that of the first.

    Returns:
        (prices, C) prices and the best choice met.
    """
    count = max((len(v) for v in values), default=1)
    score = np.full((len(values), count), -np.inf)
    cost = np.zeros((len(values), count, len(room)))
    for i, (v, c) in enumerate(zip(values, costs, strict=True)):
        score[i, : len(v)], cost[i, : len(v)] = v, c
    rows = np.arange(len(values))
    best, incumbent = start, int(sum(v[i] for v, i in zip(values, start, strict=True)))
    spread = np.maximum((cost.max(axis=1) - cost.min(axis=1)).sum(axis=0), 1)
    top = max(np.where(np.isfinite(score), score, 0).max(axis=1).sum(), 1)

    def bound(prices):
        """The bound and its slopes."""
        nonlocal best, incumbent
        reduced = score - cost @ prices
        pick = reduced.argmax(axis=1)
        used = cost[rows, pick].sum(axis=0)
        if (used <= room).all() and score[rows, pick].sum() > incumbent:
            best, incumbent = pick, int(score[rows, pick].sum())
        return reduced[rows, pick].sum() + prices @ room, room - used

    def lowest(fixed):
        """Prices that begin with ``fixed``, lowest bound with these, its slopes."""
        c = len(fixed)
        if c == len(room):
            return fixed, *bound(fixed)
        low = 0.0, *lowest(np.array([*fixed, 0.0]))
        if low[3][c] >= 0:
            return low[1:]
        high = 1e3 * top / spread[c]
        high = high, *lowest(np.array([*fixed, high]))
        if high[3][c] < 0:
            return high[1:]
        for _ in range(40):
            # Where the tangents meet; the lowest point if the bound is not above them there.
            share = high[3][c] - low[3][c]
            price = (low[2] - low[3][c] * low[0] - high[2] + high[3][c] * high[0]) / share
            price = min(max(price, low[0]), high[0])
            point = price, *lowest(np.array([*fixed, price]))
            done = point[2] <= low[2] + low[3][c] * (price - low[0]) + 1e-12 * abs(low[2])
            if point[3][c] >= 0:
                high = point
            else:
                low = point
            if done:
                break
        share = high[3][c] / (high[3][c] - low[3][c])  # at the kink the slope along c can be made zero
        return point[1], point[2], share * low[3] + (1 - share) * high[3]

    prices, *_ = lowest(np.zeros(0))
    around = [np.ones(len(room))]
    for c in range(len(room)):
        around += [np.where(np.arange(len(room)) == c, factor, 1.0) for factor in (0.9, 1.1)]
    return prices * around, best
