"""Clocks that jump by a day, and times of files in reversed order."""

from __future__ import annotations

import os
import random
import shutil
import time
from pathlib import Path

from . import pure
from .processes import error_line, fork
from .report import Outcome, Plan
from .training import Training, differences

DAY = 86_400


def clock(plan: Plan) -> Outcome:
    """No effect: the results of interrupted searches and trainings are those of steady clocks."""
    runs = plan.number(20, 2)
    outcome = Outcome("runs killed and resumed under jumping clocks, times of files reversed")
    rng = plan.rng()
    training = Training(plan.folder)
    references = {"search": plan.folder / "search_reference", "training": plan.folder / "training_reference"}
    pure.whole(references["search"], pure.Evaluate(plan.folder / "reference.log"), cycles=2)
    training.start(references["training"]).wait()
    outcome.numbers = dict.fromkeys(references, 0)
    for number in range(runs):
        what = ("search", "training")[number % 2]
        folder = plan.folder / f"{what}_{number}"
        folder.mkdir()
        seed = rng.random()
        outcome.count += 1
        outcome.numbers[what] += 1
        if what == "search":
            code = _search(folder, seed)
            different = pure.differences(folder, references[what])
        else:
            code = _training(training, references[what], folder, seed)
            different = differences(folder, references[what])
        outcome.expect(code == 0, f"{folder.name}: exit code {code}: {error_line(folder / 'output.log')}")
        outcome.expect(not different, f"{folder.name}: other {', '.join(different)} than with a steady clock")
    return outcome


def _search(folder: Path, seed: float) -> int | None:
    evaluate = pure.Evaluate(folder / "evaluations.log", 0.005)

    def run():
        jump(random.Random(seed))
        pure.search(folder, evaluate, cycles=2)

    process = fork(run, folder / "output.log")
    process.wait(0.15)
    process.kill()
    reverse(folder)
    return fork(run, folder / "output.log").wait()


def _training(training: Training, reference: Path, folder: Path, seed: float) -> int | None:
    """Goes on from the checkpoints but for the last, the oldest of them the newest by its time."""
    shutil.copytree(reference, folder, dirs_exist_ok=True)
    output = folder / "output"
    (output / "model_final.pth").unlink()
    newest = sorted(output.glob("model_0*.pth"))[-1]
    newest.unlink()
    reverse(folder)
    return training.start(folder, lambda: jump(random.Random(seed))).wait()


def jump(rng: random.Random) -> None:
    """From now on this process's clock jumps by up to a day at every look."""
    steady = time.time
    time.time = lambda: steady() + rng.choice((-DAY, 0, DAY)) * rng.random()
    time.time_ns = lambda: int(time.time() * 1e9)


def reverse(folder: Path) -> None:
    """Files get the times of each other: the first written becomes the last."""
    files = sorted((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_mtime_ns)
    times = [p.stat().st_mtime_ns for p in files]
    for path, moment in zip(files, reversed(times), strict=True):
        os.utime(path, ns=(moment, moment))
