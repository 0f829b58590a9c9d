"""Memory and processes of a long search."""

from __future__ import annotations

import json
from collections.abc import Callable

from . import pure
from .processes import children, error_line, fork, members, resident_bytes
from .report import Outcome, Plan
from .supernet import supernet_of

EARLY, GROWTH = 5, 1.05  # after this candidate, and how much more it may be after the last


def memory(plan: Plan) -> Outcome:
    """60 candidates of a supernet in one process; see :func:`flat_memory`."""
    supernet = supernet_of(plan)
    return flat_memory(plan, supernet.evaluator, supernet.space(), plan.number(60, 24))


def flat_memory(plan: Plan, make_evaluator: Callable, space, candidates: int) -> Outcome:
    """Resident size and child processes stay as they are after a few candidates; nothing is left behind."""
    outcome = Outcome(f"resident size after candidate {EARLY} and {candidates}; children", candidates)
    trace, bar = plan.folder / "memory.jsonl", plan.bar(candidates, "memory")
    folder = plan.folder / "search"
    policy = pure.search_policy(pure.config(folder, cycles=candidates // pure.MODELS), space)

    def run():
        evaluate = make_evaluator()

        def sampled(architecture):
            found = evaluate(architecture)
            pure.append(trace, json.dumps([resident_bytes(), children()]) + "\n")
            return found

        with pure.Ledger.open(pure.ledger_path(folder), pure.header()) as ledger:
            pure.run_search(policy, ledger, pure.InProcess(sampled))

    def samples() -> list:
        return [json.loads(line) for line in trace.read_text().splitlines()] if trace.exists() else []

    process = fork(run, plan.folder / "output.log")
    while process.wait(0.2) is None:
        bar.update(len(samples()) - bar.n)
    bar.close()
    left = members(process.pid)
    process.kill()
    found = samples()
    if process.returncode != 0 or len(found) != candidates:
        outcome.expect(False, f"exit code {process.returncode}: {error_line(plan.folder / 'output.log')}")
        return outcome
    sizes, counts = zip(*found, strict=True)
    failed = sum(r["status"] == "failed" for r in pure.records(folder))
    outcome.numbers = {
        "mib": [round(sizes[i] / 2**20, 1) for i in (EARLY - 1, -1)],
        "ratio": round(sizes[-1] / sizes[EARLY - 1], 4),
        "children": sorted(set(counts[EARLY - 1 :])),
    }
    outcome.expect(not failed, f"{failed} candidates failed")
    outcome.expect(sizes[-1] <= GROWTH * sizes[EARLY - 1], f"resident MiB: {outcome.numbers['mib']}")
    outcome.expect(len(set(counts[EARLY - 1 :])) == 1, f"child processes: {outcome.numbers['children']}")
    outcome.expect(not left, f"{len(left)} processes are left")
    return outcome
