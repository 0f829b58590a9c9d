"""The best choice within limits, against enumeration and against a program of plain numbers."""

import itertools
import os

import numpy as np
import pytest
from modeling_util import make_cfg
from scipy.optimize import Bounds, LinearConstraint, milp

from auto_panoptic.errors import UserError
from auto_panoptic.explore import budget
from auto_panoptic.explore.budget import best_under_budget, check_budget, pareto_front, parse_amount
from auto_panoptic.modeling.counting import configured_costs
from auto_panoptic.space import Cost, CostTables, SearchSpace
from auto_panoptic.space.ops import HEAD_OPS
from auto_panoptic.space.space import ChoiceSite


def random_tables(rng):
    """A small space with random costs, often equal ones, of laptop or of network size."""
    sizes = rng.integers(1, 5, size=rng.integers(1, 6))
    space = SearchSpace(tuple(ChoiceSite(f"mask.{i}", HEAD_OPS[:size]) for i, size in enumerate(sizes)))
    unit = int(rng.choice([1, 10**9 + 7]))
    sites = {
        site.name: {
            op.name: Cost(int(rng.integers(0, 12)) * unit, int(rng.integers(0, 12)) * unit) for op in site.ops
        }
        for site in space.sites
    }
    return CostTables(space, {"stem": Cost(5 * unit, 3 * unit)}, sites)


