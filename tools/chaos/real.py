"""The real command on a real supernet, SIGKILLed on the way."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from auto_panoptic.errors import UserError

from . import pure
from .kill import JOURNALS, until_done
from .processes import command, error_line
from .report import Outcome, Plan

ROOT = Path(__file__).resolve().parents[2]
THREADS = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}  # of both searches: sums depend on them


def real(plan: Plan) -> Outcome:
    """search_net.py over the supernet of ``plan``, killed and not killed: the same bytes."""
    if not (plan.weights and plan.config_file):
        raise UserError("the drill 'real' needs a supernet: --weights FILE --config-file FILE")
    cycles = plan.number(pure.CYCLES, 1)
    arguments = [sys.executable, str(ROOT / "search_net.py"), "--config-file", plan.config_file]
    arguments += ["--weights", plan.weights, "--cycles", str(cycles), "--models-per-cycle", str(pure.MODELS)]
    what = f"search_net.py, {cycles * pure.MODELS} candidates"
    return killed_command(plan, arguments, what, plan.number(20, 3))


def killed_command(
    plan: Plan, arguments: Sequence[str], what: str, kills: int, in_order: bool = True
) -> Outcome:
    """Compare a command that searches with itself, killed ``kills`` times.

    Args:
        plan: folder and seed.
        arguments: the command; --resume OUTPUT_DIR FOLDER is added.
        what: the command in a few words.
        kills: how often to kill; some while it starts, the others after some candidates or trainings.
        in_order: whether results arrive in the same order each time.
    """
    outcome = Outcome(f"{what}, SIGKILLed >= {kills} times, resumed")
    rng, bar = plan.rng(), plan.bar(kills, "real")
    folders = [plan.folder / "straight", plan.folder / "killed"]
    for folder in folders:
        folder.mkdir(parents=True)

    def start(folder):
        line = [*arguments, "--resume", "OUTPUT_DIR", str(folder)]
        return command(line, folder / "output.log", THREADS)

    began = time.monotonic()
    process, first = start(folders[0]), None
    while process.wait(0.05) is None:
        if first is None and recorded(folders[0]):
            first = time.monotonic() - began
    total = time.monotonic() - began
    if process.returncode != 0 or first is None:
        outcome.expect(False, f"exit code {process.returncode}: {error_line(folders[0] / 'output.log')}")
        return outcome
    candidates = recorded(folders[0])
    pace = (total - first) / max(1, candidates - 1)  # seconds per candidate
    bar.write(f"uninterrupted: {total:.0f} s, {first:.0f} s to the first candidate", file=sys.stderr)

    def moment(process):
        """Progress so far sets how far this attempt may go: the search must outlast the kills."""
        done = recorded(folders[1])
        left, due = candidates - done, kills - outcome.count
        if due <= 0:  # enough: let it end
            process.wait()
            return
        goal = rng.randint(0, max(0, min(2 * left // (due + 1), left - 2)))
        if goal:
            while process.wait(0.02) is None and recorded(folders[1]) < done + goal:
                pass
            process.wait(rng.uniform(0, pace))
        else:
            process.wait(rng.uniform(0, first + pace * (left > 2)))

    def killed(records):
        outcome.count += 1
        history.append(len(records))
        bar.update()

    history: list[int] = []
    for failure in until_done(lambda: start(folders[1]), moment, folders[1], killed):
        outcome.expect(False, f"{failure}: {error_line(folders[1] / 'output.log')}")
    different = pure.differences(folders[1], folders[0], in_order)
    outcome.expect(not different, f"other {', '.join(different)} than uninterrupted")
    outcome.expect(outcome.count >= kills, f"{outcome.count} kills, {kills} were asked for")
    outcome.numbers = {
        "candidates": len(pure.records(folders[1])),
        "trainings": len(pure.trainings(folders[1])),
        "records_at_each_kill": history,
        "seconds_uninterrupted": round(total, 1),
        "load": round(os.getloadavg()[0], 2),
    }
    bar.close()
    return outcome


def recorded(folder: Path) -> int:
    """Complete records of ledger and finals; the first line of each is a header."""
    paths = [folder / "search" / name for name in JOURNALS]
    return sum(max(0, path.read_bytes().count(b"\n") - 1) for path in paths if path.exists())
