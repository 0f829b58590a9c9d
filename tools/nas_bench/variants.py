"""Supernets trained otherwise than those of the benchmark, and what else may tell what paths are worth.

All is measured on the trained paths of the benchmark that tools/nas_bench/build.py makes in the same OUTPUT,
as soon as its journal has the scores that choose these paths; until then supernets are trained. What claims
to be better must be so at equal time: such variants take as long as the benchmark's own 640 cycles. All that
is computed is a line of OUTPUT/variants.jsonl; stopped at any moment, the same command goes on.

    python tools/nas_bench/variants.py [--output output/nas_bench] [--workers 2] [--paths 128] [--seeds 2]
                                       [--only NAME]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import build  # noqa: E402
from jobs import Scores, Supernet  # noqa: E402
from proxies import GradientNorms, MoreWork, SandwichSupernet, Tuned, WarmSupernet  # noqa: E402
from variant_file import Measured, variants_beside, write_variants  # noqa: E402

from auto_panoptic.errors import UserError, at_least, run_command  # noqa: E402
from auto_panoptic.explore import Ledger  # noqa: E402
from auto_panoptic.space import SearchSpace  # noqa: E402

BASE = 3  # supernets of the benchmark; those of here have the seeds after them
ONE_BACKBONE = 64  # paths
TUNING = 10  # steps, 5 % of those of a training
NO_CALIBRATION = ("NAS.BN_RECALIBRATION.ENABLED", "False")


def cycles(number: int) -> tuple:
    """The benchmark's schedule of 640 iterations, of which the learning rate falls after 514 and 596."""
    steps = tuple(number * step // 640 for step in (514, 596))
    return ("SOLVER.MAX_ITER", number, "SOLVER.STEPS", str(steps))


# Of the time of a cycle of 4 passes of 2 images, a path of 2 images takes 1 / 3.5, a cycle of 1 image 0.59,
# the largest path of 4 images 0.57; in every cycle it makes that 1.24 times as long. So all that compete take
# as long as the benchmark's 640 cycles.
VARIANTS: dict[str, tuple] = {
    "320 cycles": cycles(320),
    "160 cycles": cycles(160),
    "640 cycles": (),  # those of the benchmark again
    "uniform paths": ("NAS.SAMPLING", "uniform", *cycles(2240)),
    "1 image a pass": ("SOLVER.IMS_PER_BATCH", 1, *cycles(1090)),
    "largest path first": (WarmSupernet, (*cycles(480),), ("SOLVER.IMS_PER_BATCH", 4, *cycles(280))),
    "largest path always": (SandwichSupernet, (*cycles(515),)),
    "rate 0.1": ("SOLVER.BASE_LR", 0.1),
    "sum of gradients": ("NAS.GRADIENTS", "sum"),
    "divided rates": ("NAS.GRADIENTS", "lr_scale"),
    "1280 cycles": cycles(1280),
}
# Of the statistics that a training leaves: no weight depends on it, and no calibrated score.
MOMENTUM = ("MODEL.SHUFFLENET.NORM_MOMENTUM", 0.01)


class Measure(NamedTuple):
    """One thing to measure: a supernet to be trained first, or None, and the jobs that score paths."""

    name: str
    seed: int
    supernet: Supernet | None
    jobs: Callable[[tuple[int, ...]], list]


def scores(supernet: Supernet, paths: tuple[int, ...], options: tuple = ()) -> list[Scores]:
    """Of all paths; a job's name holds its own, so that no others are taken for them."""
    how = "as trained" if options else "calibrated"
    return [Scores(supernet, f"{how} {_text(group)}", options, group) for group in groups(paths)]


def groups(paths: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Those of one backbone, which share most of the work."""
    backbones = sorted({path // ONE_BACKBONE for path in paths})
    return [tuple(path for path in paths if path // ONE_BACKBONE == number) for number in backbones]


def _text(group: Sequence[int]) -> str:
    return ",".join(map(str, group))


def supernet_of(name: str, seed: int, largest: int) -> Supernet:
    """That of a variant: options, or a kind of supernet with its options and what else it takes.

    ``largest`` is the path with the most multiply-adds.
    """
    options, key = VARIANTS[name], name.replace(" ", "_")
    if options and isinstance(options[0], type):
        kind, own, *rest = options
        return kind(key, own, seed, largest, *rest)
    return Supernet(key, options, seed)


def measures(seeds: int, largest: int) -> list[Measure]:
    """All of them: what needs no other training, then the variants, the most important ones first."""
    found = []
    for start in build.base_supernets(BASE)[:seeds]:
        seed = start.seed + BASE
        found += [
            Measure("gradient norm", seed, None, partial(_gradients, seed)),
            Measure("not calibrated", start.seed, None, partial(scores, start, options=NO_CALIBRATION)),
            Measure(f"tuned for {TUNING} steps", start.seed, None, partial(_tuned, start)),
        ]
        for name in VARIANTS:
            net = supernet_of(name, seed, largest)
            found.append(Measure(name, seed, net, partial(scores, net)))
        net = Supernet("momentum_0.01", MOMENTUM, seed)
        rough = partial(scores, net, options=NO_CALIBRATION)
        found.append(Measure("not calibrated, momentum 0.01", seed, net, rough))
    return found


def _gradients(seed: int, paths: tuple[int, ...]) -> list[GradientNorms]:
    return [GradientNorms(seed, _text(group), group) for group in groups(paths)]


def _tuned(start: Supernet, paths: tuple[int, ...]) -> list[Tuned]:
    return [Tuned(start, path, TUNING) for path in paths]


def known_paths(output: Path, space: SearchSpace, macs: np.ndarray, number: int) -> tuple[int, ...]:
    """The first of the paths that the benchmark trains; none before its supernets are scored."""
    path = output / "journal.jsonl"
    if not path.is_file():
        return ()
    journal, supernets = build.Journal(Ledger(path)), build.base_supernets(BASE)
    if any(job.key not in journal.results for net in supernets for job in build.score_jobs(net, space)):
        return ()
    tables = [build.all_scores(journal, None, net, space) for net in supernets]
    return tuple(build.trained_paths(tables, macs, number))


def measured(journal: build.Journal, measure: Measure, paths: tuple[int, ...]) -> Measured:
    """What the journal has of one."""
    values: dict[int, float] = {}
    for job in measure.jobs(paths):
        if job.key in journal.results:
            result, own = journal.results[job.key], getattr(job, "paths", None) or (job.path,)
            row = result.get("PQ", result.get("norm"))
            values |= zip(own, row if isinstance(row, list) else [row], strict=True)
    training = journal.results.get(measure.supernet.key, {}) if measure.supernet else {}
    minutes = round(training["cpu"] / 60, 2) if "cpu" in training else None
    return Measured(measure.name, measure.seed, minutes, values)


def run(args, journal: build.Journal, executor) -> list[Measured]:
    """Measure what is asked and possible now, as many supernets at a time as there are workers.

    Returns all that the journal has, earlier calls' too.
    """
    space, macs, _ = build.space_and_costs()
    largest, paths, found, errors = int(np.argmax(macs)), (), [], []
    wanted = [m for m in measures(args.seeds, largest) if not args.only or m.name in args.only]
    scored = 0  # so many of the measurements
    for first in range(0, len(wanted), args.workers):
        last = first + args.workers
        paths = paths or known_paths(args.output, space, macs, args.paths)
        nets = dict.fromkeys(m.supernet for m in wanted[first:last] if m.supernet)
        todo = [(list(nets), "supernets")]
        if paths:
            todo += [(m.jobs(paths), m.name) for m in wanted[scored:last]]
            scored = last
        for jobs, title in todo:
            try:
                journal.do(executor, jobs, title)
            except UserError as error:  # a training diverged, say: the others are none the worse
                errors.append(error)
        found = [m for m in (measured(journal, w, paths) for w in measures(BASE, largest)) if m.values]
        if found:
            write_variants(args.file or variants_beside(args.output / "shapes4096.npz"), found)
    if errors:
        raise errors[0]
    return found


def main() -> None:
    """The command line."""
    how = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=how)
    build.add_workers(parser)
    parser.add_argument("--paths", type=int, default=128, help="the first so many (default: 128)")
    parser.add_argument("--seeds", type=int, default=1, choices=(1, 2, 3), help="of each (default: 1)")
    names = [*dict.fromkeys(m.name for m in measures(1, 0))]
    parser.add_argument("--only", action="append", choices=names, metavar="NAME", help="may be repeated")
    parser.add_argument("--file", type=Path, help="results (default: OUTPUT/shapes4096_variants.json)")
    args = parser.parse_args()
    at_least("--workers", args.workers, 1)
    at_least("--paths", args.paths, 4)
    with (
        Ledger.open(args.output / "variants.jsonl", build.HEADER, resume=True) as ledger,
        build.make_executor(args, MoreWork) as executor,
    ):
        found = run(args, build.Journal(ledger), executor)
    if not found:
        raise UserError(
            f"{args.output / 'journal.jsonl'} has no scores of {BASE} supernets yet; until then "
            "supernets are trained, and nothing is measured: run tools/nas_bench/build.py with the same "
            "--output, then this again"
        )
    print(f"{len(found)} measurements of {len({p for m in found for p in m.values})} paths")


if __name__ == "__main__":
    run_command(main)
