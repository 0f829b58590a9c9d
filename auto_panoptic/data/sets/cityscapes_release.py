"""Cityscapes' fine annotations as panoptic segmentation, with the values of the official conversion.

``*_gtFine_instanceIds.png`` holds one 16-bit number per pixel: a label id below 1000, or 1000 times the label
id plus the number of the instance. Thing pixels with a bare label id are groups, which become crowds. Labels
outside the 19 evaluated classes become void.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from ...errors import UserError
from ..derive.conversion import Conversion, SourceImage, convert, made_here
from ..derive.engine import Derivation
from ..labels import SEPARATED
from ..prepare import prepare
from .cityscapes import CATEGORIES, cityscapes_sources

_SUFFIX = "_gtFine_instanceIds.png"
_ISTHING = {c["id"]: bool(c["isthing"]) for c in CATEGORIES}


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
    conversion = Conversion(task, root / "cityscapes" / "leftImg8bit" / split, read_ids, describe)
    there = _annotations(root / "cityscapes", split)
    if not task.panoptic_json.exists() or (there and made_here(task)):
        sources = _sources(root / "cityscapes", split)
        report[str(task.panoptic_json)] = convert(conversion, sources, processes)
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
