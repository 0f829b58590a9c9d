"""Candidates that score NaN or crash, at every position of a search."""

from __future__ import annotations

import math

from auto_panoptic.explore import Scoreboard
from auto_panoptic.space import Architecture

from . import pure
from .processes import error_line, fork
from .report import Outcome, Plan

BEST = 1000.0  # what the failing candidate would score


def nan(plan: Plan) -> Outcome:
    """Recorded failed, ranked last, never selected; --retry-failed gives the result without the failure."""
    places = range(0, pure.CYCLES * pure.MODELS, plan.number(1, 35))
    size = f"{pure.CYCLES * pure.MODELS} positions"
    outcome = Outcome(f"NaN or a crash at {len(places)} of {size}, then --retry-failed; two policies")
    bar = plan.bar(2 * len(places), "nan")
    for policy in ("path_priority", "random"):
        names = pure.candidates(policy)
        for place in places:
            folder = plan.folder / f"{policy}_{place}"
            outcome.count += 1
            for failure in fails_at(folder, policy, names, place, ("nan", "crash")[place % 2]):
                outcome.expect(False, f"{folder}: {failure}")
            bar.update()
    bar.close()
    return outcome


def fails_at(folder, policy: str, names: list, place: int, event: str) -> list[str]:
    """What is wrong with a search whose candidate ``place`` would be the best by far, but fails."""
    failures = []
    name = pure.key(names[place])
    folder.mkdir(parents=True)
    output = folder / "output.log"
    healthy = pure.Evaluate(folder / "evaluations.log", events={name: BEST})
    failing = pure.Evaluate(folder / "evaluations.log", events={name: event})
    reference = folder / "reference"
    code = pure.whole(reference, healthy, policy=policy)
    code = code or fork(lambda: pure.search(folder, failing, policy=policy), output).wait()
    if code != 0:
        return [f"exit code {code}: {error_line(output)}"]
    same = [i for i, a in enumerate(names) if pure.key(a) == name]  # duplicates of it fail like it
    found = [i for i, r in enumerate(sorted(pure.records(folder), key=_place)) if r["status"] == "failed"]
    if found != same:
        failures.append(f"failed are {found}, not {same}")
    selected = Architecture.load(folder / "search/architecture.json", pure.SPACE)
    if max(map(pure.utility, names)) < selected.provenance["best_candidate_PQ"]:
        failures.append("a failed candidate is the best")
    if policy == "random":
        scored = [(pure.utility(a), a) for i, a in enumerate(names) if i not in same]
        best = max(scored, key=lambda pair: pair[0])[1]
        if selected != best:
            failures.append("selected is not the best of those that did not fail")
    elif pure.points(pure.scoreboard(folder)["sites"]) != _last(names, same):
        failures.append("the failed candidate is not ranked last")
    code = fork(lambda: pure.search(folder, healthy, policy=policy, retry_failed=True), output).wait()
    if code != 0 or pure.results(folder) != pure.results(reference):
        failures.append(f"not healed by --retry-failed, exit code {code}: {error_line(output)}")
    return failures


def _place(record: dict) -> tuple[int, int]:
    return record["cycle"], record["index"]


def _last(names: list, bad: list[int]) -> dict:
    """Points of a scoreboard on which the candidates ``bad`` score lower than all others."""
    board = Scoreboard(pure.SPACE)
    for start in range(0, len(names), pure.MODELS):
        cycle = range(start, min(start + pure.MODELS, len(names)))
        fitness = [-math.inf if i in bad else pure.utility(names[i]) for i in cycle]
        lowest = min(f for f in fitness if math.isfinite(f))
        board.add_cycle([names[i] for i in cycle], [max(f, lowest - 1) for f in fitness])
    return pure.points(board.table())
