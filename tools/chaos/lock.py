"""Two processes, one directory."""

from __future__ import annotations

import datetime
import json
import os
import re
import socket
import time

from . import pure
from .processes import error_line, fork
from .report import Outcome, Plan
from .training import Training, differences

LIMIT = 5.0  # seconds until the loser is told
SIZE = {"cycles": 1, "models": pure.MODELS}


def lock(plan: Plan) -> Outcome:
    """Exactly one of two runs, the other says who holds the directory; a dead holder's lock is taken over."""
    count = plan.number(100, 4)
    outcome = Outcome("races of two searches (every second winner SIGKILLed, taken over), of two trainings")
    bar = plan.bar(count, "lock")
    reference = plan.folder / "reference"
    pure.whole(reference, pure.Evaluate(plan.folder / "reference.log"), **SIZE)
    slowest = 0.0
    for number in range(count):
        outcome.count += 1
        failures, seconds = race(plan.folder / f"race_{number}", reference, take_over=number % 2 == 1)
        slowest = max(slowest, seconds)
        for failure in failures:
            outcome.expect(False, f"race_{number}: {failure}")
        bar.update()
    bar.close()
    trainings(plan, outcome)
    outcome.numbers = {"slowest_refusal_seconds": round(slowest, 3)}
    return outcome


def trainings(plan: Plan, outcome: Outcome) -> None:
    """Races of two trainings: one trains, the other is refused by a line that names the first."""
    training, reference = Training(plan.folder), plan.folder / "training_reference"
    training.start(reference).wait()
    for number in range(plan.number(10, 1)):
        outcome.count += 1
        folders = [plan.folder / f"training_{number}" / name for name in "ab"]
        shared = plan.folder / f"training_{number}/output"
        shared.mkdir(parents=True)
        for folder in folders:
            folder.mkdir()
            (folder / "output").symlink_to(shared)
        rivals = [training.start(folder) for folder in folders]
        codes = [rival.wait() for rival in rivals]
        lines = [error_line(folder / "output.log") for folder in folders]
        if sorted(codes) != [0, 2]:
            outcome.expect(False, f"training_{number}: exit codes {codes}: {lines}")
            continue
        winner, line = rivals[codes.index(0)].pid, lines[codes.index(2)]
        outcome.expect(f"pid {winner}," in line, f"training_{number}: {winner} is not named: {line}")
        different = differences(folders[codes.index(0)], reference)
        outcome.expect(not different, f"training_{number}: other {', '.join(different)} than alone")


def race(folder, reference, take_over: bool) -> tuple[list[str], float]:
    """(what went wrong, seconds until the loser had ended)."""
    folder.mkdir(parents=True)
    log, gate = folder / "evaluations.log", folder / "gate"
    outputs = [folder / f"output_{i}.log" for i in range(2)]
    read_end, write_end = os.pipe()

    def contend():
        os.close(write_end)
        os.read(read_end, 1)  # returns in both when the parent closes its end
        pure.search(folder, pure.Evaluate(log, gate=gate), **SIZE)

    rivals = [fork(contend, output) for output in outputs]
    os.close(read_end)
    time.sleep(0.02)
    start = time.monotonic()
    os.close(write_end)
    while all(rival.poll() is None for rival in rivals) and time.monotonic() - start < LIMIT:
        time.sleep(0.002)
    seconds = time.monotonic() - start
    ended = [rival.poll() is not None for rival in rivals]
    if sum(ended) != 1:
        for rival in rivals:
            rival.kill()
        return [f"{2 - sum(ended)} of two run after {seconds:.1f} s"], seconds
    loser, winner = ended.index(True), ended.index(False)
    failures = []
    message = error_line(outputs[loser])
    named = re.search(r"in use by another process \(host (\S+), pid (\d+), started (\S+)\)", message)
    if rivals[loser].returncode != 2 or not named:
        failures.append(f"exit code {rivals[loser].returncode}, the holder is not named: {message}")
    elif (named[1], int(named[2])) != (socket.gethostname(), rivals[winner].pid) or not recent(named[3]):
        failures.append(f"another process than {rivals[winner].pid} is named: {message}")
    third = None
    if take_over:
        rivals[winner].kill()
        gate.touch()
        third = fork(lambda: pure.search(folder, pure.Evaluate(log), **SIZE), folder / "third.log")
        if third.wait() != 0:
            failures.append(f"not taken over: {error_line(folder / 'third.log')}")
        holder = json.loads((folder / "search/ledger.jsonl.lock").read_text())
        if holder["pid"] != third.pid:
            failures.append(f"the lock names {holder['pid']}, taken over by {third.pid}")
    else:
        gate.touch()
        if rivals[winner].wait() != 0:
            failures.append(f"the winner ended with exit code {rivals[winner].returncode}")
    workers = {rivals[winner].pid, *([third.pid] if third else [])}
    if strangers := {pid for _, pid, _ in pure.evaluations(log)} - workers:
        failures.append(f"processes {strangers} evaluated without the lock")
    if different := pure.differences(folder, reference):
        failures.append(f"other {', '.join(different)} than alone")
    return failures, seconds


def recent(text: str) -> bool:
    """Whether the time is that of this race, within a minute."""
    age = datetime.datetime.now().astimezone() - datetime.datetime.fromisoformat(text)
    return abs(age.total_seconds()) < 60
