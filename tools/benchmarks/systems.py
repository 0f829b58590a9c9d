"""One training step and one inference of whole networks beside each other: time and memory.

Each network runs in a process of its own, in turns, on the same images of its training set, from random
weights that a few steps have moved. The median over steps and repeats counts, with one thread of the seconds
that it computes; memory is the process's peak.
Multiply-adds and parameters are those of the layers that run, for the first of the images; a searched layer
has its first operator. The last line is one JSON object with the ratios to the first network.

Without a NETWORK these are the three systems at equal multiply-adds: the quick configs with one operator at
each place, wider where a system has fewer. A NETWORK is a config, or in quotes a config with options:

    python tools/benchmarks/systems.py [NETWORK ...] [--steps 8] [--repeats 2] [--threads 1]
    python tools/benchmarks/systems.py configs/quick/panoptic_fpn.yaml configs/quick/unified_R18.yaml
    python tools/benchmarks/systems.py configs/quick/panoptic_deeplab.yaml \\
        "configs/quick/panoptic_deeplab.yaml MODEL.PANOPTIC_DEEPLAB.DECODER deeplabv3plus"
"""

import argparse
import itertools
import json
import resource
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

ONE = "NAS.SPACE.BACKBONE_OPS \"['shuffle_3x3']\" NAS.SPACE.HEAD_OPS \"['dwconv_3x3']\""
WIDE = "MODEL.SHUFFLENET.STEM_CHANNELS 48 MODEL.SHUFFLENET.STAGE_CHANNELS '[96, 192, 384, 768]'"
SEMANTIC, INSTANCE = "MODEL.SEM_SEG_HEAD", "MODEL.INS_EMBED_HEAD"
NETWORKS = {
    "auto_panoptic": f"configs/quick/whole.yaml {ONE} MODEL.CROSS_ATTENTION.RATIOS [4] {WIDE} "
    f"{SEMANTIC}.CONVS_DIM 96",
    "unified": f"configs/quick/unified.yaml {ONE}",
    "panoptic_deeplab": f"configs/quick/panoptic_deeplab.yaml {WIDE} "
    f"{SEMANTIC}.CONVS_DIM 240 {SEMANTIC}.ASPP_CHANNELS 240 {SEMANTIC}.HEAD_CHANNELS 240 "
    f"{INSTANCE}.CONVS_DIM 176 {INSTANCE}.ASPP_CHANNELS 240",
}
# Figure -> title and decimals.
FIGURES = {
    "macs": ("M MACs", 0),
    "params": ("M parameters", 2),
    "step": ("s per step", 3),
    "inference": ("s per image", 3),
    "mib": ("MiB at most", 0),
}


def median_seconds(call, items) -> float:
    """Median time of calls with each of the items; the first two only warm up."""
    # Of one thread the seconds that it computes, whatever else the machine does.
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    times = []
    for item in items:
        start = clock()
        call(item)
        times.append(clock() - start)
    return statistics.median(times[2:])


def configured(network: str):
    """The config of a network; without an architecture, so that searched layers have all their operators."""
    from auto_panoptic.training import build_config

    config, *options = shlex.split(network)
    return build_config(config, [*options, "MODEL.WEIGHTS", "", "NAS.ARCHITECTURE", ""])


def cost(cfg, size) -> dict:
    """Millions of multiply-adds for an image of ``size`` (H, W), and of parameters."""
    from auto_panoptic.modeling.counting import configured_costs

    tables = configured_costs(cfg, tuple(size))
    found = tables.cost(tables.space.architecture([0] * len(tables.space.sites)))
    return {"macs": found.macs / 1e6, "params": found.params / 1e6}


def measure(network: str, steps: int, threads: int) -> dict:
    """The figures of one network, in this process."""
    from detectron2.modeling import build_model
    from detectron2.utils.events import EventStorage

    from auto_panoptic.training.loader import build_train_loader

    torch.set_num_threads(threads)
    cfg = configured(network)
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
    found["mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return cost(cfg, batches[0][0]["image"].shape[-2:]) | found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", metavar="NETWORK")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.networks[0], args.steps, args.threads)))
        return
    networks = {network: network for network in args.networks} or NETWORKS
    runs = {name: [] for name in networks}
    for name in (name for _ in range(args.repeats) for name in networks):
        command = [sys.executable, __file__, "--one", networks[name]]
        command += [f"--steps={args.steps}", f"--threads={args.threads}"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        runs[name].append(json.loads(done.stdout.splitlines()[-1]))
    found = {n: {k: statistics.median(run[k] for run in rs) for k in FIGURES} for n, rs in runs.items()}
    print(f"torch {torch.__version__}, {args.threads} thread(s)")
    print(f"{'':40}" + "".join(f"{title:>14}" for title, _ in FIGURES.values()))
    for name, figures in found.items():
        print(f"{name:40}" + "".join(f"{figures[k]:14.{digits}f}" for k, (_, digits) in FIGURES.items()))
    first = next(iter(found.values()))
    ratios = {n: {k: round(v / first[k], 3) for k, v in figures.items()} for n, figures in found.items()}
    print(json.dumps({"ratios": ratios, "figures": found, "threads": args.threads}))


if __name__ == "__main__":
    main()
