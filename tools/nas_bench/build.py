"""The benchmark of architectures: what 4096 paths score in supernets, and what 128 are worth when trained.

Everything that is computed is a line of OUTPUT/journal.jsonl; stopped at any moment, the same command goes
on. --workers N does N jobs at a time, one thread (or one GPU) each, here or with --ray-address on a cluster.

    python tools/nas_bench/build.py [--output output/nas_bench] [--workers 2]
    python tools/nas_bench/build.py --table output/nas_bench/shapes4096.npz [--trained 0]

--extend TABLE takes over what a table holds, so that only the rest is computed.

    python tools/nas_bench/build.py --extend shapes4096 --trained 16 --table output/nas_bench/larger.npz

--rebuild N makes N trained entries of an existing table again, from nothing, and compares: exit code 1 where
one differs by more than 5 standard deviations between seeds. Its journal is its own, in OUTPUT/rebuilt.

    python tools/nas_bench/build.py --rebuild 4 --table output/nas_bench/shapes4096.npz
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from jobs import ROOT, AllScores, Standalone, Supernet, Trunk, Work  # noqa: E402
from rebuild import LIMIT, compare, spread_over_costs  # noqa: E402
from scoring import METRICS  # noqa: E402
from table import make_table, scored_by, trained_results  # noqa: E402

from auto_panoptic.bench import Benchmark, load, path_of  # noqa: E402
from auto_panoptic.errors import UserError, at_least, run_command  # noqa: E402
from auto_panoptic.explore import Ledger  # noqa: E402
from auto_panoptic.modeling.counting import configured_costs  # noqa: E402
from auto_panoptic.progress import Progress  # noqa: E402
from auto_panoptic.search.executors.in_process import InProcess  # noqa: E402
from auto_panoptic.search.executors.ray import RayExecutor, import_ray  # noqa: E402
from auto_panoptic.space import SearchSpace  # noqa: E402
from auto_panoptic.training import build_config  # noqa: E402

CONFIG, TRAINED = "configs/bench/shapes4096.yaml", "configs/bench/shapes4096_trained.yaml"
HEADER = {"benchmark": "shapes4096"}  # of journals; what else a job is stands in its key
GROUP = 16
NAME = "base"  # of the supernets whose scores of all paths are in the table


class Journal:
    """The results of jobs by their keys, in a file that survives being killed."""

    def __init__(self, ledger: Ledger):
        self.ledger = ledger
        self.results = {r["key"]: _result(r) for r in ledger.records if r["status"] == "ok"}

    def add(self, key: str, outcome: dict) -> None:
        """Write a result."""
        self.ledger.append({"key": key, **outcome})
        if outcome["status"] == "ok":
            self.results[key] = _result(outcome)

    def do(self, executor, jobs: Sequence, title: str) -> list[dict]:
        """The results of ``jobs``, those that are missing computed first.

        Raises:
            UserError: some failed.
        """
        missing = [job for job in jobs if job.key not in self.results]
        failed = []
        with Progress(title, len(jobs), "jobs", done=len(jobs) - len(missing)) as bar:
            for key, outcome in executor.run([(job.key, job) for job in missing]) if missing else ():
                self.add(key, outcome)
                if outcome["status"] != "ok":
                    failed.append(key)
                bar.update()
        if failed:
            raise UserError(f"{self.ledger.path}: {len(failed)} jobs failed, see the line of {failed[0]!r}")
        return [self.results[job.key] for job in jobs]


def _result(outcome: dict) -> dict:
    return {**outcome["metrics"], "seconds": outcome["seconds"]["all"]}


def strata(scores: np.ndarray, macs: np.ndarray, number: int, seed: int = 0) -> list[int]:
    """Paths drawn in turn from 16 strata: quarters of the multiply-adds, in each quarters of the score.

    The first of them are those that a smaller ``number`` has.
    """
    rng, cells = np.random.default_rng(seed), []
    cheap_first = np.argsort(macs, kind="stable")
    for quarter in np.array_split(cheap_first, 4):
        cells += np.array_split(quarter[np.argsort(scores[quarter], kind="stable")], 4)
    smallest = min(map(len, cells))
    return np.stack([rng.permutation(cell)[:smallest] for cell in cells], axis=1).ravel()[:number].tolist()


def trained_paths(scores: Sequence[dict[str, np.ndarray]], macs: np.ndarray, number: int) -> list[int]:
    """Those of :func:`strata` by the mean score in the supernets."""
    return strata(np.mean([s["PQ"] for s in scores], axis=0), macs, number)


def base_supernets(seeds: int) -> list[Supernet]:
    """Those whose scores are in the table."""
    return [Supernet(NAME, (), seed) for seed in range(seeds)]


def space_and_costs(options: Sequence[str] = ()):
    """(space, multiply-adds of all paths, parameters of all paths)."""
    cfg = build_config(str(ROOT / CONFIG), list(options))
    space, tables = SearchSpace.from_config(cfg), configured_costs(cfg)
    costs = [tables.cost(path_of(space, number)) for number in range(space.cardinality)]
    return space, np.array([c.macs for c in costs]), np.array([c.params for c in costs])


def score_jobs(supernet: Supernet, space: SearchSpace) -> list[AllScores]:
    """One for each choice of the backbone."""
    choices = np.prod([len(site.ops) for site in space.sites if site.part == "backbone"])
    return [AllScores(supernet, number) for number in range(choices)]


def all_scores(journal: Journal, executor, supernet: Supernet, space: SearchSpace) -> dict[str, np.ndarray]:
    """{metric: (paths,)} of a supernet."""
    jobs = score_jobs(supernet, space)
    parts = journal.do(executor, jobs, f"scores of supernet {supernet.name} {supernet.seed}")
    # As a table holds them, so that paths are drawn by the same numbers.
    return {name: np.concatenate([part[name] for part in parts]).astype(np.float32) for name in METRICS}


def take_over(bench: Benchmark, journal: Journal, steps: int) -> None:
    """Write the results in a table to the journal, but those that it has.

    Raises:
        UserError: the table has another space, or trainings of another length.
    """
    space = check_space("--extend", bench)
    if len(bench.paths) and bench.provenance["steps"] != steps:
        raise UserError(f"--extend: its trainings have {bench.provenance['steps']} steps, --steps is {steps}")
    found = {}
    for supernet in base_supernets(len(bench.supernet["PQ"])):
        found[supernet.key] = ({}, 0.0)
        jobs = score_jobs(supernet, space)
        parts = {n: np.split(rows[supernet.seed], len(jobs)) for n, rows in bench.supernet.items()}
        for number, job in enumerate(jobs):
            found[job.key] = ({name: part[number].tolist() for name, part in parts.items()}, 0.0)
    for path, seed, metrics, seconds in trained_results(bench):
        found[Standalone(path, seed, steps).key] = (metrics, seconds)
    for key, (metrics, seconds) in found.items():
        if key not in journal.results:
            journal.add(key, {"status": "ok", "metrics": metrics, "seconds": {"all": seconds}})


def check_space(option: str, bench: Benchmark) -> SearchSpace:
    """The space of :data:`CONFIG`.

    Raises:
        UserError: the table has another.
    """
    space, _, _ = space_and_costs()
    if bench.space != space:
        raise UserError(f"{option}: of another space than {CONFIG}: {space.difference(bench.space)}")
    return space


def build(args, journal: Journal, executor) -> Benchmark:
    """The table."""
    if args.extend is not None:
        take_over(load(args.extend), journal, args.steps)
    space, macs, params = space_and_costs()
    supernets = base_supernets(args.supernets)
    journal.do(executor, supernets, "supernets")
    scores = [all_scores(journal, executor, supernet, space) for supernet in supernets]
    paths = trained_paths(scores, macs, args.trained)
    # By groups of paths, all seeds of each: a part of the journal is a smaller table.
    groups = [paths[first : first + GROUP] for first in range(0, len(paths), GROUP)]
    seeds = range(args.seeds)
    jobs = [Standalone(p, s, args.steps) for group in groups for s in seeds for p in group]
    if any(job.key not in journal.results for job in jobs):
        journal.do(executor, [Trunk(s) for s in seeds], "trunks")
    results = dict(zip(jobs, journal.do(executor, jobs, "trained paths"), strict=True))
    trained = [[results[Standalone(p, s, args.steps)] for s in seeds] for p in paths]
    search = list(build_config(str(ROOT / CONFIG)).DATASETS.SEARCH)
    cfg = build_config(str(ROOT / TRAINED), ["NAS.ARCHITECTURE", ""])
    about = {"configs": [CONFIG, TRAINED], "steps": args.steps, "search": search}
    about |= {"image": cfg.INPUT.MIN_SIZE_TEST, **scored_by(cfg.DATASETS.TEST)}
    return make_table(space, (macs, params), scores, paths, trained, about)


def rebuild(bench: Benchmark, number: int, journal: Journal, executor) -> None:
    """Train ``number`` paths of a table again, with the first seed.

    Raises:
        UserError: the table has another space, or fewer trained paths.
        SystemExit: one differs by more than the seeds' noise; exit code 1.
    """
    check_space("--table", bench)
    if number > len(bench.paths):
        raise UserError(
            f"--rebuild is {number}; the table has {len(bench.paths)} trained paths: at most those"
        )
    places = spread_over_costs(bench, number)
    jobs = [Standalone(int(bench.paths[p]), 0, bench.provenance["steps"]) for p in places]
    journal.do(executor, [Trunk(0)], "trunk")
    found = [result["PQ"] for result in journal.do(executor, jobs, "trained paths")]
    if not compare(bench, places, found):
        sys.exit(f"error: a path differs by more than {LIMIT} standard deviations")


def make_executor(args, work: type[Work] = Work):
    """Jobs in this process, or side by side."""
    make = partial(work, CONFIG, TRAINED, args.output.resolve())
    if args.workers == 1 and not args.ray_address:
        return contextlib.nullcontext(InProcess(make()))
    gpus = args.gpus
    return RayExecutor(partial(_in_worker, make), lambda: None, args.workers, args.ray_address, gpus)


def _in_worker(make, _shared) -> Work:
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    return make(options=["MODEL.DEVICE", "cuda"] if import_ray().get_gpu_ids() else [])


def add_workers(parser: argparse.ArgumentParser) -> None:
    """The options of :func:`make_executor`."""
    parser.add_argument("--output", type=Path, default=ROOT / "output" / "nas_bench")
    parser.add_argument("--workers", type=int, default=1, help="jobs at a time (default: 1)")
    parser.add_argument("--ray-address", help="of a running Ray cluster, or auto")
    parser.add_argument("--gpus", action="store_true", help="one GPU per worker")


def rebuild_entries(args) -> None:
    """:func:`rebuild` as the command line asks for it."""
    at_least("--rebuild", args.rebuild, 1)
    if args.extend is not None:
        raise UserError("--extend has no effect with --rebuild: leave one of them out")
    if args.table is None:
        raise UserError("--rebuild: give --table, a name or a file of the table whose entries to make again")
    bench, args.output = load(args.table), args.output / "rebuilt"
    with (
        Ledger.open(args.output / "journal.jsonl", HEADER, resume=True) as ledger,
        make_executor(args) as executor,
    ):
        rebuild(bench, args.rebuild, Journal(ledger), executor)


def main() -> None:
    """The command line."""
    how = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=how)
    add_workers(parser)
    parser.add_argument("--supernets", type=int, default=3, help="seeds of the supernet (default: 3)")
    parser.add_argument("--trained", type=int, default=128, help="paths that are trained (default: 128)")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of each training (default: 3)")
    parser.add_argument("--steps", type=int, default=200, help="of each training (default: 200)")
    parser.add_argument("--table", type=Path, help="write the table to this .npz file at the end")
    parser.add_argument("--extend", metavar="TABLE", help="a name or a file: take over what it holds")
    parser.add_argument("--rebuild", type=int, metavar="N", help="make N entries of --table again")
    args = parser.parse_args()
    for name, least in (("workers", 1), ("supernets", 1), ("trained", 0), ("seeds", 2), ("steps", 20)):
        at_least(f"--{name}", getattr(args, name), least)
    if args.rebuild is not None:
        rebuild_entries(args)
        return
    start = time.perf_counter()
    with (
        Ledger.open(args.output / "journal.jsonl", HEADER, resume=True) as ledger,
        make_executor(args) as executor,
    ):
        table = build(args, Journal(ledger), executor)
    if args.table:
        table.save(args.table)
    networks, seeds = table.trained["PQ"].shape
    print(f"{networks} paths trained with {seeds} seeds, {time.perf_counter() - start:.0f} seconds now")


if __name__ == "__main__":
    run_command(main)
