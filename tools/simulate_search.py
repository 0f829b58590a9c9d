#!/usr/bin/env python
"""How good an architecture do the selection rules find? Simulated searches of the paper's space.

    python tools/simulate_search.py
    python tools/simulate_search.py --seeds 20 --pairs 0 --budgets 60
    python tools/simulate_search.py --seeds 30 --budgets 60 120 240 480 --journal output/searches.jsonl

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
paper), mean or ridge. random takes the best of uniformly random candidates; evolution, the paper's baseline
of 20 generations of 50 with DetNAS's shares, the best of its own. At other budgets its population is a
twentieth of the budget, so that it always has 20 generations. linas takes the best of a search with
predictors; see linas.py. The best is so by measured fitness, noise included. posterior is the policy of that
name: two fair cycles, then rounds of 6 drawn from the posterior of the ridge regression. It selects the
operators of the best effects, or the candidate that is expected to be better by its own score, of which what
is not noise counts; "ridge" and "best" are the former alone, and the best measured candidate. All rules see
the same surrogate and budgets; the estimators also the same evaluations.

With --journal every finished search is kept in a file; a run that was ended continues from there.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from searches import GENERATIONS, SEARCHES  # noqa: E402

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


def run_all(space, args, evolutions):
    """Per seed the results of all searches, and the oracle's; those of the journal are not run again."""
    known = {}
    if args.journal and args.journal.exists():
        for line in args.journal.read_text().splitlines():
            entry = json.loads(line)
            known[json.dumps(entry["key"])] = entry["results"]
    runs = []
    for seed in range(args.seeds):
        sizes = [len(site.ops) for site in space.sites]
        surrogate = Surrogate(sizes, args.pairs, np.random.default_rng([seed, 1]))
        run = {("oracle", 0): surrogate.oracle()}
        for name in args.searches:
            key = [name, seed, args.pairs, args.noise, args.budgets, evolutions]
            results = known.get(json.dumps(key))
            if results is None:
                stream, search = SEARCHES[name]
                first = np.random.default_rng([seed, 1])
                true = Surrogate(sizes, args.pairs, first)
                rng = first if stream == 1 else np.random.default_rng([seed, stream])
                budgets = dict.fromkeys(evolutions, GENERATIONS)
                found = search(space, true, args.noise, rng, seed, args.budgets, budgets)
                results = [[*where, value] for where, value in found.items()]
                if args.journal:
                    args.journal.parent.mkdir(parents=True, exist_ok=True)
                    with args.journal.open("a") as stream:
                        stream.write(json.dumps({"key": key, "results": results}) + "\n")
            run |= {(rule, budget): value for rule, budget, value in results}
        runs.append(run)
    return runs


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--seeds", type=int, default=120, help="simulated searches (default: 120)")
    p.add_argument("--pairs", type=float, default=0.3, help="variance share of pair effects (default: 0.3)")
    p.add_argument("--noise", type=float, default=0.3, help="noise of an evaluation in sigma (default: 0.3)")
    p.add_argument(
        "--budgets",
        type=int,
        nargs="+",
        default=[60, 120, 240, 480, 996],
        help="numbers of candidates (default: 60 120 240 480 996)",
    )
    p.add_argument(
        "--evolution-budgets",
        type=int,
        nargs="*",
        help="those of the evolution (default: of each budget the nearest multiple of 20; 996 -> 1000)",
    )
    p.add_argument(
        "--searches", nargs="+", choices=SEARCHES, default=list(SEARCHES), help="which (default: all)"
    )
    p.add_argument("--journal", type=Path, metavar="FILE", help="keep finished searches here, and continue")
    args = p.parse_args()
    space = SearchSpace.default()
    length = space.cycle_length
    if any(b < 1 or b % length for b in args.budgets):
        p.error(f"--budgets {args.budgets}: expected multiples of {length}, the fair cycle length")
    if args.seeds < 2 or not 0 <= args.pairs < 1 or args.noise < 0:
        p.error("expected --seeds of at least 2, --pairs from 0 to below 1, --noise not negative")

    evolutions = args.evolution_budgets
    if evolutions is None:
        evolutions = [max(round(b / GENERATIONS), 1) * GENERATIONS for b in args.budgets]
    if any(b < GENERATIONS or b % GENERATIONS for b in evolutions):
        p.error(f"--evolution-budgets {evolutions}: expected multiples of {GENERATIONS}, its generations")

    start = time.perf_counter()
    runs = run_all(space, args, evolutions)
    table = {}
    for key in runs[0]:
        values = np.array([run[key] for run in runs])
        table[key] = (values.mean(), values.std(ddof=1) / np.sqrt(len(values)))

    oracle = table.pop(("oracle", 0))
    rules = list(dict.fromkeys(rule for rule, _ in table))
    print(f"True fitness of the selection in sigma, mean of {args.seeds} searches (standard error)")
    print(f"pair effects {args.pairs:g} of the variance, noise {args.noise:g} sigma; best main effects reach "
          f"{oracle[0]:.2f} ({oracle[1]:.2f})")  # fmt: skip
    columns = sorted({b for _, b in table})
    print(f"{'evaluations':<22}" + "".join(f"{b:>13}" for b in columns))
    for rule in rules:
        cells = ("{:.2f} ({:.2f})".format(*table[rule, b]) if (rule, b) in table else "" for b in columns)
        print(f"{rule:<22}" + "".join(f"{cell:>13}" for cell in cells))
    figures = {
        "seeds": args.seeds,
        "pairs": args.pairs,
        "noise": args.noise,
        "seconds": round(time.perf_counter() - start, 1),
        "oracle": {"mean": round(oracle[0], 4), "standard_error": round(oracle[1], 4)},
        "rules": {
            rule: {
                str(b): {"mean": round(table[rule, b][0], 4), "standard_error": round(table[rule, b][1], 4)}
                for b in columns
                if (rule, b) in table
            }
            for rule in rules
        },
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
