"""The cheapest architecture within a standard error of the best, by enumeration; the front's intervals."""

import itertools
import json

import numpy as np
import pytest
from scipy.special import ndtri
from test_budget import everything, random_scores, random_tables
from test_selection import evaluated, write_ledger

from auto_panoptic.errors import UserError
from auto_panoptic.explore import Ledger
from auto_panoptic.explore.budget import cheapest_near
from auto_panoptic.explore.estimators import observations, operator_scores
from auto_panoptic.explore.posterior import RidgePosterior
from auto_panoptic.explore.selection import front, select
from auto_panoptic.search import Request, ledger_path, summary
from auto_panoptic.search.arguments import asks_for_selection, rescore_parser, selection_request
from auto_panoptic.search.selection import select_again
from auto_panoptic.space import Architecture, ChoiceSite, Cost, CostTables, SearchSpace

OPS = ("shuffle_3x3", "shuffle_5x5", "shuffle_7x7", "xception_3x3")
SPACE = SearchSpace(tuple(ChoiceSite(f"backbone.{i}", OPS[: 2 + i % 3]) for i in range(6)))


def costs_of(space, seed=0):
    rng = np.random.default_rng(seed)
    sites = {s.name: {n: Cost(*rng.integers(1, 100, 2).tolist()) for n in s.names} for s in space.sites}
    return CostTables(space, {"stem": Cost(50, 50)}, sites)


def all_of(space):
    return itertools.product(*(range(len(site.ops)) for site in space.sites))


# ------------------------------------------------------------------ the program


@pytest.mark.parametrize("limited", [(), ("macs",), ("params",), ("macs", "params")])
def test_equal_to_enumeration(limited):
    """Fewest MACs of all within the allowance and the limits; of equally many the highest score."""
    cheaper = 0
    for seed in range(30):
        rng = np.random.default_rng([seed, len(limited)])
        tables = random_tables(rng)
        scores = random_scores(rng, tables)
        choices = list(everything(tables, scores))
        centre = choices[rng.integers(len(choices))]
        limits = {f"max_{name}": int(centre[1 + (name == "params")]) for name in limited}
        most, many = limits.get("max_macs", np.inf), limits.get("max_params", np.inf)
        feasible = [c for c in choices if c[1] <= most and c[2] <= many]
        best = max(feasible)
        allowance = float(rng.integers(0, 8)) / 2
        near = [c for c in feasible if c[0] >= best[0] - allowance - 1e-9]
        expected = min(near, key=lambda c: (c[1], -round(c[0], 9)))
        point = cheapest_near(scores, tables, best[3], allowance, **limits)
        assert point.exact and point.macs == expected[1]
        assert point.score == pytest.approx(expected[0], abs=1e-9)
        assert (point.macs, point.params) == tables.cost(list(point.indices))
        assert point.params <= many and point.bound == pytest.approx(best[0])
        cheaper += point.macs < best[1]
    assert cheaper > 5


def test_without_allowance_it_is_the_best_or_its_equal():
    tables = costs_of(SPACE)
    scores = [np.random.default_rng(i).normal(size=len(s.ops)) for i, s in enumerate(SPACE.sites)]
    best = [int(s.argmax()) for s in scores]
    assert list(cheapest_near(scores, tables, best, 0.0).indices) == best
    assert cheapest_near(scores, tables, best, 1e9).macs == tables.minimum.macs


# ------------------------------------------------------------------ selecting


@pytest.mark.parametrize("images", [None, 1.5])
@pytest.mark.parametrize("seed", range(6))
def test_selection_by_enumeration(seed, images):
    """The standard error is the best one's, by the formula; nothing cheaper has a score so near."""
    cycles, _ = evaluated(SPACE, cycles=2, seed=seed, noise=2.0, fail={3})
    costs = costs_of(SPACE, seed)
    best = select(SPACE, cycles, "ridge", costs)
    selection = select(SPACE, cycles, "ridge", costs, within_noise=True, noise=images)
    data = observations(SPACE, cycles)
    sizes = [len(site.ops) for site in SPACE.sites]
    posterior = RidgePosterior(data.choices[data.ok], data.fitness[data.ok], sizes)
    hot = np.concatenate([np.eye(size)[c] for size, c in zip(sizes, data.choices[data.ok].T, strict=True)], 1)
    index = [site.names.index(n) for site, n in zip(SPACE.sites, best.architecture.choices, strict=True)]
    row = np.concatenate([np.eye(size)[i] for size, i in zip(sizes, index, strict=True)]) - hot.mean(axis=0)
    error = float(np.sqrt(row @ posterior.covariance() @ row + (images or 0) ** 2))
    scores = operator_scores(SPACE, cycles, "ridge")
    table = [
        (costs.cost(list(c)).macs, sum(s[i] for s, i in zip(scores, c, strict=True))) for c in all_of(SPACE)
    ]
    expected = min(macs for macs, score in table if score >= best.score - error)
    assert selection.cost["macs"] == expected <= best.cost["macs"] and selection.exact
    trade = selection.trade
    assert trade["standard_error"] == pytest.approx(error)
    assert trade["best"] == best.architecture.names() and trade["score"] == best.score
    assert {key: trade[key] for key in ("macs", "params")} == best.cost
    assert trade["given_up"] == pytest.approx(best.score - selection.score)
    chosen = [s.names.index(n) for s, n in zip(SPACE.sites, selection.architecture.choices, strict=True)]
    both = 2 * (images or 0) ** 2 * (index != chosen)  # images move either
    half = ndtri(0.975) * np.sqrt(posterior.difference(index, chosen)[1] ** 2 + both)
    assert trade["interval"] == pytest.approx([trade["given_up"] - half, trade["given_up"] + half])


