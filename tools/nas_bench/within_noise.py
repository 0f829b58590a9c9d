"""What --within-noise gives up and what it saves, on a benchmark whose scores are all known.

Posterior searches of each supernet select once without and once with the rule, from the same candidates.
"given up" is the supernet's score of the first less that of the second, in PQ; "macs" the ratio of their
multiply-adds. The columns after them are shares of searches, the last one of those that keep both. --noise is
what search_net.py knows from resampled images: the standard deviation that a path's PQ has from their choice,
relative to other paths.

    python tools/nas_bench/within_noise.py [--table FILE] [--seeds 20] [--budgets 60 120 240]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from regret import lookup, searched  # noqa: E402
from searches import indices, posterior_rounds  # noqa: E402

from auto_panoptic.bench import Benchmark, load  # noqa: E402
from auto_panoptic.errors import UserError, at_least, run_command  # noqa: E402
from auto_panoptic.explore.selection import select  # noqa: E402
from auto_panoptic.progress import Progress  # noqa: E402
from auto_panoptic.space import Cost, CostTables  # noqa: E402

NOISE = 0.37  # of shapes4096, in a search of 60 candidates


def cost_tables(bench: Benchmark) -> CostTables:
    """Those of the sites that have a choice, from the costs of all paths.

    Raises:
        UserError: the paths' costs are no sums over their operators.
    """
    space = searched(bench.space)
    shape = [len(site.ops) for site in space.sites]
    costs = np.stack((bench.macs, bench.params)).astype(np.int64).reshape(2, *shape)
    first = (0,) * len(shape)
    rest, sites = costs[(slice(None), *first)], {}
    for place, site in enumerate(space.sites):
        row = costs[(slice(None), *first[:place], slice(None), *first[place + 1 :])]  # (2, operators)
        own = row - row.min(axis=1, keepdims=True)
        rest = rest - own[:, 0]
        sites[site.name] = {name: Cost(*own[:, i].tolist()) for i, name in enumerate(site.names)}
    tables = CostTables(space, {"rest": Cost(*rest.tolist())}, sites)
    for number in np.random.default_rng(0).integers(space.cardinality, size=64).tolist():
        architecture = space.architecture([int(i) for i in np.unravel_index(number, shape)])
        if tables.cost(architecture) != (bench.macs[number], bench.params[number]):
            raise UserError(f"path {number} of the benchmark does not cost the sum of its operators")
    return tables


def run(bench: Benchmark, budgets: list[int], seeds: int, noise: float) -> dict[int, np.ndarray]:
    """{budget: (supernets * seeds, 2) PQ given up, and the ratio of multiply-adds}."""
    costs, rows = cost_tables(bench), {budget: [] for budget in budgets}
    space = costs.space
    with Progress("searches", len(bench.supernet["PQ"]) * seeds, "seeds") as bar:
        for scores in bench.supernet["PQ"].astype(float):
            true = lookup(space, scores)
            for seed in range(seeds):
                rng = np.random.default_rng([seed, 2])
                for history, _, fitness in posterior_rounds(space, true, 0.0, rng, seed, max(budgets)):
                    if len(fitness) in rows:
                        found = [
                            select(space, history, "ridge", costs, adaptive=True, **how)
                            for how in ({}, {"within_noise": True, "noise": noise})
                        ]
                        first, second = true(indices(space, [one.architecture for one in found]))
                        macs = [one.cost["macs"] for one in found]
                        rows[len(fitness)].append((first - second, macs[1] / macs[0]))
                bar.update()
    return {budget: np.array(values).reshape(-1, 2) for budget, values in rows.items()}


def summary(found: dict[int, np.ndarray], most: float, share: float) -> dict:
    """{budget: means, medians and the share of searches that meet the goal}."""
    rows = {}
    for budget, values in found.items():
        given_up, ratio = values.T
        rows[budget] = {
            "given_up": float(given_up.mean()),
            "macs": float(ratio.mean()),
            "little_given_up": float((given_up <= most).mean()),
            "much_saved": float((ratio <= share).mean()),
            "both": float(((given_up <= most) & (ratio <= share)).mean()),
        }
    return rows


def main() -> None:
    """The command line; the last line is one JSON object."""
    how = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=how)
    parser.add_argument("--table", default="shapes4096", help="name or file (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=20, help="searches of each supernet (default: 20)")
    parser.add_argument("--budgets", type=int, nargs="+", default=[60, 120, 240], help="multiples of 6")
    parser.add_argument("--most", type=float, default=0.5, help="PQ to be given up at most (default: 0.5)")
    parser.add_argument("--share", type=float, default=0.7, help="of the multiply-adds (default: 0.7)")
    parser.add_argument("--noise", type=float, default=NOISE, help="of images, in PQ (default: %(default)s)")
    args = parser.parse_args()
    at_least("--seeds", args.seeds, 1)
    at_least("--noise", args.noise, 0.0)
    for budget in args.budgets:
        if budget < 24 or budget % 6:
            raise UserError(f"--budgets {budget}: expected multiples of 6, the size of a round, from 24")
    rows = summary(run(load(args.table), args.budgets, args.seeds, args.noise), args.most, args.share)
    print(
        f"{'evaluations':<14}{'given up':>10}{'macs':>8}{f'<= {args.most:g} PQ':>12}"
        f"{f'<= {args.share:g} macs':>12}{'both':>8}"
    )
    for budget, row in rows.items():
        print(
            f"{budget:<14}{row['given_up']:>10.2f}{row['macs']:>8.2f}{row['little_given_up']:>12.0%}"
            f"{row['much_saved']:>12.0%}{row['both']:>8.0%}"
        )
    print(json.dumps(rows))


if __name__ == "__main__":
    run_command(main)
