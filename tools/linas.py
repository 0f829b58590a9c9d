"""A search after LINAS (Cummings et al. 2022), as a baseline of simulate_search.py.

Rounds of candidates: predictors are fitted to all measurements, an evolution of many generations runs on
the predictions alone, and the best that it found and nobody measured are measured. Predictors are ridge
regression and support vector regression on one-hot operators, averaged.
"""

import numpy as np
from scipy.optimize import minimize

from auto_panoptic.explore.estimators import ridge_scores

START = 48  # uniformly random candidates
ROUND = 24
POPULATION, GENERATIONS = 100, 15  # of the inner evolution
MUTATION = 0.05
C, EPSILON = 10.0, 0.1  # of the support vector regression, in standard deviations of the fitness


def predictor(choices: np.ndarray, fitness: np.ndarray, sizes: list[int]):
    """(m, sites) operators -> (m,) mean of both predictions, in standard deviations of the fitness."""
    y = (fitness - fitness.mean()) / fitness.std()
    effects = [np.where(np.isfinite(e), e, 0) for e in ridge_scores(choices, y, sizes)]
    known = _one_hot(choices, sizes)
    sites = len(sizes)

    def kernel(table):
        return np.exp(_one_hot(table, sizes) @ known.T / sites * 4 - 4)

    weights = _support_vectors(kernel(choices), y)

    def predict(table):
        linear = sum(e[column] for e, column in zip(effects, table.T, strict=True))
        return (linear + kernel(table) @ weights) / 2

    return predict


def _support_vectors(kernel: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Weights of epsilon support vector regression without a constant (the fitness is centred): its dual."""
    n = len(y)

    def loss(pair):
        weights = pair[:n] - pair[n:]
        slope = kernel @ weights - y
        value = weights @ (slope - y) / 2 + EPSILON * pair.sum()
        return value, np.concatenate((slope, -slope)) + EPSILON

    found = minimize(loss, np.zeros(2 * n), jac=True, method="L-BFGS-B", bounds=[(0, C)] * (2 * n),
                     options={"maxiter": 200})  # fmt: skip
    return found.x[:n] - found.x[n:]


def _one_hot(choices: np.ndarray, sizes: list[int]) -> np.ndarray:
    first = np.cumsum([0, *sizes[:-1]])
    table = np.zeros((len(choices), sum(sizes)), dtype=np.float32)
    table[np.arange(len(choices))[:, None], choices + first] = 1
    return table


def inner_evolution(predict, parents: np.ndarray, sizes: list[int], rng: np.random.Generator) -> np.ndarray:
    """Operators of all that an evolution on the predictions visits, best first, each once."""
    population, visited = parents, [parents]
    scores = predict(population)
    for _ in range(GENERATIONS):
        pairs = population[rng.integers(len(population), size=(2, POPULATION))]
        children = np.where(rng.random(pairs[0].shape) < 0.5, *pairs)
        fresh = np.stack([rng.integers(size, size=POPULATION) for size in sizes], axis=1)
        children = np.where(rng.random(children.shape) < MUTATION, fresh, children)
        visited.append(children)
        population, scores = np.concatenate((population, children)), np.r_[scores, predict(children)]
        keep = np.argsort(-scores, kind="stable")[:POPULATION]
        population, scores = population[keep], scores[keep]
    table = np.unique(np.concatenate(visited), axis=0)
    return table[np.argsort(-predict(table), kind="stable")]


def linas(measure, sizes: list[int], budgets: list[int], rng: np.random.Generator) -> dict[int, np.ndarray]:
    """{budget: operators of the best measured architecture}; ``measure``: (n, sites) -> (n,) fitness."""
    choices = np.stack([rng.integers(size, size=START) for size in sizes], axis=1)
    fitness = measure(choices)
    while len(fitness) < max(budgets):
        predict = predictor(choices, fitness, sizes)
        parents = choices[np.argsort(-fitness, kind="stable")[:POPULATION]]
        known = {row.tobytes() for row in choices}
        ranked = inner_evolution(predict, parents, sizes, rng)
        new = np.array([row for row in ranked if row.tobytes() not in known][:ROUND])
        choices, fitness = np.concatenate((choices, new)), np.r_[fitness, measure(new)]
    return {n: choices[fitness[:n].argmax()] for n in budgets}
