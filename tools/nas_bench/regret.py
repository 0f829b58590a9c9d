"""Searches on a benchmark whose scores are all known: how far below the best path do they end?

Regret is the score of the best path in the supernet less that of the selected one, in PQ; "top 1 %" is the
share of searches whose selection scores among the best hundredth. Every rule searches every supernet --seeds
times; an evolution of few evaluations has fewer generations. "posterior" lets --share of what a candidate
scored beyond its effects count; search_net.py finds it from resampled images. What a selection is worth when
trained is another matter. Where the table has trained paths the last line says how much of a difference in
score is left of it, by linear regression of trained PQ on the score; that share of the regret remains, on
average.

    python tools/nas_bench/regret.py [--table FILE] [--seeds 20] [--budgets 12 30 60 120 240]

With --max-macs only paths within the limit may be selected, and the posterior alone searches: told the limit,
as by search_net.py, and not.

    python tools/nas_bench/regret.py --max-macs 340M
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from build import CONFIG, ROOT  # noqa: E402
from searches import GENERATIONS, SEARCHES, posterior_rounds  # noqa: E402

from auto_panoptic.bench import Benchmark, load  # noqa: E402
from auto_panoptic.errors import UserError, at_least, run_command  # noqa: E402
from auto_panoptic.explore.budget import best_under_budget, check_budget, parse_amount  # noqa: E402
from auto_panoptic.explore.estimators import ridge_scores  # noqa: E402
from auto_panoptic.modeling.counting import configured_costs  # noqa: E402
from auto_panoptic.progress import Progress  # noqa: E402
from auto_panoptic.space import CostTables, SearchSpace  # noqa: E402
from auto_panoptic.training import build_config  # noqa: E402
from auto_panoptic.validate import PROBABILITY  # noqa: E402

TOP = 0.01
SHARE = 0.4  # of shapes4096: 0.71, 0.39 and 0.44 from the first 24, 36 and 60 candidates of a search


def searched(space: SearchSpace) -> SearchSpace:
    """The sites that have a choice."""
    return SearchSpace(tuple(site for site in space.sites if len(site.ops) > 1))


def lookup(space: SearchSpace, scores: np.ndarray):
    """Operator indices (n, sites) -> (n,) scores of a supernet, (paths,)."""
    sizes = [len(site.ops) for site in space.sites]
    return lambda choices: scores[np.ravel_multi_index(tuple(choices.T), sizes)]


def run(
    bench: Benchmark, budgets: list[int], seeds: int, share: float = 1.0
) -> dict[str, dict[int, np.ndarray]]:
    """{rule: {budget: (supernets, seeds) score of the selection}}; ``share`` of a deviation counts."""
    space, table = searched(bench.space), bench.supernet["PQ"].astype(float)
    evolutions = {budget: min(GENERATIONS, max(budget // 6, 2)) for budget in budgets}
    evolutions = {n // g * g: g for n, g in evolutions.items()}
    stream, ours = SEARCHES["posterior"]
    searches = [*({**SEARCHES, "posterior": (stream, partial(ours, share=share))}).values()]
    found: dict = {}
    with Progress("searches", table.shape[0] * seeds, "seeds") as bar:
        for row, scores in enumerate(table):
            true = lookup(space, scores)
            for seed in range(seeds):
                for stream, search in searches:
                    rng = np.random.default_rng([seed, stream])
                    for (rule, n), value in search(space, true, 0.0, rng, seed, budgets, evolutions).items():
                        cells = found.setdefault(rule, {})
                        budget = n if n in budgets else min(b for b in budgets if b >= n)
                        cells.setdefault(budget, np.full((len(table), seeds), np.nan))[row, seed] = value
                bar.update()
    return found


def run_within(
    bench: Benchmark, costs: CostTables, limit: int, budgets: list[int], seeds: int
) -> dict[str, dict[int, np.ndarray]]:
    """As :func:`run`, of the posterior; selected is the best by ridge regression within ``limit``."""
    table, limits = bench.supernet["PQ"].astype(float), {"max_macs": limit}
    sizes = [len(site.ops) for site in bench.space.sites]
    found: dict = {}
    with Progress("searches", table.shape[0] * seeds, "seeds") as bar:
        for row, scores in enumerate(table):
            true = lookup(bench.space, scores)
            for seed in range(seeds):
                for rule, keep in ("told the limit", (costs, limits)), ("not told", None):
                    rng = np.random.default_rng(seed)
                    rounds = posterior_rounds(bench.space, true, 0.0, rng, seed, max(budgets), keep)
                    cells = found.setdefault(f"posterior, {rule}", {})
                    for _, choices, fitness in rounds:
                        effects = ridge_scores(choices, fitness, sizes)
                        selected = best_under_budget(effects, costs, **limits, warn=False).indices
                        for budget in [budget for budget in budgets if len(fitness) <= budget]:
                            empty = np.full((len(table), seeds), np.nan)
                            cells.setdefault(budget, empty)[row, seed] = true(np.array([selected]))[0]
                bar.update()
    return found


def summary(bench: Benchmark, found: dict, within: np.ndarray | slice = slice(None)) -> dict:
    """{rule: {budget: {"regret", "half": of its 95 % interval over searches, "top"}}}.

    ``within``: (paths,) those that may be selected.
    """
    table = bench.supernet["PQ"].astype(float)[:, within]
    best, top = table.max(axis=1), np.quantile(table, 1 - TOP, axis=1)
    rows: dict = {}
    for rule, cells in found.items():
        for budget, scores in sorted(cells.items()):
            regret = best[:, None] - scores
            rows.setdefault(rule, {})[budget] = {
                "regret": float(regret.mean()),
                "half": float(1.96 * regret.std(ddof=1) / np.sqrt(regret.size)),
                "top": float((scores >= top[:, None]).mean()),
            }
    return rows


def slopes(bench: Benchmark) -> np.ndarray:
    """(supernets, 2): slope of the regression of a path's mean trained PQ on its score; their correlation."""
    truth = bench.trained["PQ"].astype(float).mean(axis=1)
    rows = []
    for scores in bench.supernet["PQ"][:, bench.paths].astype(float):
        (variance, covariance), (_, of_truth) = np.cov(scores, truth)
        rows.append((covariance / variance, covariance / np.sqrt(variance * of_truth)))
    return np.array(rows)


