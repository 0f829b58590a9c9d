"""Cityscapes for panoptic segmentation: 8 thing and 11 stuff classes, things as label 0 of the semantic head.

Reads what ``datasets/prepare_cityscapes.py`` or cityscapesScripts' ``createPanopticImgs.py`` makes, whose
category ids are Cityscapes' label ids. Instances and the label maps of the semantic head are derived on first
use. Detectron2's own ``cityscapes_fine_panoptic_*`` number things and stuff in one range, for other models.
"""

from __future__ import annotations

import os
from pathlib import Path

from detectron2.data.datasets.builtin_meta import CITYSCAPES_CATEGORIES

from ..derive.once import datasets_root
from ..register import register_source
from ..search_split import write_split
from ..source import PanopticSource

PARTS = {"train": "train", "val": "val", "nas_train": "train", "nas_val": "train"}  # part -> official split
CATEGORIES = tuple(
    {"id": c["id"], "name": c["name"], "isthing": c["isthing"], "color": list(c["color"])}
    for c in CITYSCAPES_CATEGORIES
)
REMEDY = (
    "Download leftImg8bit_trainvaltest; python datasets/prepare_cityscapes.py, or createPanopticImgs.py "
    "without --use-train-id, makes the annotations"
)
SPLIT_REMEDY = ", then python datasets/prepare_nas_split.py --dataset cityscapes the parts"


def cityscapes_root() -> Path:
    """Folder of the data set."""
    return datasets_root() / "cityscapes"


def image_file(image: dict) -> str:
    """Path of an image below ``leftImg8bit/<part>``: file_name, with the city where it lacks it."""
    # createPanopticImgs.py leaves out the city, and "_gtFine" in.
    name = image["file_name"].replace("_gtFine_leftImg8bit", "_leftImg8bit")
    return name if os.path.dirname(name) else os.path.join(name.split("_")[0], name)


def write_cityscapes_split(gt_fine: Path, size: int, seed: int, overwrite: bool = False) -> dict[str, int]:
    """Write ``cityscapes_panoptic_nas_{train,val}.json``, as :func:`write_split`."""
    return write_split([gt_fine / "cityscapes_panoptic_train.json"], size, seed, overwrite)


def cityscapes_sources() -> list[PanopticSource]:
    """The four parts under the current ``$DETECTRON2_DATASETS``; nothing is read."""
    root = cityscapes_root()
    return [
        PanopticSource(
            name=f"cityscapes_panoptic_{part}",
            panoptic_json=str(root / f"gtFine/cityscapes_panoptic_{part}.json"),
            panoptic_root=str(root / f"gtFine/cityscapes_panoptic_{split}"),
            image_root=str(root / "leftImg8bit" / split),
            categories=CATEGORIES,
            remedy=REMEDY + ("" if part == split else SPLIT_REMEDY),
            locate=image_file,
            derived_name=f"cityscapes_{part}",
        )
        for part, split in PARTS.items()
    ]


def register_cityscapes() -> None:
    """Register ``cityscapes_panoptic_{train,val,nas_train,nas_val}``, also as ``*_separated``."""
    for source in cityscapes_sources():
        register_source(source)
