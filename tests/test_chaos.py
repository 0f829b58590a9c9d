"""The fault drills of tools/chaos in small numbers; each of them fails where the search is broken."""

import contextlib
import functools
import json
import os
import subprocess
import sys
import time
from collections import deque

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from toy import PREFIX, ROOT

sys.path.append(str(ROOT / "tools"))

from chaos import changed, command, failed, journal, kill, lock, memory, order, processes, pure, real, worker
from chaos.report import Outcome, Plan, table

from auto_panoptic.errors import UserError
from auto_panoptic.explore import Ledger, ledger, locking
from auto_panoptic.search import InProcess, executor, run_search


@pytest.fixture
def plan(tmp_path):
    return Plan(tmp_path / "drill", quick=True)


def run(drill, plan):
    """A drill in this process."""
    plan.folder.mkdir()
    return drill(plan)


def passes(drill, plan):
    outcome = run(drill, plan)
    assert outcome.failures == [] and outcome.passed
    return outcome


@pytest.fixture
def own_toy_sets():
    """The drills register the toy data sets of their own folder under the names of the other tests' sets."""

    def forget():
        for name in [n for n in DatasetCatalog.list() if n.startswith(PREFIX)]:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)

    forget()
    yield
    forget()


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
    honest = executor.outcome_of

    def credulous(evaluate, architecture):
        outcome = honest(evaluate, architecture)
        if outcome["status"] == "failed":
            outcome = {**outcome, "status": "ok", "metrics": {"PQ": 99.0}}
        return outcome

    monkeypatch.setattr(executor, "outcome_of", credulous)
    found = []
    for policy in ("path_priority", "random"):
        found += failed.fails_at(plan.folder / policy, policy, pure.candidates(policy), 7, "nan")
    failures = " ".join(found)
    for message in ("failed are []", "is the best", "not ranked last", "selected is not", "not healed"):
        assert message in failures


def test_races(plan):
    assert passes(lock.lock, plan).numbers["slowest_refusal_seconds"] < 5


def test_two_that_run_are_found(plan, monkeypatch):
    monkeypatch.setattr(locking.fcntl, "flock", lambda *_: None)
    monkeypatch.setattr(lock, "LIMIT", 0.3)
    failures = run(lock.lock, plan).failures
    assert len(failures) == 4 and "2 of two run" in failures[0]


def test_a_holder_that_is_not_named_is_found(plan, monkeypatch):
    monkeypatch.setattr(locking, "_describe", lambda _: "somebody")
    assert "the holder is not named" in " ".join(run(lock.lock, plan).failures)


# ------------------------------------------------------------------ workers


class Forks:
    """Stands in for Ray: a process per attempt, two at a time; what dies is tried again."""

    def __init__(self, shared, attempts):
        self.shared, self.attempts = shared, attempts

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def run(self, items):
        waiting, running = deque((*item, 1) for item in items), []
        folder = worker.Path(self.shared["log"]).parent
        while waiting or running:
            while waiting and len(running) < worker.WORKERS:
                place, architecture, attempt = waiting.popleft()
                report = folder / f"{place}.json"
                process = processes.fork(
                    functools.partial(self.evaluate, architecture, report), folder / "log"
                )
                running.append((process, report, place, architecture, attempt))
            process, report, place, architecture, attempt = running.pop(0)
            if process.wait() == 0:
                yield place, json.loads(report.read_text())
            elif attempt < self.attempts:
                waiting.appendleft((place, architecture, attempt + 1))
            else:
                yield place, {"status": "failed", "metrics": {}, "seconds": {}, "error": "worker died"}

    def evaluate(self, architecture, report):
        report.write_text(json.dumps(executor.outcome_of(worker.Fatal(self.shared), architecture)))


def on_forks(plan, attempts=3):
    plan.folder.mkdir()
    return worker.killed_workers(plan, lambda shared: Forks(shared, attempts), contextlib.nullcontext())


@pytest.fixture
def deadly(monkeypatch):
    """Many die, so that some die three times."""
    monkeypatch.setattr(worker, "PROBABILITY", 0.6)
    monkeypatch.setattr(worker, "CYCLES", 1)


def test_killed_workers(plan, deadly):
    outcome = on_forks(plan)
    assert outcome.failures == [] and outcome.passed
    assert outcome.numbers["kills"] > 5 and outcome.numbers["failed"] > 0


def test_a_killed_candidate_that_is_given_up_too_early_is_found(plan, deadly):
    failures = " ".join(on_forks(plan, attempts=2).failures)
    assert "killed three times were" in failures and "was evaluated 1 times" not in failures


