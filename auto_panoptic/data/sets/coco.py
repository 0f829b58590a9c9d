"""COCO: its search split, and the label maps that Detectron2's ``datasets/prepare_panoptic_fpn.py`` makes."""

from __future__ import annotations

from pathlib import Path

from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

from ...errors import UserError
from ..derive.engine import Derivation
from ..derive.once import datasets_root
from ..labels import SEPARATED, WITH_LABELS
from ..prepare import prepare
from ..search_split import PARTS
from ..source import PanopticSource

_ZIP = "unpack panoptic_annotations_trainval2017.zip and the panoptic_{}2017.zip in it"


def coco_files(root: Path, split: str) -> Derivation:
    """The label maps of "train" or "val" under the data set root; COCO brings its instances."""
    coco = root / "coco"
    folder = coco / f"panoptic_stuff_{split}2017"
    return Derivation(
        title=f"COCO {split}2017",
        panoptic_json=coco / "annotations" / f"panoptic_{split}2017.json",
        panoptic_root=coco / f"panoptic_{split}2017",
        categories=COCO_CATEGORIES,
        folder=folder,
        label_maps={folder: SEPARATED},
    )


def prepare_coco(root: Path, split: str, processes: int | None = None) -> dict[str, str]:
    """Make and verify label maps of "train" or "val", things 0, stuff 1..53: {what: what was done}.

    ``root`` is the data set root, which holds ``coco``.

    Raises:
        UserError: an annotation file is missing or damaged.
    """
    task = coco_files(root, split)
    for path in (task.panoptic_json, task.panoptic_root):
        if not path.exists():
            raise UserError(
                f"COCO: {path} does not exist; {_ZIP.format(split)}, set --root to the folder that holds "
                "coco, or choose other --splits"
            )
    return prepare(task, processes)


def coco_sources() -> list[PanopticSource]:
    """The parts with instances and label maps of either kind; nothing is read.

    ``coco_2017_{train,val}_panoptic_with_sem_seg`` (Mask2Former's name; Detectron2's own set with a label for
    every class has neither) and ``coco_2017_nas_{train,val}_panoptic``.
    """
    root, sources = datasets_root() / "coco", []
    for part in ("train", "val", *PARTS):
        split = "val" if part == "val" else "train"
        script = "; python datasets/prepare_nas_split.py makes the parts" if part in PARTS else ""
        source = PanopticSource(
            name=f"coco_2017_{part}_panoptic" + ("" if part in PARTS else WITH_LABELS),
            panoptic_json=str(root / "annotations" / f"panoptic_{part}2017.json"),
            panoptic_root=str(root / f"panoptic_{split}2017"),
            image_root=str(root / f"{split}2017"),
            categories=tuple(COCO_CATEGORIES),
            instances_json=str(root / "annotations" / f"instances_{part}2017.json"),
            sem_seg_root=str(root / f"panoptic_stuff_{split}2017"),
            remedy=f"Unpack COCO{script}",
        )
        sources.append(source)
    return sources
