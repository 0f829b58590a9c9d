"""SIGKILL of a search whose candidates Ray workers evaluate, resumed until it is done."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from pathlib import Path

from auto_panoptic.search.executors.ray import RayExecutor
from auto_panoptic.search.watchdog import marked

from . import pure
from .kill import until_done
from .processes import Process, fork
from .report import Outcome, Plan
from .worker import CYCLES, WORKERS, inherit_path

SECONDS = 0.3  # of an evaluation
LIMIT = 15.0  # seconds until everything that the search had started has ended
STARTING = 0.2  # part of the kills that come before the first evaluation, or soon after it
MOST_EVALUATIONS = 6  # before the other kills
MARK = "CHAOS_DRIVER"  # in the environment of all that a search starts


class Leader(Process):
    """:meth:`kill` is for the process alone, whatever it started."""

    def kill(self) -> bool:
        running = self.poll() is None
        if running:
            os.kill(self.pid, signal.SIGKILL)
        self.wait()
        return running and self.returncode == -signal.SIGKILL


def driver(plan: Plan) -> Outcome:
    """A kill costs one evaluation per worker at most and leaves no process; the results stay the same."""
    kills, number = plan.number(10, 1), CYCLES * pure.MODELS
    outcome = Outcome(f"searches of {number} candidates in {WORKERS} Ray workers, driver SIGKILLed, resumed")
    rng, bar = plan.rng(), plan.bar(kills, "driver")
    reference, runs = plan.folder / "reference", 0
    pure.whole(reference, pure.Evaluate(reference.with_suffix(".log")), cycles=CYCLES)
    outcome.numbers = {"runs": 0, "evaluated_again": 0, "slowest_end_seconds": 0.0}
    while outcome.count < kills and not outcome.failures:
        folder = plan.folder / f"run_{runs}"
        killed_driver(outcome, folder, rng, kills, bar.update)
        different = pure.differences(folder, reference, in_order=False)
        outcome.expect(not different, f"{folder.name}: other {', '.join(different)} than in one process")
        runs += 1
    outcome.numbers["runs"] = runs
    bar.close()
    return outcome


def killed_driver(outcome: Outcome, folder: Path, rng: random.Random, kills: int, update) -> None:
    """One search in ``folder``; its driver is killed until ``outcome`` has counted ``kills``, then ends."""
    folder.mkdir(parents=True)
    log, token, numbers = folder / "evaluations.log", f"{MARK}={folder}", outcome.numbers
    seen = [0, 0]  # evaluations, and records of an evaluation
    first = 10.0  # seconds until the first evaluation, once it is known

    def search():
        os.environ[MARK] = str(folder)
        inherit_path()
        shared = {"log": log, "seconds": SECONDS}
        with RayExecutor(_evaluate, lambda: shared, WORKERS) as executor:
            pure.search(folder, executor=executor, cycles=CYCLES)

    def moment(process):
        nonlocal first
        if outcome.count >= kills:
            process.wait()
        elif rng.random() < STARTING:
            process.wait(rng.uniform(0, 1.2 * first))
        else:
            began, goal = time.monotonic(), seen[0] + rng.randint(1, MOST_EVALUATIONS)
            while process.wait(0.02) is None and len(pure.evaluations(log)) < goal:
                if len(pure.evaluations(log)) == seen[0]:
                    first = time.monotonic() - began
            process.wait(rng.uniform(0, SECONDS))

    def ended():
        seconds, left = wait_for_end(token)
        numbers["slowest_end_seconds"] = max(numbers["slowest_end_seconds"], round(seconds, 2))
        outcome.expect(not left, f"{folder.name}: {left} processes are left after {seconds:.0f} s")

    def killed(records):
        ended()  # the workers, too, write to the log
        now = [len(pure.evaluations(log)), sum("duplicate_of" not in r for r in records)]
        again = (now[0] - seen[0]) - (now[1] - seen[1])
        seen[:] = now
        outcome.count += 1
        numbers["evaluated_again"] += again
        outcome.expect(0 <= again <= WORKERS, f"{folder.name}: a kill costs {again} evaluations")
        update()

    for failure in until_done(
        lambda: Leader(fork(search, folder / "output.log").pid), moment, folder, killed
    ):
        outcome.expect(False, failure)
    ended()


def _evaluate(shared: dict) -> pure.Evaluate:
    return pure.Evaluate(**shared)


def wait_for_end(token: str) -> tuple[float, int]:
    """Wait for the end of all processes with ``token`` in their environment.

    Returns:
        Seconds, at most LIMIT; how many were left then. They are killed.
    """
    start = time.monotonic()
    while (left := marked(token)) and time.monotonic() - start < LIMIT:
        time.sleep(0.05)
    seconds = time.monotonic() - start
    for process, _ in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    return seconds, len(left)
