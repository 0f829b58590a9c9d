"""The fault drills of tools/chaos in small numbers; each of them fails where the search is broken."""

import json
import os
import sys
import time

import pytest
from chaos_util import passes, run
from toy import ROOT

sys.path.append(str(ROOT / "tools"))

from chaos import command, failed, journal, kill, lock, processes, pure, real
from chaos.report import Outcome, Plan, table

from auto_panoptic import files
from auto_panoptic.explore import ledger
from auto_panoptic.search import loop


@pytest.fixture
def plan(tmp_path):
    return Plan(tmp_path / "drill", quick=True)


# ------------------------------------------------------------------ killed


@pytest.fixture(autouse=True)
def few_kills(monkeypatch):
    monkeypatch.setattr(kill, "KILLS_PER_RUN", 5)


def test_killed_searches_end_as_uninterrupted_ones(plan):
    outcome = passes(kill.kill, plan)
    assert outcome.count >= 6 and outcome.numbers["runs"] >= 2
    assert outcome.numbers["identical"] == outcome.numbers["runs"]
    assert outcome.numbers["evaluated_again"] <= outcome.count


def test_a_resume_that_drops_records_is_found(plan, monkeypatch):
    """The results stay right: only the evaluations and the ledger tell."""
    whole = ledger.Ledger._open

    def forgetful(self, *arguments):
        data = self.path.read_bytes() if self.path.exists() else b""
        if data.count(b"\n") > 3:
            self.path.write_bytes(b"".join(data.splitlines(keepends=True)[:-2]))
        whole(self, *arguments)

    monkeypatch.setattr(ledger.Ledger, "_open", forgetful)
    failures = " ".join(run(kill.kill, plan).failures)
    assert "not all are left as they were" in failures and "a kill costs" in failures


def test_another_result_after_a_kill_is_found(plan, monkeypatch):
    """A score that depends on the process."""
    monkeypatch.setattr(pure, "utility", lambda architecture: 50 + os.getpid() % 97 / 97)
    assert "other scoreboard.json" in " ".join(run(kill.kill, plan).failures)


def test_a_search_that_cannot_go_on_is_found(plan, monkeypatch):
    monkeypatch.setattr(ledger, "_difference", lambda *_: "everything")
    assert "not resumed, exit code 2" in " ".join(run(kill.kill, plan).failures)


# ------------------------------------------------------------------ journal, failures, lock


def test_damaged_ledgers(plan):
    outcome = passes(journal.journal, plan)
    assert outcome.numbers == {"repaired": 4, "stopped": 6} and outcome.count == 10


def test_a_ledger_that_is_not_checked_is_found(plan, monkeypatch):
    monkeypatch.setattr(ledger, "_checksum", lambda _: "0")
    failures = " ".join(run(journal.journal, plan).failures)
    assert "_flip: exit code" in failures and "_cut" not in failures


def test_a_ledger_that_gives_up_on_a_torn_line_is_found(plan, monkeypatch):
    whole = ledger._parse
    monkeypatch.setattr(ledger, "_parse", lambda path, data: whole(path, data + b"\n" if data else data))
    assert "_tail: exit code 2: error: " in " ".join(run(journal.journal, plan).failures)


def test_failing_candidates(plan):
    assert passes(failed.nan, plan).count == 4


def test_a_failure_that_counts_is_found(plan, monkeypatch):
    """NaN taken for a score of 99."""
    honest = loop.checked

    def credulous(outcome, fitness):
        outcome = honest(outcome, fitness)
        if outcome["status"] == "failed":
            outcome = {**outcome, "status": "ok", "metrics": {"PQ": 99.0}}
        return outcome

    monkeypatch.setattr(loop, "checked", credulous)
    found = []
    for policy in ("path_priority", "random"):
        found += failed.fails_at(plan.folder / policy, policy, pure.candidates(policy), 7, "nan")
    failures = " ".join(found)
    for message in ("failed are []", "is the best", "not ranked last", "selected is not", "not healed"):
        assert message in failures


def test_races(plan):
    assert passes(lock.lock, plan).numbers["slowest_refusal_seconds"] < 5


def test_two_that_run_are_found(plan, monkeypatch):
    monkeypatch.setattr(files.fcntl, "flock", lambda *_: None)
    monkeypatch.setattr(lock, "LIMIT", 0.3)
    failures = run(lock.lock, plan).failures
    assert len(failures) == 4 and "2 of two run" in failures[0]


