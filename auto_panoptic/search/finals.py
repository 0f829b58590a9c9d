"""The finals of a search: its best architectures are trained for a short while, beside random ones.

A supernet's score stands for that of a trained network; whether it does is measured here. Finalists are
trained, from scratch or from given weights, by successive halving, scored on the search images, and the
best becomes architecture.json. What the first round says of the operators makes one finalist more. Trained
anew from other seeds, the best is then compared with random architectures of equal cost: it was not chosen
by these trainings, so chance is on neither side.

Every training is a line of search/finals.jsonl; search/finals.json says what came of them.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..explore import Ledger
from ..explore.comparison import Difference, found_against_random
from ..explore.selection import select
from ..files import plain, write_json
from ..progress import Progress
from ..space import Architecture, CostTables
from .executors.in_process import Executor
from .final_training import FOLDER, Final
from .finalists import Contender, FinalsRequest, check_controls, random_networks
from .finals_text import verdict_line
from .loop import checked
from .selection import fitness_name, fitness_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FinalsResult:
    """The winner, and how it compares.

    Attributes:
        winner: its architecture is the search's answer.
        finalists: all of them.
        controls: the random networks.
        fitness: the metric, in percent.
        score: mean of the winner's compared trainings.
        difference: to the random architectures; None without them.
        trainings: how many there were.
        start: digest of the weights that they started from; "" from scratch.
    """

    winner: Contender
    finalists: Sequence[Contender]
    controls: Sequence[Contender]
    fitness: str
    score: float
    difference: Difference | None
    trainings: int
    start: str

    def lines(self) -> list[str]:
        """What a person reads."""
        start = "the given weights" if self.start else "scratch"
        lines = [
            f"Finals: {self.trainings} trainings from {start}; the best network is "
            f"{', '.join(self.winner.roles)}, {self.fitness} {self.score:.1f} on the search images"
        ]
        if self.difference:
            lines.append(verdict_line(self.fitness, *self.difference))
        return lines


def rounds(finalists: int, steps: int) -> list[tuple[int, int]]:
    """(how many are trained, for how many steps) of successive halving, until two are left and trained whole.

    One finalist needs no round.
    """
    numbers = []
    while finalists > 1:
        numbers.append(finalists)
        if finalists == 2:
            break
        finalists = -(-finalists // 2)
    return [(n, max(1, steps >> (len(numbers) - 1 - i))) for i, n in enumerate(numbers)]


def trainings(finalists: int, request: FinalsRequest, joining: int = 1) -> list[tuple[int, int]]:
    """(how many trainings, of how many steps) of all rounds, and of the comparison at the end.

    ``joining`` are those who take part from the second round on: 1, or 0 if the combination is a finalist.
    """
    plan = []
    for number, (size, steps) in enumerate(rounds(finalists, request.steps)):
        who = size + joining * (number == 1)
        plan.append((who * (request.seeds if size == 2 else 1), steps))
    return [*plan, (request.seeds * (1 + request.controls), request.steps)]


class Finals:
    """Trains, and decides; the state lies in the journal."""

    def __init__(
        self,
        request: FinalsRequest,
        journal: Ledger,
        executor: Executor,
        retry_failed: bool = False,
        clean: Callable[[Final], None] = lambda final: None,
    ):
        """``clean`` is called with every training that is in the journal."""
        self.request, self.journal, self.executor = request, journal, executor
        self.retry_failed, self.clean = retry_failed, clean
        self.fitness = fitness_name(journal.header)
        self.records = {_key(r["architecture"], r["steps"], r["seed"]): r for r in journal.records}

    def run(self, finalists: Sequence[Contender], costs: CostTables, limits: Mapping | None) -> FinalsResult:
        """See the module; ``costs`` are of the space, ``limits`` those of the selection.

        Raises:
            UserError: a training failed that the result needs; too few random networks cost what the best
                finalist does.
        """
        request, finalists = self.request, [*finalists]
        left = finalists
        plan = rounds(len(finalists), request.steps)
        chosen_by = range(request.seeds)
        compared = range(request.seeds, 2 * request.seeds)
        total = sum(number for number, _ in trainings(len(finalists), request))
        with Progress("finals", total, "trainings") as bar:
            for number, (size, steps) in enumerate(plan):
                seeds = chosen_by if size == 2 else chosen_by[:1]
                left = left[:size]
                if number == 1:
                    joining = self._combination(finalists, plan[0][1], costs, limits or {})
                    bar.skip(len(seeds) * (not joining))
                    finalists += joining
                    left += joining
                self._train(left, steps, seeds, bar)
                left = sorted(left, key=lambda c: -self._mean(c, steps, seeds))  # stable
            winner = left[0]
            controls = random_networks(request.controls, winner, finalists, costs)
            self._train([winner, *controls], request.steps, compared, bar)
        score = self._mean(winner, request.steps, compared)
        if score == -math.inf:
            raise UserError(
                f'{self.journal.path}: a training of the best finalist failed, see its "error"; repeat it '
                "with --resume --retry-failed"
            )
        difference = self._compare(winner, controls, compared)
        held = sum(len(contender.trained) for contender in (*finalists, *controls))
        return FinalsResult(winner, finalists, controls, self.fitness, score, difference, held, request.start)

    def _combination(self, finalists, steps: int, costs: CostTables, limits: Mapping) -> list[Contender]:
        """What the first round selects of its own.

        Nothing if it is a finalist already, or if there would be too few random networks to compare with.
        """
        scores = [c.scores(steps, [0], self.fitness)[0] for c in finalists]
        good = [(c.architecture, s) for c, s in zip(finalists, scores, strict=True) if s is not None]
        if not good:
            return []
        found = select(costs.space, [good], "ridge", costs, **limits).architecture
        if found in {c.architecture for c in finalists}:
            return []
        joining = [Contender(found, ["the combination of the first trainings"])]
        try:
            check_controls(self.request, [*finalists, *joining], costs)
        except UserError as error:
            logger.warning("The combination of the first trainings takes no part: %s", error)
            return []
        return joining

    def _mean(self, contender: Contender, steps: int, seeds) -> float:
        scores = contender.scores(steps, seeds, self.fitness)
        return -math.inf if None in scores else sum(scores) / len(scores)

    def _compare(self, winner: Contender, controls: list[Contender], seeds) -> Difference | None:
        steps = self.request.steps
        good = [c for c in controls if None not in c.scores(steps, seeds, self.fitness)]
        if len(good) < len(controls):
            failed = len(controls) - len(good)
            logger.warning("%d of %d random networks failed: the others count", failed, len(controls))
        if not good:
            return None
        scores = [np.array(c.scores(steps, seeds, self.fitness)) for c in (winner, *good)]
        boots = [c.scores(steps, seeds, "bootstrap") for c in (winner, *good)]
        resampled = None
        if self.fitness == "PQ" and all(samples for row in boots for samples in row):
            resampled = np.array(boots[0]), np.array(boots[1:])
        return found_against_random(scores[0], np.array(scores[1:]), resampled)

    def _train(self, those: list[Contender], steps: int, seeds: Sequence[int], bar: Progress) -> None:
        """Every network from every seed, unless the journal has it."""
        jobs = {}
        for final in (Final(c.architecture, steps, seed) for c in those for seed in seeds):
            jobs[_key(final.indices(), steps, final.seed)] = final
        waiting = {}
        for key, final in jobs.items():
            record = self.records.get(key)
            if record is None or (self.retry_failed and record["status"] == "failed"):
                waiting[key] = final
        bar.skip(len(jobs) - len(waiting))
        for key, outcome in self.executor.run(list(waiting.items())) if waiting else ():
            final = jobs[key]
            record = {"architecture": final.indices(), "steps": steps, "seed": final.seed}
            self.records[key] = self.journal.append({**record, **checked(outcome, self.fitness)})
            self.clean(final)
            shown = fitness_of(self.records[key], self.fitness)
            bar.update(**{self.fitness: "failed" if shown is None else f"{shown:.1f}"})
        for contender in those:
            indices = contender.architecture.indices()
            contender.trained += [self.records[_key(indices, steps, seed)] for seed in seeds]


def _key(indices: dict, steps: int, seed: int) -> str:
    return json.dumps([indices, steps, seed], sort_keys=True)


def finals_header(search: Ledger, request: FinalsRequest, finalists, solver: Mapping) -> dict:
    """What identifies finals: the search as it stands, who takes part, how they are trained."""
    identity = {"search": search.header, "evaluated": [r["architecture"] for r in search.records]}
    digest = hashlib.sha256(json.dumps(plain(identity), sort_keys=True).encode()).hexdigest()[:16]
    return {
        "search": digest,
        "fitness": fitness_name(search.header),
        "steps": request.steps,
        "seeds": request.seeds,
        "finalists": [c.architecture.indices() for c in finalists],
        "controls": request.controls,
        "solver": plain(dict(solver)),
        "start": request.start,
    }


def open_journal(directory: Path, header: dict) -> Ledger:
    """The journal beside the ledger, continued if it is of these finals.

    Raises:
        UserError: it is of others.
    """
    path = directory / f"{FOLDER}.jsonl"
    if path.is_file() and path.stat().st_size:
        there = Ledger(path)
        if changed := [key for key in header if plain(header[key]) != there.header.get(key)]:
            raise UserError(
                f"{path}: holds {len(there.records)} trainings of other finals ({', '.join(changed)} "
                f"differ): ask for the same as before, or move it and {directory / FOLDER} away"
            )
    return Ledger.open(path, header, resume=True)


def write_finals(directory: Path, request: FinalsRequest, result: FinalsResult, costs: CostTables):
    """search/finals.json, and the winner as search/architecture.json; returns the winner's architecture."""

    def row(contender: Contender) -> dict:
        trained = [
            {"steps": t["steps"], "seed": t["seed"], result.fitness: fitness_of(t, result.fitness)}
            for t in contender.trained
        ]
        cost = costs.cost(contender.architecture)._asdict()
        return {
            "roles": contender.roles,
            "architecture": contender.architecture.indices(),
            **cost,
            "trained": trained,
        }

    difference = result.difference and {**result.difference._asdict(), "verdict": result.difference.verdict}
    summary = {"fitness": result.fitness, "score": result.score, "over_random": difference}
    content = {
        "steps": request.steps,
        "seeds": request.seeds,
        "start": request.start,
        "winner": result.winner.architecture.indices(),
        **summary,
        "finalists": [row(c) for c in result.finalists],
        "controls": [row(c) for c in result.controls],
    }
    write_json(directory / f"{FOLDER}.json", plain(content))
    before = Architecture.load(directory / "architecture.json").provenance
    found = result.winner.architecture
    provenance = {**before, FOLDER: plain({"roles": result.winner.roles, **summary})}
    found = Architecture(found.space, found.choices, provenance)
    found.save(directory / "architecture.json")
    return found
