"""Sampling noise of a result over the images: its counts on data sets drawn from them with replacement."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np


def multinomial_draws(keys: Sequence, samples: int, seed: int = 0) -> np.ndarray:
    """How often each image is drawn, (samples, images): ``len(keys)`` draws per sample.

    Two results with the same images, in the same order, and the same seed are resampled alike.
    """
    rng = np.random.default_rng(seed)
    return rng.multinomial(len(keys), np.full(len(keys), 1 / len(keys)), size=samples)


def poisson_draws(keys: Sequence, samples: int, seed: int = 0) -> np.ndarray:
    """As :func:`multinomial_draws`, by key and seed alone: in any order, beside any other images.

    A sample draws each of n images Binomial(n, 1/n) times, which tends to Poisson(1) (Chamandy et al.,
    "Estimating Uncertainty for Massive Data Streams").
    """
    draws = np.empty((samples, len(keys)))
    for i, key in enumerate(keys):
        generator = np.random.Generator(np.random.PCG64([seed, zlib.crc32(str(key).encode())]))
        draws[:, i] = generator.poisson(1.0, samples)
    return draws


def resampled_totals(images: Sequence, num_classes: int, draws: np.ndarray, block: int) -> np.ndarray:
    """Sums (samples, num_classes, 4) of the images' contributions on resampled data sets.

    Args:
        images: per image (key, indices of its n classes, contributions (n, 4)).
        draws: (samples, images) how often each image counts.
        block: images that are added with one matrix product; decides the last bits and the memory.
    """
    totals = np.zeros((len(draws), num_classes, 4))
    for start in range(0, len(images), block):
        part = images[start : start + block]
        occurring = np.unique(np.concatenate([classes for _, classes, _ in part]))
        table = np.zeros((len(part), len(occurring), 4))
        for i, (_, classes, contributions) in enumerate(part):
            table[i, np.searchsorted(occurring, classes)] = contributions
        sums = draws[:, start : start + len(part)] @ table.reshape(len(part), -1)
        totals[:, occurring] += sums.reshape(len(draws), len(occurring), 4)
    return totals


def percentile_interval(values: np.ndarray, confidence: float = 0.95) -> dict:
    """{"std" (standard error), "low", "high"} of values (n,) but for nan; nan with fewer than two values."""
    values = values[~np.isnan(values)]
    if len(values) < 2:
        return {"std": float("nan"), "low": float("nan"), "high": float("nan")}
    low, high = np.percentile(values, [50 * (1 - confidence), 50 * (1 + confidence)])
    return {"std": float(values.std(ddof=1)), "low": float(low), "high": float(high)}
