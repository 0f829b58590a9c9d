"""How long to search: --evaluations and --budget, whole cycles, the same when killed and resumed."""

import re

import pytest
from test_search import HEADER, SPACE, Evaluate, ledger_of, results, search, utility
from test_search_order import TWINS

from auto_panoptic.errors import UserError
from auto_panoptic.explore.selection import select
from auto_panoptic.search import command
from auto_panoptic.search.arguments import MOST_CYCLES, check_length, cycles_asked, length_asked
from auto_panoptic.search.header import comparable
from auto_panoptic.search.time_budget import TimeBudget, parse_time

HOUR = 3600


class Clock:
    """Time that passes when candidates are evaluated."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr("auto_panoptic.search.time_budget.time.monotonic", lambda: self.now)


class Slow(Evaluate):
    """Every candidate takes 10 seconds."""

    def __init__(self, clock, **settings):
        super().__init__(**settings)
        self.clock = clock

    def __call__(self, architecture):
        result = super().__call__(architecture)
        self.clock.now += 10
        return result


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def timed(folder, clock, seconds, policy="path_priority", space=SPACE, **settings):
    evaluate = Slow(clock, kill_at=settings.pop("kill_at", None))
    known = {"policy": policy, "space": space, "cycles": 10**6, "models": 12, **settings}
    return search(folder, evaluate, seconds=seconds, **known)


# ------------------------------------------------------------------ the words


@pytest.mark.parametrize(
    "text, seconds", [("30m", 1800), ("2h", 7200), ("90s", 90), ("1h30m", 5400), (" 1h2m3s ", 3723)]
)
def test_times(text, seconds):
    assert parse_time(text, "--budget") == seconds


@pytest.mark.parametrize("text", ["", "30", "m", "0m", "-5m", "1.5h", "30m1h", "30 m", "half an hour"])
def test_no_times(text):
    message = f"--budget is {text!r}: expected a time, e.g. 30m, 2h, 1h30m or 90s"
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        parse_time(text, "--budget")


def parse(*words):
    return command.parser().parse_args(words)


@pytest.mark.parametrize(
    "words, each, cycles, asked",
    [
        ((), 12, None, {}),
        (("--cycles", "7"), 12, 7, {"cycles": 7}),
        (("--evaluations", "300"), 12, 25, {"evaluations": 300}),
        (("--evaluations", "12"), 12, 1, {"evaluations": 12}),
        (("--budget", "30m"), 12, MOST_CYCLES, {"budget": 1800}),
    ],
)
def test_what_is_asked(words, each, cycles, asked):
    args = parse(*words)
    check_length(args)
    assert cycles_asked(args, each) == cycles and length_asked(args) == asked


@pytest.mark.parametrize(
    "words, message",
    [
        (("--cycles", "3", "--budget", "1h"), "--cycles and --budget both say how long to search"),
        (("--evaluations", "60", "--cycles", "5"), "--cycles and --evaluations both say how long"),
        (("--evaluations", "0"), "--evaluations is 0; expected a whole number of at least 1"),
        (("--evaluations", "100"), "--evaluations 100: a cycle has 12 .* give 96 or 108, or cycles of anoth"),
        (("--evaluations", "5"), "--evaluations 5: a cycle has 12 .*; give 12, or cycles of another size"),
    ],
)
def test_refusals(words, message):
    args = parse(*words)
    with pytest.raises(UserError, match=message):
        check_length(args)
        cycles_asked(args, 12)


def test_a_time_that_is_none_is_one_line():
    with pytest.raises(UserError, match="--budget: '30': expected a time, e.g. 30m"):
        parse("--budget", "30")


def test_what_was_asked_may_be_another_when_resumed():
    assert comparable({"seed": 0, "asked": {"budget": 60}, "config": "a"}) == {"seed": 0, "config": "a"}


# ------------------------------------------------------------------ by the clock


@pytest.mark.parametrize("policy", ["path_priority", "random", "evolution", "posterior"])
def test_whole_cycles_that_end_in_time(tmp_path, clock, policy):
    """A cycle takes 120 seconds: three of them end within 400, and are those of a search of three."""
    result, evaluate = timed(tmp_path, clock, 400, policy)
    assert len(evaluate.calls) == 36 and result.evaluated == 36
    records = ledger_of(tmp_path).records
    assert [r["elapsed"] for r in records] == [10.0 * (i + 1) for i in range(36)]
    straight, _ = search(tmp_path / "straight", policy=policy, cycles=3, models=12)
    assert results(tmp_path) == results(tmp_path / "straight")
    assert straight.architecture == result.architecture


@pytest.mark.parametrize("seconds, cycles", [(1, 1), (120, 1), (239, 1), (240, 2), (5 * 120, 5)])
def test_the_first_cycle_always_fits(tmp_path, clock, seconds, cycles):
    _, evaluate = timed(tmp_path, clock, seconds)
    assert len(evaluate.calls) == 12 * cycles


@pytest.mark.parametrize("policy", ["path_priority", "posterior"])
@pytest.mark.parametrize("kill", [5, 12, 30])
def test_killed_and_resumed(tmp_path, clock, kill, policy):
    """The time of both runs counts, and that between them does not."""
    timed(tmp_path / "straight", clock, 400, policy)
    with pytest.raises(KeyboardInterrupt):
        timed(tmp_path, clock, 400, policy, kill_at=kill)
    clock.now += HOUR
    _, evaluate = timed(tmp_path, clock, 400, policy, resume=True)
    assert len(evaluate.calls) == 36 - kill
    assert results(tmp_path) == results(tmp_path / "straight")
    _, evaluate = timed(tmp_path, clock, 400, policy, resume=True)
    assert evaluate.calls == []
    _, evaluate = timed(tmp_path, clock, 480, policy, resume=True)  # prolonged
    assert len(evaluate.calls) == 12


def test_a_cycle_that_was_begun_is_finished(tmp_path, clock):
    with pytest.raises(KeyboardInterrupt):
        timed(tmp_path, clock, 400, kill_at=15)
    _, evaluate = timed(tmp_path, clock, 100, resume=True)
    assert len(evaluate.calls) == 9 and len(ledger_of(tmp_path).records) == 24


@pytest.mark.parametrize("policy", ["path_priority", "random", "evolution", "posterior"])
def test_a_used_up_space_ends_the_search(tmp_path, clock, policy):
    """Eight architectures, and all the time in the world."""
    result, evaluate = timed(tmp_path, clock, 10**9, policy, TWINS)
    assert len(evaluate.calls) == 8
    if policy in ("random", "evolution"):
        assert utility(result.architecture) == max(map(utility, evaluate.calls))


def test_time_of_runs_without_a_budget(clock):
    """Their records say how long each candidate took."""
    records = [{"seconds": {"a": 1.0, "b": 2.0}}, {"seconds": {}, "elapsed": 9.5}, {"seconds": {"a": 0.5}}]
    budget = TimeBudget(100, records)
    assert budget.elapsed == 10.0
    clock.now += 30
    assert budget.elapsed == 40.0 and budget.cycles(2) == 2 + 3 and budget.cycles(0) == 1
    clock.now += HOUR
    assert budget.cycles(5) == 5


def test_the_policy_of_the_posterior_selects_by_ridge(tmp_path):
    header = {**HEADER, "policy": "posterior"}
    result, evaluate = search(tmp_path, header=header, policy="posterior", cycles=4, models=12)
    assert result.selection.estimator == "ridge" and len(evaluate.calls) == 48
    cycles = [[(a, utility(a)) for a in evaluate.calls[i : i + 12]] for i in range(0, 48, 12)]
    assert result.selection == select(SPACE, cycles, "ridge", adaptive=True)
    assert utility(result.architecture) >= max(map(utility, evaluate.calls))
