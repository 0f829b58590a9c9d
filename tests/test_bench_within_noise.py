"""What the cheapest within a standard error gives up and saves, on benchmarks of known sums."""

import sys
from pathlib import Path

import numpy as np
import pytest

from auto_panoptic.bench import Benchmark
from auto_panoptic.errors import UserError
from auto_panoptic.space import SearchSpace

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools/nas_bench"))

import within_noise  # noqa: E402

EFFECTS = np.array([[0, 9, 3, 5], [8, 1, 0, 2], [2, 4, 30, 1], [0, 0, 0, 0]], float)
MACS = np.array([[7, 0, 3, 5], [9, 20, 5, 6], [1, 2, 3, 4], [400, 300, 800, 0]])


@pytest.fixture
def bench():
    """Four sites of four operators; scores and multiply-adds are sums over operators."""
    space = SearchSpace.from_dict(
        {f"a.{i}": ["conv_3x3", "identity", "dwconv_3x3", "atconv_3x3"] for i in range(4)}
    )
    choices = np.stack(np.unravel_index(np.arange(256), [4] * 4), axis=1)
    scores, macs = (table[np.arange(4), choices].sum(axis=1) for table in (EFFECTS, MACS))
    empty = np.zeros(0)
    return Benchmark(space, 100 + macs, 7 * macs, {"PQ": scores[None]}, empty, {}, empty, empty, empty, {})


def test_costs_of_operators_add_up_to_those_of_paths(bench):
    costs = within_noise.cost_tables(bench)
    for number in range(256):
        cost = costs.cost(costs.space.architecture(bench.choices[number].tolist()))
        assert cost == (bench.macs[number], bench.params[number])
    bench.macs[:] = np.random.default_rng(0).integers(1, 1000, 256)
    with pytest.raises(UserError, match="of the benchmark does not cost the sum of its operators"):
        within_noise.cost_tables(bench)


def test_where_nothing_is_decided_the_cheapest_is_taken(bench):
    """The last site changes no score: its cheapest operator comes with the best of the others."""
    rows = within_noise.run(bench, [60], 3, 0.0)[60]
    best = 100 + 0 + 9 + 3
    assert rows[:, 0].tolist() == [0, 0, 0]
    possible = [best / (best + m) for m in MACS[3]]
    assert all(any(ratio == pytest.approx(p) for p in possible) for ratio in rows[:, 1])
    assert rows[:, 1].min() < 0.3


def test_what_images_do_not_decide_is_given_up(bench):
    """Of the second site the best costs 9; that 6 PQ behind costs 6, and the others are further behind."""
    plain, noisy = (within_noise.run(bench, [60], 1, noise)[60][0] for noise in (0.0, 7.0))
    assert plain[0] == 0 and noisy[0] == 6
    assert noisy[1] / plain[1] == pytest.approx((100 + 0 + 6 + 3) / (100 + 0 + 9 + 3))


def test_the_summary_counts_searches():
    rows = np.array([[0.4, 0.6], [0.6, 0.6], [0.2, 0.8], [0.0, 0.7]])
    assert within_noise.summary({60: rows}, 0.5, 0.7)[60] == {
        "given_up": pytest.approx(0.3),
        "macs": pytest.approx(0.675),
        "little_given_up": 0.75,
        "much_saved": 0.75,
        "both": 0.5,
    }
