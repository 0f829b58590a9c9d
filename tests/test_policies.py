"""Random search and evolution: candidates they name, bounded in any space, pure functions of the past."""

import logging
import math

import numpy as np
import pytest
from toy import own_messages, toy_space

from auto_panoptic.errors import UserError
from auto_panoptic.explore import POLICY_REGISTRY, path_priority_candidates
from auto_panoptic.explore.policies import best
from auto_panoptic.space import ChoiceSite, SearchSpace

PAPER = {
    "generations": 20,
    "population": 50,
    "parents": 10,
    "mutation": 0.4,
    "crossover": 0.4,
    "mutation_probability": 0.1,
}
SPACE = SearchSpace.default()
GENES = len(SPACE.sites)


def make_policy(name, space, seed, settings):
    return POLICY_REGISTRY.of(name)(space, seed, settings)


def evolution(space=SPACE, seed=0, **changes):
    return make_policy("evolution", space, seed, {**PAPER, **changes})


def fitness(architecture):
    """A pure function: how many sites have their first operator."""
    return float(
        sum(site.index(name) == 0 for site, name in zip(SPACE.sites, architecture.choices, strict=True))
    )


def distance(a, b):
    return sum(x != y for x, y in zip(a.choices, b.choices, strict=True))


def evolve(policy, score, generations=None):
    """Generations of (architecture, fitness)."""
    history = []
    for cycle in range(policy.cycles if generations is None else generations):
        history.append([(a, score(a)) for a in policy.candidates(cycle, history)])
    return history


@pytest.fixture(scope="module")
def papers_run():
    return evolve(evolution(), fitness)


# ------------------------------------------------------------------ random search and path priorities


def test_random_search_draws_300_uniform_models():
    policy = make_policy("random", SPACE, 3, {"cycles": 1, "models_per_cycle": 300})
    models = policy.candidates(0, [])
    assert len(models) == 300 and policy.candidates(0, []) == models
    choices = np.array([[s.index(n) for s, n in zip(SPACE.sites, a.choices, strict=True)] for a in models])
    for paths in (4, 6, 3):  # uniform: every count within 5 standard deviations
        columns = choices[:, [len(site.ops) == paths for site in SPACE.sites]]
        for op in range(paths):
            share = columns == op
            assert np.abs(share.sum(0) - 300 / paths).max() < 5 * math.sqrt(300 / paths * (1 - 1 / paths))
            assert share.mean() == pytest.approx(1 / paths, abs=5 / math.sqrt(share.size) / 2)
    assert make_policy("random", SPACE, 4, {"cycles": 1, "models_per_cycle": 300}).candidates(0) != models
    more = make_policy("random", SPACE, 3, {"cycles": 2, "models_per_cycle": 300})
    assert more.candidates(0) == models and not set(more.candidates(1)) & set(models)


def test_path_priority_is_the_fair_cycle():
    policy = make_policy("path_priority", SPACE, 5, {"cycles": 2, "models_per_cycle": 24})
    assert [policy.candidates(c, []) for c in range(2)] == [
        path_priority_candidates(SPACE, 5, c, 24) for c in range(2)
    ]


# ------------------------------------------------------------------ evolution


def test_the_papers_evolution_evaluates_1000_architectures(papers_run):
    assert [len(generation) for generation in papers_run] == [50] * 20
    assert len({a for generation in papers_run for a, _ in generation}) == 1000


def test_it_finds_better_models_than_chance(papers_run):
    """The best of the last generations is far above the best of 1000 random models."""
    rng = np.random.default_rng(0)
    by_chance = max(fitness(SPACE.random(rng)) for _ in range(1000))
    tops = [np.mean([fitness(a) for a in best(papers_run[:n], 10)]) for n in range(1, 21)]
    assert tops == sorted(tops) and max(f for _, f in papers_run[-1]) > by_chance + 5


def test_mutants_crossings_and_random_models_in_the_detnas_shares(papers_run):
    """Positions 0..19 mutants, 20..39 crossings, 40..49 random, bred from the best 10 of all so far.

    (In the last two generations the parents are so alike that new crossings run out.)
    """
    far, mutated = 0, []
    for g in range(1, 18):
        parents = best(papers_run[:g], 10)
        children = [a for a, _ in papers_run[g]]
        mutated += [min(distance(child, p) for p in parents) for child in children[:20]]
        for child in children[20:40]:
            assert any(
                all(c in pair for c, *pair in zip(child.choices, a.choices, b.choices, strict=True))
                for i, a in enumerate(parents)
                for b in parents[i + 1 :]
            )
        far += sum(min(distance(child, p) for p in parents) > 0.4 * GENES for child in children[40:])
    assert max(mutated) < 0.35 * GENES
    assert far > 0.95 * 17 * 10


