"""Panoptic quality of parts: merged, resampled, and what it holds in memory."""

import pickle
import tracemalloc

import numpy as np
import pytest
from test_panoptic_quality import (
    CATEGORIES,
    THING,
    _gt,
    _line,
    _random_pair,
    _segment,
    random_pairs,  # noqa: F401
)

from auto_panoptic.errors import UserError
from auto_panoptic.evaluation import PanopticQuality, StuffIoU
from auto_panoptic.evaluation.bootstrap import percentile_interval
from auto_panoptic.evaluation.overlap import Overlap


def _of(pairs, **kwargs):
    quality = PanopticQuality(CATEGORIES, **kwargs)
    for i, (gt, truth, pred, predicted) in pairs:
        quality.update(pred, predicted, gt, truth, image_id=i)
    return quality


def test_merging_parts_gives_the_whole(random_pairs):  # noqa: F811
    pairs = list(enumerate(random_pairs))
    whole = _of(pairs)
    parts = [pickle.loads(pickle.dumps(_of(pairs[k::3]))) for k in range(3)]
    merged = parts[0].merge(parts[1]).merge(parts[2])
    assert merged.num_images == whole.num_images == len(pairs)
    a, b = merged.compute(), whole.compute()
    for name in ("PQ", "SQ", "RQ", "PQ_th", "PQ_st"):
        assert a[name] == pytest.approx(b[name], abs=1e-9)
    for category in a["per_class"]:
        for name in ("TP", "FP", "FN"):
            assert a["per_class"][category][name] == b["per_class"][category][name]
    np.testing.assert_allclose(
        merged.bootstrap_samples(20, seed=3)["PQ"], whole.bootstrap_samples(20, seed=3)["PQ"], atol=1e-9
    )


def test_bootstrap_resamples_images(random_pairs):  # noqa: F811
    """The samples equal panoptic qualities of explicitly resampled images."""
    pairs = list(enumerate(random_pairs[:9]))
    quality = _of(pairs)
    samples = quality.bootstrap_samples(5, seed=4)
    draws = np.random.default_rng(4).multinomial(9, np.full(9, 1 / 9), size=5)
    for b, counts in enumerate(draws):
        resampled = _of([p for p, n in zip(pairs, counts, strict=True) for _ in range(n)]).compute()
        for name in ("PQ", "PQ_th", "PQ_st"):
            assert samples[name][b] == pytest.approx(resampled[name], abs=1e-9, nan_ok=True)


def test_bootstrap_error_matches_theory():
    """One class; each image is one match or one miss, so PQ = tp / (tp + fn / 2) with tp ~ B(400, 3/4)."""
    gt = _line((1, 10))
    quality = PanopticQuality(CATEGORIES)
    for i in range(400):
        found = i % 4 > 0
        segments = [_segment(1, THING)] if found else []
        quality.update(gt * found, segments, gt, _gt(gt, [(1, THING, 0)]))
    noise = percentile_interval(quality.bootstrap_samples(4000)["PQ"])
    derivative = 0.5 * 400 / (300 + 50) ** 2  # of PQ by tp
    assert noise["std"] == pytest.approx(100 * np.sqrt(400 * 0.75 * 0.25) * derivative, rel=0.08)
    assert noise["low"] < 100 * 300 / 350 < noise["high"]
    first, again, other = (quality.bootstrap_samples(50, seed)["PQ"] for seed in (1, 1, 2))
    assert (first == again).all() and (first != other).any()


def test_bootstrap_needs_images():
    with pytest.raises(UserError, match="at least one image"):
        PanopticQuality(CATEGORIES).bootstrap_samples()


def test_memory_grows_by_a_few_hundred_bytes_per_image():
    """No map is kept; nor does the IoU of stuff keep anything."""
    rng = np.random.default_rng(0)
    cases = [_random_pair(rng) for _ in range(20)]
    overlaps = [Overlap.of(pred, predicted, gt, truth) for gt, truth, pred, predicted in cases]

    def peak(images):
        tracemalloc.start()
        quality, stuff = PanopticQuality(CATEGORIES), StuffIoU(CATEGORIES)
        for i in range(images):
            quality.add(overlaps[i % 20], image_id=i)
            stuff.add(overlaps[i % 20])
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak(50)
    assert peak(2000) - peak(200) <= 1800 * 700
