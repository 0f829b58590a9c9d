#!/usr/bin/env python
"""The panoptic quality that Panoptic-DeepLab would reach with perfect outputs.

python tools/deeplab_oracle.py [DATA_SET or FOLDER ...] [--nms-kernel 7] [--top-k 200] [--least 95]

The ground truth of every image is made into the targets of training, labels, heatmap of centres and
offsets, at full resolution; post-processing makes a panoptic map of these, which is scored by the ground
truth. Lost are objects whose centres fall on one pixel, and all objects of an image with --top-k of them or
more, since the scores of their centres are equal. A FOLDER holds panoptic.json and panoptic/*.png. The last
line is one JSON object with the figures; with --least a lower PQ ends in exit code 1.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from auto_panoptic.data.formats.findings import raise_first
from auto_panoptic.data.formats.panoptic_json import read_categories, read_segments
from auto_panoptic.data.formats.panoptic_png import IGNORE, read_ids
from auto_panoptic.data.labels import ALL, label_map
from auto_panoptic.data.register import unknown_data_set
from auto_panoptic.errors import UserError, at_least, run_command
from auto_panoptic.evaluation import PanopticQuality
from auto_panoptic.systems.panoptic_deeplab import TargetGenerator, panoptic_segmentation


def locate(place: str) -> tuple[str, Path]:
    """The panoptic JSON and the folder of PNGs of a registered set or of a folder.

    Raises:
        UserError: it is neither.
    """
    if Path(place, "panoptic.json").is_file():
        return str(Path(place, "panoptic.json")), Path(place, "panoptic")
    if place not in DatasetCatalog.list():
        raise unknown_data_set(place, DatasetCatalog.list(), "Or name a folder that holds panoptic.json")
    DatasetCatalog.get(place)  # makes what is made on first use
    metadata = MetadataCatalog.get(place)
    return metadata.panoptic_json, Path(metadata.panoptic_root)


def perfect_quality(panoptic_json: str, root: Path, sigma: int, **options) -> PanopticQuality:
    """The quality of the maps that ``options`` of :func:`panoptic_segmentation` make of the targets.

    Args:
        panoptic_json, root: the ground truth.
        sigma: of the Gaussians, in pixels.
    """
    categories = read_categories(panoptic_json)
    label_of = label_map(categories, ALL)
    category_of = {label: category for category, label in label_of.items()}
    things = [label_of[c["id"]] for c in categories if c["isthing"]]
    generator, quality = TargetGenerator(IGNORE, things, sigma), PanopticQuality(categories)
    for image, annotation in read_segments(panoptic_json).values():
        path, size = str(root / annotation["file_name"]), (image["width"], image["height"])
        ids, findings = read_ids(path, image["id"], "the JSON says", size)
        raise_first(findings)
        truth = annotation["segments_info"]
        targets = generator(ids, [{**s, "category_id": label_of[s["category_id"]]} for s in truth])
        panoptic, segments, _ = panoptic_segmentation(
            targets["sem_seg"], targets["center"][None], targets["offset"], things, **options
        )
        void = [s["id"] for s in segments if s["category_id"] == IGNORE]
        panoptic[torch.isin(panoptic, torch.tensor(void, dtype=panoptic.dtype))] = 0
        predicted = [
            {"id": s["id"], "category_id": category_of[s["category_id"]]}
            for s in segments
            if s["id"] not in void
        ]
        quality.update(panoptic.numpy(), predicted, ids, truth, image["id"])
    return quality


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("places", nargs="*", default=["shapes_panoptic_val"], metavar="DATA_SET or FOLDER")
    parser.add_argument("--sigma", type=int, default=10, help="of the Gaussians, in pixels")
    parser.add_argument("--nms-kernel", type=int, default=7, help="side of the neighbourhood of a centre")
    parser.add_argument("--threshold", type=float, default=0.1, help="lowest score of a centre")
    parser.add_argument("--top-k", type=int, default=200, help="centres per image")
    parser.add_argument("--stuff-area", type=int, default=0, help="smaller stuff becomes void")
    parser.add_argument("--least", type=float, default=0.0, help="exit code 1 for a PQ below it")
    args = parser.parse_args()
    for name in ("sigma", "nms_kernel", "top_k"):
        at_least(f"--{name.replace('_', '-')}", getattr(args, name), 1)
    if args.nms_kernel % 2 == 0:
        raise UserError(f"--nms-kernel is {args.nms_kernel}; expected an odd number")
    options = {key: getattr(args, key) for key in ("nms_kernel", "threshold", "top_k", "stuff_area")}
    figures = {}
    print(f"{'set':34} {'images':>6} {'PQ':>7} {'SQ':>7} {'RQ':>7} {'PQ_th':>7} {'PQ_st':>7}")
    for place in args.places:
        quality = perfect_quality(*locate(place), args.sigma, **options)
        found, name = quality.compute(), Path(place).name
        values = (f"{found[key]:7.2f}" for key in ("PQ", "SQ", "RQ", "PQ_th", "PQ_st"))
        print(f"{name:34} {quality.num_images:6}", *values, flush=True)
        figures[name] = found["PQ"]
    print(json.dumps(figures))
    if min(figures.values()) < args.least:
        sys.exit(1)


if __name__ == "__main__":
    run_command(main)
