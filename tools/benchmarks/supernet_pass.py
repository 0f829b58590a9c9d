"""One pass (forward + backward) of a supernet's path against the same path as a stand-alone network.

Time: both networks in one process, in turns, on the same batch; the median of the repeats counts. Memory: one
fresh process per side, its peak minus what it held before the networks were built. The last line is one JSON
object with the ratio of the times and the additional memory in units of the supernet's parameters.

    python tools/benchmarks/supernet_pass.py [--size 256 320] [--paths 3] [--threads 1] [--device cpu]
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from auto_panoptic.modeling import apply_architecture  # noqa: E402
from auto_panoptic.modeling.extract import extract  # noqa: E402
from auto_panoptic.read_config import read_config  # noqa: E402
from auto_panoptic.space import SearchSpace  # noqa: E402

SIDES = ("supernet", "standalone")


def configuration(device: str):
    cfg = read_config(str(ROOT / "configs/supernet_coco.yaml"))
    cfg.MODEL.DEVICE = device
    cfg.MODEL.SHUFFLENET.NORM = "BN"  # one process
    return cfg


def make_batch(size, images: int = 2) -> list[dict]:
    """Random images with four rectangular objects each and random stuff."""
    generator = torch.Generator().manual_seed(0)
    height, width = size
    batch = []
    for _ in range(images):
        instances = Instances((height, width))
        boxes = torch.tensor(
            [[i * width / 5, height / 8, (i + 1.5) * width / 5, height / 2] for i in range(4)]
        )
        masks = torch.zeros(4, height, width, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist(), strict=True):
            mask[y0:y1, x0:x1] = True
        instances.gt_boxes, instances.gt_masks = Boxes(boxes), BitMasks(masks)
        instances.gt_classes = torch.arange(4)
        image = torch.randint(0, 256, (3, height, width), generator=generator).float()
        labels = torch.randint(0, 54, (height, width), generator=generator)
        batch.append({"image": image, "instances": instances, "sem_seg": labels})
    return batch


def run_pass(model, batch) -> float:
    """Seconds of one forward and backward pass."""
    model.zero_grad(set_to_none=True)
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    torch.manual_seed(0)  # the same proposals are sampled
    start = time.perf_counter()
    with EventStorage():
        sum(model(batch).values()).backward()
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def resident(field: str) -> int:
    """Resident memory of this process in bytes, now (VmRSS) or at its peak (VmHWM)."""
    return int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


def peak_of(side: str, args) -> dict:
    """Peak memory in bytes of one side, measured in this process, and the supernet's parameters in bytes."""
    cfg = configuration(args.device)
    batch = make_batch(args.size)
    space = SearchSpace.from_config(cfg)
    architecture = space.random(np.random.default_rng(0))
    if side == "standalone":
        architecture.save(args.scratch)
        cfg.NAS.ARCHITECTURE = args.scratch
    before = resident("VmRSS")
    torch.manual_seed(0)
    model = build_model(cfg).train()
    apply_architecture(model, architecture)
    parameters = sum(p.numel() * p.element_size() for p in model.parameters())
    run_pass(model, batch)
    if args.device == "cuda":
        return {"peak": torch.cuda.max_memory_allocated(), "parameters": parameters}
    return {"peak": resident("VmHWM") - before, "parameters": parameters}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, nargs=2, default=(256, 320), help="height and width in pixels")
    parser.add_argument("--paths", type=int, default=3, help="random paths to measure")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--memory-of", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--scratch", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory_of:
        print(json.dumps(peak_of(args.memory_of, args)))
        return

    cfg = configuration(args.device)
    torch.manual_seed(0)
    supernet = build_model(cfg).train()
    batch = make_batch(args.size)
    space = SearchSpace.from_config(cfg)
    size = "2 x {} x {} pixels".format(*args.size)
    print(f"torch {torch.__version__}, {args.device}, {args.threads} thread(s), {size}")
    print(f"{'path':>4} {'supernet ms':>12} {'stand-alone ms':>15} {'ratio':>7}")
    ratios = []
    for seed in range(args.paths):
        architecture = space.random(np.random.default_rng(seed))
        apply_architecture(supernet, architecture)
        sides = {"supernet": supernet, "standalone": extract(supernet, architecture)}
        times = {name: [] for name in sides}
        for repeat in range(args.repeats + 1):  # the first is the warm-up
            order = list(sides) if repeat % 2 else list(sides)[::-1]
            for name in order:
                seconds = run_pass(sides[name], batch)
                if repeat:
                    times[name].append(seconds)
        ours, alone = (statistics.median(times[name]) for name in SIDES)
        ratios.append(ours / alone)
        print(f"{seed:4d} {1e3 * ours:12.0f} {1e3 * alone:15.0f} {ours / alone:7.3f}", flush=True)
    del supernet, sides

    memory = {}
    scratch = str(Path(tempfile.mkdtemp()) / "supernet_pass_architecture.json")
    for side in SIDES:
        command = [
            sys.executable,
            __file__,
            "--memory-of",
            side,
            "--scratch",
            scratch,
            "--device",
            args.device,
        ]
        command += ["--threads", str(args.threads), "--size", *map(str, args.size)]
        memory[side] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    Path(scratch).unlink()
    extra = memory["supernet"]["peak"] - memory["standalone"]["peak"]
    share = extra / memory["supernet"]["parameters"]
    for side in SIDES:
        print(f"peak memory, {side}: {memory[side]['peak'] / 2**20:.0f} MiB")
    print(f"difference: {share:.2f} x the {memory['supernet']['parameters'] / 2**20:.0f} MiB of parameters")
    print(
        json.dumps(
            {
                "time_ratio": round(statistics.median(ratios), 3),
                "worst_time_ratio": round(max(ratios), 3),
                "extra_memory_per_parameter_byte": round(share, 3),
                "device": args.device,
                "threads": args.threads,
            }
        )
    )


if __name__ == "__main__":
    main()
