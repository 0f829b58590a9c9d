import hashlib
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from auto_panoptic.errors import UserError
from auto_panoptic.explore import (
    cycle_indices,
    fair_cycle,
    pass_counts,
    passes_per_iteration,
    path_priority_candidates,
    sampled_paths,
    uniform_path,
)
from auto_panoptic.space import ChoiceSite, SearchSpace
from auto_panoptic.validate import RULES

SPACE = SearchSpace.default()
# Domain sizes 4, 1, 2 and 3: the cycle length is their least common multiple, not their maximum or product.
TOY = SearchSpace(
    (
        ChoiceSite("backbone.0", ("shuffle_3x3", "shuffle_5x5", "shuffle_7x7", "xception_3x3")),
        ChoiceSite("mask.0", ("conv_3x3",)),
        ChoiceSite("mask.1", ("dwconv_3x3", "dwconv_5x5")),
        ChoiceSite("attention.f2b.0", ("r4", "r8", "r16")),
    )
)


def columns(architectures):
    return {site.name: [a[site.name].name for a in architectures] for site in architectures[0].space.sites}


@pytest.mark.parametrize("space, length", [(SPACE, 12), (TOY, 12), (SearchSpace(TOY.sites[:3]), 4)])
def test_every_operator_equally_often_and_once_per_aligned_run(space, length):
    for cycle in range(20):
        models = fair_cycle(space, seed=5, cycle=cycle)
        assert len(models) == space.cycle_length == length
        for site, column in columns(models).items():
            names = space.site(site).names
            assert Counter(column) == {name: length // len(names) for name in names}
            for start in range(0, length, len(names)):
                assert sorted(column[start : start + len(names)]) == sorted(names)


def test_pass_counts():
    models = fair_cycle(SPACE, 0, 0)
    assert pass_counts(models) == {s.name: dict.fromkeys(s.names, 12 // len(s.ops)) for s in SPACE.sites}
    first = pass_counts(models[:1])
    assert first["mask.0"] == {n: int(n == models[0]["mask.0"].name) for n in SPACE.site("mask.0").names}
    assert pass_counts([]) == {}


def test_indices_are_site_by_site_permutations():
    """One by one with the same generator: E / P permutations of 0..P-1 per site, sites in order."""
    rng = np.random.default_rng(0)
    for space in (SPACE, TOY, SearchSpace(TOY.sites[1:2])):
        for cycle in rng.integers(0, 10**6, 30).tolist():
            generator, length = np.random.default_rng([3, cycle]), space.cycle_length
            expected = []
            for site in space.sites:
                paths = len(site.ops)
                runs = [generator.permutation(paths).tolist() for _ in range(length // paths)]
                expected.append(sum(runs, []))
            assert cycle_indices(space, 3, cycle).T.tolist() == expected
            names = [[site.names[i] for i in row] for site, row in zip(space.sites, expected, strict=True)]
            drawn = fair_cycle(space, 3, cycle)
            assert [a.choices for a in drawn] == list(zip(*names, strict=True))


def test_without_a_site_a_cycle_is_one_empty_architecture():
    """Models without choice blocks train through the same loop."""
    empty = SearchSpace(())
    (architecture,) = fair_cycle(empty, 0, 5)
    assert architecture.names() == {} and cycle_indices(empty, 0, 5).shape == (1, 0)
    assert sampled_paths(empty, 0, 5, "uniform") == [architecture]


def test_uniform_paths():
    """One path per iteration, a function of (seed, iteration); operators equally often up to chance."""
    drawn = [uniform_path(SPACE, 2, iteration) for iteration in range(1200)]
    assert drawn[7] == SPACE.random(np.random.default_rng([2, 7]))
    assert sampled_paths(SPACE, 2, 7, "uniform") == [drawn[7]]
    assert passes_per_iteration(SPACE, "uniform") == 1
    counts = pass_counts(drawn)
    for site in SPACE.sites:
        expected, deviation = 1200 / len(site.ops), (1200 / len(site.ops)) ** 0.5
        assert max(abs(n - expected) for n in counts[site.name].values()) < 5 * deviation
    assert len({n for row in counts.values() for n in row.values()}) > 10  # chance, not fairness


def test_fair_is_the_other_sampling():
    assert sampled_paths(SPACE, 2, 7, "fair") == fair_cycle(SPACE, 2, 7)
    assert passes_per_iteration(SPACE, "fair") == 12
    with pytest.raises(UserError, match="NAS.SAMPLING is 'random'; expected one of fair, uniform"):
        RULES["NAS.SAMPLING"].check("NAS.SAMPLING", "random")


def test_a_pure_function_of_space_seed_and_cycle():
    assert fair_cycle(SPACE, 3, 7) == fair_cycle(SearchSpace.default(), 3, 7)
    cycles = [fair_cycle(SPACE, seed, cycle) for seed in range(3) for cycle in range(3)]
    assert all(a != b for i, a in enumerate(cycles) for b in cycles[:i])


def test_equal_in_other_processes():
    """What distributed runs and resumes rely on: nothing is shared but the arguments."""
    code = (
        "from auto_panoptic.space import SearchSpace; from auto_panoptic.explore import fair_cycle;"
        "print([a.indices() for a in fair_cycle(SearchSpace.default(), 11, 4)])"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    ]
    assert outputs == [str([a.indices() for a in fair_cycle(SPACE, 11, 4)])] * 2


def test_draws_are_frozen():
    """A change here makes resumed searches draw other candidates than they began with."""
    text = repr([a.indices() for a in fair_cycle(SPACE, 0, 0)])
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "f85cee9810992de8"


def test_sites_and_runs_are_independent():
    """Over many cycles all operator pairs of two sites, or of two runs of one site, are equally frequent."""
    sites, runs = Counter(), Counter()
    for cycle in range(600):
        column = columns(fair_cycle(SearchSpace(SPACE.sites[:2]), 0, cycle))
        sites.update(zip(column["backbone.0"], column["backbone.1"], strict=True))
    for cycle in range(900):
        column = columns(fair_cycle(TOY, 1, cycle))["backbone.0"]
        runs.update(zip(column[:4], column[4:8], strict=True))
    # 2400 and 3600 pairs over 16 cells; cells hold 150 and 225 with a standard deviation below 12 and 15.
    for counts, expected in ((sites, 150), (runs, 225)):
        assert len(counts) == 16
        assert max(abs(n - expected) for n in counts.values()) < 0.35 * expected


@pytest.mark.parametrize("arguments", [(-1, 0), (0, -1), (0.5, 0), (0, "1"), (True, 0), (None, 0)])
def test_bad_seed_or_cycle(arguments):
    for draw in (fair_cycle, uniform_path):
        with pytest.raises(UserError, match="expected a whole number of at least 0"):
            draw(SPACE, *arguments)


def test_candidates_of_the_papers_search():
    models = [a for cycle in range(5) for a in path_priority_candidates(SPACE, 0, cycle, 12)]
    assert len(models) == 60 and len(set(models)) == 60
    assert models == [a for cycle in range(5) for a in fair_cycle(SPACE, 0, cycle)]
    assert path_priority_candidates(SPACE, 0, 3) == fair_cycle(SPACE, 0, 3)


def test_larger_search_cycles_join_fair_cycles_without_reuse():
    models = [path_priority_candidates(SPACE, 0, cycle, 36) for cycle in range(2)]
    assert models[0] + models[1] == [a for cycle in range(6) for a in fair_cycle(SPACE, 0, cycle)]
    assert pass_counts(models[1])["sem_seg.1"] == dict.fromkeys(SPACE.site("sem_seg.1").names, 6)


@pytest.mark.parametrize("models, nearest", [(0, 12), (-12, 12), (5, 12), (11, 12), (13, 12), (40, 36)])
def test_models_per_cycle_must_be_whole_cycles(models, nearest):
    message = (
        rf"NAS.MODELS_PER_CYCLE is {models}: expected a multiple of 12.*\(backbone.0..39 .*e.g. {nearest}$"
    )
    with pytest.raises(UserError, match=message):
        path_priority_candidates(SPACE, 0, 0, models)