def test_a_late_retry_is_found(plan, deadly, monkeypatch):
    monkeypatch.setattr(worker, "LIMIT", 0.0001)
    assert "from a kill to the next attempt" in " ".join(on_forks(plan).failures)


def test_without_kills_nothing_is_proved(plan, deadly, monkeypatch):
    monkeypatch.setattr(worker, "PROBABILITY", 0.0)
    assert on_forks(plan).failures == ["no worker was killed"]


@pytest.mark.slow
def test_killed_ray_workers(plan):
    pytest.importorskip("ray")
    plan.folder.mkdir()
    outcome = command.drill(worker.worker, plan)
    assert outcome.failures == [] and outcome.numbers["kills"] > 0


# ------------------------------------------------------------------ changed headers


def continued(folder, *arguments):
    """Stands in for search_net.py --resume."""
    accept = [arguments[i + 1] for i, a in enumerate(arguments) if a == "--accept"]

    def search():
        if unknown := set(accept) - set(changed.ACCEPTABLE):
            raise UserError(f"--accept {unknown.pop()}: expected another")
        cfg = pure.config(folder, cycles=1)
        evaluate = InProcess(pure.Evaluate(folder / "log"))
        run_search(cfg, pure.SPACE, evaluate, pure.header(), resume=True, accept=accept)

    return processes.fork(search, folder / "output.log").wait()


@pytest.fixture
def recorded(tmp_path):
    """A finished search."""
    assert pure.whole(tmp_path / "original", pure.Evaluate(tmp_path / "log"), cycles=1) == 0
    return Ledger(tmp_path / "original/search/ledger.jsonl")


KEYS = [("seed",), ("space", "mask.0"), ("weights",), ("data", "search"), ("versions", "auto_panoptic")]


def test_changed_headers(tmp_path, recorded):
    assert set(KEYS) < set(changed.leaves(recorded.header))
    for key in KEYS:
        assert changed.altered(tmp_path / ".".join(key), recorded, key, continued) == []


def test_a_change_that_is_not_refused_is_found(tmp_path, recorded, monkeypatch):
    monkeypatch.setattr(ledger, "_difference", lambda *_: "")
    assert "exit code 0, not a diff" in changed.altered(tmp_path / "a", recorded, ("seed",), continued)[0]
    monkeypatch.setattr(ledger, "_difference", lambda *_: "something")
    found = changed.altered(tmp_path / "b", recorded, ("weights",), continued)
    assert "not a diff that names it" in found[0] and "not accepted, exit code 2" in found[-1]


@pytest.mark.slow
def test_changed_headers_and_the_command(plan, own_toy_sets):
    assert passes(changed.changed, plan).count == 3


# ------------------------------------------------------------------ order, memory


def fair(count=4):
    return pure.candidates(cycles=1)[:count]


def scores():
    return InProcess(lambda a: ({"PQ": pure.utility(a)}, {})).evaluate


def test_scores_do_not_depend_on_the_order(plan):
    outcome = run(lambda p: order.equal_scores(p, scores, fair()), plan)
    assert outcome.passed and outcome.count == 12


def test_a_trace_of_earlier_candidates_is_found(plan):
    def tracing():
        calls = []

        def evaluate(architecture):
            calls.append(architecture)
            return {"PQ": pure.utility(architecture) + 1e-12 * (len(calls) > 1)}, {}

        return evaluate

    outcome = run(lambda p: order.equal_scores(p, tracing, fair()), plan)
    assert len(outcome.failures) == 9 and "reversed: candidate 0 scores" in " ".join(outcome.failures)


def test_equal_scores_prove_nothing(plan):
    outcome = run(lambda p: order.equal_scores(p, lambda: lambda a: ({"PQ": 1.0}, {}), fair()), plan)
    assert outcome.failures == ["all candidates score the same"]


def memory_of(plan, evaluate):
    return run(lambda p: memory.flat_memory(p, lambda: evaluate, pure.SPACE, 12), plan)


def test_flat_memory(plan):
    outcome = memory_of(plan, scores())
    assert outcome.passed and outcome.numbers["children"] == [0] and outcome.numbers["ratio"] < 1.05


def test_a_leak_and_processes_left_behind_are_found(plan):
    kept = []

    def leaking(architecture):
        kept.append(np.ones(2**20))
        if len(kept) % 5 == 0:
            kept.append(subprocess.Popen(["sleep", "60"]))
        return {"PQ": pure.utility(architecture)}, {}

    failures = memory_of(plan, leaking).failures
    assert [f.split(":")[0] for f in failures] == [
        "resident MiB",
        "child processes",
        "2 processes are left",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("drill", [order.order, memory.memory], ids=["order", "memory"])
def test_a_toy_supernet(drill, plan, own_toy_sets):
    passes(drill, plan)


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
