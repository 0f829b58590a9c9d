"""ADE20K for panoptic segmentation: 100 thing and 50 stuff classes, things as one class of the semantic head.

The tree is that of Mask2Former's preparation scripts (see ``datasets/README.md``); their category ids are the
positions in Detectron2's list of the 150 classes. The label maps of the semantic head are made on first use.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path

from detectron2.data.datasets.builtin_meta import ADE20K_SEM_SEG_CATEGORIES

from ..errors import UserError
from . import coco_format as coco
from .coco_splits import PARTS, write_split
from .files import build_once, datasets_root, parallel_map
from .metadata import semantic_label_map
from .panoptic_json import read_panoptic_json, read_segments
from .register import PanopticSource, register_source

FOLDERS = {"train": "training", "val": "validation"}
# The classes without instance annotations in the ADE20K challenges; the other 100 are things.
STUFF_IDS = (
    *(0, 1, 2, 3, 4, 5, 6, 9, 11, 13, 16, 17, 21, 25, 26, 28, 29, 34, 40, 46, 48, 51, 52, 54, 59),
    *(60, 61, 63, 68, 77, 79, 84, 91, 94, 96, 99, 100, 101, 105, 106, 109, 113, 114, 117, 122, 128),
    *(131, 140, 141, 145),
)
CATEGORIES = tuple(
    {"id": i, "name": name, "isthing": int(i not in STUFF_IDS)}
    for i, name in enumerate(ADE20K_SEM_SEG_CATEGORIES)
)


def ade20k_root() -> Path:
    """Folder of the data set."""
    return datasets_root() / "ADEChallengeData2016"


def write_ade20k_split(root: Path, size: int, seed: int) -> dict[str, int]:
    """Write ``ade20k_{panoptic,instance}_nas_{train,val}.json``, as :func:`.coco_splits.write_split`."""
    kinds = {
        root / f"ade20k_{kind}_train.json": {part: root / f"ade20k_{kind}_{part}.json" for part in PARTS}
        for kind in ("panoptic", "instance")
    }
    return write_split(kinds, size, seed)


def _check(root: Path, split: str, part: str) -> None:
    scripts = "Mask2Former's prepare_ade20k_pan_seg.py and prepare_ade20k_ins_seg.py make the files"
    expected = [
        (root / "images" / FOLDERS[split], "the images", "download ADEChallengeData2016"),
        (root / f"ade20k_panoptic_{split}", "the panoptic PNGs", scripts),
        (root / f"ade20k_panoptic_{split}.json", "the panoptic JSON", scripts),
    ]
    if part in PARTS:
        scripts = "python datasets/prepare_nas_split.py --dataset ade20k makes the files"
    expected += [
        (root / f"ade20k_panoptic_{part}.json", "the panoptic JSON", scripts),
        (root / f"ade20k_instance_{part}.json", "the instance JSON", scripts),
    ]
    for path, what, remedy in expected:
        if not path.exists():
            raise UserError(
                f"ADE20K: {path} does not exist; expected there: {what}; {remedy}, or set "
                "DETECTRON2_DATASETS to the folder that holds your data sets (see datasets/README.md)"
            )
    panoptic_json = root / f"ade20k_panoptic_{part}.json"
    found = {c["id"]: bool(c["isthing"]) for c in read_panoptic_json(str(panoptic_json))["categories"]}
    if found != {c["id"]: bool(c["isthing"]) for c in CATEGORIES}:
        raise UserError(
            f"{panoptic_json}: its categories are not ids 0..149 with the usual 100 things; make it with "
            "Mask2Former's prepare_ade20k_pan_seg.py, or register it as your own (see datasets/README.md)"
        )


def _semantic_root(split: str) -> Path:
    return datasets_root() / "derived" / f"ade20k_stuff_{split}"


def _make_label_maps(root: Path, split: str) -> None:
    """Derive the label maps of the semantic head (things 0, stuff 1..50, void 255) from the panoptic PNGs."""

    def build(target: Path) -> None:
        ids = {c["id"] for c in CATEGORIES}
        entries = read_segments(str(root / f"ade20k_panoptic_{split}.json"), ids)
        job = functools.partial(_write_label_map, root / f"ade20k_panoptic_{split}", target)
        parallel_map(job, entries.values(), title=f"label maps of ADE20K {split}")
        (target / "complete").touch()

    build_once(
        _semantic_root(split),
        is_complete=lambda folder: (folder / "complete").exists(),
        build=build,
        ours=lambda folder: True,
    )


def _write_label_map(panoptic_root: Path, target: Path, entry: tuple) -> None:
    _, annotation = entry
    ids = coco.read_panoptic(os.path.join(panoptic_root, annotation["file_name"]))
    labels = coco.semantic_labels(ids, annotation["segments_info"], semantic_label_map(CATEGORIES))
    coco.write_image(str(target / annotation["file_name"]), labels)


def ade20k_sources() -> list[PanopticSource]:
    """The four parts under the current ``$DETECTRON2_DATASETS``; nothing is read."""
    root, sources = ade20k_root(), []
    for part in (*FOLDERS, *PARTS):
        split = "val" if part == "val" else "train"
        source = PanopticSource(
            name=f"ade20k_panoptic_{part}_separated",
            panoptic_json=str(root / f"ade20k_panoptic_{part}.json"),
            panoptic_root=str(root / f"ade20k_panoptic_{split}"),
            image_root=str(root / "images" / FOLDERS[split]),
            categories=CATEGORIES,
            instances_json=str(root / f"ade20k_instance_{part}.json"),
            sem_seg_root=str(_semantic_root(split)),
            check=functools.partial(_check, root, split, part),
            prepare=functools.partial(_make_label_maps, root, split),
        )
        sources.append(source)
    return sources


def register_ade20k() -> None:
    """Register ``ade20k_panoptic_{train,val,nas_train,nas_val}_separated``."""
    for source in ade20k_sources():
        register_source(source)
