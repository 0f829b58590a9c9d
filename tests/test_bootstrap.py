"""Bootstrap over images: exact sums, equal spread of both kinds of draws, intervals that cover."""

import json
import pickle

import numpy as np
import pytest

from auto_panoptic.evaluation import PanopticQuality
from auto_panoptic.evaluation.bootstrap import (
    multinomial_draws,
    percentile_interval,
    poisson_draws,
    resampled_totals,
)

RNG = np.random.default_rng
CATEGORIES = [{"id": i, "isthing": int(i < 4)} for i in range(1, 7)]


def _images(rng, count):
    """Contributions of ``count`` random images: (id, classes, [[TP, FP, FN, IoU], ...])."""
    images = []
    for i in range(count):
        classes = rng.choice(6, rng.integers(0, 5), replace=False).tolist()
        rows = []
        for c in classes:
            tp, fp, fn = (int(n) for n in rng.poisson([2.0 + c / 3, 0.5, 1.0]))
            rows.append([tp, fp, fn, float(rng.uniform(0.5, 1, tp).sum())])
        images.append((i, classes, rows))
    return images


@pytest.mark.parametrize("block", [1, 32, 75])
def test_totals_are_the_weighted_sums(block):
    """Whatever the number of images that are added at once; images without a class among them."""
    images = [
        (i, np.array(classes, int), np.reshape(rows, (-1, 4))) for i, classes, rows in _images(RNG(0), 75)
    ]
    draws = poisson_draws([i for i, _, _ in images], 50, seed=3)
    expected = np.zeros((50, 6, 4))
    for i, classes, rows in images:
        for c, row in zip(classes, rows, strict=True):
            expected[:, c] += draws[:, [i]] * row
    np.testing.assert_allclose(resampled_totals(images, 6, draws, block), expected, atol=1e-9)


def test_draws():
    """Whole numbers of mean and variance 1. Poisson's belong to the image, whatever is beside it."""
    keys = list(range(75))
    for draw in (poisson_draws, multinomial_draws):
        draws = draw(keys, 50, seed=3)
        assert draws.shape == (50, 75) and (draws == draws.astype(int)).all()
        assert draws.mean() == pytest.approx(1, abs=0.06) and draws.var() == pytest.approx(1, abs=0.1)
        assert abs(np.corrcoef(draws[:, 0], draws[:, 1])[0, 1]) < 0.5
        assert (draw(keys, 50, seed=3) == draws).all() and (draw(keys, 50, seed=4) != draws).any()
    assert (multinomial_draws(keys, 50).sum(1) == 75).all()
    assert (
        poisson_draws([5, "x", 7], 50, seed=3)[:, ::2] == poisson_draws(keys, 50, seed=3)[:, [5, 7]]
    ).all()


def test_order_and_processes_do_not_matter():
    images = _images(RNG(1), 90)
    whole = _quality(images).intervals()
    parts = [pickle.loads(pickle.dumps(_quality(images[-1 - k :: -3]))) for k in range(3)]
    merged = parts[2].merge(parts[0]).merge(parts[1]).intervals()
    for name, noise in whole.items():
        assert merged[name] == pytest.approx(noise, abs=1e-9)


def _quality(images):
    """A PanopticQuality that was given contributions instead of maps."""
    return PanopticQuality.of_record({"categories": CATEGORIES, "images": images})


def test_a_record_in_json_is_the_whole():
    whole = _quality(_images(RNG(2), 40))
    again = PanopticQuality.of_record(json.loads(json.dumps(whole.record())))
    assert again.compute() == whole.compute() and again.num_images == 40
    assert (again.bootstrap_samples(5)["PQ"] == whole.bootstrap_samples(5)["PQ"]).all()


def test_spread_is_that_of_the_ordinary_bootstrap():
    images = _images(RNG(2), 150)
    quality = _quality(images)
    ordinary, streaming = quality.bootstrap_samples(4000), quality.intervals(4000)
    assert list(streaming) == ["PQ", "PQ_th", "PQ_st"]
    for name, values in ordinary.items():
        noise = percentile_interval(values)
        assert streaming[name]["std"] == pytest.approx(noise["std"], rel=0.08)
        for side in ("low", "high"):
            assert streaming[name][side] == pytest.approx(noise[side], abs=0.25 * noise["std"])


def test_intervals_cover_the_truth():
    """Of 200 data sets drawn from a population of images, about 95 % of the intervals hold the truth."""
    rng = RNG(3)
    population = _images(rng, 600)
    truth = _quality(population).compute()["PQ"]
    inside = 0
    for _ in range(200):
        drawn = [(i, *population[k][1:]) for i, k in enumerate(rng.integers(0, 600, 60))]
        noise = _quality(drawn).intervals(200)["PQ"]
        inside += noise["low"] <= truth <= noise["high"]
    assert 0.90 <= inside / 200 <= 0.985


def test_intervals_need_more_than_one_value():
    assert np.isnan(list(PanopticQuality(CATEGORIES).intervals(9)["PQ"].values())).all()
    noise = percentile_interval(np.array([1.0, np.nan, 3.0]))
    assert noise == {"std": pytest.approx(2**0.5), "low": pytest.approx(1.05), "high": pytest.approx(2.95)}
