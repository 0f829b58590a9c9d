"""Trained entries of a table against what the same trainings give once more."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from auto_panoptic.bench import Benchmark

LIMIT = 5  # standard deviations of a training: 3.5 of the difference of two, of which 1 in 2000 is beyond


def spread_over_costs(bench: Benchmark, number: int) -> list[int]:
    """Places of ``number`` trained paths: the one with the fewest multiply-adds, the one with the most, and
    at equal steps between them."""
    order = np.argsort(bench.macs[bench.paths], kind="stable")
    return order[np.linspace(0, len(order) - 1, number).round().astype(int)].tolist()


def seeds_noise(trained: np.ndarray) -> float:
    """Standard deviation between the seeds of one path, of a table (paths, seeds).

    What a seed does to all paths alike is in it: on another machine the same seed is another draw.
    """
    return math.sqrt(trained.var(axis=1, ddof=1).mean())


def compare(bench: Benchmark, places: Sequence[int], found: Sequence[float]) -> bool:
    """Print PQ of the first seed in the table, and as ``found``; whether all are within the seeds' noise."""
    trained = bench.trained["PQ"].astype(float)
    noise = seeds_noise(trained)
    print(f"PQ of trained paths again; standard deviation between the seeds of a path: {noise:.2f}")
    print(f"{'path':>6}{'multiply-adds':>15}{'table':>8}{'again':>8}{'difference':>12}")
    differences = []
    for place, again in zip(places, found, strict=True):
        path, known = int(bench.paths[place]), trained[place, 0]
        differences.append(again - known)
        print(f"{path:>6}{bench.macs[path] / 1e9:>13.2f} G{known:>8.2f}{again:>8.2f}{again - known:>+12.2f}")
    return max(map(abs, differences)) <= LIMIT * noise
