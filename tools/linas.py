"""A search after LINAS (Cummings et al. 2022), as a baseline of simulate_search.py.

Rounds of candidates: predictors are fitted to all measurements, an evolution of many generations runs on
the predictions alone, and the best that it found and nobody measured are measured. Predictors are ridge
regression and support vector regression on one-hot operators, averaged.

The defaults of :class:`Settings` were tuned on other landscapes than those that results are reported of; the
page on selection says how.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from auto_panoptic.explore.estimators import ridge_scores

POPULATION, GENERATIONS = 100, 15  # of the inner evolution
EPSILON = 0.1  # of the support vector regression, in standard deviations of the fitness


@dataclass(frozen=True)
class Settings:
    """How it searches.

    Attributes:
        start: uniformly random candidates.
        each: candidates of a round.
        mutation: probability of a gene in the inner evolution.
        c: weight of the errors of the support vector regression.
        predictors: "ridge", "svr" or "both", their mean.
    """

    start: int = 24
    each: int = 6
    mutation: float = 0.05
    c: float = 1.0
    predictors: str = "both"


def predictor(choices: np.ndarray, fitness: np.ndarray, sizes: list[int], settings: Settings):
    """(m, sites) operators -> (m,) prediction, in standard deviations of the fitness."""
    y = (fitness - fitness.mean()) / fitness.std()
    effects = [np.where(np.isfinite(e), e, 0) for e in ridge_scores(choices, y, sizes)]

    def ridge(table):
        return sum(e[column] for e, column in zip(effects, table.T, strict=True))

    if settings.predictors == "ridge":
        return ridge
    known = _one_hot(choices, sizes)
    sites = len(sizes)

    def kernel(table):
        return np.exp(_one_hot(table, sizes) @ known.T / sites * 4 - 4)

    weights = _support_vectors(kernel(choices), y, settings.c)
    if settings.predictors == "svr":
        return lambda table: kernel(table) @ weights
    return lambda table: (ridge(table) + kernel(table) @ weights) / 2


def _support_vectors(kernel: np.ndarray, y: np.ndarray, c: float) -> np.ndarray:
    """Weights of epsilon support vector regression without a constant (the fitness is centred): its dual."""
    n = len(y)

    def loss(pair):
        weights = pair[:n] - pair[n:]
        slope = kernel @ weights - y
        value = weights @ (slope - y) / 2 + EPSILON * pair.sum()
        return value, np.concatenate((slope, -slope)) + EPSILON

    found = minimize(loss, np.zeros(2 * n), jac=True, method="L-BFGS-B", bounds=[(0, c)] * (2 * n),
                     options={"maxiter": 200})  # fmt: skip
    return found.x[:n] - found.x[n:]


def _one_hot(choices: np.ndarray, sizes: list[int]) -> np.ndarray:
    first = np.cumsum([0, *sizes[:-1]])
    table = np.zeros((len(choices), sum(sizes)), dtype=np.float32)
    table[np.arange(len(choices))[:, None], choices + first] = 1
    return table


def inner_evolution(
    predict, parents: np.ndarray, sizes: list[int], rng: np.random.Generator, mutation: float
) -> np.ndarray:
    """Operators of all that an evolution on the predictions visits, best first, each once."""
    population, visited = parents, [parents]
    scores = predict(population)
    for _ in range(GENERATIONS):
        pairs = population[rng.integers(len(population), size=(2, POPULATION))]
        children = np.where(rng.random(pairs[0].shape) < 0.5, *pairs)
        fresh = np.stack([rng.integers(size, size=POPULATION) for size in sizes], axis=1)
        children = np.where(rng.random(children.shape) < mutation, fresh, children)
        visited.append(children)
        population, scores = np.concatenate((population, children)), np.r_[scores, predict(children)]
        keep = np.argsort(-scores, kind="stable")[:POPULATION]
        population, scores = population[keep], scores[keep]
    table = np.unique(np.concatenate(visited), axis=0)
    return table[np.argsort(-predict(table), kind="stable")]


def linas(
    measure, sizes: list[int], budgets: list[int], rng: np.random.Generator, settings: Settings
) -> dict[int, np.ndarray]:
    """{budget: operators of the best measured architecture}; ``measure``: (n, sites) -> (n,) fitness."""
    choices = np.stack([rng.integers(size, size=settings.start) for size in sizes], axis=1)
    fitness = measure(choices)
    while len(fitness) < max(budgets):
        predict = predictor(choices, fitness, sizes, settings)
        parents = choices[np.argsort(-fitness, kind="stable")[:POPULATION]]
        known = {row.tobytes() for row in choices}
        ranked = inner_evolution(predict, parents, sizes, rng, settings.mutation)
        new = np.array([row for row in ranked if row.tobytes() not in known][: settings.each])
        if not len(new):  # the evolution found nothing that is not measured
            break
        choices, fitness = np.concatenate((choices, new)), np.r_[fitness, measure(new)]
    return {n: choices[fitness[:n].argmax()] for n in budgets}
