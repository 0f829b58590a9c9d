"""SIGTERM and SIGINT at random moments: saved, with an exit code of its own, and continued."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from . import pure
from .processes import Process, error_line, fork
from .report import Outcome, Plan
from .training import Training, differences, losses

CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}
LIMIT = 30.0  # seconds until the process has ended
LAST = 12  # iterations


def signals(plan: Plan) -> Outcome:
    """Ended within half a minute; no iteration and no candidate that was finished is done again."""
    number = plan.number(20, 2)
    outcome = Outcome("SIGTERM, SIGINT (once, twice) at random moments of trainings and searches, continued")
    rng, slowest, numbers = plan.rng(), 0.0, {"trainings": 0, "searches": 0, "iterations_repeated": 0}
    training = Training(plan.folder, "SOLVER.CHECKPOINT_PERIOD", 1000)  # what is saved is saved by the signal
    reference = plan.folder / "reference"
    start = time.monotonic()
    training.start(reference).wait()
    length = time.monotonic() - start
    pure.whole(plan.folder / "searched", pure.Evaluate(plan.folder / "reference.log"))
    for place in range(number):
        outcome.count += 1
        which = list(CODES)[place // 2 % 2]
        folder = plan.folder / f"{place}"
        twice = rng.random() < 0.3
        if place % 2 == 0:
            begin = lambda f=folder: training.start(f)  # noqa: E731
            ready = lambda f=folder: len(losses(f)) > rng.randrange(0, 6)  # noqa: E731
            failure, seconds = ended(begin, ready, which, folder, twice, length)
            before = losses(folder)
            if not failure and begin().wait() != 0:
                failure = f"not continued: {error_line(folder / 'output.log')}"
            again = {i for i, _ in losses(folder)[len(before) :]} & {i for i, _ in before}
            numbers["iterations_repeated"] += len(again)
            outcome.expect(
                twice or not again, f"{which.name}, training {place}: {len(again)} iterations repeated"
            )
            different = [] if failure else differences(folder, reference)
            different = [name for name in different if name != "settings"]
            numbers["trainings"] += 1
        else:
            begin = lambda f=folder: _search(f)  # noqa: E731
            ready = lambda f=folder: len(pure.evaluations(f / "evaluations.log")) > 5  # noqa: E731
            failure, seconds = ended(begin, ready, which, folder, twice, 5.0)
            if not failure and begin().wait() != 0:
                failure = f"not continued: {error_line(folder / 'output.log')}"
            different = [] if failure else pure.differences(folder, plan.folder / "searched")
            numbers["searches"] += 1
        slowest = max(slowest, seconds)
        outcome.expect(not failure, f"{which.name}, {place}: {failure}")
        outcome.expect(
            not different, f"{which.name}, {place}: other {', '.join(different)} than uninterrupted"
        )
    outcome.numbers = {**numbers, "slowest_seconds": round(slowest, 1)}
    return outcome


def _search(folder: Path) -> Process:
    folder.mkdir(exist_ok=True)
    evaluate = pure.Evaluate(folder / "evaluations.log", 0.01)
    return fork(lambda: pure.search(folder, evaluate), folder / "output.log")


def ended(
    begin: Callable[[], Process],
    ready: Callable[[], bool],
    which: signal.Signals,
    folder: Path,
    twice: bool,
    patience: float,
) -> tuple[str, float]:
    """(what is wrong with how a process ends by a signal, seconds it took)."""
    process, start = begin(), time.monotonic()
    while process.poll() is None and not ready() and time.monotonic() - start < 10 * patience + 30:
        time.sleep(0.002)
    os.kill(process.pid, which)
    start = time.monotonic()
    if twice:
        time.sleep(0.05)
        if process.poll() is None:
            os.kill(process.pid, which)
    code = process.wait(LIMIT)
    seconds = time.monotonic() - start
    text = (folder / "output.log").read_text()
    process.kill()
    if code == 0:
        return "", seconds  # it was done before
    if code != CODES[which] or "Traceback" in text:
        return f"exit code {code} after {seconds:.1f} s: {text.splitlines()[-1:]}", seconds
    return "", seconds
