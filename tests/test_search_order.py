"""The search with any executor and policy: order of arrival, equal architectures, the baselines."""

import json

import numpy as np
import pytest
from test_search import (
    CYCLES,
    MODELS,
    SPACE,
    Evaluate,
    ledger_of,
    make_cfg,
    results,
    search,
    utility,
)
from toy import toy_space

from auto_panoptic.search import InProcess
from auto_panoptic.search.header import search_policy
from auto_panoptic.space import Architecture, ChoiceSite, SearchSpace


class Shuffled:
    """An executor that evaluates everything it is given and returns the outcomes in random order."""

    def __init__(self, evaluate, seed):
        self.evaluate, self.rng = evaluate, np.random.default_rng(seed)

    def run(self, items):
        outcomes = list(InProcess(self.evaluate).run(items))
        for i in self.rng.permutation(len(outcomes)):
            yield outcomes[i]


def candidates_of(cycles, models, policy, space=SPACE):
    """The candidates of the first cycle."""
    return search_policy(make_cfg("", cycles, models, policy=policy), space).candidates(0, [])


# ------------------------------------------------------------------ order of arrival


@pytest.mark.parametrize("policy", ["path_priority", "random", "evolution", "posterior"])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_order_of_arrival_changes_nothing(tmp_path, policy, seed):
    """Also with failures, duplicates (the space has 144 architectures) and bootstrap noise."""
    space = toy_space(backbone=2, head=1, inter=1).sites
    space = SearchSpace((*space[:2], *space[3:], ChoiceSite("mask.0", space[2].ops[:3])))
    settings = {"space": space, "policy": policy, "cycles": 2, "models": 36}
    names = candidates_of(**settings)
    folders = [tmp_path / "straight", tmp_path / "shuffled"]
    ends = []
    for folder in folders:
        evaluate = Evaluate(nan=names[3:6], crash=names[7:9], bootstrap=True)
        executor = Shuffled(evaluate, seed) if folder.name == "shuffled" else InProcess(evaluate)
        result, _ = search(folder, executor=executor, **settings)
        ends.append((results(folder), result.architecture.choices, result.noise))
    assert ends[0] == ends[1]
    if policy == "random":
        assert any("duplicate_of" in r for r in ledger_of(folders[1]).records)
    orders = [[(r["cycle"], r["index"]) for r in ledger_of(folder).records] for folder in folders]
    assert sorted(orders[0]) == sorted(orders[1]) and orders[0] != orders[1]  # the order was another
    ledgers = [{(r["cycle"], r["index"]): r for r in ledger_of(f).records} for f in folders]
    for place, record in ledgers[0].items():
        assert ledgers[1][place]["metrics"] == record["metrics"]


@pytest.mark.parametrize("kill", [1, 24, 30, 71])
def test_killed_and_resumed_in_any_order(tmp_path, kill):
    """Outcomes that arrived out of order are kept; the rest is evaluated once."""

    class Killed(Shuffled):
        def run(self, items):
            for number, outcome in enumerate(super().run(items)):
                if number == kill:
                    raise KeyboardInterrupt
                yield outcome

    with pytest.raises(KeyboardInterrupt):
        search(tmp_path, executor=Killed(Evaluate(), seed=kill))
    assert len(ledger_of(tmp_path).records) == kill
    _, evaluate = search(tmp_path, resume=True)
    assert len(evaluate.calls) == CYCLES * MODELS - kill
    search(tmp_path / "straight")
    assert results(tmp_path) == results(tmp_path / "straight")


def test_an_executor_that_loses_a_candidate_is_a_defect(tmp_path):
    class Loses:
        def run(self, items):
            return list(InProcess(Evaluate()).run(items))[:-1]

    with pytest.raises(RuntimeError, match=r"no outcome for the candidates \(cycle, index\) \[\(2, 23\)\]"):
        search(tmp_path, executor=Loses())
    assert len(ledger_of(tmp_path).records) == CYCLES * MODELS - 1


# ------------------------------------------------------------------ equal architectures

TWINS = SearchSpace(tuple(ChoiceSite(f"backbone.{i}", ("shuffle_3x3", "shuffle_5x5")) for i in range(3)))


@pytest.mark.parametrize("kill", [None, 0, 3, 6])
@pytest.mark.parametrize("shuffled", [False, True])
def test_no_architecture_is_evaluated_twice(tmp_path, kill, shuffled):
    """60 candidates in a space of 8; the records of the others name the one they repeat."""
    settings = {"space": TWINS, "policy": "random", "cycles": 2, "models": 30}
    calls = []
    if kill is not None:
        with pytest.raises(KeyboardInterrupt):
            search(tmp_path, first := Evaluate(kill_at=kill), **settings)
        calls += first.calls
    evaluate = Evaluate()
    executor = Shuffled(evaluate, 3) if shuffled else InProcess(evaluate)
    result, _ = search(tmp_path, resume=True, executor=executor, **settings)
    calls += evaluate.calls
    assert len(calls) == len(set(calls)) == 8
    assert result.evaluated == 60
    records = ledger_of(tmp_path).records
    assert len(records) == 60 and sum("duplicate_of" not in r for r in records) == 8
    for record in records:
        if "duplicate_of" in record:
            original = records[record["duplicate_of"]]
            assert "duplicate_of" not in original and original["seq"] < record["seq"]
            assert (record["seconds"], record["status"]) == ({}, "ok")
            assert [record[k] for k in ("architecture", "metrics")] == [
                original[k] for k in ("architecture", "metrics")
            ]
    assert utility(result.architecture) == max(map(utility, calls))


