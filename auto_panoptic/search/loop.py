"""Evaluate the candidates that the ledger lacks; everything else follows from the ledger."""

from __future__ import annotations

import json
import logging
import math
import time

from tqdm.contrib.logging import logging_redirect_tqdm

from ..errors import UserError
from ..explore import Ledger, Policy
from ..explore.estimators import ESTIMATORS
from ..progress import Progress
from ..space import Architecture, CostTables
from .executors.in_process import Executor
from .records import check_content
from .selection import Request, SearchResult, fitness_name, fitness_of, write_selection
from .time_budget import TimeBudget

logger = logging.getLogger(__name__)

Place = tuple[int, int]  # (cycle, index)
WRITE_PERIOD = 1.0  # seconds between two selections of a search under way


def run_search(
    policy: Policy,
    ledger: Ledger,
    executor: Executor,
    costs: CostTables | None = None,
    request: Request | None = None,
    retry_failed: bool = False,
    seconds: float | None = None,
) -> SearchResult:
    """Evaluate the candidates of ``policy`` and select.

    The candidates are a pure function of space, seed and, for evolution, of earlier generations' fitness;
    scoreboard and selection are one of the candidates' results. So killed at any moment, and whatever order
    the executor returns outcomes in, a resumed search ends with the same scoreboard and architecture.

    A candidate in the ledger is never evaluated again, and no architecture twice: where one recurs, its
    record repeats the metrics, with "duplicate_of": seq of the record they come from.

    Args:
        policy: names the candidates.
        ledger: open for appending; the files of the selection go beside it.
        executor: evaluates the candidates.
        costs: of the space; each record then has "macs" and "params".
        request: how to select in the end; by default as the policy says.
        seconds: take only the cycles that end in this time, all runs of the search together; see
            :class:`TimeBudget`. A cycle that was begun is finished. Each record then has "elapsed".
        retry_failed: evaluate failed candidates again. With a policy that breeds from earlier results only
            those of the last generation begun: the generations after the others would no longer be theirs.

    Raises:
        UserError: the ledger holds other candidates than the policy names; see also :meth:`Ledger.append`,
            :func:`write_selection` and :meth:`Executor.run`.
    """
    check_content(ledger, policy.space)
    clock = None if seconds is None else TimeBudget(seconds, ledger.records)
    if request is None and policy.selects in ESTIMATORS and policy.selects != "ranks":
        request = Request(policy.selects, own_scores=policy.own_scores)
    return _Search(policy, ledger, costs, clock).run(executor, request, retry_failed)


