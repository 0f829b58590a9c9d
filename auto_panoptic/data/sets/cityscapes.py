"""Cityscapes for panoptic segmentation: 8 thing and 11 stuff classes, things as label 0 of the semantic head.

Made of the fine annotations with the values of the official conversion, or by it, cityscapesScripts'
``createPanopticImgs.py``; category ids are Cityscapes' label ids. ``*_gtFine_instanceIds.png`` holds one
16-bit number per pixel: a label id below 1000, or 1000 times the label id plus the number of the instance.
Thing pixels with a bare label id are groups, which become crowds. Labels outside the 19 evaluated classes
become void. Detectron2's own ``cityscapes_fine_panoptic_*`` number things and stuff in one range, for other
models.
"""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
from detectron2.data.datasets.builtin_meta import CITYSCAPES_CATEGORIES

from ...errors import UserError
from ..derive.conversion import SourceImage, convert, made_here
from ..derive.engine import Derivation
from ..derive.once import datasets_root
from ..labels import SEPARATED
from ..prepare import prepare
from ..source import PanopticSource

PARTS = {"train": "train", "val": "val", "nas_train": "train", "nas_val": "train"}  # part -> official split
CATEGORIES = tuple(
    {"id": c["id"], "name": c["name"], "isthing": c["isthing"], "color": list(c["color"])}
    for c in CITYSCAPES_CATEGORIES
)
_SUFFIX = "_gtFine_instanceIds.png"
_ISTHING = {c["id"]: bool(c["isthing"]) for c in CATEGORIES}
REMEDY = (
    "Download leftImg8bit_trainvaltest; python datasets/prepare_cityscapes.py, or createPanopticImgs.py "
    "without --use-train-id, makes the annotations"
)
SPLIT_REMEDY = ", then python datasets/prepare_nas_split.py --dataset cityscapes the parts"


def image_file(image: dict) -> str:
    """Path of an image below ``leftImg8bit/<part>``: file_name, with the city where it lacks it."""
    # createPanopticImgs.py leaves out the city, and "_gtFine" in.
    name = image["file_name"].replace("_gtFine_leftImg8bit", "_leftImg8bit")
    return name if os.path.dirname(name) else os.path.join(name.split("_")[0], name)


def cityscapes_sources() -> list[PanopticSource]:
    """The four parts under the current ``$DETECTRON2_DATASETS``; nothing is read."""
    root = datasets_root() / "cityscapes"
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


def cityscapes_files(root: Path, split: str) -> Derivation:
    """What is made of "train" or "val" under a data set root, where training derives it, too."""
    gt_fine, folder = root / "cityscapes" / "gtFine", root / "derived" / f"cityscapes_{split}"
    return Derivation(
        title=f"Cityscapes {split}",
        panoptic_json=gt_fine / f"cityscapes_panoptic_{split}.json",
        panoptic_root=gt_fine / f"cityscapes_panoptic_{split}",
        categories=CATEGORIES,
        folder=folder,
        label_maps={folder / "semantic": SEPARATED},
        instances_json=folder / "instances.json",
    )


def prepare_cityscapes(root: Path, split: str, processes: int | None = None) -> dict[str, str]:
    """Make and verify what training and evaluation read of "train" or "val": {what: what was done}.

    ``root`` is the data set root, which holds ``cityscapes``; ``$DETECTRON2_DATASETS`` is the same.

    Raises:
        UserError: a source is missing or damaged.
    """
    task, report = cityscapes_files(root, split), {}
    images = root / "cityscapes" / "leftImg8bit" / split
    there = _annotations(root / "cityscapes", split)
    if not task.panoptic_json.exists() or (there and made_here(task)):
        sources = _sources(root / "cityscapes", split)
        report[str(task.panoptic_json)] = convert(task, images, read_ids, describe, sources, processes)
    name = f"cityscapes_panoptic_{split}"
    next(source for source in cityscapes_sources() if source.name == name).check_files()
    return report | prepare(task, processes)


def _annotations(root: Path, split: str) -> list[Path]:
    return sorted((root / "gtFine" / split).glob(f"*/*{_SUFFIX}"))


def _sources(root: Path, split: str) -> list[SourceImage]:
    sources = []
    for path in _annotations(root, split):
        name, city = path.name.removesuffix(_SUFFIX), path.parent.name
        image, png = f"{city}/{name}_leftImg8bit.png", f"{name}_gtFine_panoptic.png"
        sources.append(SourceImage(name, image, png, (path,)))
    if not sources:
        raise UserError(
            f"Cityscapes: {root / 'gtFine' / split} holds no <city>/*{_SUFFIX}, and there is no "
            f"gtFine/cityscapes_panoptic_{split}.json; unpack gtFine_trainvaltest.zip there, set --root to "
            "the folder that holds cityscapes, or choose other --splits"
        )
    return sources


def read_ids(paths: tuple[Path, ...]) -> np.ndarray:
    """Segment ids of one image: the numbers of the 19 evaluated classes, 0 elsewhere.

    Args:
        paths: the ``instanceIds`` image.

    Returns:
        int32 array (H, W), 0 is void.

    Raises:
        UserError: damaged image.
    """
    numbers = cv2.imread(str(paths[0]), cv2.IMREAD_UNCHANGED)
    if numbers is None or numbers.ndim != 2 or numbers.dtype != np.uint16:  # labelIds have 8 bits
        raise UserError(f"{paths[0]} is damaged or no image of one channel of 16 bits; unpack it again")
    numbers = numbers.astype(np.int32)
    labels = np.where(numbers < 1000, numbers, numbers // 1000)
    return np.where(np.isin(labels, list(_ISTHING)), numbers, 0)


def describe(segment_id: int) -> tuple[int, int] | None:
    """(category id, iscrowd) of a segment id of :func:`read_ids`, None for others."""
    label = segment_id if segment_id < 1000 else segment_id // 1000
    if label not in _ISTHING:
        return None
    return label, int(_ISTHING[label] and segment_id < 1000)
