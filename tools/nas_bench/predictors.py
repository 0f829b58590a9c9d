"""What tells how good a path is when it is trained: Kendall's tau of its predictors on a benchmark.

The truth is the mean PQ of a path's trainings, on images that score no supernet: others would lend supernets
and truth the same luck; --all-images takes them, too. Its reliability r is the share of the paths in its
variance, in a two-way table of paths by seeds: what a seed does to all paths alike is left out, the rest is
noise. No predictor can be expected to do better than sqrt(r); taus are shown as they are and divided by it.
"top quarter" are the paths of the best true PQ. Of a predictor with several seeds the taus are averaged, and
what its tau lacks or has more than that of the table's supernets is shown, on the same paths. Intervals are
percentiles of 1 000 resamples of the paths; what other supernet seeds would give is not in them.

    python tools/nas_bench/predictors.py [--table FILE] [--variants FILE] [--all-images]

What tools/nas_bench/variants.py has measured is read from --variants, by default the file beside the table.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.stats import kendalltau

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from variant_file import Measured, read_variants, variants_beside  # noqa: E402

from auto_panoptic.bench import FOLDER, Benchmark, load, names  # noqa: E402
from auto_panoptic.errors import UserError, run_command  # noqa: E402
from auto_panoptic.evaluation import PanopticQuality  # noqa: E402
from auto_panoptic.explore import path_priority_candidates  # noqa: E402
from auto_panoptic.explore.estimators import ESTIMATORS, mean_scores, operator_scores  # noqa: E402

RESAMPLES = 1000
SEARCHES, CYCLES, MODELS = 5, 5, 12  # searches of each supernet, and their candidates, as the paper's
SUPERNETS = "supernet"


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


class Predictor(NamedTuple):
    """Scores of the trained paths.

    Attributes:
        values: (seeds, trained paths), NaN where a path has none.
        minutes: of one thread that prepared them; None where that is not known.
    """

    values: np.ndarray
    minutes: float | None = None


def truth_of(bench: Benchmark, all_images: bool = False) -> np.ndarray:
    """(trained paths, seeds) PQ of the trainings, on images that score no supernet or on all."""
    about, trained = bench.provenance, bench.trained["PQ"].astype(float)
    searched = {image for name in about.get("search", ()) for image in about["images_of"].get(name, ())}
    if all_images or not searched:
        return trained

    def quality(place: int, seed: int) -> float:
        record = bench.quality(place, seed).record()
        others = [row for row in record["images"] if row[0] not in searched]
        return PanopticQuality.of_record(record | {"images": others}).compute()["PQ"]

    paths, seeds = trained.shape
    return np.array([[quality(place, seed) for seed in range(seeds)] for place in range(paths)])


def reliability(trained: np.ndarray) -> Reliability:
    """Analysis of variance of a table (paths, seeds); seeds' effects on all paths alike do not count."""
    paths, seeds = trained.shape
    rest = trained - trained.mean(axis=0) - trained.mean(axis=1, keepdims=True) + trained.mean()
    noise = (rest**2).sum() / ((paths - 1) * (seeds - 1))
    between = max(0.0, trained.mean(axis=1).var(ddof=1) - noise / seeds)
    total, of_mean = between + noise, between + noise / seeds
    shares = (between / total if total else 0.0, between / of_mean if of_mean else 0.0)
    return Reliability(math.sqrt(between), math.sqrt(noise), *map(float, shares))


