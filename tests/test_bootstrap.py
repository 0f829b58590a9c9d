"""The Poisson bootstrap: exact sums, the same spread as the ordinary one, intervals that cover."""

import pickle

import numpy as np
import pytest

from auto_panoptic.errors import UserError
from auto_panoptic.evaluation import PanopticQuality
from auto_panoptic.evaluation.bootstrap import PoissonBootstrap, percentile_interval

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


def test_totals_are_the_weighted_sums():
    """The weights have mean and variance 1, are whole, and belong to the image."""
    images = _images(np.random.default_rng(0), 75)
    bootstrap = PoissonBootstrap(6, samples=50, seed=3)
    expected = np.zeros((50, 6, 4))
    weights = []
    for image_id, classes, rows in images:
        bootstrap.add(image_id, classes, rows)
        weights.append(bootstrap._weights(image_id))
        for c, row in zip(classes, rows, strict=True):
            expected[:, c] += weights[-1][:, None] * row
    np.testing.assert_allclose(bootstrap.totals, expected, atol=1e-9)
    np.testing.assert_allclose(bootstrap.totals, expected, atol=1e-9)  # reading does not add
    weights = np.array(weights)
    assert weights.mean() == pytest.approx(1, abs=0.06) and weights.var() == pytest.approx(1, abs=0.1)
    assert abs(np.corrcoef(weights[0], weights[1])[0, 1]) < 0.5
    assert (PoissonBootstrap(6, 50, seed=4)._weights(1) != weights[1]).any()


def test_order_and_processes_do_not_matter():
    images = _images(np.random.default_rng(1), 90)
    whole = PoissonBootstrap(6, samples=40)
    parts = [PoissonBootstrap(6, samples=40) for _ in range(3)]
    for i, image in enumerate(images):
        whole.add(*image)
        parts[i % 3].add(*images[-1 - i])
    parts = [pickle.loads(pickle.dumps(part)) for part in parts]
    parts[2].merge(parts[0])
    parts[2].merge(parts[1])
    np.testing.assert_allclose(parts[2].totals, whole.totals, atol=1e-9)


def _quality(images, **kwargs):
    """A PanopticQuality that was given contributions instead of maps."""
    quality = PanopticQuality(CATEGORIES, **kwargs)
    for image_id, classes, rows in images:
        quality._totals[classes] += np.reshape(rows, (-1, 4))
        if kwargs.get("per_image"):
            quality._images.append((image_id, np.array(classes, int), np.reshape(rows, (-1, 4))))
        if kwargs.get("resamples"):
            quality._resampled.add(image_id, classes, rows)
    return quality


def test_spread_is_that_of_the_ordinary_bootstrap():
    images = _images(np.random.default_rng(2), 150)
    quality = _quality(images, per_image=True, resamples=4000)
    ordinary, streaming = quality.bootstrap(4000), quality.intervals()
    assert list(streaming) == ["PQ", "PQ_th", "PQ_st"]
    for name, noise in ordinary.items():
        assert streaming[name]["std"] == pytest.approx(noise["std"], rel=0.08)
        for side in ("low", "high"):
            assert streaming[name][side] == pytest.approx(noise[side], abs=0.25 * noise["std"])


def test_intervals_cover_the_truth():
    """Of 200 data sets drawn from a population of images, about 95 % of the intervals hold the truth."""
    rng = np.random.default_rng(3)
    population = _images(rng, 600)
    truth = _quality(population).compute()["PQ"]
    inside = 0
    for _ in range(200):
        drawn = [(i, *population[k][1:]) for i, k in enumerate(rng.integers(0, 600, 60))]
        noise = _quality(drawn, resamples=200).intervals()["PQ"]
        inside += noise["low"] <= truth <= noise["high"]
    assert 0.90 <= inside / 200 <= 0.985


def test_intervals_need_resamples_and_more_than_one_value():
    with pytest.raises(UserError, match="resamples=1000"):
        PanopticQuality(CATEGORIES).intervals()
    assert np.isnan(list(PanopticQuality(CATEGORIES, resamples=9).intervals()["PQ"].values())).all()
    noise = percentile_interval(np.array([1.0, np.nan, 3.0]))
    assert noise == {"std": pytest.approx(2**0.5), "low": pytest.approx(1.05), "high": pytest.approx(2.95)}
