"""Does a search pay? What searches of the benchmark select, trained, against random paths.

Posterior searches of the table's supernets select by ridge regression, without regard to what a candidate
scored itself; what they select is trained as the table's paths are. Those are drawn alike from all strata of
cost and score, so they are what chance selects. Of equal cost are those whose multiply-adds are the mean of
the selected to within 2 %: --controls more are drawn, and the table's are taken. Compared is PQ on the images
that score no supernet; intervals are over supernets, their searches, random paths, and seeds. Every training
is a line of OUTPUT/journal.jsonl, build.py's own.

    python tools/nas_bench/selected.py [--table FILE] [--output output/nas_bench] [--workers 2]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import build  # noqa: E402
from predictors import truth_of  # noqa: E402
from regret import lookup  # noqa: E402
from searches import posterior_rounds  # noqa: E402
from table import make_table  # noqa: E402

from auto_panoptic.bench import Benchmark, load  # noqa: E402
from auto_panoptic.errors import UserError, at_least, run_command  # noqa: E402
from auto_panoptic.explore import Ledger  # noqa: E402
from auto_panoptic.explore.controls import TOLERANCE, random_of_equal_cost  # noqa: E402
from auto_panoptic.explore.selection import select  # noqa: E402

RESAMPLES = 1000


def selections(bench: Benchmark, searches: int, evaluations: int) -> np.ndarray:
    """(supernets, searches) numbers of the selected paths."""
    found = []
    for scores in bench.supernet["PQ"].astype(float):
        true = lookup(bench.space, scores)
        for seed in range(searches):
            rng = np.random.default_rng(seed)
            *_, (history, _, _) = posterior_rounds(bench.space, true, 0.0, rng, seed, evaluations)
            found.append(bench.number(select(bench.space, history, "ridge", adaptive=True).architecture))
    return np.reshape(found, (-1, searches))


def of_these(bench: Benchmark, paths: Sequence[int], trained: Sequence[Sequence[dict]]) -> Benchmark:
    """The table with other trained paths; ``trained`` are the jobs' results, [path][seed]."""
    scores = [
        dict(zip(bench.supernet, row, strict=True)) for row in zip(*bench.supernet.values(), strict=True)
    ]
    return make_table(bench.space, (bench.macs, bench.params), scores, paths, trained, bench.provenance)


def gain(places: np.ndarray, selected: np.ndarray, chance: np.ndarray) -> tuple[float, float, float]:
    """(value, low, high; 95 %) of the PQ by which selected paths are above those of chance.

    Args:
        places: (supernets, searches) rows of ``selected``.
        selected, chance: (paths, seeds) PQ; the same seeds.
    """
    rng, (nets, searches) = np.random.default_rng(0), places.shape
    (paths, seeds), values = chance.shape, [selected[places].mean() - chance.mean()]
    for _ in range(RESAMPLES):
        seed = rng.integers(seeds, size=seeds)
        net, search = rng.integers(nets, size=(nets, 1)), rng.integers(searches, size=(nets, searches))
        other = rng.integers(paths, size=paths)
        values.append(selected[places[net, search]][..., seed].mean() - chance[other][:, seed].mean())
    return values[0], *np.percentile(values[1:], [2.5, 97.5])


def report(bench: Benchmark, chosen: np.ndarray, found: Benchmark) -> dict[str, tuple[float, float, float]]:
    """Print what was selected; returns its gains over random paths, and over those of its costs.

    Args:
        chosen: (supernets, searches) numbers of paths of ``found``, whose other paths are the drawn controls.
    """
    truth, chance, score = truth_of(found), truth_of(bench), bench.supernet["PQ"].astype(float)
    place = {path: i for i, path in enumerate(found.paths.tolist())}
    places = np.array([[place[path] for path in row] for row in chosen.tolist()])
    macs, controls = bench.macs[chosen].mean(), ~np.isin(found.paths, chosen)
    alike = (abs(bench.macs[bench.paths] - macs) <= TOLERANCE * macs) & ~np.isin(bench.paths, found.paths)
    of_equal_cost = np.concatenate([truth[controls], chance[alike]])
    print(f"{'paths':<24}{'number':>7}{'score':>8}{'multiply-adds':>15}{'PQ trained':>12}")
    rows = [(f"supernet {net} selects", found.paths[row], truth[row]) for net, row in enumerate(places)]
    random = [
        ("random", bench.paths, chance),
        ("random of equal cost", np.r_[found.paths[controls], bench.paths[alike]], of_equal_cost),
    ]
    for name, paths, of_paths in [*rows, *random]:
        cost, mean = f"{bench.macs[paths].mean() / 1e9:.2f} G", score[:, paths].mean()
        print(f"{name:<24}{len({*paths.tolist()}):>7}{mean:>8.2f}{cost:>15}{of_paths.mean():>12.2f}")
    gains = {name: gain(places, truth, of_paths) for name, _, of_paths in random}
    for name, (value, low, high) in gains.items():
        verdict = "is better than" if low > 0 else "is NOT shown to be better than"
        print(f"What searches select {verdict} {name}: {value:+.2f} PQ [{low:+.2f}, {high:+.2f}]")
    return gains


def main() -> None:
    """The command line."""
    how = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=how)
    build.add_workers(parser)
    parser.add_argument("--table", default="shapes4096", help="name or file (default: %(default)s)")
    parser.add_argument("--searches", type=int, default=4, help="of each supernet (default: 4)")
    parser.add_argument("--evaluations", type=int, default=60, help="of each search (default: 60)")
    parser.add_argument("--controls", type=int, default=12, help="drawn paths of equal cost (default: 12)")
    args = parser.parse_args()
    for name, least in (("workers", 1), ("searches", 1), ("evaluations", 12), ("controls", 1)):
        at_least(f"--{name}", getattr(args, name), least)
    bench = load(args.table)
    build.check_space("--table", bench)
    if not len(bench.paths):
        raise UserError("--table: has no trained paths to compare with; tools/nas_bench/build.py trains some")
    chosen = selections(bench, args.searches, args.evaluations)
    paths = np.unique(chosen).tolist()
    costs, macs = (
        build.configured_costs(build.build_config(str(build.ROOT / build.CONFIG))),
        bench.macs[chosen],
    )
    others = [bench.path(path) for path in paths]
    controls = random_of_equal_cost(costs, int(macs.mean()), args.controls, seed=0, other_than=others)
    paths += map(bench.number, controls)
    seeds, steps = range(bench.trained["PQ"].shape[1]), bench.provenance["steps"]
    jobs = [build.Standalone(path, seed, steps) for path in paths for seed in seeds]
    with (
        Ledger.open(args.output / "journal.jsonl", build.HEADER, resume=True) as ledger,
        build.make_executor(args) as executor,
    ):
        journal = build.Journal(ledger)
        if any(job.key not in journal.results for job in jobs):
            journal.do(executor, [build.Trunk(seed) for seed in seeds], "trunks")
        results = journal.do(executor, jobs, "selected and random paths")
    trained = [results[first : first + len(seeds)] for first in range(0, len(results), len(seeds))]
    report(bench, chosen, of_these(bench, paths, trained))


if __name__ == "__main__":
    run_command(main)
