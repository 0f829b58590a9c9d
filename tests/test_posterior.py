"""The posterior of all operators' effects against the textbook's formulas, and candidates drawn from it."""

import itertools
import logging
import math

import numpy as np
import pytest
from scipy.special import ndtr
from test_latency import table_of
from test_within_noise import costs_of
from toy import own_messages, toy_space

from auto_panoptic.errors import UserError
from auto_panoptic.explore import POLICY_REGISTRY, fair_cycle
from auto_panoptic.explore.estimators import PENALTIES, ridge_scores
from auto_panoptic.explore.posterior import RidgePosterior
from auto_panoptic.space import ChoiceSite, SearchSpace
from auto_panoptic.space.latency import with_latency

SPACE = SearchSpace.default()
SIZES = (4, 3, 2)
PAIRS = SearchSpace(tuple(ChoiceSite(f"backbone.{i}", ("shuffle_3x3", "shuffle_5x5")) for i in range(3)))


def measured(n, seed=0, sizes=SIZES, noise=0.5):
    """(choices, fitness) of n random candidates with additive effects."""
    rng = np.random.default_rng(seed)
    effects = [rng.normal(size=size) for size in sizes]
    choices = np.stack([rng.integers(size, size=n) for size in sizes], axis=1)
    total = sum(e[c] for e, c in zip(effects, choices.T, strict=True))
    return choices, 40 + total + noise * rng.normal(size=n)


def one_hot(choices, sizes=SIZES):
    return np.concatenate([np.eye(size)[c] for size, c in zip(sizes, choices.T, strict=True)], axis=1)


def drawn(posterior, rng, count, spread=1.0):
    """(count, sites): the best operators under so many draws."""
    parts = posterior.by_site(posterior.draw_effects(rng, count, spread))
    return np.stack([part.argmax(axis=1) for part in parts], axis=1)


def posterior_of(policy_settings=None, space=SPACE, seed=0):
    settings = {
        "rounds": 20,
        "candidates_per_round": 12,
        "fair_cycles": 2,
        "spread": 0.5,
        **(policy_settings or {}),
    }
    return POLICY_REGISTRY.of("posterior")(space, seed, settings)


def search(policy, score, rounds):
    """Rounds of (architecture, fitness)."""
    history = []
    for cycle in range(rounds):
        history.append([(a, score(a)) for a in policy.candidates(cycle, history)])
    return history


def first_operators(architecture):
    """A pure function: how many sites have their first operator."""
    sites = zip(architecture.space.sites, architecture.choices, strict=True)
    return float(sum(site.index(name) == 0 for site, name in sites))


# ------------------------------------------------------------------ the distribution


@pytest.mark.parametrize("n", [2, 5, 8, 30, 200])
def test_mean_and_covariance_are_the_textbooks(n):
    """Effects N(0, t^2), noise N(0, s^2), a constant with a flat prior: inverses of the full matrices."""
    choices, fitness = measured(n, seed=n)
    found = RidgePosterior(choices, fitness, SIZES)
    noise, prior = found.penalty * found.scale**2, found.scale**2
    design = np.column_stack((one_hot(choices), np.ones(n)))
    precision = design.T @ design / noise + np.diag([1 / prior] * sum(SIZES) + [0])
    covariance = np.linalg.inv(precision)
    mean = covariance @ (design.T @ fitness / noise)
    assert found.mean == pytest.approx(mean[:-1], rel=1e-6, abs=1e-8)
    assert found.covariance() == pytest.approx(covariance[:-1, :-1], rel=1e-6, abs=1e-8 * prior)