def test_within_limits_too():
    cycles, _ = evaluated(SPACE, cycles=2)
    costs = costs_of(SPACE)
    limit = (costs.minimum.macs + costs.maximum.macs) // 2
    best = select(SPACE, cycles, "ridge", costs, max_macs=limit)
    near = select(SPACE, cycles, "ridge", costs, max_macs=limit, within_noise=True)
    assert near.cost["macs"] <= best.cost["macs"] <= limit
    assert near.trade["score"] == pytest.approx(best.score)
    assert near.score >= best.score - near.trade["standard_error"]


def test_where_nothing_is_known_the_cheapest_of_all():
    cycles = [[(a, 50.0) for a, _ in cycle] for cycle in evaluated(SPACE, cycles=1)[0]]
    costs = costs_of(SPACE)
    assert select(SPACE, cycles, "ridge", costs, within_noise=True).cost["macs"] == costs.minimum.macs


def test_it_needs_ridge_and_costs():
    cycles, _ = evaluated(SPACE, cycles=1)
    with pytest.raises(ValueError, match="standard errors of ridge"):
        select(SPACE, cycles, "ranks", costs_of(SPACE), within_noise=True)
    with pytest.raises(ValueError, match="needs costs"):
        select(SPACE, cycles, "ridge", within_noise=True)


def test_intervals_of_the_front():
    cycles, _ = evaluated(SPACE, cycles=2, noise=2.0)
    costs = max(
        (costs_of(SPACE, seed) for seed in range(9)), key=lambda c: len(front(SPACE, cycles, "ridge", c))
    )
    points = front(SPACE, cycles, "ridge", costs)
    assert len(points) > 5 and (points[-1].behind, points[-1].interval) == (0.0, [0.0, 0.0])
    for found in points[:-1]:
        assert found.behind == pytest.approx(points[-1].point.score - found.point.score)
        low, high = found.interval
        assert low < found.behind < high and low + high == pytest.approx(2 * found.behind)


# ------------------------------------------------------------------ what a person asks and reads


def test_files_and_summary(tmp_path):
    cycles, _ = evaluated(SPACE, cycles=2, noise=2.0)
    write_ledger(tmp_path, SPACE, cycles)
    path, costs = ledger_path(tmp_path), costs_of(SPACE)
    with Ledger.open(path, Ledger(path).header, resume=True) as ledger:
        result = select_again(ledger, costs, Request("ridge", pareto=True, within_noise=True))
    trade = json.loads((tmp_path / "search/scoreboard.json").read_text())["selection"]["trade"]
    assert trade == result.selection.trade
    saved = Architecture.load(tmp_path / "search/architecture.json", SPACE)
    assert saved == result.architecture and saved.provenance["within_noise"] is True
    rows = json.loads((tmp_path / "search/pareto.json").read_text())
    assert rows == result.front and rows[-1]["interval"] == [0.0, 0.0]
    text = summary(result)
    fewer = trade["macs"] - result.selection.cost["macs"]
    share = fewer / trade["macs"]
    assert f"{-fewer:+,} MACs ({-share:+.0%})" in text and fewer > 0
    assert (
        f"given up: {trade['given_up']:.2f} [" in text
        and f"standard error, {trade['standard_error']:.2f}" in text
    )
    shown = [line for line in text.splitlines() if line.endswith("]") and line.strip()[0].isdigit()]
    assert 2 <= len(shown) <= 10
    assert f"{len(shown)} of the {len(rows)} points of score against MACs" in text


def test_arguments():
    def request(*words, selects="ranks"):
        args = rescore_parser().parse_args(words)
        assert asks_for_selection(args) == bool(words)
        return selection_request(args, selects)

    assert request() == Request("ranks")
    assert request(selects="ridge") == Request("ridge") and request(selects="best") == Request("ranks")
    assert request("--estimator", "mean", selects="ridge") == Request("mean")
    assert request("--within-noise") == Request("ridge", within_noise=True)
    assert request("--within-noise", "--estimator", "ridge") == Request("ridge", within_noise=True)
    for estimator in ("ranks", "mean"):
        with pytest.raises(UserError, match=f"--within-noise needs .* --estimator {estimator} does not have"):
            request("--within-noise", "--estimator", estimator)


# ------------------------------------------------------------------ candidates chosen by earlier results


def test_verdicts_by_the_posterior():
    """The rival has the highest posterior mean of the others; the interval is that of their difference."""
    cycles, _ = evaluated(SPACE, cycles=3, noise=2.0)
    selection = select(SPACE, cycles, "ridge", adaptive=True)
    data = observations(SPACE, cycles)
    posterior = RidgePosterior(data.choices, data.fitness, [len(site.ops) for site in SPACE.sites])
    covariance = posterior.covariance()
    scores = operator_scores(SPACE, cycles, "ridge")
    decided = 0
    for site, row, first in zip(SPACE.sites, scores, posterior.first, strict=False):
        verdict = selection.verdicts[site.name]
        order = np.argsort(-row)
        assert [site.index(verdict[key]) for key in ("selected", "rival")] == order[:2].tolist()
        assert verdict["difference"] == pytest.approx(row[order[0]] - row[order[1]])
        a, b = first + order[:2]
        error = np.sqrt(covariance[a, a] + covariance[b, b] - 2 * covariance[a, b])
        low = verdict["difference"] - ndtri(0.975) * error
        assert verdict["interval"] == pytest.approx([low, 2 * verdict["difference"] - low])
        assert verdict["decided"] == (low > 0)
        decided += low > 0
    assert selection.decided == decided
    plain = select(SPACE, cycles, "ridge")
    assert plain.architecture == selection.architecture and plain.verdicts != selection.verdicts
