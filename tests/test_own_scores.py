"""Evaluated candidates count with what they scored themselves, as far as that is not noise."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from test_search import HEADER, SPACE, Evaluate, ledger_of, search
from test_search_order import Shuffled

from auto_panoptic.explore.estimators import Observations, ridge_scores
from auto_panoptic.explore.own_scores import better_candidate, share_on_images
from auto_panoptic.explore.posterior import RidgePosterior
from auto_panoptic.explore.selection import select
from auto_panoptic.report import wording
from auto_panoptic.report.facts import read_search
from auto_panoptic.search import Request, summary
from auto_panoptic.search.selection import select_again
from auto_panoptic.space import Architecture, Cost, CostTables

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

from searches import share_beyond  # noqa: E402

SIZES = (4, 3, 2)


def measured(n, seed=0, own=1.0):
    """n different candidates with additive effects, each with something of its own; and their posterior."""
    rng = np.random.default_rng(seed)
    choices = np.stack(np.unravel_index(rng.permutation(24)[:n], SIZES), axis=1)
    effects = [rng.normal(size=size) for size in SIZES]
    total = sum(e[c] for e, c in zip(effects, choices.T, strict=True))
    data = Observations(choices, 40 + total + own * rng.normal(size=n), np.zeros(n, dtype=int))
    return data, RidgePosterior(choices, data.fitness, SIZES)


def best_effects(data):
    return [int(s.argmax()) for s in ridge_scores(data.choices[data.ok], data.fitness[data.ok], SIZES)]


def blup(data, posterior, noise):
    """(24,) expected fitness of every architecture, by generalised least squares on full matrices."""
    everything = np.stack(np.unravel_index(np.arange(24), SIZES), axis=1)
    hot = [
        np.concatenate([np.eye(s)[c] for s, c in zip(SIZES, t.T, strict=True)], axis=1)
        for t in (everything, data.choices)
    ]
    variance, prior = posterior.penalty * posterior.scale**2, posterior.scale**2
    own = max(0.0, variance - noise**2)
    same = (everything[:, None] == data.choices).all(axis=2)
    covariance = prior * hot[1] @ hot[1].T + variance * np.eye(len(data.choices))
    with_data = prior * hot[0] @ hot[1].T + own * same
    inverse = np.linalg.inv(covariance)
    ones = np.ones(len(data.choices))
    constant = ones @ inverse @ data.fitness / (ones @ inverse @ ones)
    return constant + with_data @ inverse @ (data.fitness - constant)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("noise", [0.0, 0.4, 0.8])
def test_it_is_the_best_linear_prediction(seed, noise):
    data, posterior = measured(14, seed)
    expected = blup(data, posterior, noise)
    numbers = np.ravel_multi_index(tuple(data.choices.T), SIZES)
    best = best_effects(data)
    goal = expected[np.ravel_multi_index(best, SIZES)]
    share = share_beyond(posterior, noise)
    found = better_candidate(posterior, data, best, share, np.ones(14, dtype=bool))
    if expected[numbers].max() > goal + 1e-9:
        assert found.place == expected[numbers].argmax()
        assert found.ahead == pytest.approx(expected[numbers].max() - goal)
    else:
        assert found is None


def test_both_answers_occur():
    found = []
    for seed in range(20):
        data, posterior = measured(14, seed)
        share = share_beyond(posterior, 0.4)
        found.append(better_candidate(posterior, data, best_effects(data), share, np.ones(14, dtype=bool)))
    assert 4 < sum(f is not None for f in found) < 20


def test_with_all_of_its_own_the_best_candidate_wins_with_nothing_the_effects():
    data, posterior = measured(24, seed=1)
    everywhere = np.ones(24, dtype=bool)
    assert better_candidate(posterior, data, best_effects(data), 0.0, everywhere) is None
    found = better_candidate(posterior, data, best_effects(data), 1.0, everywhere)
    assert (found.place, found.share) == (int(data.fitness.argmax()), 1.0)


def test_the_share_beyond_a_known_noise():
    _, posterior = measured(24)
    least = np.sqrt(posterior.penalty) * posterior.scale
    shares = [share_beyond(posterior, noise) for noise in (0.0, least * np.sqrt(0.5), least, 9 * least)]
    assert shares == pytest.approx([1, 0.5, 0, 0])


def test_what_is_left_by_the_effects_is_the_textbooks():
    """The same penalty for other values: (I - H) of the regression on all operators and a constant."""
    data, posterior = measured(14)
    hot = np.concatenate([np.eye(s)[c] for s, c in zip(SIZES, data.choices.T, strict=True)], axis=1)
    design = np.column_stack((hot, np.ones(14)))
    penalty = np.diag([posterior.penalty] * sum(SIZES) + [0.0])
    hat = design @ np.linalg.inv(design.T @ design + penalty) @ design.T
    others = np.random.default_rng(1).normal(size=(14, 5))
    assert posterior.residuals(others) == pytest.approx(others - hat @ others, abs=1e-9)
    left = data.fitness - data.fitness.mean() - posterior.predicted(data.choices)
    assert posterior.residuals(data.fitness[:, None])[:, 0] == pytest.approx(left, abs=1e-9)


@pytest.mark.parametrize("noise", [0.0, 0.5, 1.0])
def test_the_share_on_images(noise):
    """Own 1, image noise with effects of its own, which does not count, and noise of each candidate."""
    rng, shares = np.random.default_rng(0), []
    for seed in range(40):
        data, _ = measured(24, seed)
        changes = sum(3 * rng.normal(size=(s, 65))[c] for s, c in zip(SIZES, data.choices.T, strict=True))
        changes += noise * rng.normal(size=(24, 65))
        fitness = data.fitness + changes[:, 0]
        posterior = RidgePosterior(data.choices, fitness, SIZES)
        shares.append(share_on_images(posterior, fitness, fitness[:, None] + changes[:, 1:]))
    assert np.mean(shares) == pytest.approx(1 / (1 + noise**2), abs=0.12)
    flat = np.full(24, 50.0)
    assert share_on_images(RidgePosterior(data.choices, flat, SIZES), flat, flat[:, None] + changes) == 0


def test_failed_and_forbidden_candidates_are_not_taken():
    data, posterior = measured(24, seed=1)
    order = np.argsort(-data.fitness)
    allowed = np.ones(24, dtype=bool)
    allowed[order[0]] = False
    found = better_candidate(posterior, data, best_effects(data), 1.0, allowed)
    assert found is None or found.place == order[1]
    assert better_candidate(posterior, data, best_effects(data), 1.0, np.zeros(24, dtype=bool)) is None
    failed = Observations(data.choices, np.where(allowed, data.fitness, np.nan), data.cycle)
    again = RidgePosterior(failed.choices[failed.ok], failed.fitness[failed.ok], SIZES)
    found = better_candidate(again, failed, best_effects(failed), 1.0, np.ones(24, dtype=bool))
    assert found is None or found.place == order[1]


# ------------------------------------------------------------------ in a search


class Own(Evaluate):
    """Each architecture scores something of its own, which repeats; images add a little noise."""

    def __call__(self, architecture):
        metrics, seconds = super().__call__(architecture)
        own = np.random.default_rng([SPACE.sites[i].index(n) for i, n in enumerate(architecture.choices)])
        score = metrics["PQ"] + 3 * own.normal()
        boots = score + 0.1 * own.normal(size=64)
        return {**metrics, "PQ": score, "bootstrap": boots.tolist()}, seconds


SEARCH = {"policy": "posterior", "cycles": 5, "models": 12, "header": {**HEADER, "policy": "posterior"}}


def posterior_search(folder, **options):
    return search(folder, Own(), **{**SEARCH, **options})[0]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    return posterior_search(folder), ledger_of(folder), folder


def test_a_search_takes_the_candidate_and_says_why(found):
    result, ledger, folder = found
    best = max(ledger.records, key=lambda r: r["metrics"]["PQ"])
    own = result.selection.own
    assert result.architecture.indices() == best["architecture"] and 0.95 < own["share"] < 1
    assert own["ahead"] > 0
    lines = summary(result)
    assert f"A candidate is taken, which scored {own['deviation']:+.2f} beside" in lines
    stored = json.loads((folder / "search/scoreboard.json").read_text())["selection"]
    assert stored["own"] == own and stored["selected"] == result.architecture.names()
    report = read_search(folder)
    assert report.selected == result.architecture and report.selection["own"] == own
    text = wording.found(report)
    assert (
        f"Selected is a candidate, with PQ {best['metrics']['PQ']:.2f}: {own['deviation']:+.2f} to what"
        in text
    )
    assert f"puts it {own['ahead']:.2f} ahead of the operators with the highest estimated effect." in text


def copied(folder, tmp_path):
    """The ledger alone in a folder of its own."""
    (tmp_path / "search").mkdir()
    (tmp_path / "search/ledger.jsonl").write_bytes((folder / "search/ledger.jsonl").read_bytes())
    return ledger_of(tmp_path)


def test_the_report_computes_the_same(found, tmp_path):
    _, _, folder = found
    copied(folder, tmp_path)
    now, end = read_search(tmp_path), read_search(folder)
    assert now.selected == end.selected and now.selection["own"] == end.selection["own"]


def test_an_estimator_that_is_asked_for_knows_effects_alone(found, tmp_path):
    result, _, folder = found
    ledger = copied(folder, tmp_path)
    costs = CostTables(SPACE, {}, {s.name: dict.fromkeys(s.names, Cost(0, 0)) for s in SPACE.sites})
    plain = select_again(ledger, costs, Request("ridge"))
    assert plain.selection.own is None
    assert plain.architecture.names() == result.selection.own["best"]
    assert select_again(ledger, costs, Request("ridge", own_scores=True)).architecture == result.architecture


def test_limits_are_kept(found, tmp_path):
    """Every operator costs its place; the best candidate is one more than allowed."""
    result, _, folder = found
    ledger = copied(folder, tmp_path)
    tables = {s.name: {n: Cost(i, 1) for i, n in enumerate(s.names)} for s in SPACE.sites}
    costs = CostTables(SPACE, {}, tables)
    limit = costs.cost(result.architecture).macs - 1
    within = select_again(ledger, costs, Request("ridge", max_macs=limit, own_scores=True))
    assert costs.cost(within.architecture).macs <= limit and within.selection.own
    fits = [
        r
        for r in ledger.records
        if costs.cost(Architecture.from_indices(SPACE, r["architecture"])).macs <= limit
    ]
    assert within.architecture.indices() == max(fits, key=lambda r: r["metrics"]["PQ"])["architecture"]


def test_the_order_of_arrival_does_not_count(found, tmp_path):
    result, _, folder = found
    other = search(tmp_path, executor=Shuffled(Own(), 3), **SEARCH)[0]
    assert other.architecture == result.architecture
    for name in ("scoreboard.json", "architecture.json"):
        assert (tmp_path / "search" / name).read_bytes() == (folder / "search" / name).read_bytes()


def test_wrong_arguments():
    with pytest.raises(ValueError, match="beside those of ridge alone"):
        select(SPACE, [], "ranks", resampled=np.zeros((0, 64)))
