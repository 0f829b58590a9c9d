#!/usr/bin/env python
"""How good an architecture do the selection rules find? Simulated searches of the paper's space.

    python tools/simulate_search.py
    python tools/simulate_search.py --seeds 20 --pairs 0 --budgets 60

The surrogate. Fitness = main effects + effects of pairs of neighbouring sites + noise.
  main    one effect per operator: standard normal times the site's scale, which is the absolute value of a
          standard normal (sites differ in how much they matter); centred per site.
  pairs   one effect per pair of operators of two sites that follow each other: standard normal, centred
          over either operator, so that it adds nothing to a main effect.
  noise   independent normal for each evaluation, standard deviation --noise.
Main and pair effects are scaled so that over the architectures of the space they have variance 1 - pairs and
pairs. So sigma, the unit of all results, is the standard deviation of the true fitness over the space, and
0 its mean. Results are true fitness, without noise, of the architecture that a rule selects.

Rules. path_priority evaluates fair cycles of 12 and takes the best operator of every site by ranks (the
paper), mean or ridge; best_evaluated takes the best of uniformly random candidates. All rules see the same
surrogate and budgets; the estimators also the same evaluations.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from auto_panoptic.explore.estimators import ESTIMATORS, mean_scores, ridge_scores  # noqa: E402
from auto_panoptic.explore.fairness import cycle_indices  # noqa: E402
from auto_panoptic.explore.scoreboard import Scoreboard  # noqa: E402
from auto_panoptic.space import SearchSpace  # noqa: E402


class Surrogate:
    """True fitness of the architectures of a space; see the module's description."""

    def __init__(self, sizes, pairs: float, rng: np.random.Generator):
        self.sizes = sizes
        self.main = [abs(rng.normal()) * _centred(rng.normal(size=size)) for size in sizes]
        self.pairs = [
            _centred(_centred(rng.normal(size=(a, b))).T).T for a, b in zip(sizes, sizes[1:], strict=False)
        ]
        self._scale(self.main, 1 - pairs)
        self._scale(self.pairs, pairs)

    @staticmethod
    def _scale(effects, variance):
        # All terms are uncorrelated over uniformly drawn architectures: their variances add up.
        total = sum(e.var() for e in effects)
        for e in effects:
            e *= np.sqrt(variance / total)

    def __call__(self, choices: np.ndarray) -> np.ndarray:
        """(n, sites) operator indices -> (n,) true fitness in sigma."""
        value = sum(e[c] for e, c in zip(self.main, choices.T, strict=True))
        for e, first, second in zip(self.pairs, choices.T, choices.T[1:], strict=False):
            value = value + e[first, second]
        return value

    def oracle(self) -> float:
        """True fitness of the architecture with the best main effect at every site."""
        return float(self(np.array([[e.argmax() for e in self.main]]))[0])


def _centred(values):
    return values - values.mean(axis=0)


def simulate(space, budgets, pairs, noise, seed):
    """One search of every rule: {(rule, budget): true fitness of the selection}, plus the oracle's."""
    sizes = [len(site.ops) for site in space.sites]
    rng = np.random.default_rng([seed, 1])
    surrogate = Surrogate(sizes, pairs, rng)
    length, largest = space.cycle_length, max(budgets)
    fair = np.concatenate([cycle_indices(space, seed, cycle) for cycle in range(largest // length)])
    uniform = np.stack([rng.integers(size, size=largest) for size in sizes], axis=1)
    fitness = surrogate(fair) + noise * rng.normal(size=largest)
    drawn = surrogate(uniform) + noise * rng.normal(size=largest)

    results = {"oracle": surrogate.oracle()}
    board = Scoreboard(space)
    for n in range(length, largest + 1, length):
        cycle = slice(n - length, n)
        board.add_cycle([space.architecture(row.tolist()) for row in fair[cycle]], fitness[cycle].tolist())
        if n not in budgets:
            continue
        ranks = [np.array([row["score"] for row in rows]) for rows in board.table().values()]
        scores = {
            "ranks": ranks,
            "mean": mean_scores(fair[:n], fitness[:n], sizes),
            "ridge": ridge_scores(fair[:n], fitness[:n], sizes),
        }
        for name in ESTIMATORS:
            selected = np.array([[s.argmax() for s in scores[name]]])
            results[f"path_priority, {name}", n] = float(surrogate(selected)[0])
        results["random, best_evaluated", n] = float(surrogate(uniform[[drawn[:n].argmax()]])[0])
    return results


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--seeds", type=int, default=120, help="simulated searches (default: 120)")
    p.add_argument("--pairs", type=float, default=0.3, help="variance share of pair effects (default: 0.3)")
    p.add_argument("--noise", type=float, default=0.3, help="noise of an evaluation in sigma (default: 0.3)")
    p.add_argument(
        "--budgets", type=int, nargs="+", default=[60, 120, 240, 480], help="numbers of candidates"
    )
    args = p.parse_args()
    space = SearchSpace.default()
    length = space.cycle_length
    if any(b < 1 or b % length for b in args.budgets):
        p.error(f"--budgets {args.budgets}: expected multiples of {length}, the fair cycle length")
    if args.seeds < 2 or not 0 <= args.pairs < 1 or args.noise < 0:
        p.error("expected --seeds of at least 2, --pairs from 0 to below 1, --noise not negative")

    start = time.perf_counter()
    runs = [simulate(space, args.budgets, args.pairs, args.noise, seed) for seed in range(args.seeds)]
    table = {}
    for key in runs[0]:
        values = np.array([run[key] for run in runs])
        table[key] = (values.mean(), values.std(ddof=1) / np.sqrt(len(values)))

    rules = list(dict.fromkeys(key[0] for key in table if key != "oracle"))
    oracle = table.pop("oracle")
    print(f"True fitness of the selection in sigma, mean of {args.seeds} searches (standard error)")
    print(f"pair effects {args.pairs:g} of the variance, noise {args.noise:g} sigma; best main effects reach "
          f"{oracle[0]:.2f} ({oracle[1]:.2f})")  # fmt: skip
    print(f"{'evaluations':<26}" + "".join(f"{b:>14}" for b in args.budgets))
    for rule in rules:
        cells = (f"{table[rule, b][0]:.2f} ({table[rule, b][1]:.2f})" for b in args.budgets)
        print(f"{rule:<26}" + "".join(f"{cell:>14}" for cell in cells))
    figures = {
        "seeds": args.seeds,
        "pairs": args.pairs,
        "noise": args.noise,
        "seconds": round(time.perf_counter() - start, 1),
        "oracle": {"mean": round(oracle[0], 4), "standard_error": round(oracle[1], 4)},
        "rules": {
            rule: {
                str(b): {"mean": round(table[rule, b][0], 4), "standard_error": round(table[rule, b][1], 4)}
                for b in args.budgets
            }
            for rule in rules
        },
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
