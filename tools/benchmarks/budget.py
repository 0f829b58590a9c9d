#!/usr/bin/env python
"""Time the selection under limits on the paper's whole space.

    python tools/benchmarks/budget.py [--seeds 12]

Prints CPU seconds with one limit, with two, and for the score-against-MACs front; the last line is one JSON
object with median and maximum of each.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from auto_panoptic.errors import UserError  # noqa: E402
from auto_panoptic.explore.budget import best_under_budget, pareto_front  # noqa: E402
from auto_panoptic.modeling.counting import configured_costs  # noqa: E402
from auto_panoptic.read_config import read_config  # noqa: E402


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=12, help="random scores, ranks and real numbers in turn")
    seeds = parser.parse_args().seeds
    config = Path(__file__).resolve().parents[2] / "configs/supernet_coco.yaml"
    costs = configured_costs(read_config(str(config)))
    low, high = costs.minimum, costs.maximum
    seconds = {"one limit": [], "two limits": [], "front": []}
    for seed in range(-1, seeds):  # the first warms up
        rng = np.random.default_rng(max(seed, 0))
        scores = [
            rng.integers(0, 330, len(row)) / 2 if seed % 2 else rng.normal(size=len(row))
            for row in costs.sites
        ]
        share = (0.02, 0.1, 0.3, 0.5)[seed % 4]
        macs, params = (int(low[i] + share * (high[i] - low[i])) for i in range(2))
        for name, task in (
            ("one limit", lambda s=scores, m=macs: best_under_budget(s, costs, m)),
            ("one limit", lambda s=scores, p=params: best_under_budget(s, costs, None, p)),
            ("two limits", lambda s=scores, m=macs, p=params: best_under_budget(s, costs, m, p)),
            ("front", lambda s=scores: pareto_front(s, costs)),
        ):
            start = time.process_time()
            try:
                task()
            except UserError:
                pass  # both limits together are not feasible: found in the same time
            if seed >= 0:
                seconds[name].append(time.process_time() - start)
    figures = {name: {"median": float(np.median(s)), "max": max(s)} for name, s in seconds.items()}
    print(f"{'CPU seconds':<12} {'median':>8} {'max':>8}")
    for name, row in figures.items():
        print(f"{name:<12} {row['median']:8.3f} {row['max']:8.3f}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
