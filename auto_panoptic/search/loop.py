"""Evaluate the candidates that the ledger lacks; everything else follows from the ledger."""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ..errors import UserError
from ..explore import Ledger, Policy, Scoreboard
from ..space import Architecture, SearchSpace
from .executors import Executor
from .header import ledger_path, search_policy
from .ranking import RankingNoise
from .results import write_results

logger = logging.getLogger(__name__)

Place = tuple[int, int]  # (cycle, index)


@dataclass(frozen=True)
class SearchResult:
    """What a search leaves: the selection, where it lies, and how much its ranking means."""

    architecture: Architecture
    directory: Path
    evaluated: int
    failed: int
    noise: RankingNoise | None


def run_search(
    cfg,
    space: SearchSpace,
    executor: Executor,
    header: dict,
    resume: bool = False,
    retry_failed: bool = False,
    describe: Callable[[Architecture], dict] = lambda _: {},
    accept: Iterable[str] = (),
) -> SearchResult:
    """Search OUTPUT_DIR/search with the policy NAS.POLICY.

    The candidates are a pure function of space, seed and, for evolution, of earlier generations' fitness;
    scoreboard and selection are one of the candidates' results. So killed at any moment, and whatever order
    the executor returns outcomes in, a resumed search ends with the same scoreboard and architecture.

    A candidate in the ledger is never evaluated again, and no architecture twice: where one recurs, its
    record repeats the metrics, with "duplicate_of": seq of the record they come from.

    Args:
        cfg: NAS.POLICY and its settings, NAS.SEED, OUTPUT_DIR.
        space: what to search.
        executor: evaluates the candidates.
        header: see :func:`search_header`.
        resume: continue an existing ledger.
        retry_failed: evaluate failed candidates again. With a policy that breeds from earlier results only
            those of the last generation begun: the generations after the others would no longer be theirs.
        describe: further facts of an architecture for its record, such as its size.
        accept: header keys that may differ from the ledger's.

    Raises:
        UserError: see :func:`search_policy` and :meth:`Ledger.open`; the ledger holds other candidates than
            the policy names; every candidate failed.
    """
    policy = search_policy(cfg, space)
    with Ledger.open(ledger_path(cfg), header, resume=resume, allow_changed=accept) as ledger:
        return _Search(policy, ledger, header, describe).run(executor, retry_failed)


class _Search:
    """The state of :func:`run_search`."""

    def __init__(self, policy: Policy, ledger: Ledger, header: dict, describe: Callable):
        self.policy, self.ledger, self.header, self.describe = policy, ledger, header, describe
        self.cycles: list[list[Architecture]] = []
        self.records = {(r["cycle"], r["index"]): r for r in ledger.records}  # the last of a place counts
        self.last_begun = max((cycle for cycle, _ in self.records), default=0)

    def run(self, executor: Executor, retry_failed: bool) -> SearchResult:
        done = len(self.records)
        if done:
            logger.info("%d candidates are in the ledger", done)
        package = logging.getLogger(__package__.partition(".")[0])
        with (
            logging_redirect_tqdm([package] if package.handlers else []),  # lines above the bar, not in it
            tqdm(unit="candidate", desc="search", file=sys.stderr, mininterval=0.5) as bar,
        ):
            # Only a policy that breeds has to wait for the last candidate of a cycle.
            step = 1 if self.policy.uses_history else self.policy.cycles
            for first in range(0, self.policy.cycles, step):
                items = self._next_cycles(first, first + step, retry_failed)
                known = sum(map(len, self.cycles))
                bar.total = known + (self.policy.cycles - len(self.cycles)) * self.policy.models
                bar.update(known - len(items) - bar.n)
                self._evaluate(items, executor, bar)
        return self._write()

    def _next_cycles(self, first: int, stop: int, retry_failed: bool) -> dict[Place, Architecture]:
        """Name the candidates of these cycles; return those that are to be evaluated."""
        items = {}
        for cycle in range(first, stop):
            history = [self._scored(c) for c in range(cycle)] if self.policy.uses_history else []
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

    def _evaluate(self, items: dict[Place, Architecture], executor: Executor, bar: tqdm) -> None:
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

    def _copy(self, place: Place, architecture: Architecture, seq: int, bar: tqdm) -> None:
        metrics = self.ledger.records[seq]["metrics"]
        outcome = {"status": "ok", "metrics": metrics, "seconds": {}, "duplicate_of": seq}
        self._record(place, architecture, outcome, bar)

    def _record(self, place: Place, architecture: Architecture, outcome: dict, bar: tqdm) -> dict:
        outcome = _checked(outcome)
        base = {"cycle": place[0], "index": place[1], "architecture": architecture.indices()}
        record = self.ledger.append({**base, **outcome, **self.describe(architecture)})
        self.records[place] = record
        scores = [r["metrics"]["PQ"] for r in self.records.values() if r["status"] == "ok"]
        if scores:
            self._write()
        bar.update()
        bar.set_postfix(
            PQ=f"{record['metrics']['PQ']:.1f}" if record["status"] == "ok" else "failed",
            best=f"{max(scores):.1f}" if scores else "-",
        )
        return record

    def _scored(self, cycle: int) -> list[tuple[Architecture, float | None]]:
        """The candidates of a cycle that have a record, with their PQ, None for a failed one."""
        pairs = [(a, self.records.get((cycle, i))) for i, a in enumerate(self.cycles[cycle])]
        return [(a, r["metrics"]["PQ"] if r["status"] == "ok" else None) for a, r in pairs if r]

    def _write(self) -> SearchResult:
        places = [(c, i) for c, candidates in enumerate(self.cycles) for i in range(len(candidates))]
        records = [self.records[place] for place in places if place in self.records]
        scored = [self._scored(cycle) for cycle in range(len(self.cycles))]
        return write_selection(self.ledger.path.parent, self.policy, scored, records, self.header)


def _checked(outcome: dict) -> dict:
    """The outcome; a failure, if its PQ is no number: that is a fact too, and never selected."""
    if outcome["status"] == "ok" and not math.isfinite(outcome["metrics"].get("PQ", math.nan)):
        return {**outcome, "status": "failed", "metrics": {}, "error": "PQ is not a number"}
    return outcome


def write_selection(
    directory: Path, policy: Policy, cycles: list[list[tuple]], records: list[dict], header: dict
) -> SearchResult:
    """Compute scoreboard.json and architecture.json; both are replaced whole.

    Where the policy selects by ranks, operators have a score. Where it selects the best candidate (of equal
    ones the earliest) their score is null, and count and mean fitness remain.

    Args:
        directory: where to.
        policy: the policy of the search.
        cycles: per cycle its (architecture, PQ or None) in the order of index.
        records: their last records, in the same order.
        header: see :func:`search_header`.

    Raises:
        UserError: all candidates failed.
    """
    good = [(a, r) for (a, _), r in zip(sum(cycles, []), records, strict=True) if r["status"] == "ok"]
    board = Scoreboard(policy.space)
    for scored in filter(None, cycles):
        board.add_cycle([a for a, _ in scored], [fitness for _, fitness in scored])
    table, selected = board.table(), board.select()
    if policy.selects == "best":
        selected = max(good, key=lambda pair: pair[1]["metrics"]["PQ"])[0]
        table = {site: [{**row, "score": None} for row in rows] for site, rows in table.items()}
    evaluated = [(a, r) for (a, _), r in zip(sum(cycles, []), records, strict=True)]
    noise = write_results(directory, header, evaluated, selected, table)
    return SearchResult(selected, directory, len(good), len(records) - len(good), noise)