def test_genes_are_drawn_anew_with_the_given_probability():
    """Of one parent, the expected share of changed genes is p * (1 - 1/P) summed over the sites."""
    parent = SPACE.architecture([0] * GENES)
    policy = evolution(population=2000, parents=1, mutation=1.0, crossover=0.0)
    mutants = policy.candidates(1, [[(parent, 1.0)]])
    assert len(mutants) == 2000
    changed = np.array(
        [[name != site.names[0] for site, name in zip(SPACE.sites, a.choices, strict=True)] for a in mutants]
    )
    for paths in (4, 6, 3):
        columns = changed[:, [len(site.ops) == paths for site in SPACE.sites]]
        p = 0.1 * (1 - 1 / paths)
        # Unchanged copies are rejected as visited, and so are repetitions: a shift of under 3 percent.
        assert columns.mean() == pytest.approx(p, abs=5 * math.sqrt(p * (1 - p) / columns.size) + 0.03 * p)
    assert {name for a in mutants for name in a.choices} == {n for s in SPACE.sites for n in s.names}


def test_crossings_take_each_gene_from_either_parent_equally_often():
    a, b = SPACE.architecture([0] * GENES), SPACE.architecture([1] * GENES)
    policy = evolution(population=1000, parents=2, mutation=0.0, crossover=1.0)
    children = policy.candidates(1, [[(a, 1.0), (b, 2.0)]])
    assert len(children) == 1000
    genes = np.array([[s.index(n) for s, n in zip(SPACE.sites, c.choices, strict=True)] for c in children])
    assert set(np.unique(genes)) == {0, 1}
    assert np.abs(genes.mean(0) - 0.5).max() < 5 * 0.5 / math.sqrt(1000)
    assert genes.sum(1).var() == pytest.approx(GENES / 4, rel=0.25)  # within each child, too


def test_spos_shares():
    policy = evolution(mutation=0.5, crossover=0.5)
    assert (policy.settings["mutation"], policy.settings["crossover"]) == (25, 25)
    history = [[(a, fitness(a)) for a in policy.candidates(0, [])]]
    parents = best(history, 10)
    children = policy.candidates(1, history)
    near = [min(distance(c, p) for p in parents) < 0.35 * GENES for c in children[:25]]
    genes = [set(column) for column in zip(*(p.choices for p in parents), strict=True)]
    bred = [all(g in s for g, s in zip(c.choices, genes, strict=True)) for c in children[25:]]
    assert len(children) == 50 and all(near) and all(bred)


def test_the_default_shares_are_detnas():
    policy = evolution()
    assert policy.settings == {
        "population": 50,
        "parents": 10,
        "mutation": 20,
        "crossover": 20,
        "mutation_probability": 0.1,
    }
    assert (policy.cycles, policy.models) == (20, 50)


def test_parents_are_the_best_of_all_generations_ties_to_the_earliest():
    models = [SPACE.architecture([1] * i + [0] * (GENES - i)) for i in range(12)]
    scores = [5.0, 1.0, None, 9.0, math.nan, 5.0, 9.0, 0.0, 5.0, math.inf, -1.0, 2.0]
    pairs = list(zip(models, scores, strict=True))
    history = [pairs[:4], pairs[4:8], pairs[8:]]
    assert best(history, 4) == [models[i] for i in (3, 6, 0, 5)]
    assert best(history, 99) == [models[i] for i in (3, 6, 0, 5, 8, 11, 1, 7, 10)]


def test_failed_models_have_no_children():
    """With mutation switched off, every child of a failed model would carry its mark."""
    good, bad = SPACE.architecture([0] * GENES), SPACE.architecture([2] * GENES)
    for failed in (None, math.nan):
        policy = evolution(population=40, mutation=1.0, crossover=0.0)
        for child in policy.candidates(1, [[(bad, failed), (good, -3.0)]]):
            assert distance(child, good) < 0.5 * GENES
    only_random = policy.candidates(1, [[(bad, None)]])
    assert len(only_random) == 40 and min(distance(child, bad) for child in only_random) > 0.4 * GENES


def test_a_pure_function_of_its_arguments(papers_run):
    again = evolution()
    for g in (7, 0, 19, 7):  # any order, no state
        assert again.candidates(g, papers_run[:g]) == [a for a, _ in papers_run[g]]
    assert again.candidates(3, papers_run) == [a for a, _ in papers_run[3]]  # the future does not count
    assert evolution(seed=1).candidates(0, []) != again.candidates(0, [])
    worse = [[(a, -f) for a, f in generation] for generation in papers_run[:3]]
    assert again.candidates(3, worse) != [a for a, _ in papers_run[3]]


