"""Candidates per second of N Ray workers against one, each worker with one thread.

The throughput is that of a search under way. Candidates do not take equally long, so a handful
of them would leave a worker idle at the end, which a search of hundreds does not notice. So N workers get
every candidate N times in a row, and on average each evaluates all of them, as the one worker does.
Starting the workers, reading the images and a first candidate in each worker do not count.

Both sides run in turns in one call, on a supernet with random weights; the best round of each side counts.
The last line is one JSON object with the ratio (N workers / one worker; N is ideal) and the load of the
machine before the start.

    python tools/benchmarks/workers.py [--workers 2] [--candidates 6] [--rounds 2] [--config-file FILE]
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray  # noqa: E402
import torch  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])  # of the workers

from auto_panoptic.explore import fair_cycle  # noqa: E402
from auto_panoptic.search.executors.ray import RayWorkers  # noqa: E402
from auto_panoptic.space import SearchSpace  # noqa: E402
from auto_panoptic.training import AutoPanopticTrainer, build_config  # noqa: E402


def measure(cfg, weights: str, architectures: list, workers: int) -> tuple[float, list]:
    """(candidates per second, metrics of each candidate) of ``workers`` workers with one CPU each."""
    items = [((i, copy), a) for i, a in enumerate(architectures) for copy in range(workers)]
    ray.init(
        address="local",
        num_cpus=workers,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    try:
        with RayWorkers(cfg, weights, ("pq",), workers) as executor:
            assert executor.threads == 1
            while executor.ready < workers:
                list(executor.run(items[:workers]))
            list(executor.run(items[:workers]))  # one for each: the first evaluation decodes ground truth
            start = time.perf_counter()
            outcomes = dict(executor.run(items))
            seconds = time.perf_counter() - start
    finally:
        ray.shutdown()
    metrics = [outcomes[i, 0]["metrics"] for i in range(len(architectures))]
    assert all(outcome["metrics"] == metrics[i] for (i, _), outcome in outcomes.items()), "the scores differ"
    return len(items) / seconds, metrics


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--config-file", default=str(ROOT / "configs/quick/supernet.yaml"))
    p.add_argument("--workers", type=int, default=2)
    p.add_argument("--candidates", type=int, default=6)
    p.add_argument("--rounds", type=int, default=2)
    args = p.parse_args()
    load = os.getloadavg()[0]
    cfg = build_config(args.config_file, ["MODEL.DEVICE", "cpu"])
    torch.manual_seed(0)
    space = SearchSpace.from_config(cfg)
    architectures = [a for cycle in range(args.candidates) for a in fair_cycle(space, 0, cycle)]
    architectures = architectures[: args.candidates]
    throughput = {1: [], args.workers: []}
    with tempfile.TemporaryDirectory() as folder:
        weights = str(Path(folder) / "supernet.pth")
        torch.save({"model": AutoPanopticTrainer.build_model(cfg).state_dict()}, weights)
        results = []
        for _ in range(args.rounds):
            for workers, rates in throughput.items():
                rate, metrics = measure(cfg, weights, architectures, workers)
                rates.append(rate)
                results.append(metrics)
                print(f"{workers} workers: {rate:.3f} candidates/s", flush=True)
    assert all(metrics == results[0] for metrics in results), "the scores differ"
    ratio = max(throughput[args.workers]) / max(throughput[1])
    print(
        json.dumps(
            {
                "workers": args.workers,
                "ratio": round(ratio, 3),
                "candidates_per_second": {k: [round(r, 3) for r in v] for k, v in throughput.items()},
                "candidates": len(architectures),
                "load_before": round(load, 2),
                "cores": os.cpu_count(),
            }
        )
    )


if __name__ == "__main__":
    main()