class _Search:
    """The state of :func:`run_search`."""

    def __init__(
        self, policy: Policy, ledger: Ledger, costs: CostTables | None, clock: TimeBudget | None = None
    ):
        self.policy, self.ledger, self.costs, self.clock = policy, ledger, costs, clock
        self.fitness = fitness_name(ledger.header)
        self.next_write = -math.inf
        self.cycles: list[list[Architecture]] = []
        self.records = {(r["cycle"], r["index"]): r for r in ledger.records}  # the last of a place counts
        self.last_begun = max((cycle for cycle, _ in self.records), default=0)

    def run(self, executor: Executor, request: Request | None, retry_failed: bool) -> SearchResult:
        done, before = len(self.records), len(self.ledger.records)
        if done:
            logger.info("%d candidates are in the ledger", done)
        package = logging.getLogger(__package__.partition(".")[0])
        with (
            logging_redirect_tqdm([package] if package.handlers else []),  # lines above the bar, not in it
            Progress("search", units="candidates") as bar,
        ):
            # Only policies that breed, and the clock, have to wait for the last candidate of a cycle.
            step = 1 if self.policy.uses_history or self.clock else self.policy.cycles
            for first in range(0, self.policy.cycles, step):
                if (total := self._cycles_in_time()) <= first:
                    break
                items = self._next_cycles(first, first + step, retry_failed)
                known = sum(map(len, self.cycles))
                bar.total = known + (total - len(self.cycles)) * self.policy.models
                bar.skip(known - len(items) - bar.done)
                self._evaluate(items, executor, bar)
        if len(self.ledger.records) == before:
            logger.warning("Nothing is left to evaluate: the ledger holds all %d candidates", done)
        return self._write(request)

    def _cycles_in_time(self) -> int:
        """How many cycles there will be, those named so far included."""
        done = len(self.cycles)
        if self.clock is None:
            return self.policy.cycles
        if self.records and done <= self.last_begun:  # what was begun is finished
            return self.last_begun + 1
        if done and len({a.choices for cycle in self.cycles for a in cycle}) == self.policy.space.cardinality:
            return done
        return min(self.policy.cycles, self.clock.cycles(done))

    def _next_cycles(self, first: int, stop: int, retry_failed: bool) -> dict[Place, Architecture]:
        """Name the candidates of these cycles; return those that are to be evaluated."""
        items = {}
        for cycle in range(first, stop):
            known = map(self._evaluated, range(cycle)) if self.policy.uses_history else ()
            history = [[(a, fitness_of(record, self.fitness)) for a, record in pairs] for pairs in known]
            self.cycles.append(self.policy.candidates(cycle, history))
            retry = retry_failed and (cycle >= self.last_begun or not self.policy.uses_history)
            for index, architecture in enumerate(self.cycles[cycle]):
                record = self.records.get((cycle, index))
                if record is None or (retry and record["status"] == "failed"):
                    items[cycle, index] = architecture
            self._check(cycle)
        return items

    def _check(self, cycle: int) -> None:
        """The ledger must hold the candidates that the policy names."""
        candidates = self.cycles[cycle]
        for (_, index), record in sorted(i for i in self.records.items() if i[0][0] == cycle):
            if index >= len(candidates) or candidates[index].indices() != record["architecture"]:
                raise UserError(
                    f"{self.ledger.path}: record {record['seq']} is not the architecture that the policy "
                    f"{self.policy.name} has as candidate {index} of cycle {cycle}: choose another OUTPUT_DIR"
                )

    def _evaluate(self, items: dict[Place, Architecture], executor: Executor, bar: Progress) -> None:
        """Record an outcome for every item, in the order of arrival; equal architectures cost one run."""
        original = {}  # architecture -> seq of its evaluation
        for record in self.ledger.records:
            if record["status"] == "ok" and "duplicate_of" not in record:
                original[json.dumps(record["architecture"])] = record["seq"]
        while items:
            batch, waiting = {}, {}  # the first of equal ones is evaluated, the others wait for it
            for place, architecture in items.items():
                key = json.dumps(architecture.indices())
                if key in original:
                    self._copy(place, architecture, original[key], bar)
                elif key in waiting:
                    waiting[key].append(place)
                else:
                    batch[place], waiting[key] = architecture, []
            left = dict(batch)
            for place, outcome in executor.run(list(batch.items())) if batch else ():
                architecture = left.pop(place)
                record = self._record(place, architecture, outcome, bar)
                key = json.dumps(architecture.indices())
                if record["status"] == "ok":
                    for other in waiting.pop(key):
                        self._copy(other, architecture, record["seq"], bar)
            if left:
                raise RuntimeError(f"no outcome for the candidates (cycle, index) {list(left)}")
            items = {place: items[place] for places in waiting.values() for place in places}

    def _copy(self, place: Place, architecture: Architecture, seq: int, bar: Progress) -> None:
        metrics = self.ledger.records[seq]["metrics"]
        outcome = {"status": "ok", "metrics": metrics, "seconds": {}, "duplicate_of": seq}
        self._record(place, architecture, outcome, bar)

    def _record(self, place: Place, architecture: Architecture, outcome: dict, bar: Progress) -> dict:
        base = {"cycle": place[0], "index": place[1], "architecture": architecture.indices()}
        size = self.costs.cost(architecture)._asdict() if self.costs else {}
        if self.clock:
            size["elapsed"] = round(self.clock.elapsed, 3)
        record = self.ledger.append({**base, **checked(outcome, self.fitness), **size})
        self.records[place] = record
        scores = [r["metrics"][self.fitness] for r in self.records.values() if r["status"] == "ok"]
        if scores and time.monotonic() > self.next_write:
            self._write()
            self.next_write = time.monotonic() + WRITE_PERIOD
        shown = {self.fitness: fitness_of(record, self.fitness), "best": max(scores, default=None)}
        bar.update(**{key: "failed" if v is None else f"{v:.1f}" for key, v in shown.items()})
        return record

    def _evaluated(self, cycle: int) -> list[tuple[Architecture, dict]]:
        """The candidates of a cycle that have a record."""
        pairs = [(a, self.records.get((cycle, i))) for i, a in enumerate(self.cycles[cycle])]
        return [(a, record) for a, record in pairs if record]

    def _write(self, request: Request | None = None) -> SearchResult:
        cycles = [self._evaluated(cycle) for cycle in range(len(self.cycles))]
        best = self.policy.selects == "best"
        where = (self.ledger.path.parent, self.ledger.header, self.policy.space)
        return write_selection(*where, cycles, request, self.costs, best)


def checked(outcome: dict, fitness: str) -> dict:
    """The outcome, as a failure if its fitness is no number: such a candidate is never selected."""
    if outcome["status"] == "ok" and not math.isfinite(outcome["metrics"].get(fitness, math.nan)):
        return {**outcome, "status": "failed", "metrics": {}, "error": f"{fitness} is not a number"}
    return outcome
