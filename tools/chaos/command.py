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

from .journal import journal
from .kill import kill
from .lock import lock
from .order import order
from .processes import fork
from .real import real
from .report import Outcome, Plan, table
from .worker import worker

DRILLS: dict[str, Callable[[Plan], Outcome]] = {
    f.__name__: f for f in (kill, journal, lock, order, worker, real)
}


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="tools/chaos", description="Fault drills of the search.")
    p.add_argument("--quick", action="store_true", help="small numbers")
    p.add_argument(
        "--only",
        action="append",
        choices=DRILLS,
        metavar="NAME",
        help=f"one of {', '.join(DRILLS)}; may be repeated",
    )
    p.add_argument("--seed", type=int, default=0, help="of everything random (default: 0)")
    p.add_argument("--output", type=Path, metavar="DIR", help="keep what the drills write here")
    p.add_argument("--weights", metavar="FILE", help="supernet of the drill real")
    p.add_argument("--config-file", metavar="FILE", help="its config")
    return p


def main(arguments: list[str]) -> int:
    """Run the drills; 1 if one of them failed."""
    args = parser().parse_args(arguments)
    if bool(args.weights) != bool(args.config_file):
        raise UserError("--weights and --config-file belong together: give both, or none")
    for file in filter(None, (args.weights, args.config_file)):
        if not Path(file).is_file():
            raise UserError(f"no file '{file}': name the supernet's weights and its config")
    names = args.only or [name for name in DRILLS if name != "real" or args.weights]
    if "real" in names and not args.weights:
        raise UserError("the drill 'real' needs a supernet: --weights FILE --config-file FILE")
    folder = args.output or Path(tempfile.mkdtemp(prefix="chaos-"))
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"--output {folder} is not empty: name a new folder")
    outcomes = {}
    for name in dict.fromkeys(names):
        plan = Plan(folder.resolve() / name, args.seed, args.quick, args.weights, args.config_file)
        outcomes[name] = drill(DRILLS[name], plan)
        print(table({name: outcomes[name]}).splitlines()[1], file=sys.stderr, flush=True)
    passed = all(outcome.passed for outcome in outcomes.values())
    print(table(outcomes))
    if passed and not args.output:
        shutil.rmtree(folder)
    elif not passed:
        print(f"files: {folder}")
    report = {name: {"passed": o.passed, **asdict(o)} for name, o in outcomes.items()}
    print(json.dumps({"passed": passed, "quick": args.quick, "seed": args.seed, "drills": report}))
    return int(not passed)


def drill(function: Callable[[Plan], Outcome], plan: Plan) -> Outcome:
    """Run one in a process of its own, so that none sees the remains of another."""
    plan.folder.mkdir(parents=True, exist_ok=True)
    report = plan.folder / "outcome.json"

    def run():
        tqdm.monitor_interval = 0  # its thread would have to be forked
        report.write_text(json.dumps(asdict(function(plan))))

    start = time.monotonic()
    process = fork(run, None)
    try:
        while process.wait() is None:
            pass
    finally:
        process.kill()
    if process.returncode == 0:
        outcome = Outcome(**json.loads(report.read_text()))
    else:
        outcome = Outcome(function.__name__, 0, [f"the drill ended with exit code {process.returncode}"])
    outcome.seconds = round(time.monotonic() - start, 1)
    return outcome
