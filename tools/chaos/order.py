"""A candidate's score does not depend on when, where and after whom it is evaluated."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

from auto_panoptic.explore import fair_cycle
from auto_panoptic.search import InProcess
from auto_panoptic.search.executors.ray import RayWorkers

from .processes import error_line, fork
from .report import Outcome, Plan
from .supernet import METRICS, Supernet, toy_supernet
from .worker import cluster

WORKERS = (1, 2, 4)


def order(plan: Plan) -> Outcome:
    """A toy panoptic supernet: alone, first, last, shuffled, on Ray workers; see :func:`equal_scores`."""
    supernet = toy_supernet(plan.folder)
    architectures = fair_cycle(supernet.space(), seed=2, cycle=0)[: plan.number(12, 4)]
    outcome = equal_scores(plan, supernet.evaluator, architectures)
    for workers in WORKERS if not plan.quick else ():
        outcome.count += len(architectures)
        folder = plan.folder / f"{workers}_workers"
        folder.mkdir()
        alone = json.loads((plan.folder / "alone.json").read_text())
        for failure in compared(folder, lambda n=workers: on_workers(supernet, n, architectures), alone):
            outcome.expect(False, f"{workers} workers: {failure}")
    return outcome


def equal_scores(plan: Plan, make_evaluator: Callable, architectures: list) -> Outcome:
    """Bit for bit the same metrics of each architecture alone in a process, first, last and in any order."""
    number = len(architectures)
    what = "alone, first, last, shuffled" + ("" if plan.quick else f", on {WORKERS} workers")
    outcome = Outcome(f"{number} candidates of a toy supernet {what}")
    straight, shuffled = list(range(number)), list(range(number))
    plan.rng().shuffle(shuffled)
    orders = {"in order": straight, "reversed": straight[::-1], "shuffled": shuffled}
    bar = plan.bar(number + len(orders), "order")
    alone = {}
    for i in straight:
        folder = plan.folder / f"alone_{i}"
        folder.mkdir()
        found = scored(folder, lambda i=i: in_process(make_evaluator, architectures, [i]))
        outcome.expect(found, f"candidate {i} alone: {error_line(folder / 'output.log')}")
        alone |= found or {}
        bar.update()
    (plan.folder / "alone.json").write_text(json.dumps(alone))
    outcome.expect(len({json.dumps(m) for m in alone.values()}) > 1, "all candidates score the same")
    for name, places in orders.items():
        outcome.count += number
        folder = plan.folder / name.replace(" ", "_")
        folder.mkdir()
        for failure in compared(folder, lambda p=places: in_process(make_evaluator, architectures, p), alone):
            outcome.expect(False, f"{name}: {failure}")
        bar.update()
    bar.close()
    return outcome


def in_process(make_evaluator: Callable, architectures: list, places: Iterable[int]) -> dict:
    executor = InProcess(make_evaluator())
    return dict(executor.run([(i, architectures[i]) for i in places]))


def on_workers(supernet: Supernet, workers: int, architectures: list) -> dict:
    """On Ray workers with one thread each."""
    with cluster(workers), RayWorkers(supernet.config(), supernet.weights, METRICS, workers) as executor:
        if executor.threads != 1:
            raise RuntimeError(f"{executor.threads} threads per worker")
        return dict(executor.run(list(enumerate(architectures))))


def scored(folder: Path, run: Callable[[], dict]) -> dict[str, dict] | None:
    """{number: metrics} of ``run`` in a process of its own; None if that failed."""
    report = folder / "metrics.json"

    def write():
        outcomes = run()
        report.write_text(json.dumps({str(i): o["metrics"] for i, o in outcomes.items()}))

    code = fork(write, folder / "output.log").wait()
    return json.loads(report.read_text()) if code == 0 else None


def compared(folder: Path, run: Callable[[], dict], alone: dict[str, dict]) -> list[str]:
    """Candidates whose metrics are not those of ``alone``; floats are equal if their digits are."""
    found = scored(folder, run)
    if found is None:
        return [error_line(folder / "output.log")]
    return [
        f"candidate {i} scores {found.get(i)}, alone {alone[i]}" for i in alone if found.get(i) != alone[i]
    ]
