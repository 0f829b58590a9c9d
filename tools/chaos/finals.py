"""Finals of a search, SIGKILLed: of a pure function many times, and of the real command with Ray workers."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from toy import ROOT

from auto_panoptic.explore import Ledger
from auto_panoptic.search import InProcess, ledger_path
from auto_panoptic.search.finalists import FinalsRequest, contenders, evaluated_candidates
from auto_panoptic.search.finals import Finals, finals_header, open_journal, write_finals
from auto_panoptic.space import Cost, CostTables

from . import pure
from .kill import killed_searches
from .real import killed_command
from .report import Outcome, Plan
from .supernet import toy_supernet

REQUEST = FinalsRequest(finalists=3, controls=2, steps=8)
COSTS = CostTables(
    pure.SPACE,
    {"stem": Cost(1000, 7)},
    {site.name: dict.fromkeys(site.names, Cost(0, 0)) for site in pure.SPACE.sites},
)
ROUNDS = 3  # two fair cycles, and one that depends on them


def finals(plan: Plan) -> Outcome:
    """Ledger, finals.json and architecture.json are those of an undisturbed run, and a kill costs one job."""
    outcome = Outcome("posterior searches with finals, SIGKILLed at random, resumed; search_net.py so, too")
    killed_searches(plan, outcome, {"finals": search_with_finals}, plan.number(200, 6), plan.number(12, 1))
    if not plan.quick:
        for failure in killed_commands(plan, outcome):
            outcome.expect(False, failure)
    return outcome


def killed_commands(plan: Plan, outcome: Outcome) -> list[str]:
    """What goes wrong with search_net.py in one process, with one and with two workers, SIGKILLed on the way.

    Sums depend on the threads: workers of one thread each end as one process does, others as undisturbed.
    """
    supernet = toy_supernet(plan.folder / "supernet")
    line = [sys.executable, str(ROOT / "search_net.py"), "--config-file", supernet.config_file]
    line += ["--weights", supernet.weights, "--policy", "posterior", "--evaluations", "36"]
    line += ["--finals", "3", "--controls", "2", "--final-steps", "4"]
    failures, alone = [], plan.folder / "workers_0/straight"
    for workers in (0, 1, 2):
        here = replace(plan, folder=plan.folder / f"workers_{workers}")
        more = ["--workers", str(workers)] * (workers > 0)
        found = killed_command(here, [*line, *more], "search_net.py", 6, in_order=workers < 2)
        outcome.count += found.count
        failures += [f"{workers} workers: {failure}" for failure in found.failures]
        at_each_kill = found.numbers.get("records_at_each_kill")
        outcome.numbers[f"records at each kill with {workers} workers"] = at_each_kill
        if workers and os.cpu_count() // workers <= 1:
            other = pure.differences(here.folder / "straight", alone, in_order=False)
            failures += [f"{workers} workers: other {name} than of one process" for name in other]
    return failures


def search_with_finals(folder: Path, evaluate: pure.Evaluate) -> None:
    """Begin or continue search and finals in ``folder``, in this process."""
    result = pure.search(folder, evaluate, policy="posterior", cycles=ROUNDS)
    ledger = Ledger(ledger_path(folder))
    who = contenders(REQUEST, result, evaluated_candidates(ledger, pure.SPACE), COSTS)

    def train(final):
        """The score of its path, but for the noise of steps and seed."""
        metrics, seconds = evaluate(final.architecture)
        noise = float(np.random.default_rng([final.seed, final.steps]).normal()) / 10
        boots = [value + noise for value in metrics["bootstrap"]]
        return {**metrics, "PQ": metrics["PQ"] + noise, "bootstrap": boots}, seconds

    with open_journal(result.directory, finals_header(ledger, REQUEST, who, {})) as journal:
        found = Finals(REQUEST, journal, InProcess(train)).run(who, COSTS, None)
    write_finals(result.directory, REQUEST, found, COSTS)
