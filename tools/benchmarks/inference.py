"""Inference of the searched 3.8G network against Detectron2's Panoptic-FPN with ResNet-50.

Both see the same random image with random weights and keep 100 detections, so both do all of their work; they
run in turns in one process, and the median of the repeats counts. Weights play no part in the time. The last
line is one JSON object with the ratio (ours / Panoptic-FPN; below 1 is faster).

    python tools/benchmarks/inference.py [--size 800 1216] [--threads 2] [--repeats 3] [--device cpu]
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch
from detectron2.modeling import build_model
from detectron2.utils.logger import setup_logger

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import auto_panoptic.systems  # noqa: E402,F401  registers the components
from auto_panoptic.modeling.fold import folded  # noqa: E402
from auto_panoptic.read_config import read_config  # noqa: E402

CONFIGS = {
    "panoptic_fpn_r50": "configs/baselines/panoptic_fpn_coco.yaml",
    "auto_panoptic": "configs/auto_panoptic_coco.yaml",
}
PARTS = ("backbone", "proposal_generator", "roi_heads", "sem_seg_head")


def network(name: str, device: str) -> torch.nn.Module:
    """The network of a config with random weights, in eval mode; every image yields 100 detections."""
    cfg = read_config(str(ROOT / CONFIGS[name]))
    cfg.MODEL.DEVICE = device
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    if name == "panoptic_fpn_r50":
        # Untrained residual sums grow a thousandfold, and with them all scores become 0 or 1.
        for level in (2, 3, 4, 5):
            getattr(model.backbone, f"fpn_output{level}").weight.data /= 2000
    return model


class Clock:
    """Wall time of the parts of a network; ``parts`` holds the seconds of the newest run."""

    def __init__(self, model: torch.nn.Module):
        self.model, self.parts = model, {}
        self.device = model.device
        for name in PARTS:
            module = getattr(model, name)
            for method in ("forward", "subnet", "predict"):
                if hasattr(module, method) and not (method == "forward" and hasattr(module, "subnet")):
                    setattr(module, method, self._timed(name, getattr(module, method)))

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def _timed(self, name, method):
        def call(*args, **kwargs):
            start = self.now()
            result = method(*args, **kwargs)
            self.parts[name] = self.parts.get(name, 0.0) + self.now() - start
            return result

        return call

    def run(self, batch) -> float:
        self.parts.clear()
        start = self.now()
        with torch.inference_mode():
            outputs = self.model(batch)
        seconds = self.now() - start
        self.parts["rest"] = seconds - sum(self.parts.values())
        assert len(outputs[0]["instances"]) == 100, "the sides must do equal work"
        return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1216), help="height and width in pixels")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    setup_logger(name="fvcore")

    image = torch.randint(0, 256, (3, *args.size), generator=torch.Generator().manual_seed(0)).float()
    batch = [{"image": image, "height": args.size[0], "width": args.size[1]}]
    sides = {}
    for name in CONFIGS:
        model = network(name, args.device)
        sides[name] = Clock(folded(model) if name == "auto_panoptic" else model)
        sides[name].run(batch)  # warm-up
    totals = {name: [] for name in sides}
    parts = {name: {} for name in sides}
    for _ in range(args.repeats):
        for name, clock in sides.items():
            totals[name].append(clock.run(batch))
            for part, seconds in clock.parts.items():
                parts[name].setdefault(part, []).append(seconds)

    print(
        f"torch {torch.__version__}, {args.device}, {args.threads} thread(s), {args.size[0]} x {args.size[1]}"
    )
    print(f"{'milliseconds':20}" + "".join(f"{name:>20}" for name in sides))
    for part in (*PARTS, "rest"):
        print(f"{part:20}" + "".join(f"{1e3 * statistics.median(parts[n][part]):20.0f}" for n in sides))
    medians = {name: statistics.median(values) for name, values in totals.items()}
    print(f"{'total':20}" + "".join(f"{1e3 * value:20.0f}" for value in medians.values()))
    ratio = medians["auto_panoptic"] / medians["panoptic_fpn_r50"]
    print(
        json.dumps(
            {
                "ratio": round(ratio, 3),
                "seconds": {name: round(value, 4) for name, value in medians.items()},
                "size": list(args.size),
                "threads": args.threads,
                "device": args.device,
            }
        )
    )


if __name__ == "__main__":
    main()
