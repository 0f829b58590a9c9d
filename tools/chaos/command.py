"""The command line of the drills."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from auto_panoptic.errors import UserError

from .drills import ASKED_FOR, DRILLS, FAULTS
from .processes import Process, fork
from .report import Outcome, Plan, table
from .training import forget_data_sets


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="tools/chaos", description="Fault drills of training and search.")
    p.add_argument("--quick", action="store_true", help="small numbers")
    p.add_argument(
        "--only",
        action="append",
        choices=DRILLS,
        metavar="NAME",
        help=f"one of {', '.join(DRILLS)}; may be repeated",
    )
    p.add_argument("--jobs", type=int, default=2, metavar="N", help="drills at a time (default: 2)")
    p.add_argument("--seed", type=int, default=0, help="of everything random (default: 0)")
    p.add_argument("--output", type=Path, metavar="DIR", help="keep what the drills write here")
    p.add_argument("--weights", metavar="FILE", help="supernet of the drill real")
    p.add_argument("--config-file", metavar="FILE", help="its config")
    return p


def main(arguments: list[str]) -> int:
    """Run the drills; 1 if one of them failed."""
    args = parser().parse_args(arguments)
    if args.jobs < 1:
        raise UserError(f"--jobs is {args.jobs}; expected at least 1")
    if bool(args.weights) != bool(args.config_file):
        raise UserError("--weights and --config-file belong together: give both, or none")
    for file in filter(None, (args.weights, args.config_file)):
        if not Path(file).is_file():
            raise UserError(f"no file '{file}': name the supernet's weights and its config")
    default = [name for name in DRILLS if name not in ASKED_FOR or name == "real" and args.weights]
    names = list(dict.fromkeys(args.only or default))
    if "real" in names and not args.weights:
        raise UserError("the drill 'real' needs a supernet: --weights FILE --config-file FILE")
    folder = args.output or Path(tempfile.mkdtemp(prefix="chaos-"))
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"--output {folder} is not empty: name a new folder")
    bars = args.jobs == 1 or len(names) == 1
    plans = {
        name: Plan(folder.resolve() / name, args.seed, args.quick, args.weights, args.config_file, bars)
        for name in names
    }
    start = time.monotonic()
    outcomes = drill(plans, args.jobs)
    passed = all(outcome.passed for outcome in outcomes.values())
    print(table(outcomes, FAULTS))
    if passed and not args.output:
        shutil.rmtree(folder)
    elif not passed:
        print(f"files: {folder}")
    report = {
        name: {"faults": FAULTS.get(name, ""), "passed": o.passed, **asdict(o)}
        for name, o in outcomes.items()
    }
    facts = {"passed": passed, "quick": args.quick, "seed": args.seed}
    print(json.dumps({**facts, "seconds": round(time.monotonic() - start, 1), "drills": report}))
    return int(not passed)


class Running:
    """A drill in a process of its own, so that none sees the remains of another."""

    def __init__(self, function: Callable[[Plan], Outcome], plan: Plan):
        self.name = function.__name__
        self.report = plan.folder / "outcome.json"
        plan.folder.mkdir(parents=True, exist_ok=True)

        def run():
            tqdm.monitor_interval = 0  # its thread would have to be forked
            forget_data_sets()
            self.report.write_text(json.dumps(asdict(function(plan))))

        self.start = time.monotonic()
        self.process: Process = fork(run, None)

    def outcome(self) -> Outcome:
        """Once the process has ended."""
        if self.process.returncode == 0:
            outcome = Outcome(**json.loads(self.report.read_text()))
        else:
            outcome = Outcome(self.name, 0, [f"the drill ended with exit code {self.process.returncode}"])
        outcome.seconds = round(time.monotonic() - self.start, 1)
        return outcome


def drill(plans: dict[str, Plan], jobs: int) -> dict[str, Outcome]:
    """Run the drills ``plans``, ``jobs`` at a time; their outcomes in the same order."""
    outcomes, waiting, running = {}, list(plans), {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                name = waiting.pop(0)
                running[name] = Running(DRILLS[name], plans[name])
            for name in [name for name, one in running.items() if one.process.poll() is not None]:
                outcomes[name] = running.pop(name).outcome()
                line = table({name: outcomes[name]}, FAULTS).splitlines()[1]
                print(line, file=sys.stderr, flush=True)
            time.sleep(0.05)
    finally:
        for one in running.values():
            one.process.kill()
    return {name: outcomes[name] for name in plans}
