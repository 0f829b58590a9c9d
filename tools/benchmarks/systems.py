"""One training step and one inference of whole networks beside each other: time and memory.

Each config runs in a process of its own, in turns, on the same images of its training set, from random
weights that a few steps have moved. The median over steps and repeats counts; memory is the process's peak.
The last line is one JSON object with the ratios to the first config.

    python tools/benchmarks/systems.py [CONFIG ...] [--steps 8] [--repeats 2] [--threads 1]
"""

import argparse
import itertools
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

CONFIGS = ("configs/quick/panoptic_fpn.yaml", "configs/quick/unified_R18.yaml")
FIGURES = {"step": "s per step", "inference": "s per image", "mib": "MiB at most"}


def median_seconds(call, items) -> float:
    """Median time of calls with each of the items; the first two only warm up."""
    times = []
    for item in items:
        start = time.perf_counter()
        call(item)
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])


def measure(config: str, steps: int, threads: int) -> dict:
    """The figures of one config, in this process."""
    from detectron2.modeling import build_model
    from detectron2.utils.events import EventStorage

    from auto_panoptic.training import build_config
    from auto_panoptic.training.loader import build_train_loader

    torch.set_num_threads(threads)
    cfg = build_config(config, ["MODEL.WEIGHTS", "", "NAS.ARCHITECTURE", ""])
    torch.manual_seed(0)
    model = build_model(cfg)
    optimizer = torch.optim.SGD(model.parameters(), cfg.SOLVER.BASE_LR / 10)
    batches = list(itertools.islice(iter(build_train_loader(cfg, seed=0)), steps + 2))

    def step(batch):
        optimizer.zero_grad()
        sum(model(batch).values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        optimizer.step()

    with EventStorage():
        found = {"step": median_seconds(step, batches)}
    model.eval()
    with torch.inference_mode():
        found["inference"] = median_seconds(model, [batch[:1] for batch in batches])
    return {**found, "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("configs", nargs="*", default=CONFIGS, metavar="CONFIG")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.configs[0], args.steps, args.threads)))
        return
    runs = {config: [] for config in args.configs}
    for config in (config for _ in range(args.repeats) for config in args.configs):
        command = [sys.executable, __file__, "--one", config]
        command += [f"--steps={args.steps}", f"--threads={args.threads}"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        runs[config].append(json.loads(done.stdout.splitlines()[-1]))
    found = {c: {k: statistics.median(run[k] for run in rs) for k in FIGURES} for c, rs in runs.items()}
    print(f"torch {torch.__version__}, {args.threads} thread(s)")
    print(f"{'':40}" + "".join(f"{title:>14}" for title in FIGURES.values()))
    for config, figures in found.items():
        values = (f"{figures[k]:14.{0 if k == 'mib' else 3}f}" for k in FIGURES)
        print(f"{config:40}" + "".join(values))
    first = found[args.configs[0]]
    ratios = {c: {k: round(v / first[k], 3) for k, v in figures.items()} for c, figures in found.items()}
    print(json.dumps({"ratios": ratios, "figures": found, "threads": args.threads}))


if __name__ == "__main__":
    main()