def test_a_prolonged_search_repeats_what_the_ledger_knows(tmp_path):
    settings = {"space": TWINS, "policy": "random", "models": 5}
    _, first = search(tmp_path, cycles=1, **settings)
    _, more = search(tmp_path, cycles=8, resume=True, **settings)
    calls = first.calls + more.calls
    assert len(first.calls) > 1 and len(calls) == len(set(calls)) == 8
    assert len(ledger_of(tmp_path).records) == 40
    search(tmp_path / "straight", cycles=8, **settings)
    assert results(tmp_path) == results(tmp_path / "straight")


def test_a_duplicate_of_a_failure_is_evaluated(tmp_path):
    """What failed once may succeed the next time; then the others repeat that."""

    class Flaky(Evaluate):
        def __call__(self, architecture):
            if self.calls.count(architecture) < 2:
                self.calls.append(architecture)
                raise RuntimeError("worker lost")
            return super().__call__(architecture)

    settings = {"space": TWINS, "policy": "random", "cycles": 1, "models": 60}
    result, evaluate = search(tmp_path, Flaky(), **settings)
    assert {evaluate.calls.count(a) for a in evaluate.calls} == {3} and len(evaluate.calls) == 24
    assert (result.evaluated, result.failed) == (44, 16)


def test_equal_candidates_are_one_in_the_noise_of_the_ranking(tmp_path):
    settings = {"space": TWINS, "policy": "random", "models": 30}
    once, _ = search(tmp_path / "1", Evaluate(bootstrap=True), cycles=1, **settings)
    more, _ = search(tmp_path / "2", Evaluate(bootstrap=True), cycles=3, **settings)
    assert once.noise.spread == pytest.approx(more.noise.spread, rel=1e-12)


# ------------------------------------------------------------------ the other policies


@pytest.mark.parametrize("policy", ["random", "evolution"])
def test_the_baselines_select_the_best_candidate(tmp_path, policy):
    result, evaluate = search(tmp_path, policy=policy, cycles=3, models=20)
    winner = max(evaluate.calls, key=utility)
    assert result.architecture.choices == winner.choices and len(evaluate.calls) == 60
    assert Architecture.load(tmp_path / "search/architecture.json", SPACE) == winner
    board = json.loads((tmp_path / "search/scoreboard.json").read_text())
    for site in SPACE.sites:
        for row in board["sites"][site.name]:
            users = [utility(a) for a in evaluate.calls if a[site.name].name == row["op"]]
            assert (row["score"], row["count"]) == (None, len(users))
            assert row["mean"] == (pytest.approx(np.mean(users)) if users else None)


def test_the_best_candidate_is_the_earliest_of_equal_ones_and_never_a_failure(tmp_path):
    first = candidates_of(1, 20, "random")
    scored = Evaluate(nan=first[:2], crash=first[2:3])

    def flat(architecture):
        return {"PQ": 7.0 + 0 * scored(architecture)[0]["PQ"]}, {}

    result, _ = search(tmp_path, executor=Shuffled(flat, 5), policy="random", cycles=1, models=20)
    assert result.failed == 3 and result.architecture.choices == first[3].choices


@pytest.mark.parametrize("kills", [[7], [20], [33, 5]])
def test_a_resumed_evolution_breeds_the_same_generations(tmp_path, kills):
    settings = {"policy": "evolution", "cycles": 3, "models": 20}
    _, straight = search(tmp_path / "straight", Evaluate(nan=candidates_of(**settings)[:2]), **settings)
    calls = []
    for number, kill in enumerate([*kills, None]):
        evaluate = Evaluate(nan=straight.calls[:2], kill_at=kill)
        try:
            search(tmp_path / "killed", evaluate, resume=number > 0, **settings)
        except KeyboardInterrupt:
            pass
        calls += evaluate.calls
    assert calls == straight.calls and len(set(calls)) == 60
    assert results(tmp_path / "killed") == results(tmp_path / "straight")


def test_retrying_leaves_generations_that_have_children_alone(tmp_path):
    settings = {"policy": "evolution", "cycles": 2, "models": 20}
    bad = candidates_of(**settings)[:2]
    _, evaluate = search(tmp_path, Evaluate(nan=bad), **settings)
    _, again = search(tmp_path, resume=True, retry_failed=True, **settings)
    assert again.calls == []
    settings["cycles"] = 3
    _, longer = search(tmp_path, Evaluate(), resume=True, retry_failed=True, **settings)
    assert len(longer.calls) == 20 and not set(longer.calls) & set(evaluate.calls)


def test_retrying_the_last_generation(tmp_path):
    settings = {"policy": "evolution", "cycles": 1, "models": 20}
    bad = candidates_of(**settings)[4:6]
    search(tmp_path / "a", Evaluate(nan=bad), **settings)
    _, again = search(tmp_path / "a", resume=True, retry_failed=True, **{**settings, "cycles": 2})
    assert again.calls[:2] == bad
    _, straight = search(tmp_path / "b", **{**settings, "cycles": 2})
    assert again.calls[2:] == straight.calls[20:]
    assert results(tmp_path / "a") == results(tmp_path / "b")


def test_a_used_up_space_ends_the_evolution(tmp_path):
    result, evaluate = search(tmp_path, space=TWINS, policy="evolution", cycles=20, models=50)
    assert len(evaluate.calls) == len(set(evaluate.calls)) == 8 == result.evaluated
