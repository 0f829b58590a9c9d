"""Workers that are SIGKILLed while they evaluate."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from auto_panoptic.search.executors.ray import RayExecutor

from . import pure
from .report import Outcome, Plan

PROBABILITY = 0.2
ATTEMPTS = 3
LIMIT = 30.0  # seconds until a killed candidate is evaluated again, or counts as failed
WORKERS = 2
CYCLES = 2  # of a search: a new worker takes seconds


class Fatal:
    """Scores as :class:`pure.Evaluate`, and kills its process at the attempts that ``doom`` names.

    Args:
        shared: "log" of the evaluations, "doom": {key of a candidate: numbers of its fatal attempts}.
    """

    def __init__(self, shared: dict):
        self.doom, self.evaluate = shared["doom"], pure.Evaluate(Path(shared["log"]))

    def __call__(self, architecture):
        name = pure.key(architecture)
        attempt = sum(k == name for k, _, _ in pure.evaluations(self.evaluate.log))
        if attempt in self.doom.get(name, ()):
            pure.append(self.evaluate.log, f"{name} {os.getpid()} {time.monotonic()}\n")
            os.kill(os.getpid(), signal.SIGKILL)
        return self.evaluate(architecture)


class Timed:
    """An executor that leaves a line in ``log`` when an outcome arrives."""

    def __init__(self, executor, log: Path):
        self.executor, self.log = executor, log

    def run(self, items: Iterable[tuple]):
        items = list(items)
        names = {place: pure.key(architecture) for place, architecture in items}
        for place, outcome in self.executor.run(items):
            pure.append(self.log, f"{names[place]} {os.getpid()} {time.monotonic()}\n")
            yield place, outcome


def worker(plan: Plan) -> Outcome:
    """Ray workers on this machine; see :func:`killed_workers`."""

    def executor(shared):
        return RayExecutor(Fatal, lambda: shared, WORKERS)

    return killed_workers(plan, executor, cluster(WORKERS))


def inherit_path() -> None:
    """Let Ray's workers find this package."""
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(path for path in sys.path if path))


@contextlib.contextmanager
def cluster(cpus: int):
    """Ray on this machine with so many CPUs, whatever it has."""
    inherit_path()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    ray.init(
        address="local",
        num_cpus=cpus,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=10**8,
    )
    try:
        yield
    finally:
        ray.shutdown()


def killed_workers(plan: Plan, make_executor: Callable[[dict], object], around) -> Outcome:
    """Each attempt at a candidate kills its worker with p = 0.2; three in a row are a failure.

    Args:
        plan: folder, seed and numbers.
        make_executor: context manager of an executor that evaluates as :class:`Fatal` (of its argument).
        around: context in which it works, entered once.
    """
    searches = plan.number(20, 1)
    number = CYCLES * pure.MODELS
    outcome = Outcome(f"{searches} searches of {number} candidates, workers SIGKILLed with p = {PROBABILITY}")
    rng, slowest, numbers = plan.rng(), 0.0, {"kills": 0, "failed": 0, "identical_to_undisturbed": 0}
    plans = [dooms(rng) for _ in range(searches)]
    for search, doom in enumerate(plans):  # before the threads of Ray: processes are forked here
        events = dict.fromkeys(dead(doom), "crash")  # a failure too: the same ranks
        reference = plan.folder / f"reference_{search}"
        pure.whole(reference, pure.Evaluate(reference.with_suffix(".log"), events=events), cycles=CYCLES)
    undisturbed = plan.folder / "undisturbed"
    pure.whole(undisturbed, pure.Evaluate(undisturbed.with_suffix(".log")), cycles=CYCLES)
    bar = plan.bar(searches, "worker")
    with around:
        for search, doom in enumerate(plans):
            folder = plan.folder / f"search_{search}"
            folder.mkdir(parents=True)
            outcome.count += 1
            failures, seconds = disturbed(folder, make_executor, doom)
            reference = plan.folder / f"reference_{search}"
            outcome.expect(
                pure.results(folder) == pure.results(reference),
                f"{folder.name}: other results than in one process",
            )
            for failure in failures:
                outcome.expect(False, f"{folder.name}: {failure}")
            slowest = max(slowest, seconds)
            numbers["kills"] += sum(map(len, doom.values()))
            numbers["failed"] += len(dead(doom))
            numbers["identical_to_undisturbed"] += pure.results(folder) == pure.results(undisturbed)
            bar.update()
    bar.close()
    outcome.expect(numbers["kills"], "no worker was killed")
    outcome.numbers = {**numbers, "slowest_recovery_seconds": round(slowest, 2)}
    return outcome


def dead(doom: dict[str, list[int]]) -> set[str]:
    """Candidates whose every attempt is fatal."""
    return {name for name, fatal in doom.items() if len(fatal) == ATTEMPTS}


def dooms(rng: random.Random) -> dict[str, list[int]]:
    """{key: the attempts, from 0, that kill the worker}, of those candidates that have any."""
    found = {}
    for architecture in pure.candidates(cycles=CYCLES):
        fatal = 0
        while fatal < ATTEMPTS and rng.random() < PROBABILITY:
            fatal += 1
        if fatal:
            found[pure.key(architecture)] = list(range(fatal))
    return found


def disturbed(folder: Path, make_executor: Callable, doom: dict[str, list[int]]) -> tuple[list[str], float]:
    """(what went wrong, the longest time from a kill to the next attempt or the verdict) of one search."""
    log, arrivals = folder / "evaluations.log", folder / "arrivals.log"
    try:
        with open(folder / "output.log", "w") as output, contextlib.redirect_stderr(output):
            with make_executor({"doom": doom, "log": str(log)}) as executor:
                pure.search(folder, executor=Timed(executor, arrivals), cycles=CYCLES)
    except Exception as error:
        return [f"{type(error).__name__}: {error}"], 0.0
    failures = []
    architectures = {pure.key(a): a.indices() for a in pure.candidates(cycles=CYCLES)}
    failed = [r["architecture"] for r in pure.records(folder) if r["status"] == "failed"]
    found = {name for name, indices in architectures.items() if indices in failed}
    if found != dead(doom):
        failures.append(f"failed are {sorted(found)}, killed three times were {sorted(dead(doom))}")
    begun = pure.evaluations(log)
    for name in architectures:
        times, expected = sum(k == name for k, _, _ in begun), min(ATTEMPTS, len(doom.get(name, ())) + 1)
        if times != expected:
            failures.append(f"candidate {name} was evaluated {times} times, not {expected}")
    slowest = 0.0
    for name, fatal in doom.items():
        moments = [t for k, _, t in begun + pure.evaluations(arrivals) if k == name]
        waits = [after - before for before, after in zip(moments[: len(fatal)], moments[1:], strict=False)]
        slowest = max([slowest, *waits])
    if slowest > LIMIT:
        failures.append(f"{slowest:.1f} s from a kill to the next attempt")
    return failures, slowest
