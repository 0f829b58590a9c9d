"""``make quickstart`` ended at random moments, and called again."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from toy import ROOT

from .orphans import gone, marked
from .processes import error_line
from .report import Outcome, Plan

SIGNALS = (signal.SIGTERM, signal.SIGKILL, signal.SIGINT)


def quickstart(plan: Plan) -> Outcome:
    """No process is left within ten seconds, the next call continues, and the result is the same."""
    ends = plan.number(10, 2)
    outcome = Outcome("make quickstart ended at random moments by SIGTERM, SIGKILL, SIGINT, and called again")
    rng, slowest, codes = plan.rng(), 0.0, []
    start = time.monotonic()
    expected = result(plan.folder / "reference")
    length = time.monotonic() - start
    outcome.expect(expected, f"uninterrupted: {error_line(plan.folder / 'reference.log')}")
    folder = plan.folder / "interrupted"
    while outcome.count < ends and not outcome.failures:
        process, mark = begin(folder)
        process.wait(rng.uniform(1, 2 * length / ends))
        if process.poll() is not None:
            break
        which = SIGNALS[outcome.count % len(SIGNALS)]
        outcome.count += 1
        os.kill(process.pid, which)
        code = process.wait(30)
        left, seconds = gone(mark)
        slowest = max(slowest, seconds)
        codes.append(code)
        outcome.expect(not left, f"{which.name}: {len(left)} processes are left after 10 s")
        # A shell shows the system's -2 and -15, before Python has begun, as 130 and 143, too.
        outcome.expect(code in (130, 143, -2, -9, -15), f"{which.name}: exit code {code}")
    outcome.expect(outcome.count >= min(ends, 5), f"done after {outcome.count} interruptions")
    found = result(folder)
    outcome.expect(found == expected, f"PQ {found}, uninterrupted {expected}")
    outcome.numbers = {"PQ": found, "uninterrupted_seconds": round(length), "slowest_end": round(slowest, 1)}
    outcome.numbers["exit_codes"] = " ".join(map(str, codes))
    return outcome


def begin(folder: Path):
    arguments = [sys.executable, str(ROOT / "tools/quickstart.py"), "--output", str(folder)]
    return marked(arguments, folder.with_suffix(".log"))


def result(folder: Path) -> float | None:
    """PQ of a call that ends by itself."""
    process, _ = begin(folder)
    if process.wait(1800) != 0:
        return None
    lines = folder.with_suffix(".log").read_text().splitlines()
    return json.loads(next(line for line in reversed(lines) if line.startswith('{"PQ"')))["PQ"]
