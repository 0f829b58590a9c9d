"""What tells how good a path is when it is trained: Kendall's tau of its predictors on a benchmark.

The truth is the mean PQ of a path's trainings. Its reliability r is the share of the paths in its variance,
in a two-way table of paths by seeds: what a seed does to all paths alike is left out, the rest is noise. No
predictor can be expected to do better than sqrt(r); taus are shown as they are and divided by it. Intervals
are percentiles of 1 000 resamples of the paths. "top quarter" are the paths of the best true PQ.

    python tools/nas_bench/predictors.py [--table output/nas_bench/shapes4096.npz]
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.stats import kendalltau

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from auto_panoptic.bench import Benchmark, load  # noqa: E402
from auto_panoptic.errors import run_command  # noqa: E402
from auto_panoptic.explore.estimators import ridge_scores  # noqa: E402

RESAMPLES = 1000


class Reliability(NamedTuple):
    """Of trained PQ.

    Attributes:
        paths, noise: standard deviations between paths, and of one training around its path's level.
        single, mean: share of the paths in the variance of one training, and of the mean over the seeds.
    """

    paths: float
    noise: float
    single: float
    mean: float


def reliability(trained: np.ndarray) -> Reliability:
    """Analysis of variance of a table (paths, seeds); seeds' effects on all paths alike do not count."""
    paths, seeds = trained.shape
    rest = trained - trained.mean(axis=0) - trained.mean(axis=1, keepdims=True) + trained.mean()
    noise = (rest**2).sum() / ((paths - 1) * (seeds - 1))
    between = max(0.0, trained.mean(axis=1).var(ddof=1) - noise / seeds)
    total, of_mean = between + noise, between + noise / seeds
    shares = (between / total if total else 0.0, between / of_mean if of_mean else 0.0)
    return Reliability(math.sqrt(between), math.sqrt(noise), *map(float, shares))


def tau(predictor: np.ndarray, truth: np.ndarray) -> float:
    """Kendall's tau-b; nan where one of both is constant."""
    return float(kendalltau(predictor, truth).statistic)


def interval(predictor: np.ndarray, truth: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """(tau, low, high): 95 % over resampled paths."""
    rng, count = np.random.default_rng(seed), len(truth)
    drawn = [rng.integers(count, size=count) for _ in range(RESAMPLES)]
    taus = [tau(predictor[rows], truth[rows]) for rows in drawn]
    return tau(predictor, truth), *map(float, np.nanpercentile(taus, [2.5, 97.5]))


def predictors_of(bench: Benchmark) -> dict[str, np.ndarray]:
    """{name: (trained paths,)}: what the table itself has."""
    scores, paths = bench.supernet["PQ"].astype(float), bench.paths
    found = {f"supernet {i}": row[paths] for i, row in enumerate(scores)}
    found["mean of the supernets"] = scores.mean(axis=0)[paths]
    for name, values in (("multiply-adds", bench.macs), ("parameters", bench.params)):
        found[name] = values[paths].astype(float)
    sizes = [len(site.ops) for site in bench.space.sites if len(site.ops) > 1]
    effects = ridge_scores(bench.choices, scores[0], sizes)
    found["supernet 0, additive part"] = sum(
        e[c] for e, c in zip(effects, bench.choices[paths].T, strict=True)
    )
    return found


def report(bench: Benchmark, found: Mapping[str, np.ndarray]) -> dict:
    """Print the reliability and the taus; returns them."""
    trained = bench.trained["PQ"].astype(float)
    r, truth = reliability(trained), trained.mean(axis=1)
    print(
        f"{len(truth)} paths, {trained.shape[1]} seeds: PQ {truth.mean():.2f}, between paths {r.paths:.2f}, "
        f"noise of one training {r.noise:.2f}; reliability {r.single:.2f} of one, {r.mean:.2f} of the mean"
    )
    top = truth >= np.quantile(truth, 0.75)
    print(f"{'Kendall’s tau':<28}{'all':>6}{'95 %':>17}{'/ sqrt(r)':>11}{'top quarter':>13}{'95 %':>17}")
    rows = {}
    for name, values in found.items():
        (whole, *ends), (best, *best_ends) = interval(values, truth), interval(values[top], truth[top])
        ceiling = math.sqrt(r.mean)
        share = whole / ceiling if ceiling else math.nan
        rows[name] = {"tau": whole, "low": ends[0], "high": ends[1], "of_ceiling": share, "top_quarter": best}
        texts = ("[{:+.2f}, {:+.2f}]".format(*pair) for pair in (ends, best_ends))
        first, second = texts
        print(f"{name:<28}{whole:+6.2f}{first:>17}{share:+11.2f}{best:+13.2f}{second:>17}")
    if trained.shape[0] and len(bench.supernet["PQ"]) > 1:
        table = bench.supernet["PQ"].astype(float)
        pairs = [tau(table[i], table[j]) for i in range(len(table)) for j in range(i)]
        print(f"between the supernets' scores of all paths: tau {min(pairs):.2f} to {max(pairs):.2f}")
        rows["between supernets"] = pairs
    return {"reliability": r._asdict(), "taus": rows}


def main() -> None:
    """The command line; the last line is one JSON object."""
    how = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=how)
    parser.add_argument(
        "--table", default="output/nas_bench/shapes4096.npz", help="name or file (default: %(default)s)"
    )
    bench = load(parser.parse_args().table)
    print(json.dumps(report(bench, predictors_of(bench))))


if __name__ == "__main__":
    run_command(main)
