"""Memory and processes over a whole search."""

from __future__ import annotations

import gc
import os
from pathlib import Path

from auto_panoptic.explore import fair_cycle

from .report import Outcome, Plan
from .supernet import toy_supernet

MOST = 1.05  # memory after the last evaluation, as a part of that after the fifth


def memory(plan: Plan) -> Outcome:
    """Resident memory, child processes and open files after 60 evaluations are those after the fifth."""
    count = plan.number(60, 10)
    outcome = Outcome(f"{count} candidates of a toy supernet evaluated in one process")
    supernet = toy_supernet(plan.folder)
    evaluate, space = supernet.evaluator(), supernet.space()
    candidates = [a for cycle in range(5) for a in fair_cycle(space, seed=0, cycle=cycle)][:count]
    bar, seen = plan.bar(count, "memory"), []
    for architecture in candidates:
        evaluate(architecture)
        outcome.count += 1
        gc.collect()
        seen.append((resident(), children(), len(os.listdir("/proc/self/fd"))))
        bar.update()
    bar.close()
    early, late = seen[4], seen[-1]
    ratio = late[0] / early[0]
    mebibytes = {"mib_after_5": early[0] >> 20, "mib_at_the_end": late[0] >> 20}
    outcome.numbers = {**mebibytes, "ratio": round(ratio, 4)}
    outcome.expect(ratio <= MOST, f"memory grew from {early[0]} to {late[0]} bytes")
    outcome.expect(early[1:] == late[1:], f"(children, open files) were {early[1:]}, are {late[1:]}")
    return outcome


def resident() -> int:
    """Bytes of memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def children() -> int:
    """Processes that this one has started and that still run."""
    return len(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())
