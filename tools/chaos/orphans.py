"""Commands with children whose parent is killed: the children end with it."""

from __future__ import annotations

import os
import signal
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from toy import ROOT, make_shapes, write_config

from .processes import Process, command, error_line
from .report import Outcome, Plan

LIMIT = 10.0  # seconds until the last child has ended
MARK = "CHAOS_MARK"  # in the environment of a command and of all that it starts
THREADS = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}


def marked(arguments: Sequence[str], log: Path) -> tuple[Process, str]:
    """Start a command; the mark by which it and its descendants are known."""
    mark = uuid.uuid4().hex
    return command(arguments, log, {**THREADS, MARK: mark}), mark


def alive(mark: str) -> list[int]:
    """Processes with that mark, but for those that have ended and were not waited for."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
            if state != "Z" and f"{MARK}={mark}".encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def gone(mark: str, limit: float = LIMIT) -> tuple[list[int], float]:
    """(processes that are left after ``limit`` seconds, which are then killed; seconds until none was)."""
    start = time.monotonic()
    while (left := alive(mark)) and time.monotonic() - start < limit:
        time.sleep(0.1)
    seconds = time.monotonic() - start
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    return left, seconds


def orphans(plan: Plan) -> Outcome:
    """Nothing is left after ten seconds: neither ranks of torchrun nor workers of a data loader."""
    outcome = Outcome("torchrun and trainings with data workers whose parent is SIGKILLed")
    rng, slowest = plan.rng(), 0.0
    config = write_config(plan.folder / "toy.yaml", make_shapes(plan.folder))
    options = ["SOLVER.MAX_ITER", "10000", "SOLVER.STEPS", "(9000,)", "DATALOADER.NUM_WORKERS", "2"]
    script = [str(ROOT / "train_net.py"), "--config-file", str(config), "--resume", *options]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    commands = {"torchrun": torchrun, "data workers": [sys.executable]}
    for number in range(plan.number(3, 1)):
        for name, start in commands.items():
            outcome.count += 1
            output = plan.folder / f"{name}_{number}"
            log = output.with_suffix(".log")
            process, mark = marked([*start, *script, "OUTPUT_DIR", str(output)], log)
            began = time.monotonic()
            while (
                process.poll() is None
                and not (output / "log.txt").exists()
                and time.monotonic() - began < 120
            ):
                time.sleep(0.1)
            process.wait(rng.uniform(1, 5))
            children = len(alive(mark)) - 1
            if process.poll() is not None or children < 1:
                outcome.expect(False, f"{name}: exit code {process.returncode}: {error_line(log)}")
                continue
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            left, seconds = gone(mark)
            slowest = max(slowest, seconds)
            outcome.expect(not left, f"{name}: {len(left)} of {children} children outlive their parent")
    outcome.numbers = {"slowest_seconds": round(slowest, 1)}
    return outcome
