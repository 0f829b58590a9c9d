"""SIGKILL before every single write, sync, rename and removal of everything that is saved."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from .processes import error_line, fork
from .report import Outcome, Plan
from .saves import Save, saves

CALLS = {"write", "writelines", "fsync", "rename", "replace", "unlink", "remove", "ftruncate", "truncate"}
CALLS |= {"pwrite", "open", "mkdir", "close", "flush", "link", "rmdir", "imwrite"}
OURS = ("auto_panoptic", "quickstart.py")


class Boundaries:
    """Counts calls that change files, of this package's code; kills its process before the ``fatal``-th."""

    def __init__(self, fatal: int = 0):
        self.fatal, self.count = fatal, 0

    def __call__(self, frame, event: str, function) -> None:
        if event != "c_call" or getattr(function, "__name__", "") not in CALLS:
            return
        for _ in range(4):  # by way of pathlib or contextlib
            if frame is None:
                return
            if any(part in frame.f_code.co_filename for part in OURS):
                break
            frame = frame.f_back
        else:
            return
        self.count += 1
        if self.count == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)


def boundaries(plan: Plan) -> Outcome:
    """What is left is the old or the new, never anything between, and one can go on from it."""
    outcome = Outcome("SIGKILL before each write, sync, rename and removal of each save")
    os.sched_getaffinity = lambda _: {0}  # no pools: everything happens in one process
    for name, save in saves(plan.folder / "common").items():
        total = counted(plan.folder / f"{name}_whole", save)
        outcome.expect(total > 2, f"{name}: {total} boundaries")
        for number in range(1, total + 1, plan.number(1, max(1, total // 8))):
            folder = plan.folder / f"{name}_{number}"
            outcome.count += 1
            if failure := killed_at(folder, save, number):
                outcome.expect(False, f"{name}, boundary {number} of {total}: {failure}")
        outcome.numbers[name] = total
    return outcome


def counted(folder: Path, save: Save) -> int:
    """Boundaries of a save that nobody kills."""
    folder.mkdir(parents=True)
    save.prepare(folder)

    def run():
        count = Boundaries()
        sys.setprofile(count)
        save.save(folder)
        sys.setprofile(None)
        (folder / "count").write_text(str(count.count))

    code = fork(run, folder.with_suffix(".log")).wait()
    return int((folder / "count").read_text()) if code == 0 else 0


def killed_at(folder: Path, save: Save, number: int) -> str:
    """What is wrong after a kill at that boundary; "" if nothing is."""
    folder.mkdir(parents=True)
    log = folder.with_suffix(".log")

    def run():
        sys.setprofile(Boundaries(number))
        save.save(folder)

    def prepare():
        save.prepare(folder)

    if fork(prepare, log).wait() != 0:
        return f"not prepared: {error_line(log)}"
    code = fork(run, log).wait()
    if code not in (0, -signal.SIGKILL):
        return f"exit code {code}: {error_line(log)}"
    return after(folder, save, log)


def after(folder: Path, save: Save, log: Path) -> str:
    """What is wrong with a folder in which a save was interrupted."""
    report = folder.with_suffix(".problem")
    code = fork(lambda: report.write_text(save.problem(folder)), log).wait()
    return report.read_text() if code == 0 else f"one cannot go on, exit code {code}: {error_line(log)}"