def taus(predictor: np.ndarray, truth: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(samples,) Kendall's tau-b of samples that have each path so many times; NaN where one is constant.

    Args:
        predictor, truth: (paths,).
        counts: (samples, paths).
    """
    one, other = (np.sign(np.subtract.outer(values, values)) for values in (predictor, truth))

    def pairs(of: np.ndarray) -> np.ndarray:
        return ((counts @ of) * counts).sum(axis=1)

    with np.errstate(invalid="ignore"):
        return pairs(one * other) / np.sqrt(pairs(np.abs(one)) * pairs(np.abs(other)))


def resampled(values: np.ndarray, truth: np.ndarray, seed: int = 0) -> np.ndarray:
    """(1 + RESAMPLES,) tau of all paths, then of resampled ones: means over the rows of ``values``."""
    paths = len(truth)
    drawn = np.random.default_rng(seed).multinomial(paths, np.full(paths, 1 / max(paths, 1)), RESAMPLES)
    counts = np.vstack([np.ones(paths), drawn])
    return np.mean([taus(row, truth, counts) for row in np.atleast_2d(values)], axis=0)


def interval(found: np.ndarray) -> tuple[float, float, float]:
    """(value, low, high): 95 %; of what :func:`resampled` returns."""
    known = found[1:][np.isfinite(found[1:])]
    ends = np.percentile(known, [2.5, 97.5]) if len(known) else (math.nan, math.nan)
    return float(found[0]), *map(float, ends)


def predictors_of(bench: Benchmark) -> dict[str, Predictor]:
    """{name: predictor}: what the table itself has, and what searches of 60 paths make of it."""
    scores, paths = bench.supernet["PQ"].astype(float), bench.paths
    found = {SUPERNETS: Predictor(scores[:, paths])}
    found["mean of the supernets"] = Predictor(scores.mean(axis=0, keepdims=True)[:, paths])
    for name, values in (("multiply-adds", bench.macs), ("parameters", bench.params)):
        found[name] = Predictor(values[None, paths].astype(float))
    sizes = [len(site.ops) for site in bench.space.sites if len(site.ops) > 1]
    effects = [mean_scores(bench.choices, row, sizes) for row in scores]
    found["additive part of all scores"] = Predictor(np.array([_sums(bench, e) for e in effects]))
    searches = [(row, seed) for row in scores for seed in range(SEARCHES)]
    for estimator in ESTIMATORS:
        rows = [_sums(bench, _searched(bench, estimator, *search)) for search in searches]
        found[f"{estimator} of {CYCLES * MODELS} scores"] = Predictor(np.array(rows))
    return found


def _searched(bench: Benchmark, estimator: str, scores: np.ndarray, seed: int) -> list[np.ndarray]:
    """The operators' scores, for each site with a choice, of a search by fair cycles."""
    space = bench.space
    cycles = [path_priority_candidates(space, seed, cycle, MODELS) for cycle in range(CYCLES)]
    known = [[(path, float(scores[bench.number(path)])) for path in cycle] for cycle in cycles]
    effects = operator_scores(space, known, estimator)
    return [effect for effect, site in zip(effects, space.sites, strict=True) if len(site.ops) > 1]


def _sums(bench: Benchmark, effects: Sequence[np.ndarray]) -> np.ndarray:
    """(trained paths,) sums of their operators' scores."""
    return sum(e[c] for e, c in zip(effects, bench.choices[bench.paths].T, strict=True))


def predictors_in(measured: Sequence[Measured], bench: Benchmark) -> dict[str, Predictor]:
    """{name: predictor}: what variants.py has measured of the table's paths."""
    found = {}
    for name in dict.fromkeys(m.name for m in measured):
        seeds = [m for m in measured if m.name == name]
        values = [[m.values.get(path, math.nan) for path in bench.paths.tolist()] for m in seeds]
        minutes = [m.minutes for m in seeds if m.minutes is not None]
        found[name] = Predictor(np.array(values), float(np.mean(minutes)) if minutes else None)
    return found


def report(bench: Benchmark, found: Mapping[str, Predictor], trained: np.ndarray) -> dict:
    """Print the reliability and the taus; returns them. ``trained`` is the truth, (trained paths, seeds)."""
    r, truth = reliability(trained), trained.mean(axis=1)
    print(
        f"{len(truth)} paths, {trained.shape[1]} seeds: PQ {truth.mean():.2f}, between paths {r.paths:.2f}, "
        f"noise of one training {r.noise:.2f}; reliability {r.single:.2f} of one, {r.mean:.2f} of the mean"
    )
    print(
        f"{'Kendall’s tau':<30}{'seeds':>6}{'paths':>6}{'minutes':>8}{'all':>7}{'95 %':>17}{'/ sqrt(r)':>10}"
        f"{'top quarter':>12}{'95 %':>17}{'less supernet':>14}{'95 %':>17}"
    )
    ceiling, rows = math.sqrt(r.mean), {}
    for name, predictor in found.items():
        row = rows[name] = _row(predictor, found[SUPERNETS].values, truth, ceiling)
        minutes = f"{row['minutes']:.1f}" if row["minutes"] is not None else ""
        text = f"{name:<30}{row['seeds']:>6}{row['paths']:>6}{minutes:>8}"
        text += _text(row["tau"], 7) + f"{row['of_ceiling']:>+10.2f}" + _text(row["top_quarter"], 12)
        print(text + _text(row["less_supernet"], 14))
    table = bench.supernet["PQ"].astype(float)
    pairs = [kendalltau(table[i], table[j]).statistic for i in range(len(table)) for j in range(i)]
    if pairs:
        print(f"between the supernets' scores of all paths: tau {min(pairs):.2f} to {max(pairs):.2f}")
    return {"reliability": r._asdict(), "taus": rows, "between_supernets": pairs}


def _row(predictor: Predictor, supernets: np.ndarray, truth: np.ndarray, ceiling: float) -> dict:
    """What is known of one predictor, on the paths that all its seeds have scored."""
    known = np.isfinite(predictor.values).all(axis=0)
    values, truth, supernets = predictor.values[:, known], truth[known], supernets[:, known]
    top = truth >= np.quantile(truth, 0.75) if len(truth) else known[known]
    whole = resampled(values, truth)
    return {
        "seeds": len(values),
        "paths": len(truth),
        "minutes": predictor.minutes,
        "tau": interval(whole),
        "of_ceiling": float(whole[0]) / ceiling if ceiling else math.nan,
        "top_quarter": interval(resampled(values[:, top], truth[top])),
        "less_supernet": interval(whole - resampled(supernets, truth)),
    }


def _text(found: tuple[float, float, float], width: int) -> str:
    ends = "[{:+.2f}, {:+.2f}]".format(*found[1:])
    return f"{found[0]:>+{width}.2f}{ends:>17}"


def main() -> None:
    """The command line; the last line is one JSON object."""
    how = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=how)
    parser.add_argument("--table", default="shapes4096", help="name or file (default: %(default)s)")
    parser.add_argument("--variants", type=Path, help="file of tools/nas_bench/variants.py")
    parser.add_argument("--all-images", action="store_true", help="also those that score supernets")
    args = parser.parse_args()
    bench = load(args.table)
    if len(bench.paths) < 4:
        raise UserError(
            f"--table {args.table} has {len(bench.paths)} trained paths, the truth needs at least 4"
        )
    beside = variants_beside(FOLDER / args.table if args.table in names() else args.table)
    file = args.variants or (beside if beside.is_file() else None)
    measured = predictors_in(read_variants(file), bench) if file else {}
    truth = truth_of(bench, args.all_images)
    print(json.dumps(report(bench, predictors_of(bench) | measured, truth)))


if __name__ == "__main__":
    run_command(main)
