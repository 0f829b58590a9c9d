"""Panoptic-DeepLab's post-processing and targets beside Detectron2's, at the size of Cityscapes on one core.

- grouping: 100 centres, every pixel of 1025 x 2049 to the nearest;
- post-processing: from heatmap, offsets and labels of a drawn scene to the panoptic map;
- instances: masks, boxes and scores of that map;
- targets N: of half that size, a crop of a training, with N segments: stuff, at most 11, and things.

Each side runs in a process of its own: seconds of the CPU, the least of --repeats, but once for what takes
Detectron2 long, and what the process held at most beyond its start. Both give the same maps and targets, or
this ends with an error. The last line is one JSON object with the figures.

    python tools/benchmarks/panoptic_deeplab.py [--size 1025 2049] [--centers 100] [--things 60] [--repeats 5]
        [--segments 10 25 60] [--steps targets ...]
"""

import argparse
import hashlib
import json
import multiprocessing
import resource
import time

import numpy as np
import torch
from detectron2.projects.panoptic_deeplab import post_processing as detectron2
from detectron2.projects.panoptic_deeplab.target_generator import PanopticDeepLabTargetGenerator
from detectron2.structures import BitMasks

from auto_panoptic.data.formats.panoptic_png import areas_of
from auto_panoptic.systems.panoptic_deeplab import (
    TargetGenerator,
    group_pixels,
    instances_of,
    panoptic_segmentation,
)

THINGS, CLASSES, DIVISOR = range(8), 19, 1000  # as Cityscapes in labels "all"
TARGETS = {
    "sigma": 10,
    "ignore_stuff_in_offset": True,
    "small_instance_area": 4096,
    "small_instance_weight": 3,
}
STEPS = ("grouping", "post-processing", "instances", "targets")


