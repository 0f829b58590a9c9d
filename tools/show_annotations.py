#!/usr/bin/env python
"""Both annotations of an image side by side: panoptic, and instances, which may overlap.

python tools/show_annotations.py shapes_panoptic_val_overlapping --output annotations.png
python tools/show_annotations.py coco_2017_val_panoptic_with_sem_seg --image 139

As Figure 4 of Panoptic-DeepLab's supplement. Without --image it is the image whose instances overlap most.
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

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import annotations_to_instances, read_image
from detectron2.structures import BitMasks
from PIL import Image

from auto_panoptic.data.formats.findings import raise_first
from auto_panoptic.data.formats.panoptic_json import read_panoptic_json, read_segments
from auto_panoptic.data.formats.panoptic_png import read_ids
from auto_panoptic.data.register import unknown_data_set
from auto_panoptic.evaluation.gallery import class_names
from auto_panoptic.pictures.colours import PALETTE
from auto_panoptic.pictures.overlay import overlay, stacked
from auto_panoptic.training import build_config


def instances_of(record: dict) -> list[dict]:
    """A record's instance annotation without crowds."""
    return [a for a in record.get("annotations", ()) if not a.get("iscrowd", 0)]


def instance_masks(record: dict) -> np.ndarray:
    """(N, H, W) bool: the masks of :func:`instances_of`."""
    size, kept = (record["height"], record["width"]), instances_of(record)
    if not kept:
        return np.zeros((0, *size), bool)
    form = "bitmask" if isinstance(kept[0]["segmentation"], dict) else "polygon"
    masks = annotations_to_instances(kept, size, mask_format=form).gt_masks
    if form == "bitmask":
        return masks.tensor.numpy()
    return BitMasks.from_polygon_masks(masks, *size).tensor.numpy()


def overlapping(record: dict) -> int:
    """Pixels that several instances of a record cover."""
    return int(np.count_nonzero(instance_masks(record).sum(0) > 1))


def chosen_record(name: str, image: str | None) -> dict:
    """The record of an image, by its id or the name of its file; by default that of the largest overlap.

    Raises:
        UserError: there is no such data set or image.
    """
    if name not in DatasetCatalog.list():
        remedy = "or register yours by DATASETS.COCO_PANOPTIC in a config: --config-file"
        raise unknown_data_set(name, DatasetCatalog.list(), remedy)
    records = DatasetCatalog.get(name)
    if not records or "pan_seg_file_name" not in records[0]:
        raise UserError(f"{name} holds no panoptic annotation; name a panoptic set")
    if image is None:
        return max(records, key=overlapping)
    found = [r for r in records if image in (str(r["image_id"]), *_names(r["file_name"]))]
    if not found:
        known = ", ".join(str(r["image_id"]) for r in records[:3])
        raise UserError(f"--image: {name} has no image {image}; it has {known} and others")
    return found[0]


def _names(path: str) -> tuple[str, str]:
    return Path(path).name, Path(path).stem


def draw(record: dict, metadata) -> tuple[np.ndarray, str]:
    """Both annotations of a record side by side, (H, W, 3) uint8 RGB; and what is to be said of them."""
    photo = read_image(record["file_name"], "RGB")
    truth = read_segments(metadata.panoptic_json)[record["image_id"]][1]
    ids, findings = read_ids(record["pan_seg_file_name"], record["image_id"])
    raise_first(findings)
    categories = read_panoptic_json(metadata.panoptic_json)["categories"]
    names = class_names(metadata, categories)
    segments = truth["segments_info"]
    occur = {s["category_id"] for s in segments}
    order = [c for c in names if len(names) <= len(PALETTE) or c in occur]
    panoptic = overlay(
        photo,
        [ids == s["id"] for s in segments],
        [order.index(s["category_id"]) for s in segments],
        [names[s["category_id"]] for s in segments],
    )
    masks = instance_masks(record)
    classes = [metadata.thing_classes[a["category_id"]] for a in instances_of(record)]
    instances = overlay(photo, masks, range(len(masks)), classes)
    shared = int(np.count_nonzero(masks.sum(0) > 1))
    said = f"{len(segments)} segments, {len(masks)} instances that share {shared:,} pixels"
    titles = ["panoptic annotation", "instance annotation"]
    return stacked([panoptic, instances], titles, side_by_side=True), said


def run() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data_set", metavar="DATA_SET", help="a registered panoptic data set")
    parser.add_argument("--image", help="its id, or the name of its file")
    parser.add_argument("--config-file", metavar="FILE", help="a config that registers data sets of your own")
    parser.add_argument("--output", default="annotations.png", metavar="PNG", type=Path)
    args = parser.parse_args()
    if args.output.suffix.lower() != ".png":
        raise UserError(f"--output: {args.output} is no name of a picture; expected one that ends in .png")
    if args.config_file:
        build_config(args.config_file)
    record = chosen_record(args.data_set, args.image)
    picture, said = draw(record, MetadataCatalog.get(args.data_set))
    try:
        Image.fromarray(picture).save(args.output)
    except OSError as error:
        raise UserError(f"--output: {args.output} cannot be written: {error}") from None
    print(f"image {record['image_id']}: {said}\nwrote {args.output}")


if __name__ == "__main__":
    run_command(run)
