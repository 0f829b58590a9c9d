"""Searches of a known landscape, run as a search would: by the policies and estimators of auto_panoptic.

Each takes (space, true, noise, rng, seed, budgets, evolutions) and gives {(rule, budget): true fitness of
what it selects}. ``true`` maps operator indices (n, sites) to fitness (n,); an evaluation is off by ``noise``
times a standard normal of ``rng``; ``seed`` is that of fair cycles and policies; ``evolutions`` are {budget:
generations} of the evolution. A rule that evaluates in rounds is judged after the last that a budget holds.
"""

import numpy as np
from linas import Settings, linas

from auto_panoptic.explore import POLICY_REGISTRY
from auto_panoptic.explore.estimators import ESTIMATORS, Observations, mean_scores, ridge_scores
from auto_panoptic.explore.fairness import cycle_indices
from auto_panoptic.explore.own_scores import better_candidate
from auto_panoptic.explore.posterior import RidgePosterior
from auto_panoptic.explore.scoreboard import Scoreboard

GENERATIONS = 20  # of an evolution (paper)
LINAS = Settings()


def evolve(space, true_fitness, budget, noise, seed, rng, generations=GENERATIONS):
    """True fitness of the best candidate of an evolution of so many generations."""
    population = budget // generations
    settings = {
        "generations": generations,
        "population": population,
        "parents": max(population // 5, 1),
        "mutation": 0.4,
        "crossover": 0.4,
        "mutation_probability": 0.1,
    }
    policy = POLICY_REGISTRY.of("evolution")(space, seed, settings)
    history, best = [], (-np.inf, 0.0)
    for generation in range(generations):
        candidates = policy.candidates(generation, history)
        true = true_fitness(indices(space, candidates))
        if not len(true):  # the space is used up
            break
        measured = true + noise * rng.normal(size=len(true))
        history.append(list(zip(candidates, measured.tolist(), strict=True)))
        best = max(best, (float(measured.max()), float(true[measured.argmax()])))
    return best[1]


def indices(space, architectures):
    """(n, sites) operator indices."""
    names = [{name: i for i, name in enumerate(site.names)} for site in space.sites]
    return np.array([[t[c] for t, c in zip(names, a.choices, strict=True)] for a in architectures])


def published(space, true, noise, rng, seed, budgets, evolutions):
    """The paper's rules and baselines."""
    sizes = [len(site.ops) for site in space.sites]
    length, largest = space.cycle_length, max(budgets)
    whole = {budget // length * length: budget for budget in budgets}  # of fair cycles
    fair = np.concatenate([cycle_indices(space, seed, cycle) for cycle in range(largest // length)])
    uniform = np.stack([rng.integers(size, size=largest) for size in sizes], axis=1)
    fitness = true(fair) + noise * rng.normal(size=len(fair))
    drawn = true(uniform) + noise * rng.normal(size=largest)

    results = {}
    board = Scoreboard(space)
    for n in range(length, largest + 1, length):
        cycle = slice(n - length, n)
        board.add_cycle([space.architecture(row.tolist()) for row in fair[cycle]], fitness[cycle].tolist())
        if n not in whole:
            continue
        budget = whole[n]
        ranks = [np.array([row["score"] for row in rows]) for rows in board.table().values()]
        scores = {
            "ranks": ranks,
            "mean": mean_scores(fair[:n], fitness[:n], sizes),
            "ridge": ridge_scores(fair[:n], fitness[:n], sizes),
        }
        for name in ESTIMATORS:
            results[f"path_priority, {name}", budget] = float(true(best_of(scores[name]))[0])
        results["random, best", budget] = float(true(uniform[[drawn[:budget].argmax()]])[0])
    for n, generations in evolutions.items():
        results["evolution, best", n] = evolve(space, true, n, noise, seed, rng, generations)
    return results


def best_of(scores):
    """(1, sites) indices of the operators with the highest scores."""
    return np.array([[s.argmax() for s in scores]])


def posterior_rounds(space, true, noise, rng, seed, most, keep=None):
    """The policy posterior with its own settings: (history, choices, fitness) after each round.

    ``keep`` are the (costs, limits) that it is told, if any.

    ``history`` are the rounds so far, lists of (architecture, fitness); the others are (n, sites) and (n,) of
    all candidates. There are rounds until it has ``most`` of them.
    """
    policy_type = POLICY_REGISTRY.of("posterior")
    settings = {key.lower(): value for key, value in policy_type.keys.items()}
    policy, history = policy_type(space, seed, settings), []
    if keep:
        policy.keep(*keep)
    choices, fitness = np.zeros((0, len(space.sites)), dtype=np.int64), np.zeros(0)
    while len(fitness) < most and (candidates := policy.candidates(len(history), history)):
        new = indices(space, candidates)
        measured = true(new) + noise * rng.normal(size=len(new))
        history.append(list(zip(candidates, measured.tolist(), strict=True)))
        choices, fitness = np.concatenate((choices, new)), np.r_[fitness, measured]
        yield history, choices, fitness


def share_beyond(fitted: RidgePosterior, noise: float) -> float:
    """Share of the candidates' own in the variance of their deviations, given the noise of a fitness.

    Ridge regression takes both for noise and finds the variance of their sum. ``noise`` is a standard
    deviation, the same for all candidates and independent.
    """
    variance = fitted.penalty * fitted.scale**2
    return max(0.0, 1 - float(noise**2 / variance)) if 0 < variance < np.inf else 0.0


def posterior(space, true, noise, rng, seed, budgets, evolutions, share=None):
    """The policy of that name, with its own settings, and three ways to select in the end.

    ``share`` of a candidate's own deviation counts, by default what follows from ``noise``.
    """
    sizes, results = [len(site.ops) for site in space.sites], {}
    for _, choices, fitness in posterior_rounds(space, true, noise, rng, seed, max(budgets)):
        effects = best_of(ridge_scores(choices, fitness, sizes))
        data = Observations(choices, fitness, np.zeros(len(fitness), dtype=np.int64))
        fitted, everywhere = RidgePosterior(choices, fitness, sizes), np.ones(len(fitness), dtype=bool)
        counts = share_beyond(fitted, noise) if share is None else share
        own = better_candidate(fitted, data, effects[0].tolist(), counts, everywhere)
        selections = {
            "posterior": choices[[own.place]] if own else effects,
            "posterior, ridge": effects,
            "posterior, best": choices[[fitness.argmax()]],
        }
        for budget in budgets:
            if len(fitness) <= budget:
                results |= {(rule, budget): float(true(row)[0]) for rule, row in selections.items()}
    return results


def predictors(space, true, noise, rng, seed, budgets, evolutions):
    """The search after LINAS."""
    sizes = [len(site.ops) for site in space.sites]
    found = linas(lambda table: true(table) + noise * rng.normal(size=len(table)), sizes, budgets, rng, LINAS)
    return {("linas, best", n): float(true(choices[None])[0]) for n, choices in found.items()}


# {name: (stream of the random numbers, search)}
SEARCHES = {"published": (1, published), "posterior": (2, posterior), "linas": (3, predictors)}