def random_scores(rng, tables):
    """Ranks with many ties, real numbers, both with a barred operator, or a linear function of the costs."""
    kind, space = rng.integers(4), tables.space
    if kind == 3:
        unit, price = tables.fixed["stem"].params // 3, rng.integers(1, 4, size=2)
        return [np.array([np.dot(price, c) // unit for c in row.values()], float) for row in tables.sites]
    scores = [
        rng.integers(0, 8, len(s.ops)) / 2 if kind == 0 else rng.normal(size=len(s.ops)) for s in space.sites
    ]
    if kind == 2:
        for row in scores:
            if len(row) > 1:
                row[rng.integers(len(row))] = -np.inf
    return scores


def everything(tables, scores):
    """All (score, macs, params, indices) whose operators are allowed."""
    for indices in itertools.product(*(np.flatnonzero(np.isfinite(s)).tolist() for s in scores)):
        score = sum(s[i] for s, i in zip(scores, indices, strict=True))
        yield float(score), *tables.cost(indices), indices


@pytest.mark.parametrize("limited", [("macs",), ("params",), ("macs", "params")])
def test_equal_to_enumeration(limited):
    """Best score; of equal ones fewest MACs, or parameters where only they count; infeasible ones by name."""
    refused = 0
    for seed in range(170):
        rng = np.random.default_rng([seed, len(limited), limited[0] == "macs"])
        tables = random_tables(rng)
        scores = random_scores(rng, tables)
        choices = list(everything(tables, scores))
        centre = choices[rng.integers(len(choices))]
        limits = {
            f"max_{name}": max(int(centre[1 + (name == "params")] + rng.integers(-2, 3)), 0)
            for name in limited
        }

        def fits(c, limits=limits):
            return c[1] <= limits.get("max_macs", c[1]) and c[2] <= limits.get("max_params", c[2])

        feasible = [c for c in choices if fits(c)]
        if not feasible:
            refused += 1
            with pytest.raises(UserError, match="smallest feasible value"):
                best_under_budget(scores, tables, **limits)
            continue
        point = best_under_budget(scores, tables, **limits)
        cost = 1 + (limited == ("params",))
        best = max(round(c[0], 9) for c in feasible)
        expected = min((c for c in feasible if round(c[0], 9) == best), key=lambda c: c[cost])
        assert point.indices in {c[3] for c in feasible}
        assert (point.macs, point.params) == tables.cost(list(point.indices))
        assert (point.macs, point.params)[cost - 1] == expected[cost]
        assert point.score == pytest.approx(expected[0], abs=1e-9) and point.bound >= point.score - 1e-9
        assert point.exact
    assert 5 < refused < 140


@pytest.mark.parametrize("seed", range(4))
def test_limits_just_below_a_reachable_cost(seed):
    """Long costs, and a limit that a choice misses by one: where floats and tolerances go wrong."""
    rng = np.random.default_rng([seed, 29])
    for _ in range(60):
        sizes = rng.integers(2, 5, size=rng.integers(2, 6))
        costs = [
            rng.integers(0, 12, (size, 2)) * (10**9 + 7) + rng.integers(0, 2, (size, 2)) for size in sizes
        ]
        values = [rng.integers(0, 8, size) for size in sizes]
        choices = list(itertools.product(*map(range, sizes)))
        totals = np.array([sum(c[i] for c, i in zip(costs, choice, strict=True)) for choice in choices])
        room = totals[rng.integers(len(choices))] - 1
        fit = np.flatnonzero((totals <= room).all(axis=1))
        if not len(fit):
            continue
        worth = [sum(int(v[i]) for v, i in zip(values, choices[k], strict=True)) for k in fit]
        best = max(worth)
        least = min(totals[k][0] for k, value in zip(fit, worth, strict=True) if value == best)
        picked, bound, exact = budget._solve(values, costs, room, np.array(choices[fit[0]]))
        place = choices.index(tuple(picked.tolist()))
        assert place in fit and exact
        assert sum(int(v[i]) for v, i in zip(values, picked, strict=True)) == best == bound
        assert totals[place][0] == least


def test_too_few_nodes_are_admitted(monkeypatch, whole):
    """Without branching: within the limits, marked exact only if it is, and no better than its bound."""
    inexact = 0
    for seed in range(3):
        scores = linear_scores(whole, 0.5, seed)
        low, high = whole.minimum, whole.maximum
        limits = [int(low[i] + (0.2 + 0.1 * seed) * (high[i] - low[i])) for i in range(2)]
        monkeypatch.setattr(budget, "NODE_LIMIT", 1)
        point = best_under_budget(scores, whole, *limits)
        assert point.macs <= limits[0] and point.params <= limits[1]
        best = highs(scores, whole, limits)
        assert point.score - 1e-4 <= best <= point.bound + 1e-4
        assert not point.exact or point.score == pytest.approx(best, abs=1e-4)
        inexact += not point.exact
    assert inexact >= 2


def test_what_the_solver_prints_is_not_seen(monkeypatch, whole, capfd):
    def loud(*args, **kwargs):
        os.write(1, b"MIP has numerical trouble")
        return milp(*args, **kwargs)

    monkeypatch.setattr(budget, "milp", loud)
    print("before")
    scores = whole_scores(whole, 0, True)
    best_under_budget(scores, whole, whole.minimum.macs + 10**9)
    print("after")
    assert capfd.readouterr().out == "before\nafter\n"


def test_front_is_that_of_enumeration():
    for seed in range(200):
        rng = np.random.default_rng([seed, 7])
        tables = random_tables(rng)
        scores = random_scores(rng, tables)
        best, expected = -np.inf, []
        ordered = sorted(everything(tables, scores), key=lambda c: (c[1], -round(c[0], 9), c[3]))
        for score, macs, params, indices in ordered:
            if score > best + 1e-9:
                best = score
                expected.append((indices, macs, params))
        points = pareto_front(scores, tables)
        assert [(p.indices, p.macs, p.params) for p in points] == expected


# ------------------------------------------------------------------ the whole space


@pytest.fixture(scope="module")
def whole():
    """Cost tables of the paper's network: 56 sites."""
    tables = configured_costs(make_cfg(small=False))
    assert len(tables.space.sites) == 56
    return tables


def whole_scores(tables, seed, ranks):
    rng = np.random.default_rng(seed)
    return [
        rng.integers(0, 330, len(s.ops)) / 2 if ranks else rng.normal(size=len(s.ops))
        for s in tables.space.sites
    ]


def highs(scores, tables, limits):
    """The best total score by integer programming."""
    sizes = [len(s) for s in scores]
    one_each = np.repeat(np.eye(len(sizes)), sizes, axis=1)
    table = np.array([(c.macs, c.params) for row in tables.sites for c in row.values()], dtype=float)
    fixed = np.array(sum(tables.fixed.values(), Cost(0, 0)), dtype=float)
    room = np.array(limits) - fixed
    result = milp(
        -np.concatenate(scores),
        integrality=np.ones(sum(sizes)),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(table.T / room[:, None], -np.inf, 1),
        ],
        options={"mip_rel_gap": 0},
    )
    assert result.status == 0
    return -result.fun


@pytest.mark.parametrize("ranks", [True, False])
def test_whole_space_agrees_with_integer_programming(whole, ranks):
    for seed, share in ((0, 0.2), (1, 0.35), (2, 0.5)):
        scores = whole_scores(whole, seed, ranks)
        low, high = whole.minimum, whole.maximum
        limits = [int(low[i] + share * (high[i] - low[i])) for i in range(2)]
        point = best_under_budget(scores, whole, *limits)
        assert point.macs <= limits[0] and point.params <= limits[1]
        assert (point.macs, point.params) == whole.cost(list(point.indices))
        assert point.score == pytest.approx(highs(scores, whole, limits), abs=1e-4)
        assert point.bound >= point.score


def linear_scores(tables, noise, seed=0):
    """Scores that are a linear function of both costs, but for noise."""
    rng = np.random.default_rng(seed)
    table = [np.array([tuple(c) for c in row.values()], float) for row in tables.sites]
    spread = sum(np.ptp(t, axis=0) for t in table)
    return [(t / spread * 300).sum(axis=1) + noise * rng.normal(size=len(t)) for t in table]


@pytest.mark.slow
def test_scores_that_follow_the_costs(whole, caplog):
    """One limit exactly; both, with the gap to what is possible at most."""
    scores, low, high = linear_scores(whole, 0.0), whole.minimum, whole.maximum
    macs, params = (int(low[i] + 0.5 * (high[i] - low[i])) for i in range(2))
    for limits in ((macs, None), (None, params)):
        assert best_under_budget(scores, whole, *limits).exact
    point = best_under_budget(scores, whole, macs, params)
    assert point.macs <= macs and point.params <= params
    assert not point.exact and "best found, not proved to be the best" in caplog.text
    assert 0 < point.bound - point.score < 1e-3 * point.score


def test_scores_that_partly_follow_the_costs(whole):
    scores, low, high = linear_scores(whole, 0.5), whole.minimum, whole.maximum
    limits = [int(low[i] + 0.2 * (high[i] - low[i])) for i in range(2)]
    point = best_under_budget(scores, whole, *limits)
    assert point.exact
    assert point.score == pytest.approx(highs(scores, whole, limits), abs=1e-4)


def test_a_front_too_long_is_thinned(whole, monkeypatch, caplog):
    monkeypatch.setattr(budget, "FRONT_STATES", 100)
    scores = whole_scores(whole, 1, False)
    points = pareto_front(scores, whole)
    assert "points are left out" in caplog.text and not any(p.exact for p in points)
    assert points[-1].indices == tuple(int(s.argmax()) for s in scores)
    for before, after in itertools.pairwise(points):
        assert before.macs < after.macs and before.score < after.score
        assert after.macs == whole.cost(list(after.indices)).macs


def test_infeasible_limits_name_the_smallest_feasible_one(whole):
    low = whole.minimum
    scores = whole_scores(whole, 0, True)
    with pytest.raises(UserError, match=rf"--max-macs .* smallest feasible value is {low.macs}$"):
        best_under_budget(scores, whole, low.macs - 1)
    with pytest.raises(UserError, match=rf"--max-params .* smallest feasible value is {low.params}$"):
        best_under_budget(scores, whole, 10**15, low.params - 1)
    best_under_budget(scores, whole, low.macs)
    best_under_budget(scores, whole, None, low.params)


def test_limits_that_are_feasible_one_by_one_only(whole):
    low = whole.minimum
    scores = whole_scores(whole, 0, True)
    with pytest.raises(UserError, match="each is feasible, both together are not") as error:
        best_under_budget(scores, whole, low.macs, low.params)
    smallest = int(str(error.value).rsplit(" ", 1)[1])
    best_under_budget(scores, whole, smallest, low.params)
    with pytest.raises(UserError, match=f"is {smallest}$"):
        best_under_budget(scores, whole, smallest - 1, low.params)
    with pytest.raises(UserError, match=f"is {smallest}$"):
        check_budget(whole, smallest - 1, low.params)
    check_budget(whole, smallest, low.params)
    check_budget(whole)


def test_limits_beyond_the_space_change_nothing(whole):
    scores = whole_scores(whole, 1, False)
    point = best_under_budget(scores, whole, 10**30, 10**30)
    assert point.indices == tuple(int(s.argmax()) for s in scores)
    front = pareto_front(scores, whole)
    assert front[-1].indices == point.indices
    assert front[0].macs == whole.minimum.macs
    middle = front[len(front) // 2]
    assert best_under_budget(scores, whole, middle.macs).indices == middle.indices  # real scores: no ties


def test_nothing_to_choose():
    tables = CostTables(SearchSpace(()), {"stem": Cost(5, 3)}, {})
    point = best_under_budget([], tables, 5, 3)
    assert (point.indices, point.macs, point.params, point.exact) == ((), 5, 3, True)
    assert [p.macs for p in pareto_front([], tables)] == [5]
    with pytest.raises(UserError, match="smallest feasible value is 5"):
        check_budget(tables, 4, 3)


# ------------------------------------------------------------------ amounts


@pytest.mark.parametrize(
    "text, amount",
    [("3.5G", 3_500_000_000), ("24M", 24_000_000), ("1200", 1200), ("600k", 600_000), ("0.1G", 10**8)],
)
def test_amounts(text, amount):
    assert parse_amount(text, "--max-macs") == amount


@pytest.mark.parametrize(
    "text", ["", "G", "3.5", "-1", "0", "0.0M", "1e9", "3,5G", "3.5GB", "nan", "1.23456k"]
)
def test_no_amounts(text):
    with pytest.raises(UserError, match=f"--max-macs is '{text}': expected a positive number"):
        parse_amount(text, "--max-macs")
