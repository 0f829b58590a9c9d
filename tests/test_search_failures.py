"""Candidates that fail: recorded, ranked last, and evaluated again on request."""

import json

import pytest
from test_search import (
    CYCLES,
    MODELS,
    SPACE,
    Evaluate,
    candidates,
    ledger_of,
    reference,  # noqa: F401
    results,
    search,
    utility,
)

from auto_panoptic.errors import UserError
from auto_panoptic.explore import Ledger, Scoreboard
from auto_panoptic.search import summary
from auto_panoptic.space import Architecture


def test_failed_candidates_are_recorded_ranked_last_and_never_selected(tmp_path):
    """NaN and crashes: the candidates that would have been best score like the worst."""
    ranked = sorted(candidates(1, 24), key=utility, reverse=True)
    nan, crash = ranked[:3], ranked[3:5]
    result, evaluate = search(tmp_path, Evaluate(nan, crash), cycles=1)
    assert (result.evaluated, result.failed) == (19, 5)
    board = Scoreboard(SPACE)
    bad = {*nan, *crash}
    board.add_cycle(evaluate.calls, [None if a in bad else utility(a) for a in evaluate.calls])
    assert result.architecture.choices == board.select().choices
    clean = Scoreboard(SPACE)
    clean.add_cycle(evaluate.calls, [utility(a) for a in evaluate.calls])
    assert clean.select().choices != board.select().choices  # the failures matter here
    records = Ledger(tmp_path / "search/ledger.jsonl").records
    for record, architecture in zip(records, evaluate.calls, strict=True):
        assert record["status"] == ("failed" if architecture in bad else "ok")
        if architecture in crash:
            assert record["error"] == "RuntimeError: out of memory"
        if architecture in nan:
            assert record["error"] == "PQ is not a number"
    provenance = Architecture.load(tmp_path / "search/architecture.json").provenance
    assert provenance["failed"] == 5
    assert provenance["best_candidate_PQ"] == utility(ranked[5])
    assert "19 candidates (5 failed)" in summary(result)


@pytest.mark.parametrize("position", [0, 1, 11])
def test_one_failure_anywhere_is_never_an_operators_only_merit(tmp_path, position):
    """A failed model at any position gets the points of the last place."""
    architectures = candidates(1, 12)
    search(tmp_path, Evaluate(nan=[architectures[position]]), cycles=1, models=12)
    board = Scoreboard(SPACE)
    lowest = min(map(utility, architectures)) - 1
    fitness = [lowest if i == position else utility(a) for i, a in enumerate(architectures)]
    board.add_cycle(architectures, fitness)
    table = json.loads((tmp_path / "search/scoreboard.json").read_text())["sites"]
    points = {(site, row["op"]): row["score"] for site, rows in table.items() for row in rows}
    assert points == {(site, row["op"]): row["score"] for site, rows in board.table().items() for row in rows}


def test_a_resumed_search_does_not_repeat_failures(tmp_path):
    failing = candidates(1, 12)[2:5]
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path, Evaluate(nan=failing, kill_at=6), cycles=1, models=12)
    _, evaluate = search(tmp_path, resume=True, cycles=1, models=12)
    assert evaluate.calls == candidates(1, 12)[6:]


def test_all_failed_is_a_clear_error_and_selects_nothing(tmp_path):
    with pytest.raises(UserError, match="fail"):
        search(tmp_path, Evaluate(crash=candidates()), cycles=1, models=12)
    assert not (tmp_path / "search/architecture.json").exists()
    records = Ledger(tmp_path / "search/ledger.jsonl").records
    assert len(records) == 12 and {r["status"] for r in records} == {"failed"}


def test_retried_failures_count_as_if_they_had_not_failed(tmp_path, reference):  # noqa: F811
    failing = candidates()[2:5] + candidates()[40:42]
    search(tmp_path, Evaluate(nan=failing[:3], crash=failing[3:]))
    assert results(tmp_path) != results(reference)
    _, evaluate = search(tmp_path, resume=True)
    assert evaluate.calls == []  # not unless asked for
    result, evaluate = search(tmp_path, Evaluate(crash=failing[:1]), resume=True, retry_failed=True)
    assert evaluate.calls == failing and (result.evaluated, result.failed) == (CYCLES * MODELS - 1, 1)
    _, evaluate = search(tmp_path, resume=True, retry_failed=True)
    assert evaluate.calls == failing[:1]
    assert results(tmp_path) == results(reference)
    records = ledger_of(tmp_path).records
    assert len(records) == CYCLES * MODELS + 6
    third = [r["status"] for r in records if (r["cycle"], r["index"]) == (0, 2)]
    assert third == ["failed", "failed", "ok"]
