#!/usr/bin/env python
"""What a unified network sees in a photo: boxes, instance affinities of chosen pixels, panoptic segments.

python tools/show_affinity.py --config-file FILE --input photo.jpg --points 120,80 30,40 MODEL.WEIGHTS FILE

One picture, as the figures B and C of the supplement: the photo with the points and the detections that take
part; for each point how much every pixel counts in what the network says there; and the panoptic segments, by
the network's own output and, if it predicts masks, merged from masks and semantic labels of the same weights.
"""

# ruff: noqa: E402
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from auto_panoptic.errors import UserError, hold_warnings, run_command

if __name__ == "__main__":
    hold_warnings()  # also those of the imports below

import argparse
import math

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.visualizer import Visualizer
from matplotlib.figure import Figure

from auto_panoptic.data import data_set_for
from auto_panoptic.modeling.choice import meta_model
from auto_panoptic.modeling.finite import finite_outputs
from auto_panoptic.training import build_config, check_unread
from demo import predictor_of, read_photo
from train_net import Trainer, check_evaluation


def read_points(texts: list[str]) -> tuple[list[tuple[int, int]], list[str]]:
    """Points from "x,y", and what follows them: KEY VALUE pairs."""
    end = next((i for i, text in enumerate(texts) if text[:1].isalpha()), len(texts))
    points = []
    for text in texts[:end]:
        try:
            x, y = map(int, text.split(","))
        except ValueError:
            raise UserError(f"--points: {text!r} is no pixel; expected x,y such as 120,80") from None
        points.append((x, y))
    if not points:
        raise UserError("--points names no pixel; expected x,y such as 120,80")
    return points, texts[end:]


def check_output(output: Path, photo: Path) -> None:
    """Raise UserError where the picture cannot be written."""
    if output.suffix.lower() != ".png":
        raise UserError(f"--output: {output} is no name of a picture; expected one that ends in .png")
    if not output.parent.is_dir():
        raise UserError(f"--output: there is no folder {output.parent}; make it")
    if output.is_dir() or (output.exists() and output.samefile(photo)):
        raise UserError(f"--output: {output} is the photo or a folder; name another file")


def in_mode(cfg, mode: str):
    """The config with another way of inference."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.UNIFIED.INFERENCE = mode
    return cfg


@torch.no_grad()
def predict(cfg, metadata, photo: np.ndarray, name: str, points: list[tuple[int, int]]):
    """The outputs by way of inference, "panoptic" first, and (P, H, W) affinities of the points."""
    predictor, ready = predictor_of(in_mode(cfg, "panoptic"), metadata)
    inputs, model = predictor.inputs(photo, name), predictor.model
    outputs = {}
    with ready, finite_outputs(model):
        outputs["panoptic"], maps = model([inputs])[0], model.affinity_of(inputs, points).cpu().numpy()
        if cfg.MODEL.MASK_ON:
            merging = Trainer.build_model(in_mode(cfg, "heuristic")).eval()
            merging.load_state_dict(model.state_dict())
            outputs["heuristic"] = merging([inputs])[0]
    return outputs, maps


def visualizer(rgb: np.ndarray, metadata) -> Visualizer:
    """Detectron2's, large enough for its texts."""
    return Visualizer(rgb, metadata, scale=max(1, 600 / rgb.shape[1]))


def with_boxes(rgb: np.ndarray, instances, score: float, metadata) -> np.ndarray:
    """The photo with the boxes, classes and scores of the detections of at least ``score``."""
    instances = instances[instances.scores >= score].to("cpu")
    classes = [metadata.thing_classes[c] for c in instances.pred_classes.tolist()]
    labels = [f"{name} {s:.0%}" for name, s in zip(classes, instances.scores.tolist(), strict=True)]
    boxes = instances.pred_boxes.tensor.numpy()
    return visualizer(rgb, metadata).overlay_instances(boxes=boxes, labels=labels).get_image()


def draw(
    panels: list[tuple[str, np.ndarray, np.ndarray | None, list]], size: tuple[int, int], output: Path
) -> None:
    """Write panels (title, picture, map over it or None, points to mark) of a photo of ``size`` into one."""
    columns = math.ceil(math.sqrt(len(panels)))
    height, width = size
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(5 * columns, (5 * height / width + 0.4) * rows), layout="constrained")
    for number, (title, picture, heat, points) in enumerate(panels, 1):
        axes = figure.add_subplot(rows, columns, number, title=title)
        area = (-0.5, width - 0.5, height - 0.5, -0.5)  # a picture may have another number of pixels
        axes.imshow(picture, extent=area)
        if heat is not None:
            axes.imshow(heat, extent=area, cmap="jet", alpha=0.6, vmin=0)
        for x, y in points:
            axes.plot(x, y, "x", color="white", markersize=11, markeredgewidth=4)
            axes.plot(x, y, "x", color="red", markersize=9, markeredgewidth=2)
        axes.set_axis_off()
    figure.savefig(output, dpi=100)


def run() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--input", required=True, metavar="PHOTO", type=Path)
    parser.add_argument("--output", default="affinity.png", metavar="PNG", type=Path)
    parser.add_argument("--points", required=True, nargs="+", metavar="X,Y", help="pixels of the photo")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs")
    args = parser.parse_args()
    points, opts = read_points(args.points)
    opts += args.opts
    if not args.input.is_file():
        raise UserError(f"--input: {args.input} is no file")
    check_output(args.output, args.input)
    cfg = build_config(args.config_file, opts)
    if not hasattr(meta_model(cfg), "affinity_of"):
        raise UserError(
            f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}, which has no instance affinities; "
            "name a config of configs/unified"
        )
    check_evaluation(cfg)
    both = in_mode(cfg, "heuristic") if cfg.MODEL.MASK_ON else cfg  # reads what both ways of inference read
    check_unread(both, args.config_file, opts, Trainer)
    photo = read_photo(args.input)
    height, width = photo.shape[:2]
    for x, y in points:
        if not (0 <= x < width and 0 <= y < height):
            raise UserError(f"--points: {x},{y} lies outside the photo of {width} x {height} pixels")
    metadata = MetadataCatalog.get(name := data_set_for(cfg, cfg.DATASETS.TEST[0]))
    if not Path(metadata.panoptic_json).is_file():
        DatasetCatalog.get(name)  # makes it

    outputs, maps = predict(cfg, metadata, photo, str(args.input), points)
    rgb = photo[:, :, ::-1]
    boxes = with_boxes(rgb, outputs["panoptic"]["instances"], cfg.MODEL.UNIFIED.SCORE_THRESH_TEST, metadata)
    panels = [("detections", boxes, None, points)]
    panels += [
        (f"affinities of {x},{y}", rgb, heat, [(x, y)]) for (x, y), heat in zip(points, maps, strict=True)
    ]
    for mode, output in outputs.items():
        ids, segments = output["panoptic_seg"]
        drawn = visualizer(rgb, metadata).draw_panoptic_seg(ids.cpu(), segments).get_image()
        panels.append((f"{mode} inference", drawn, None, []))
        print(f"{mode}: {len(segments)} segments")
    draw(panels, (height, width), args.output)
    print(f"wrote {args.output}")


if __name__ == "__main__":
    run_command(run)
