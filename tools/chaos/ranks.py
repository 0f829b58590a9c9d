"""Trainings in two processes, of which one raises or is lost."""

from __future__ import annotations

import math
import os
import signal
import time
from pathlib import Path

from forked_ranks import on_ranks
from toy import ToyNet

from auto_panoptic.errors import UserError

from .report import Outcome, Plan
from .training import Training

MESSAGE = "the image cannot be drawn"
LIMIT = 60.0  # seconds until every process has ended


def raises() -> None:
    raise RuntimeError(MESSAGE)


def refuses() -> None:
    raise UserError(MESSAGE)


def dies() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def diverges() -> float:
    return math.nan  # what its losses are multiplied by


def ranks(plan: Plan) -> Outcome:
    """Every process ends with an error within a minute; what went wrong is shown once."""
    outcome = Outcome("trainings in 2 processes, one raises an error, a user's error, NaN, or is SIGKILLed")
    training = Training(plan.folder)
    rng, slowest = plan.rng(), 0.0
    cases = [(what, rank) for what in (raises, refuses, dies, diverges) for rank in (0, 1)]
    for what, rank in cases if not plan.quick else cases[1::2]:
        outcome.count += 1
        failure, seconds = lost(
            training, plan.folder / f"{what.__name__}_{rank}", what, rank, rng.randrange(1, 9)
        )
        slowest = max(slowest, seconds)
        outcome.expect(not failure, f"process {rank} {what.__name__}: {failure}")
    outcome.numbers = {"slowest_seconds": round(slowest, 1)}
    return outcome


def lost(training: Training, folder: Path, what, rank: int, iteration: int) -> tuple[str, float]:
    """(what is wrong with a training in which a process does this, seconds until all have ended)."""

    def poison(own: int):
        forward, calls = ToyNet.forward, []

        def poisoned(self, batch):
            calls.append(None)
            if own == rank and len(calls) > 2 * iteration:
                (folder / "moment").write_text(str(time.time()))
                factor = what()
                return {name: loss * factor for name, loss in forward(self, batch).items()}
            return forward(self, batch)

        ToyNet.forward = poisoned

    def run(own: int):
        training.run(folder, lambda: poison(own))

    codes = on_ranks(2, run, folder / "logs", timeout=LIMIT + 30)
    ended = time.time()
    if not (folder / "moment").exists():
        return f"exit codes {codes} before anything went wrong", 0.0
    seconds = ended - float((folder / "moment").read_text())
    text = "".join((folder / f"logs/{own}.log").read_text() for own in range(2))
    if None in codes or 0 in codes:
        return f"exit codes {codes}", seconds
    if seconds > LIMIT:
        return f"ended after {seconds:.0f} s", seconds
    shown = text.count("training diverged at" if what is diverges else MESSAGE)
    if what is diverges and codes != [3, 3]:
        return f"exit codes {codes}, expected 3", seconds
    if what is not dies and shown != 1:
        return f"the error is shown {shown} times", seconds
    if what is refuses and ("Traceback" in text or codes[rank] != 2):
        return f"exit codes {codes}, or a traceback", seconds
    return "", seconds