def main() -> None:
    """The command line; the last line is one JSON object."""
    how = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=how)
    parser.add_argument("--table", default="shapes4096", help="name or file (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=20, help="searches of each supernet (default: 20)")
    parser.add_argument("--budgets", type=int, nargs="+", default=[12, 30, 60, 120, 240])
    parser.add_argument("--share", type=float, default=SHARE, help="from 0 to 1 (default: %(default)s)")
    parser.add_argument("--max-macs", metavar="AMOUNT", help="of what may be selected, e.g. 340M")
    args = parser.parse_args()
    at_least("--seeds", args.seeds, 2)
    PROBABILITY.check("--share", args.share)
    at_least("--budgets", min(args.budgets), 12)
    bench = load(args.table)
    if args.max_macs is None:
        rows = summary(bench, run(bench, args.budgets, args.seeds, args.share))
    else:
        limit, costs = (
            parse_amount(args.max_macs, "--max-macs"),
            configured_costs(build_config(str(ROOT / CONFIG))),
        )
        if costs.space != bench.space:
            raise UserError(f"--max-macs: the table has another space than {CONFIG}")
        check_budget(costs, limit)
        rows = summary(bench, run_within(bench, costs, limit, args.budgets, args.seeds), bench.macs <= limit)
    spread = bench.supernet["PQ"].std(axis=1).mean()
    print(f"Regret in PQ (share of searches in the top 1 %); standard deviation of the scores {spread:.2f}")
    print(f"{'evaluations':<22}" + "".join(f"{b:>20}" for b in args.budgets))
    for rule, cells in rows.items():
        texts = (
            "{regret:.2f} ± {half:.2f} ({top:.0%})".format(**cells[b]) if b in cells else ""
            for b in args.budgets
        )
        print(f"{rule:<22}" + "".join(f"{text:>20}" for text in texts))
    found = slopes(bench) if len(bench.paths) > 2 else np.zeros((0, 2))
    if len(found):
        each = ", ".join(f"{slope:.2f}" for slope, _ in found)
        print(
            f"Of 1 PQ of score {found[:, 0].mean():.2f} PQ remain when trained ({len(bench.paths)} paths; by "
            f"supernet {each}; mean correlation {found[:, 1].mean():.2f})"
        )
    print(json.dumps({**rows, "trained": found.tolist()}))


if __name__ == "__main__":
    run_command(main)
