"""At which limit of multiply-adds does a search pay? On a benchmark whose scores are all known.

For each limit and supernet the best path within the limit, and how far it is above the mean of all other
paths that cost the same to within 2 %: in that supernet, and trained. The latter is the additive part, by
ridge regression, of the mean PQ of the trained paths, as few paths of any cost were trained themselves.

    python tools/nas_bench/limits.py [--table FILE] [--max-macs 300M 310M 340M]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from auto_panoptic.bench import Benchmark, load  # noqa: E402
from auto_panoptic.errors import UserError, run_command  # noqa: E402
from auto_panoptic.explore.budget import parse_amount  # noqa: E402
from auto_panoptic.explore.controls import TOLERANCE  # noqa: E402
from auto_panoptic.explore.estimators import ridge_scores  # noqa: E402

LIMITS = [f"{macs}M" for macs in (*range(290, 350, 10), *range(360, 510, 20))]


def predicted_truth(bench: Benchmark) -> np.ndarray:
    """(paths,) additive part of the mean trained PQ of all paths, above that of the mean path.

    Raises:
        UserError: the table has no trained paths.
    """
    if not len(bench.paths):
        raise UserError("--table: none of its paths was trained")
    truth, choices = bench.trained["PQ"].astype(float).mean(axis=1), bench.choices
    sizes = choices.max(axis=0) + 1
    effects = ridge_scores(choices[bench.paths], truth, sizes.tolist())
    return sum(effect[column] for effect, column in zip(effects, choices.T, strict=True))


def leads(bench: Benchmark, limit: int, trained: np.ndarray) -> list[dict]:
    """Per supernet {"path", "macs", "others", "score", "trained"} of the best path within ``limit``.

    "others" are how many cost the same; "score" and "trained" the leads over their means.

    Raises:
        UserError: no path is within the limit; no other one costs what the best does.
    """
    allowed = np.flatnonzero(bench.macs <= limit)
    if not len(allowed):
        raise UserError(f"--max-macs {limit}: no path is that small; the smallest has {bench.macs.min()}")
    rows = []
    for scores in bench.supernet["PQ"].astype(float):
        best = int(allowed[scores[allowed].argmax()])
        others = np.abs(bench.macs / bench.macs[best] - 1) <= TOLERANCE
        others[best] = False
        if not others.any():
            raise UserError(f"--max-macs {limit}: no other path costs what the best one does: give another")
        row = {"path": best, "macs": int(bench.macs[best]), "others": int(others.sum())}
        for name, values in ("score", scores), ("trained", trained):
            row[name] = float(values[best] - values[others].mean())
        rows.append(row)
    return rows


def main() -> None:
    """The command line; the last line is one JSON object."""
    how = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=how)
    parser.add_argument("--table", default="shapes4096", help="name or file (default: %(default)s)")
    parser.add_argument("--max-macs", nargs="+", default=LIMITS, metavar="AMOUNT", help="e.g. 310M 340M")
    args = parser.parse_args()
    bench = load(args.table)
    trained = predicted_truth(bench)
    found = {text: leads(bench, parse_amount(text, "--max-macs"), trained) for text in args.max_macs}
    print("Best path within a limit less the mean of those of its cost, by supernet: PQ there, PQ trained")
    print(f"{'limit':<8}{'G multiply-adds':>24}{'score':>22}{'trained':>22}{'mean':>8}")
    for text, rows in found.items():
        cells = [", ".join(f"{row['macs'] / 1e9:.3f}" for row in rows)]
        cells += [", ".join(f"{row[name]:+.1f}" for row in rows) for name in ("score", "trained")]
        mean = np.mean([row["trained"] for row in rows])
        print(f"{text:<8}{cells[0]:>24}{cells[1]:>22}{cells[2]:>22}{mean:>+8.1f}")
    print(json.dumps(found))


if __name__ == "__main__":
    run_command(main)
