"""COCO's label maps for the semantic head, those of Detectron2's ``datasets/prepare_panoptic_fpn.py``."""

from __future__ import annotations

from pathlib import Path

from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

from ...errors import UserError
from ..derive.label_maps import PanopticFiles, make_label_maps, verify

_ZIP = "unpack panoptic_annotations_trainval2017.zip and the panoptic_{}2017.zip in it"


def coco_files(root: Path, split: str) -> PanopticFiles:
    """The files of "train" or "val" under the data set root; COCO brings its instances."""
    coco = root / "coco"
    return PanopticFiles(
        title=f"COCO {split}2017",
        panoptic_json=coco / "annotations" / f"panoptic_{split}2017.json",
        panoptic_root=coco / f"panoptic_{split}2017",
        categories=COCO_CATEGORIES,
        sem_seg_root=coco / f"panoptic_stuff_{split}2017",
    )


def prepare_coco(root: Path, split: str, processes: int | None = None) -> dict[str, str]:
    """Make and verify the label maps of one split: things 0, stuff 1..53 by ascending id, void 255.

    Args:
        root: the data set root, which holds ``coco``.
        split: "train" or "val".
        processes: None takes the CPUs there are.

    Returns:
        {what: what was done}.

    Raises:
        UserError: an annotation file is missing or damaged.
    """
    files = coco_files(root, split)
    for path in (files.panoptic_json, files.panoptic_root):
        if not path.exists():
            raise UserError(
                f"COCO: {path} does not exist; {_ZIP.format(split)}, set --root to the folder that holds "
                "coco, or choose other --splits"
            )
    counts = make_label_maps(files, processes)
    done = f"{counts['made']} made, {counts['kept']} kept"
    return {str(files.sem_seg_root): done, "verified": f"{verify(files, processes)} images"}