@pytest.mark.parametrize("sizes", [(4,), (4, 3), (4, 4, 3), (1,), ()])
def test_in_tiny_spaces_it_ends_and_says_so(sizes, caplog):
    """Up to 48 architectures, 20 generations of 50: each at most once, and all of them in the end."""
    ops = {4: ("shuffle_3x3", "shuffle_5x5", "shuffle_7x7", "xception_3x3"), 3: ("r4", "r8", "r16")}
    names = {4: "backbone", 3: "attention.f2b", 1: "backbone"}
    space = SearchSpace(
        tuple(ChoiceSite(f"{names[n]}.{i}", ops.get(n, ops[4][:1])) for i, n in enumerate(sizes))
    )
    with caplog.at_level(logging.WARNING):
        history = evolve(evolution(space), lambda a: float(len(a.choices)))
    found = [a for generation in history for a, _ in generation]
    assert len(found) == len(set(found)) == space.cardinality
    assert [len(g) for g in history[-3:]] == [0, 0, 0]
    total = space.cardinality
    assert f"generation 19 has 0 of 50 candidates: {total} of the space's {total}" in caplog.text


def test_draws_are_bounded(monkeypatch):
    """10 draws per place and kind at most, even when every draw is taken already."""
    space = toy_space(backbone=4)
    policy = evolution(space)
    draws = []
    taken = space.architecture([0] * len(space.sites))
    monkeypatch.setattr(type(policy), "_random", lambda self, rng: draws.append(1) or taken.choices)
    assert policy.candidates(1, [[(taken, None)]]) == []
    assert len(draws) == 10 * 50
    monkeypatch.setattr(type(policy), "_mutant", lambda self, rng, parents: draws.append(2) or taken.choices)
    monkeypatch.setattr(
        type(policy), "_crossing", lambda self, rng, parents: draws.append(3) or taken.choices
    )
    draws.clear()
    assert policy.candidates(1, [[(taken, 1.0)]]) == []
    assert [draws.count(i) for i in (1, 2, 3)] == [500, 200, 200]


def test_random_models_fill_what_breeding_leaves(caplog):
    """One parent: all crossings are its copies, so their places go to random models."""
    parent = SPACE.architecture([0] * GENES)
    children = evolution().candidates(1, [[(parent, 1.0)]])
    assert len(children) == 50
    assert sum(distance(child, parent) > 0.4 * GENES for child in children[20:]) == 30
    assert own_messages(caplog) == []


# ------------------------------------------------------------------ bad settings


@pytest.mark.parametrize(
    "name, settings, message",
    [
        ("greedy", {}, "NAS.POLICY is 'greedy'; expected one of path_priority, random, evolution"),
        ("random", {"cycles": 1, "models_per_cycle": 0}, "NAS.RANDOM.MODELS_PER_CYCLE is 0"),
        ("random", {"cycles": 0, "models_per_cycle": 1}, "NAS.RANDOM.CYCLES is 0"),
        ("path_priority", {"cycles": 0, "models_per_cycle": 12}, "NAS.CYCLES is 0"),
        ("path_priority", {"cycles": 1, "models_per_cycle": 13}, "NAS.MODELS_PER_CYCLE is 13"),
        ("evolution", {**PAPER, "generations": 0}, "NAS.EVOLUTION.GENERATIONS is 0"),
        ("evolution", {**PAPER, "population": -1}, "NAS.EVOLUTION.POPULATION is -1"),
        ("evolution", {**PAPER, "parents": 0}, "NAS.EVOLUTION.PARENTS is 0"),
        (
            "evolution",
            {**PAPER, "mutation_probability": 1.5},
            "MUTATION_PROBABILITY is 1.5; expected a",
        ),
        ("evolution", {**PAPER, "mutation": -0.1}, "NAS.EVOLUTION.MUTATION is -0.1; expected a number"),
        ("evolution", {**PAPER, "mutation": 0.7}, "MUTATION 0.7 and CROSSOVER 0.4 are shares"),
    ],
)
def test_bad_settings(name, settings, message):
    with pytest.raises(UserError, match=message):
        make_policy(name, SPACE, 0, settings)


@pytest.mark.parametrize("seed", [-1, 0.5, True])
def test_bad_seed(seed):
    with pytest.raises(UserError, match="NAS.SEED is"):
        make_policy("random", SPACE, seed, {"cycles": 1, "models_per_cycle": 2})
