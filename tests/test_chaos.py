"""The drills of tools/chaos in small numbers: killed, damaged and crowded searches; what the command says."""

import json
import os
import signal
import sys

import pytest
from toy import ROOT

sys.path.append(str(ROOT / "tools"))

from chaos import command, drills, journal, kill, lock, processes
from chaos.report import Outcome, Plan, table

from auto_panoptic import files
from auto_panoptic.explore import ledger


@pytest.fixture
def plan(tmp_path, monkeypatch):
    monkeypatch.setattr(kill, "KILLS_PER_RUN", 5)
    (tmp_path / "drill").mkdir()
    return Plan(tmp_path / "drill", quick=True)


def test_killed_searches_end_as_uninterrupted_ones(plan):
    outcome = kill.kill(plan)
    assert outcome.failures == [] and outcome.count >= 6
    assert outcome.numbers["identical"] == outcome.numbers["runs"] >= 2
    assert outcome.numbers["evaluated_again"] <= outcome.count


def test_damaged_ledgers(plan):
    outcome = journal.journal(plan)
    assert outcome.failures == [] and outcome.count == 10
    assert outcome.numbers == {"repaired": 4, "stopped": 6}


def test_races(plan):
    outcome = command.drill({"lock": plan}, jobs=1)["lock"]
    assert outcome.failures == [] and outcome.count == 5


def forgetful(self, *arguments, whole=ledger.Ledger._open):
    data = self.path.read_bytes() if self.path.exists() else b""
    if data.count(b"\n") > 3:
        self.path.write_bytes(b"".join(data.splitlines(keepends=True)[:-2]))
    whole(self, *arguments)


@pytest.mark.slow
@pytest.mark.parametrize(
    "drill, place, name, broken, failure",
    [
        (kill.kill, ledger.Ledger, "_open", forgetful, "not all are left as they were"),
        (kill.kill, ledger, "_differences", lambda *_: {"all": "all"}, "not resumed, exit code 2"),
        (journal.journal, ledger, "_checksum", lambda _: "0", "_flip: exit code"),
        (lock.lock, files.fcntl, "flock", lambda *_: None, "2 of two run"),
        (lock.lock, files, "_describe", lambda _: "somebody", "the holder is not named"),
    ],
)
def test_the_drills_find_a_broken_search(plan, monkeypatch, drill, place, name, broken, failure):
    monkeypatch.setattr(place, name, broken)
    monkeypatch.setattr(lock, "LIMIT", 2.0)
    monkeypatch.setitem(command.DRILLS, "broken", drill)
    assert failure in " ".join(command.drill({"broken": plan}, jobs=1)["broken"].failures)


def test_the_command_says_what_failed(tmp_path, capfd, monkeypatch):
    def good(plan):
        return Outcome("nothing", 3, numbers={"seed": plan.seed})

    def bad(plan):
        return Outcome("something", 2, ["it broke"])

    def dead(plan):
        os.kill(os.getpid(), processes.signal.SIGKILL)

    monkeypatch.setattr(command, "DRILLS", {"good": good, "bad": bad, "dead": dead})
    monkeypatch.setattr(command, "FAULTS", {"bad": "F6"})
    assert command.main(["--only", "good", "--seed", "4"]) == 0
    report = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert report["passed"] and report["drills"]["good"]["numbers"] == {"seed": 4}
    assert command.main(["--output", str(tmp_path), "--jobs", "3"]) == 1
    lines = capfd.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["drill", "good", "bad", "dead"]
    assert lines[4:6] == ["bad: it broke", "dead: the drill ended with exit code -9"]
    report = json.loads(lines[-1])["drills"]
    assert report["bad"]["faults"] == "F6"
    assert {name: d["passed"] for name, d in report.items()} == {"good": True, "bad": False, "dead": False}
    with pytest.raises(command.UserError, match="is not empty"):
        command.main(["--output", str(tmp_path)])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--only", "real"], "needs a supernet: --weights FILE --config-file FILE"),
        (["--jobs", "0"], "--jobs is 0; expected at least 1"),
        (["--weights", "a.pth"], "belong together"),
        (["--weights", "a.pth", "--config-file", "b.yaml"], "no file 'a.pth'"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(command.UserError, match=message):
        command.main(arguments)


def test_table():
    kill = Outcome("killed", 5, list("abcd"), {"runs": 2, "lost": 0}, seconds=1.25)
    text = table({"kill": kill, "lock": Outcome("raced")}, {"kill": "F1 F4"})
    assert text.splitlines()[1:3] == [
        "kill   F1 F4   killed             5         4      1.2  runs 2, lost 0",
        "lock           raced              0         0      0.0",
    ]
    assert text.splitlines()[3:] == [
        *(f"kill: {f}" for f in "abc"),
        "kill: and 1 more",
        "lock: nothing was tried",
    ]
    assert not Outcome("raced").passed


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_children_of_a_background_job_hear_signals(tmp_path, number):
    before = signal.signal(number, signal.SIG_IGN)
    try:
        code = "print('begun', flush=True); import time; time.sleep(60)"
        started = processes.command([sys.executable, "-c", code], tmp_path / "log", {})
        while "begun" not in (tmp_path / "log").read_text():
            assert started.wait(0.05) is None
        forked = processes.fork(lambda: os.kill(os.getpid(), number), None)
        os.kill(started.pid, number)
        assert (started.wait(30), forked.wait(30)) == (-number, 128 + number)
    finally:
        signal.signal(number, before)


def test_every_drill_has_a_fault():
    assert set(drills.FAULTS) == set(drills.DRILLS)
    found = {fault for faults in drills.FAULTS.values() for fault in faults.split()}
    assert found == {f"F{number}" for number in range(1, 21)}