@pytest.mark.parametrize("n", [3, 8, 30, 200])
def test_penalty_and_scale_have_the_highest_restricted_likelihood(n):
    """Of the contrasts of the fitness, whose covariance is built in full for every penalty."""
    choices, fitness = measured(n, seed=n)
    found = RidgePosterior(choices, fitness, SIZES)
    contrasts = np.linalg.svd(np.ones((1, n)))[2][1:]  # orthonormal, each sums to 0
    y, gram = contrasts @ fitness, contrasts @ one_hot(choices) @ one_hot(choices).T @ contrasts.T
    grid = PENALTIES * np.trace(gram) / (n - 1)
    likelihood, scale = [], []
    for penalty in grid:
        unit = gram + penalty * np.eye(n - 1)
        variance = y @ np.linalg.solve(unit, y) / (n - 1)
        likelihood.append(-(n - 1) * np.log(variance) - np.linalg.slogdet(unit)[1])
        scale.append(math.sqrt(variance))
    best = int(np.argmax(likelihood))
    assert found.penalty == pytest.approx(grid[best]) and found.scale == pytest.approx(scale[best])


def test_the_mean_is_that_of_ridge_scores():
    choices, fitness = measured(40)
    found = RidgePosterior(choices, fitness, SIZES)
    parts = np.split(found.mean, np.cumsum(SIZES)[:-1])
    for part, scores in zip(parts, ridge_scores(choices, fitness, SIZES), strict=True):
        assert part - part.mean() == pytest.approx(scores, abs=1e-9)


def test_differences_and_standard_errors_are_sums_over_the_covariance():
    choices, fitness = measured(40)
    found = RidgePosterior(choices, fitness, SIZES)
    covariance, centre = found.covariance(), one_hot(choices).mean(axis=0)
    for first, second in itertools.pairwise(itertools.product(*map(range, SIZES))):
        a, b = one_hot(np.array([first]))[0], one_hot(np.array([second]))[0]
        mean, error = found.difference(first, second)
        assert mean == pytest.approx((a - b) @ found.mean)
        assert error == pytest.approx(math.sqrt((a - b) @ covariance @ (a - b)))
        expected = math.sqrt((a - centre) @ covariance @ (a - centre))
        assert found.standard_error(first) == pytest.approx(expected)
    assert found.difference(first, first) == (0.0, 0.0)


def test_an_operator_is_drawn_as_often_as_it_is_the_best():
    """Of two operators: the normal probability that their difference is above 0."""
    choices, fitness = measured(12, sizes=(2, 2, 2), noise=4.0)
    found = RidgePosterior(choices, fitness, (2, 2, 2))
    draws = drawn(found, np.random.default_rng(0), 20000)
    for i in range(3):
        other = [0, 0, 0]
        other[i] = 1
        mean, error = found.difference(other, (0, 0, 0))
        p = ndtr(mean / error)
        assert draws[:, i].mean() == pytest.approx(p, abs=5 * math.sqrt(p * (1 - p) / 20000))
        assert 0.01 < p < 0.99


@pytest.mark.parametrize("n", [0, 1, 12])
def test_where_nothing_is_known_every_operator_is_as_likely(n):
    choices, _ = measured(n)
    found = RidgePosterior(choices, np.full(n, 50.0), SIZES)
    draws = drawn(found, np.random.default_rng(0), 6000)
    for size, column in zip(SIZES, draws.T, strict=True):
        share = np.bincount(column, minlength=size) / 6000
        assert np.abs(share - 1 / size).max() < 5 * math.sqrt(1 / size / 6000)


def test_the_order_of_the_candidates_does_not_count():
    choices, fitness = measured(30)
    order = np.random.default_rng(1).permutation(30)
    draws = [
        drawn(RidgePosterior(choices[o], fitness[o], SIZES), np.random.default_rng(0), 500)
        for o in (np.arange(30), order)
    ]
    assert (draws[0] == draws[1]).all()


# ------------------------------------------------------------------ candidates


@pytest.mark.parametrize("models", [12, 5, 30])
def test_fair_cycles_come_first(models):
    """Whatever the size of a round, the first 24 candidates are those of two fair cycles."""
    policy = posterior_of({"candidates_per_round": models})
    history = search(policy, first_operators, 5)
    found = [a for generation in history for a, _ in generation]
    assert found[:24] == [*fair_cycle(SPACE, 0, 0), *fair_cycle(SPACE, 0, 1)]
    assert len(found) == 5 * models == len({a.choices for a in found})
    assert not set(found[24:]) & set(fair_cycle(SPACE, 0, 2))


