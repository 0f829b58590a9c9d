"""Operator scores from evaluated candidates, against counting by hand and against textbook formulas."""

import math

import numpy as np
import pytest
from toy import toy_space

from auto_panoptic.errors import UserError
from auto_panoptic.explore import Scoreboard, fair_cycle
from auto_panoptic.explore.estimators import (
    PENALTIES,
    mean_scores,
    observations,
    operator_scores,
    ridge_scores,
)
from auto_panoptic.explore.selection import select

SPACE = toy_space(backbone=4, head=2, inter=2)
SIZES = [len(site.ops) for site in SPACE.sites]


def search(seed=0, cycles=5, fail=0.0, noise=0.1):
    """Fair cycles with additive fitness, some candidates failed, and the true effects."""
    rng = np.random.default_rng(seed)
    effects = [rng.normal(size=size) for size in SIZES]
    result = []
    for cycle in range(cycles):
        pairs = []
        for a in fair_cycle(SPACE, seed, cycle):
            value = sum(e[s.index(n)] for e, s, n in zip(effects, SPACE.sites, a.choices, strict=True))
            lost = rng.random() < fail
            pairs.append(
                (a, (None, math.nan)[rng.integers(2)] if lost else 40 + value + noise * rng.normal())
            )
        result.append(pairs)
    return result, effects


def test_ranks_are_the_scoreboard():
    cycles, _ = search(fail=0.1)
    board = Scoreboard(SPACE)
    for cycle in cycles:
        board.add_cycle([a for a, _ in cycle], [f for _, f in cycle])
    for row, site in zip(operator_scores(SPACE, cycles, "ranks"), SPACE.sites, strict=True):
        assert row.tolist() == [r["score"] for r in board.table()[site.name]]
        assert row.sum() == 5 * 66


def test_mean_is_the_mean_of_the_candidates_that_use_the_operator():
    cycles, _ = search(fail=0.2)
    pairs = [(a, f) for cycle in cycles for a, f in cycle if f is not None and math.isfinite(f)]
    assert len(pairs) < 60
    overall = np.mean([f for _, f in pairs])
    for row, site in zip(operator_scores(SPACE, cycles, "mean"), SPACE.sites, strict=True):
        for value, name in zip(row, site.names, strict=True):
            assert value == pytest.approx(
                np.mean([f for a, f in pairs if a[site.name].name == name]) - overall
            )


def one_hot(data):
    return np.concatenate([np.eye(s)[c] for c, s in zip(data.choices.T, SIZES, strict=True)], axis=1)


def test_ridge_is_the_penalised_least_squares_fit_of_highest_restricted_likelihood():
    """The dual form against the primal one, with the penalty found by the textbook determinant formula."""
    cycles, _ = search(seed=3, fail=0.1, noise=1.0)
    data = observations(SPACE, cycles)
    y = data.fitness[data.ok]
    x = one_hot(data)[data.ok]
    x -= x.mean(axis=0)
    n = len(y)
    scale = np.linalg.eigvalsh(x @ x.T).clip(0).sum() / (n - 1)
    contrasts = np.linalg.svd(np.ones((1, n)))[2][1:]  # removes the intercept

    def likelihood(penalty):
        covariance = contrasts @ (x @ x.T + penalty * np.eye(n)) @ contrasts.T
        z = contrasts @ y
        misfit = z @ np.linalg.solve(covariance, z)
        return -(n - 1) * np.log(misfit) - np.linalg.slogdet(covariance)[1]

    penalty = max(PENALTIES * scale, key=likelihood)
    assert PENALTIES[0] * scale < penalty < PENALTIES[-1] * scale
    beta = np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ (y - y.mean()))
    for row, part in zip(
        operator_scores(SPACE, cycles, "ridge"), np.split(beta, np.cumsum(SIZES)[:-1]), strict=True
    ):
        np.testing.assert_allclose(row, part - part.mean(), atol=1e-9)


def test_ridge_finds_additive_effects_without_noise():
    cycles, effects = search(cycles=10, noise=0.0)
    for row, effect in zip(operator_scores(SPACE, cycles, "ridge"), effects, strict=True):
        np.testing.assert_allclose(row, effect - effect.mean(), atol=0.05)


@pytest.mark.parametrize("estimate", [mean_scores, ridge_scores])
def test_an_operator_that_nobody_used_is_never_selected(estimate):
    choices = np.array([[0, 1], [1, 1], [0, 2]])
    rows = estimate(choices, np.array([1.0, 2.0, 3.0]), [3, 3])
    assert rows[0][2] == rows[1][0] == -np.inf
    assert np.isfinite(rows[0][:2]).all() and np.isfinite(rows[1][1:]).all()


@pytest.mark.parametrize("estimate", [mean_scores, ridge_scores])
@pytest.mark.parametrize("fitness", [[5.0], [5.0, 5.0, 5.0]])
def test_nothing_to_tell_apart(estimate, fitness):
    choices = np.array([[0, 1], [1, 0], [0, 0]])[: len(fitness)]
    for row in estimate(choices, np.array(fitness), [2, 2]):
        assert set(row) <= {0.0, -np.inf}


@pytest.mark.parametrize("estimator", ["mean", "ridge"])
def test_failed_candidates_leave_no_trace(estimator):
    cycles, _ = search(fail=0.2)
    kept = [[(a, f) for a, f in cycle if f is not None and math.isfinite(f)] for cycle in cycles]
    for with_failed, without in zip(
        operator_scores(SPACE, cycles, estimator), operator_scores(SPACE, kept, estimator), strict=True
    ):
        assert with_failed.tolist() == without.tolist()


def test_refusals():
    cycles, _ = search(cycles=1)
    with pytest.raises(UserError, match="--estimator is 'median'; expected one of ranks, mean, ridge"):
        operator_scores(SPACE, cycles, "median")
    with pytest.raises(UserError, match="12 candidates, 12 of them failed"):
        select(SPACE, [[(a, None) for a, _ in cycles[0]]], "mean")
    with pytest.raises(UserError, match="an architecture of another space: only in the first: backbone.2"):
        observations(SPACE, [[(a, 1.0) for a in fair_cycle(toy_space(), 0, 0)]])
