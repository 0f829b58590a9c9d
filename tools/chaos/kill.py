"""SIGKILL at random moments of whole searches, resumed until they are done."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from . import pure
from .processes import Process, error_line, fork
from .report import Outcome, Plan

POLICIES = ("path_priority", "evolution", "random")
SECONDS = 0.002  # of an evaluation
KILLS_PER_RUN = 16  # of them, on average
MOST_KILLS_PER_RUN = 1000
JOURNALS = ("ledger.jsonl", "finals.jsonl")


def kill(plan: Plan) -> Outcome:
    """The results are those of an uninterrupted search, and a kill costs one evaluation at most."""
    kills, runs = plan.number(300, 6), plan.number(20, 2)
    size = f"{pure.CYCLES * pure.MODELS} candidates"
    outcome = Outcome(f"searches of {size} SIGKILLed at random, resumed; over >= {runs} runs")
    searches = {policy: partial(pure.search, policy=policy) for policy in POLICIES}
    killed_searches(plan, outcome, searches, kills, runs)
    return outcome


def killed_searches(
    plan: Plan, outcome: Outcome, searches: dict[str, Callable], kills: int, runs: int
) -> None:
    """Add to ``outcome`` what comes of killed searches, of which a whole one has about 16 kills.

    Args:
        plan: folder and seed.
        searches: {name: function of a folder and what evaluates, which begins or continues a search there}.
        kills, runs: at least so many, the searches in turn.
    """
    rng, bar = plan.rng(), plan.bar(kills, plan.folder.name)
    references, length = {}, {}
    numbers = {"runs": 0, "identical": 0, "evaluated_again": 0, "torn_lines": 0}
    while (outcome.count < kills or numbers["runs"] < runs) and not outcome.failures:
        name = list(searches)[numbers["runs"] % len(searches)]
        search = searches[name]
        if name not in references:
            references[name] = plan.folder / f"reference_{name}"
            references[name].mkdir(parents=True)
            start = time.monotonic()
            evaluate = pure.Evaluate(plan.folder / f"reference_{name}.log", SECONDS)
            log = references[name] / "output.log"
            code = fork(partial(search, references[name], evaluate), log).wait()
            length[name] = time.monotonic() - start
            outcome.expect(code == 0, f"the reference ended with exit code {code}: {error_line(log)}")
        folder = plan.folder / f"run_{numbers['runs']}"
        folder.mkdir(parents=True)
        log = folder / "evaluations.log"
        evaluate = pure.Evaluate(log, SECONDS)
        seen = [0, 0]  # evaluations, and records of an evaluation
        still = [0]  # kills since the last new record: to begin takes its time

        def start(folder=folder, evaluate=evaluate, search=search):
            return fork(lambda: search(folder, evaluate), folder / "output.log")

        def moment(process, mean=length[name] / KILLS_PER_RUN, still=still):
            process.wait(rng.uniform(0, (2 + still[0]) * mean))

        def killed(records, folder=folder, log=log, seen=seen, still=still):
            now = [len(pure.evaluations(log)), sum("duplicate_of" not in r for r in records)]
            still[0] = still[0] + 1 if now[1] == seen[1] else 0
            again = (now[0] - seen[0]) - (now[1] - seen[1])
            seen[:] = now
            outcome.count += 1
            numbers["evaluated_again"] += again
            numbers["torn_lines"] += any(torn(folder / "search" / file) for file in JOURNALS)
            outcome.expect(again in (0, 1), f"{folder}: a kill costs {again} evaluations")
            bar.update()

        for failure in until_done(start, moment, folder, killed):
            outcome.expect(False, failure)
        numbers["runs"] += 1
        different = pure.differences(folder, references[name])
        numbers["identical"] += not different
        outcome.expect(not different, f"{folder}: other {', '.join(different)} than uninterrupted")
    outcome.numbers |= numbers
    bar.close()


def until_done(
    start: Callable[[], Process],
    moment: Callable[[Process], None],
    folder: Path,
    killed: Callable[[list[dict]], None],
) -> list[str]:
    """Start the search in ``folder``, kill it, start it again, until it ends by itself.

    Args:
        start: begins or continues it.
        moment: returns when the process is to be killed, or has ended.
        folder: its OUTPUT_DIR.
        killed: called after every kill with the records that are in ledger and journal.

    Returns:
        What went wrong: the search cannot go on, or what was finished is lost.
    """
    failures, known = [], []
    for _ in range(MOST_KILLS_PER_RUN):
        process = start()
        moment(process)
        died = process.kill()
        records = pure.records(folder) + pure.trainings(folder)
        if records[: len(known)] != known:
            failures.append(f"{folder}: of {len(known)} finished records, not all are left as they were")
        known = records
        if not died:
            if process.returncode != 0:
                failures.append(f"{folder}: not resumed, exit code {process.returncode}")
            return failures
        killed(records)
    return [*failures, f"{folder}: not done after {MOST_KILLS_PER_RUN} kills"]


def torn(path: Path) -> bool:
    """Whether the last line was cut short."""
    data = path.read_bytes() if path.exists() else b""
    return bool(data) and not data.endswith(b"\n")
