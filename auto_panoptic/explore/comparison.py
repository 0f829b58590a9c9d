"""A trained network against random ones: the mean difference, and what it may be by chance."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

from .intervals import LEVEL


class Difference(NamedTuple):
    """A difference of two means with its 95 % interval; the limits are infinite where nothing is known."""

    mean: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """ "above", "below", or "undecided" where the interval holds 0."""
        return "above" if self.low > 0 else "below" if self.high < 0 else "undecided"


def found_against_random(
    found: np.ndarray, random: np.ndarray, resampled: tuple[np.ndarray, np.ndarray] | None = None
) -> Difference:
    """How much a network of S trainings is above the mean of C random networks of S trainings each.

    Three parts add in quadrature. Training noise of the found network, from the variance between the seeds
    of one network, pooled over all (with one seed each: from that between the random networks, which holds
    it). The draw of the random networks, from the variance between their means, which holds their training
    noise. With Student's t, degrees of freedom by Welch and Satterthwaite. And the choice of images, where
    resamples are given, from the paired difference on them.

    Args:
        found: (S,) scores by seed.
        random: (C, S) scores.
        resampled: the same on B resamples of the images, (S, B) and (C, S, B).
    """
    networks, seeds = random.shape
    mean = float(found.mean() - random.mean())
    if networks < 2:
        return Difference(mean, -np.inf, np.inf)
    between = float(random.mean(axis=1).var(ddof=1))
    parts = [(between / networks, networks - 1)]
    if seeds > 1:
        within = float(np.concatenate([random.var(axis=1, ddof=1), [found.var(ddof=1)]]).mean())
        parts.append((within / seeds, (networks + 1) * (seeds - 1)))
    else:
        parts.append((between, networks - 1))
    variance = sum(part for part, _ in parts)
    half = 0.0
    if variance:
        freedom = variance**2 / sum(part**2 / degrees for part, degrees in parts)
        half = float(stdtrit(freedom, (1 + LEVEL) / 2)) * variance**0.5
    if resampled is not None:
        ours, theirs = resampled
        half = float(np.hypot(half, 1.96 * (ours.mean(axis=0) - theirs.mean(axis=(0, 1))).std(ddof=1)))
    return Difference(mean, mean - half, mean + half)