def test_a_round_is_drawn_from_the_rounds_before():
    """The candidates are the draws themselves, failed candidates left out of the fit."""
    policy = posterior_of()
    history = search(policy, lambda a: None if a.choices[0] == "shuffle_7x7" else first_operators(a), 3)
    good = [(a, f) for generation in history[:2] for a, f in generation if f is not None]
    assert 0 < len(good) < 24
    sizes = [len(site.ops) for site in SPACE.sites]
    choices = np.array([[s.index(c) for s, c in zip(SPACE.sites, a.choices, strict=True)] for a, _ in good])
    posterior = RidgePosterior(choices, np.array([f for _, f in good]), sizes)
    draws = drawn(posterior, np.random.default_rng([0, 2]), 12, 0.5).tolist()
    assert [a for a, _ in history[2]] == [SPACE.architecture(row) for row in draws]


def test_draws_are_the_best_within_the_limits():
    """Against all architectures of a small space."""
    space = SearchSpace(SPACE.sites[:3])
    every = [space.architecture(row) for row in itertools.product(*(range(len(s.ops)) for s in space.sites))]
    costs, mattered = costs_of(space), 0
    limit = int(np.quantile([costs.cost(a).macs for a in every], 0.3))
    within = [a for a in every if costs.cost(a).macs <= limit]
    for seed in range(20):
        policy, free = (posterior_of({"candidates_per_round": 4}, space, seed) for _ in range(2))
        policy.keep(costs, {"max_macs": limit})
        history = search(free, first_operators, 2)
        past = [(a, f) for generation in history for a, f in generation]
        choices = np.array(
            [[s.index(c) for s, c in zip(space.sites, a.choices, strict=True)] for a, _ in past]
        )
        posterior = RidgePosterior(choices, np.array([f for _, f in past]), [len(s.ops) for s in space.sites])
        effects = posterior.draw_effects(np.random.default_rng([seed, 2]), 4, 0.5)[0]

        names = [site.names for site in space.sites]
        table = dict(zip([(i, n) for i, row in enumerate(names) for n in row], effects, strict=True))
        best = max(within, key=lambda a, t=table: sum(t[key] for key in enumerate(a.choices)))
        if best not in [a for a, _ in past]:
            assert policy.candidates(2, history)[0] == best
            mattered += free.candidates(2, history)[0] != best
    assert mattered > 2


def test_candidates_of_a_large_space_keep_limits():
    costs = costs_of(SPACE)
    totals = [costs.cost(SPACE.random(np.random.default_rng(i))) for i in range(200)]
    limits = {"max_macs": int(np.quantile([c.macs for c in totals], 0.1))}
    policy, free = posterior_of(), posterior_of()
    policy.keep(costs, limits)
    assert policy.settings == free.settings | limits
    history = search(policy, first_operators, 6)
    assert history[:2] == search(free, first_operators, 2)  # fair cycles, whatever they cost
    later = [a for generation in history[2:] for a, _ in generation]
    assert len(later) == len(set(later)) == 48
    assert all(costs.cost(a).macs <= limits["max_macs"] for a in later)
    assert [a for a, _ in history[5]] == policy.candidates(5, history)
    beyond = [
        costs.cost(a).macs > limits["max_macs"] for g in search(free, first_operators, 12) for a, _ in g
    ]
    assert sum(beyond[24:]) > 20


def test_limits_that_few_architectures_keep():
    """Where no new one keeps them, random ones tell of the operators."""
    space = SearchSpace(SPACE.sites[:3])
    costs = costs_of(space)
    policy = posterior_of({"candidates_per_round": 6}, space)
    some = [costs.cost(space.random(np.random.default_rng(i))).macs for i in range(999)]
    policy.keep(costs, {"max_macs": min(some)})
    history = search(policy, first_operators, 5)
    assert all(len(generation) == 6 for generation in history)
    assert len({a.choices for generation in history for a, _ in generation}) == 30


