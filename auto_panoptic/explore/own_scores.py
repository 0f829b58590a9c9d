"""What an evaluated candidate scored itself, beside what the effects of its operators say of it.

Main effects leave something out: what operators of several sites do together. For an architecture that nobody
evaluated they are all that is known. Of a candidate's deviation from them a part is its own; the rest is the
noise of its score, which is another one on other images.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .estimators import Observations
from .posterior import RidgePosterior


class OwnScore(NamedTuple):
    """Why an evaluated candidate is selected.

    Attributes:
        place: of the candidate among the observations.
        share: of its deviation that counts.
        deviation: its fitness less what the effects predict for it.
        ahead: its expected fitness less that of the architecture with the best effects.
    """

    place: int
    share: float
    deviation: float
    ahead: float


def share_on_images(posterior: RidgePosterior, fitness: np.ndarray, resampled: np.ndarray) -> float:
    """Share of the candidates' own in the variance of their deviations, by resampled images.

    Args:
        posterior: of these candidates.
        fitness: (n,) of all its candidates, in its order.
        resampled: (n, B) on the same B resamples of the images.
    """
    deviations = (posterior.residuals(fitness[:, None]) ** 2).sum()
    changes = posterior.residuals(resampled - resampled.mean(axis=1, keepdims=True))
    by_images = (changes**2).sum() / (resampled.shape[1] - 1)
    return max(0.0, 1 - float(by_images / deviations)) if deviations else 0.0


def better_candidate(
    posterior: RidgePosterior, data: Observations, best: list[int], share: float, allowed: np.ndarray
) -> OwnScore | None:
    """The evaluated candidate that is expected to be above the architecture with the best effects, if any.

    The model: fitness = constant + effects + what is the architecture's own + noise, all independent normal.
    So the expected value of what is the candidate's own is its deviation times ``share``, that of its own in
    the variance of the last two: nothing of it where all is noise, all where a score repeats exactly.

    Args:
        posterior: of the evaluated candidates.
        data: the candidates, in the order of their indices; of equal ones the first counts.
        best: operator indices of the architecture with the best effects.
        share: from 0 to 1.
        allowed: (n,) whether a candidate may be selected.

    Returns:
        None if that architecture stays the best.
    """
    places = np.flatnonzero(data.ok & allowed)
    if not share or not len(places):
        return None
    predicted = posterior.predicted(data.choices)
    fitness = data.fitness - data.fitness[data.ok].mean()
    expected = (predicted + share * (fitness - predicted))[places]
    (goal,) = posterior.predicted(np.array([best]))
    if (own := np.flatnonzero((data.choices[places] == best).all(axis=1))).size:
        goal = expected[own[0]]  # it was evaluated, too
    first = int(expected.argmax())
    if not expected[first] > goal:
        return None
    place = int(places[first])
    return OwnScore(place, share, float((fitness - predicted)[place]), float(expected[first] - goal))
