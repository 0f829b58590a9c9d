"""The drill of killed workers in small numbers; it fails where candidates get lost or tried too often."""

import contextlib
import functools
import json
import sys
from collections import deque

import pytest
from toy import ROOT

sys.path.append(str(ROOT / "tools"))

from chaos import processes, worker
from chaos.report import Plan
from chaos_util import with_ray

from auto_panoptic.search.executors import in_process as executor


@pytest.fixture
def plan(tmp_path):
    return Plan(tmp_path / "drill", quick=True)


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
def test_killed_ray_workers(tmp_path):
    pytest.importorskip("ray")
    _, _, failures, numbers = with_ray("worker.worker", tmp_path / "drill")
    assert failures == [] and numbers["kills"] > 0