def test_limits_of_time_count_with_their_table():
    costs, settings = costs_of(SPACE), []
    for seed in (0, 0, 1):
        policy = posterior_of()
        policy.keep(with_latency(costs, table_of(SPACE, seed)), {"max_latency": 10**9})
        settings.append(policy.settings)
    assert settings[0] == settings[1] != settings[2] and settings[0]["max_latency"] == 10**9


def test_later_rounds_are_better_than_chance():
    history = search(posterior_of(), first_operators, 20)
    means = [np.mean([f for _, f in generation]) for generation in history]
    assert np.mean(means[:2]) == pytest.approx(np.mean([1 / len(s.ops) for s in SPACE.sites]) * 56, abs=0.01)
    assert max(f for generation in history[:10] for _, f in generation) == len(SPACE.sites)
    assert len(SPACE.sites) - 1 in means  # where every draw is that candidate its neighbours follow


def test_a_pure_function_of_its_arguments():
    policy = posterior_of()
    history = search(policy, first_operators, 6)
    again = posterior_of({"rounds": 99})
    for cycle in (4, 0, 5, 1, 4):  # any order, no state
        assert again.candidates(cycle, history[:cycle]) == [a for a, _ in history[cycle]]
    assert again.candidates(3, history) == [a for a, _ in history[3]]  # the future does not count
    assert posterior_of(seed=1).candidates(2, history[:2]) != [a for a, _ in history[2]]
    other = [[(a, -f) for a, f in generation] for generation in history[:2]]
    assert again.candidates(2, other) != [a for a, _ in history[2]]


@pytest.mark.parametrize("space", [PAIRS, toy_space(backbone=1, head=1), SearchSpace(())])
@pytest.mark.parametrize("score", [first_operators, lambda a: 5.0, lambda a: None])
def test_in_tiny_spaces_it_ends_and_says_so(space, score, caplog):
    with caplog.at_level(logging.WARNING):
        history = search(posterior_of(space=space), score, 30)
    found = [a for generation in history for a, _ in generation]
    assert len(found) == len(set(found)) == space.cardinality
    assert history[-1] == []
    assert f"generation 29 has 0 of 12 candidates: {len(found)} of the space's {len(found)}" in caplog.text


def test_no_messages_in_a_large_space(caplog):
    search(posterior_of(), first_operators, 4)
    assert own_messages(caplog) == []


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"rounds": 0}, "NAS.POSTERIOR.ROUNDS is 0; expected a whole number of at least 1"),
        ({"candidates_per_round": 0}, "NAS.POSTERIOR.CANDIDATES_PER_ROUND is 0"),
        ({"fair_cycles": 0}, "NAS.POSTERIOR.FAIR_CYCLES is 0"),
        ({"fair_cycles": 1.5}, "NAS.POSTERIOR.FAIR_CYCLES is 1.5"),
        ({"spread": 1.5}, "NAS.POSTERIOR.SPREAD is 1.5; expected a number of at least 0, at most 1"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(UserError, match=message):
        posterior_of(settings)


def test_spread_scales_the_draws():
    """0 is the best architecture as far as is known; the same normal numbers give draws between."""
    choices, fitness = measured(12, noise=4.0)
    found = RidgePosterior(choices, fitness, SIZES)
    best = [scores.argmax() for scores in ridge_scores(choices, fitness, SIZES)]
    draws = [drawn(found, np.random.default_rng(0), 4000, spread) for spread in (0.0, 0.5, 1.0)]
    away = [(d != best).mean() for d in draws]
    assert away[0] == 0 < away[1] < away[2]
    normal = np.random.default_rng(0).standard_normal((4000, sum(SIZES)))
    root = np.linalg.cholesky(found.covariance())  # another root of the same distribution
    effects = found.mean + 0.5 * normal @ root.T
    parts = np.split(effects, np.cumsum(SIZES)[:-1], axis=1)
    for part, column, size in zip(parts, draws[1].T, SIZES, strict=True):
        shares = [np.bincount(c, minlength=size) / 4000 for c in (part.argmax(axis=1), column)]
        assert np.abs(shares[0] - shares[1]).max() < 5 * math.sqrt(0.5 / 4000)
