"""Finals of a search, SIGKILLed: of a pure function many times, and of the real command with Ray workers."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from toy import ROOT

from auto_panoptic.explore import Ledger
from auto_panoptic.search import InProcess, ledger_path
from auto_panoptic.search.finals import (
    Finals,
    FinalsRequest,
    contenders,
    evaluated_candidates,
    finals_header,
    open_journal,
    write_finals,
)
from auto_panoptic.space import Cost, CostTables

from . import pure
from .kill import killed_searches
from .real import killed_command
from .report import Outcome, Plan
from .supernet import toy_supernet

REQUEST = FinalsRequest(finalists=2, controls=2, steps=8)
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
        supernet = toy_supernet(plan.folder / "supernet")
        line = [sys.executable, str(ROOT / "search_net.py"), "--config-file", supernet.config_file]
        line += ["--weights", supernet.weights, "--policy", "posterior", "--evaluations", "36"]
        line += ["--finals", "2", "--controls", "2", "--final-steps", "4"]
        for workers in ("", "1", "2"):
            others = ["--workers", workers] if workers else []
            here = replace(plan, folder=plan.folder / f"workers_{workers or 'none'}")
            found = killed_command(here, line, "search_net.py with finals", 6, others)
            outcome.count += found.count
            outcome.failures += found.failures
            outcome.numbers[f"records_at_each_kill, workers {workers or 'none'}"] = found.numbers.get(
                "records_at_each_kill"
            )
    return outcome


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
        found = Finals(REQUEST, journal, InProcess(train)).run(who, COSTS)
    write_finals(result.directory, REQUEST, found, who, COSTS)
