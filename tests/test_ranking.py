"""How much a ranking means: noise and signal that were put in are found again."""

import json
import math

import numpy as np
import pytest
from test_search import Evaluate, search
from toy import toy_space

from auto_panoptic.explore import Ledger
from auto_panoptic.search import SearchResult, summary
from auto_panoptic.search.noise import RankingNoise, ranking_noise


def scores(candidates, images, samples, signal, noise, shared, seed):
    """Mean scores over images: true value + difficulty of the image (shared) + noise of the pair.

    Returns the observed fitness and the fitness on bootstrap samples that all candidates share.
    """
    rng = np.random.default_rng(seed)
    true = signal * rng.standard_normal(candidates)
    pairs = noise * math.sqrt(images) * rng.standard_normal((candidates, images))
    table = true[:, None] + shared * math.sqrt(images) * rng.standard_normal(images) + pairs
    draws = rng.multinomial(images, np.full(images, 1 / images), size=samples) / images
    return table.mean(1), table @ draws.T


@pytest.mark.parametrize("signal, noise", [(2.0, 0.5), (1.0, 1.0), (0.5, 1.0), (0.0, 1.0)])
@pytest.mark.parametrize("shared", [0.0, 5.0])
def test_known_noise_and_signal_are_recovered(signal, noise, shared):
    """Also when images differ in difficulty: that is common to all candidates and no noise of a ranking."""
    found = [ranking_noise(*scores(60, 200, 200, signal, noise, shared, seed)) for seed in range(12)]
    assert np.mean([f.noise for f in found]) == pytest.approx(noise, rel=0.05)
    assert math.sqrt(np.mean([f.spread**2 for f in found])) == pytest.approx(
        math.hypot(signal, noise), rel=0.1
    )
    difference = np.mean([f.spread**2 - f.noise**2 for f in found])
    assert difference == pytest.approx(signal**2, abs=0.15 * (signal**2 + noise**2))
    reliability = signal**2 / (signal**2 + noise**2)
    assert np.mean([f.reliability for f in found]) == pytest.approx(reliability, abs=0.12)


def test_few_candidates_are_not_biased():
    """With two or three candidates the centring would hide most of the noise; it is given back."""
    for n in (2, 3):
        found = [ranking_noise(*scores(n, 100, 100, 0.0, 1.0, 3.0, seed)).noise ** 2 for seed in range(200)]
        assert np.mean(found) == pytest.approx(1.0, rel=0.1)


def test_by_hand():
    """Two candidates, two samples."""
    fitness, resampled = [10.0, 14.0], [[10.0, 12.0], [13.0, 13.0]]
    # Columns have means 11.5 and 12.5; rows centred: [-1.5, -0.5] and [1.5, 0.5], variance 0.5 each.
    found = ranking_noise(fitness, resampled)
    assert found.noise == pytest.approx(math.sqrt(0.5 * 2))
    assert found.spread == pytest.approx(math.sqrt(8))
    assert found.signal == pytest.approx(math.sqrt(7))
    assert found.reliability == pytest.approx(7 / 8)


def test_identical_candidates_are_all_chance():
    rng = np.random.default_rng(0)
    found = ranking_noise([30.0] * 4, np.tile(rng.normal(size=64), (4, 1)))
    assert (found.spread, found.noise, found.signal, found.reliability) == (0.0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    "spread, noise, text",
    [
        (2.0, 0.2, "well resolved. 99 % of the variance is signal"),
        (1.0, 0.6, "in part resolved. 64 % of the variance is signal"),
        (1.0, 0.9, "hardly resolved. 19 % of the variance is signal"),
        (0.5, 1.0, "hardly resolved. 0 % of the variance is signal"),
    ],
)
def test_the_verdict_in_words(tmp_path, spread, noise, text):
    ranking = RankingNoise(spread=spread, noise=noise)
    assert f"standard deviation {spread:.2f}, of which image noise {noise:.2f}" in ranking.sentence()
    assert text in ranking.sentence()
    space = toy_space()
    result = SearchResult(space.architecture([0] * len(space.sites)), tmp_path, 12, 0, ranking)
    assert ranking.sentence() in summary(result)
    assert str(tmp_path / "architecture.json") in summary(result)


def test_the_search_reports_it(tmp_path):
    result, _ = search(tmp_path, Evaluate(bootstrap=True), cycles=1, models=12)
    records = Ledger(tmp_path / "search/ledger.jsonl").records
    expected = ranking_noise(
        [r["metrics"]["PQ"] for r in records], [r["metrics"]["bootstrap"] for r in records]
    )
    assert result.noise == expected
    board = json.loads((tmp_path / "search/scoreboard.json").read_text())
    assert board["ranking"] == {
        "spread": expected.spread,
        "noise": expected.noise,
        "signal": expected.signal,
        "reliability": expected.reliability,
    }