def scene(size: tuple[int, int], things: int, stuff: int = 11) -> tuple[np.ndarray, list[dict]]:
    """(ids, segments): bands of stuff, and rectangles of things over them, all of which are seen."""
    rng, (height, width) = np.random.default_rng(0), size
    bands = np.arange(1, stuff + 1, dtype=np.int32)
    ids = bands.repeat(-(-height // stuff))[:height, None].repeat(width, axis=1)
    categories = {i: 7 + i for i in range(1, stuff + 1)}
    while len(seen := areas_of(ids)) < things + stuff:
        y, x = (int(rng.integers(0, side)) for side in size)
        number = 100 + len(categories)
        ids[y : y + rng.integers(8, height // 4), x : x + rng.integers(8, width // 8)] = number
        categories[number] = int(rng.integers(0, 8))
    return ids, [{"id": i, "category_id": categories[i], "iscrowd": 0} for i in seen]


def labels_of(panoptic: torch.Tensor, segments: list[dict]) -> torch.Tensor:
    """Our map in Detectron2's numbers."""
    table, counts = torch.full((len(segments) + 1,), -1), dict.fromkeys(range(CLASSES), 0)
    for segment in segments:
        counts[segment["category_id"]] += segment["isthing"]
        number = counts[segment["category_id"]] if segment["isthing"] else 0
        table[segment["id"]] = segment["category_id"] * DIVISOR + number
    return table[panoptic.long()]


def their_instances(panoptic: torch.Tensor, probabilities: torch.Tensor, heatmap: torch.Tensor) -> list:
    """As in Detectron2's ``PanopticDeepLab.forward``."""
    found = []
    for label in np.unique(panoptic.numpy()):
        if label != -1 and label // DIVISOR in THINGS:
            mask = panoptic == label
            score, places = probabilities[label // DIVISOR][mask].mean(), torch.nonzero(mask).float()
            center = heatmap[0, int(places[:, 0].mean()), int(places[:, 1].mean())]
            found.append((mask, score * center, BitMasks(mask[None]).get_bounding_boxes()))
    return found


def peak() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure(step: str, ours: bool, args: argparse.Namespace, results) -> None:
    """Put {"seconds", "peak_bytes", "digest"} of a step into the queue ``results``."""
    torch.set_num_threads(1)
    height, width = args.size
    generator = torch.Generator().manual_seed(0)
    step, _, count = step.partition(" ")
    if count:
        stuff = min(int(count) // 2, CLASSES - len(THINGS))
        ids, segments = scene((height // 2 + 1, width // 2 + 1), int(count) - stuff, stuff)
    else:
        ids, segments = scene((height, width), args.things)
    targets = TargetGenerator(255, THINGS, **TARGETS)(ids, segments)
    noise = torch.randn(2, *ids.shape, generator=generator)
    semantic, heatmap, offsets = targets["sem_seg"], targets["center"][None], targets["offset"] + noise
    if step == "grouping":
        centers = torch.rand(args.centers, 2, generator=generator) * torch.tensor([height, width])
        centers = centers.long()
        run = (lambda: group_pixels(centers, offsets)) if ours else (
            lambda: detectron2.group_pixels(centers, offsets)[0]
        )  # fmt: skip
    elif step == "targets":
        make = (TargetGenerator if ours else PanopticDeepLabTargetGenerator)(255, THINGS, **TARGETS)

        def run():
            return [value for value in make(ids, segments).values() if torch.is_tensor(value)]

    else:
        whole = panoptic_segmentation(semantic, heatmap, offsets, THINGS)

        def run():
            if ours:
                return labels_of(*panoptic_segmentation(semantic, heatmap, offsets, THINGS)[:2])
            return detectron2.get_panoptic_segmentation(
                semantic[None], heatmap, offsets, set(THINGS), DIVISOR, 2048, -1
            )[0][0]

        if step == "instances":
            probabilities = torch.rand(CLASSES, height, width, generator=generator)
            labels = labels_of(*whole[:2])

            def run():
                if ours:
                    return instances_of(*whole[:2], probabilities, heatmap).pred_masks.any(dim=0)
                found = their_instances(labels, probabilities, heatmap)
                return torch.stack([mask for mask, _, _ in found]).any(dim=0)

    seconds, before = [], peak()
    for _ in range(args.repeats if ours or step in ("instances", "targets") else 1):
        start = time.process_time()
        output = run()
        seconds.append(time.process_time() - start)
    after = peak()
    outputs = output if isinstance(output, list) else [output]
    digest = hashlib.sha256(b"".join(x.numpy().tobytes() for x in outputs)).hexdigest()
    results.put({"seconds": min(seconds), "peak_bytes": after - before, "digest": digest})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, nargs=2, default=[1025, 2049])
    parser.add_argument("--centers", type=int, default=100, help="of the grouping")
    parser.add_argument("--things", type=int, default=60, help="of the scene")
    parser.add_argument(
        "--segments", type=int, nargs="+", default=[10, 25, 60], help="of the scenes that targets are made of"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS)
    args = parser.parse_args()

    context, figures = multiprocessing.get_context("spawn"), {"size": args.size, "centers": args.centers}
    print(
        f"{args.size[0]} x {args.size[1]} pixels, one thread   {'ours':>20} {'Detectron2':>22} {'ratio':>8}"
    )
    steps = [s for s in args.steps if s != "targets"]
    steps += [f"targets {count}" for count in args.segments if "targets" in args.steps]
    for step in steps:
        sides = []
        for ours in (True, False):
            results = context.Queue()
            process = context.Process(target=measure, args=(step, ours, args, results))
            process.start()
            sides.append(results.get())
            process.join()
        if sides[0].pop("digest") != sides[1].pop("digest"):
            raise SystemExit(f"{step}: the results differ")
        ratio = sides[1]["seconds"] / sides[0]["seconds"]
        columns = (f"{side['seconds']:9.3f} s {side['peak_bytes'] / 1e6:7.0f} MB" for side in sides)
        name = step.replace(" ", " of segments: ")
        print(f"{name:34}", *columns, f"{ratio:7.1f}x", flush=True)
        figures[step] = {"ours": sides[0], "detectron2": sides[1], "ratio": ratio}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
