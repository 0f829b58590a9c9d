"""Random architectures of equal cost, and how a found network compares with them."""

import itertools
from collections import Counter

import numpy as np
import pytest
from scipy.stats import chisquare, t
from toy import toy_space

from auto_panoptic.errors import UserError
from auto_panoptic.explore.comparison import found_against_random
from auto_panoptic.explore.controls import random_of_equal_cost
from auto_panoptic.space import Cost, CostTables

SPACE = toy_space(backbone=3, head=1, inter=1)


def tables(seed=0, fixed=1_000_000):
    rng = np.random.default_rng(seed)
    sites = {s.name: {op: Cost(int(rng.integers(1, 400_000)), 1) for op in s.names} for s in SPACE.sites}
    return CostTables(SPACE, {"stem": Cost(fixed, 7)}, sites)


def all_of(costs, macs):
    """Brute force: every architecture within 2 %."""
    choices = itertools.product(*(range(len(site.ops)) for site in SPACE.sites))
    every = (SPACE.architecture(list(c)) for c in choices)
    return {a for a in every if 0.98 * macs <= costs.cost(a).macs <= 1.02 * macs}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_they_are_drawn_uniformly_from_all_within_two_percent(seed):
    costs = tables(seed)
    macs = costs.cost(SPACE.architecture([0] * len(SPACE.sites))).macs
    allowed = all_of(costs, macs)
    drawn = Counter(random_of_equal_cost(costs, macs, 1, seed)[0] for seed in range(20 * len(allowed)))
    assert len(allowed) > 10 and drawn.keys() == allowed
    assert chisquare(list(drawn.values())).pvalue > 1e-4


def test_they_differ_from_each_other_and_from_the_finalists():
    costs = tables()
    found = SPACE.architecture([0] * len(SPACE.sites))
    macs = costs.cost(found).macs
    allowed = all_of(costs, macs)
    drawn = random_of_equal_cost(costs, macs, len(allowed) - 1, 5, [found])
    assert set(drawn) == allowed - {found}
    assert drawn == random_of_equal_cost(costs, macs, len(allowed) - 1, 5, [found])
    with pytest.raises(UserError, match=f"found {len(allowed) - 1} other architectures"):
        random_of_equal_cost(costs, macs, len(allowed), 5, [found])


def test_no_architecture_costs_as_much():
    with pytest.raises(UserError, match="found 0 other architectures with 9,000,000,000"):
        random_of_equal_cost(tables(), 9 * 10**9, 1, 0)
    with pytest.raises(UserError, match="found 0 other architectures"):
        random_of_equal_cost(tables(), 1000, 1, 0)


# ------------------------------------------------------------------ the comparison


def test_equal_networks_differ_by_nothing():
    found = found_against_random(np.array([40.0, 40.0]), np.full((3, 2), 40.0))
    assert found == (0.0, 0.0, 0.0) and found.verdict == "undecided"


def test_interval_is_welchs_of_seeds_and_networks():
    random = np.array([[1.0, 3.0], [4.0, 6.0], [7.0, 9.0]])  # means 2, 5, 8; variance 2 within, 9 between
    found = found_against_random(np.array([9.0, 11.0]), random)  # variance 2, mean 10
    variance, freedom = 2 / 2 + 9 / 3, (1 + 3) ** 2 / (1**2 / 4 + 3**2 / 2)
    half = t.ppf(0.975, freedom) * variance**0.5
    assert found == pytest.approx((5.0, 5 - half, 5 + half))
    assert found.verdict == "undecided" and half > 5
    assert found_against_random(np.array([19.0, 21.0]), random).verdict == "above"
    assert found_against_random(np.array([-12.0, -10.0]), random).verdict == "below"


def test_images_add_their_noise():
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(0, 3, (1, 400)), np.zeros((4, 1, 400))
    found = found_against_random(np.array([5.0]), np.full((4, 1), 2.0), (ours, theirs))
    assert found.mean == 3 and found.high - 3 == pytest.approx(1.96 * ours.std(ddof=1))


def test_one_random_network_tells_nothing():
    assert found_against_random(np.array([5.0, 5.0]), np.array([[1.0, 1.0]]))[1:] == (-np.inf, np.inf)


@pytest.mark.parametrize("seeds", [1, 2])
def test_the_interval_holds_the_truth_in_95_of_100_cases(seeds):
    """Networks differ with standard deviation 1, trainings of one with 0.5; the found one is 1 better."""
    rng, inside, trials = np.random.default_rng(seeds), 0, 2000
    for _ in range(trials):
        random = rng.normal(size=(5, 1)) + 0.5 * rng.normal(size=(5, seeds))
        found = found_against_random(1 + 0.5 * rng.normal(size=seeds), random)
        inside += found.low <= 1 <= found.high
    assert inside / trials > 0.94