def test_a_holder_that_is_not_named_is_found(plan, monkeypatch):
    monkeypatch.setattr(files, "_describe", lambda _: "somebody")
    assert "the holder is not named" in " ".join(run(lock.lock, plan).failures)


# ------------------------------------------------------------------ the real command

STAND_IN = """
import sys
from pathlib import Path
sys.path[:0] = {path!r}
from chaos import pure
folder = Path(sys.argv[-1])
if {salted}:
    pure.utility = lambda a: 50 + len(str(folder)) + pure.flat(a)[0]
pure.search(folder, pure.Evaluate(folder / "evaluations.log", 0.05), cycles=1)
"""


def stand_in(plan, salted):
    path = plan.folder.with_suffix(".py")
    path.write_text(STAND_IN.format(path=sys.path, salted=salted))
    return run(lambda p: real.killed_command(p, [sys.executable, str(path)], pure.MODELS, 2), plan)


@pytest.mark.slow
@pytest.mark.parametrize("salted, failures", [(False, []), (True, ["other scoreboard.json"])])
def test_a_killed_command(plan, salted, failures):
    outcome = stand_in(plan, salted)
    assert outcome.count >= 2 and outcome.numbers["candidates"] == pure.MODELS
    assert [f.split(",")[0] for f in outcome.failures] == failures


def test_a_command_that_does_not_start_is_found(plan):
    outcome = run(lambda p: real.killed_command(p, [sys.executable, "nowhere.py"], 12, 2), plan)
    assert not outcome.passed and "nowhere.py" in outcome.failures[0]


# ------------------------------------------------------------------ command line and processes


def test_the_command_says_what_failed(tmp_path, capfd, monkeypatch):
    def good(plan):
        return Outcome("nothing", 3, numbers={"seed": plan.seed})

    def bad(plan):
        return Outcome("something", 2, ["it broke"])

    def dead(plan):
        os.kill(os.getpid(), processes.signal.SIGKILL)

    monkeypatch.setattr(command, "DRILLS", {"good": good, "bad": bad, "dead": dead})
    assert command.main(["--only", "good", "--seed", "4"]) == 0
    report = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert report["passed"] and report["drills"]["good"]["numbers"] == {"seed": 4}
    assert command.main(["--output", str(tmp_path)]) == 1
    lines = capfd.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["drill", "good", "bad", "dead"]
    assert lines[4:6] == ["bad: it broke", "dead: the drill ended with exit code -9"]
    drills = json.loads(lines[-1])["drills"]
    assert {name: d["passed"] for name, d in drills.items()} == {"good": True, "bad": False, "dead": False}
    with pytest.raises(command.UserError, match="is not empty"):
        command.main(["--output", str(tmp_path)])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--only", "real"], "needs a supernet: --weights FILE --config-file FILE"),
        (["--weights", "a.pth"], "belong together"),
        (["--weights", "a.pth", "--config-file", "b.yaml"], "no file 'a.pth'"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(command.UserError, match=message):
        command.main(arguments)


def test_nothing_outlives_its_parent(tmp_path):
    """Neither forks nor commands, when the parent is SIGKILLed."""

    def parent():
        fork = processes.fork(lambda: time.sleep(60), tmp_path / "log")
        sleeper = processes.command(["sleep", "60"], tmp_path / "log", {})
        (tmp_path / "pids.part").write_text(f"{fork.pid} {sleeper.pid}")
        (tmp_path / "pids.part").rename(tmp_path / "pids")
        time.sleep(60)

    process = processes.fork(parent, tmp_path / "log")
    end = time.monotonic() + 10
    while not (tmp_path / "pids").exists() and time.monotonic() < end:
        time.sleep(0.01)
    pids = set((tmp_path / "pids").read_text().split())
    assert process.kill()
    alive = pids
    while alive and time.monotonic() < end:
        alive = {pid for pid in pids if _running(pid)}
        time.sleep(0.01)
    assert not alive


def _running(pid):
    try:
        return (processes.Path("/proc") / pid / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_table():
    text = table({"kill": Outcome("killed", 5, ["a", "b", "c", "d"], seconds=1.25), "lock": Outcome("raced")})
    assert text.splitlines() == [
        "drill  what was done   count  failures   seconds",
        "kill   killed              5         4       1.2",
        "lock   raced               0         0       0.0",
        "kill: a",
        "kill: b",
        "kill: c",
        "kill: and 1 more",
        "lock: nothing was tried",
    ]
    assert not Outcome("raced").passed
