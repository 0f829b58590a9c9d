"""ADE20K for panoptic segmentation: 100 thing and 50 stuff classes, things as one class of the semantic head.

The tree is that of Mask2Former's preparation scripts (see ``datasets/README.md``); their category ids are the
positions in Detectron2's list of the 150 classes. ``datasets/prepare_ade20k.py`` makes it from the release;
missing label maps of the semantic head are made on first use.
"""

from __future__ import annotations

from pathlib import Path

from detectron2.data.datasets.builtin_meta import ADE20K_SEM_SEG_CATEGORIES

from ..derive.engine import Derivation
from ..derive.once import datasets_root
from ..labels import LABELS, SEPARATED
from ..register import register_source
from ..search_split import PARTS, write_split
from ..source import PanopticSource

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
REMEDY = "Download ADEChallengeData2016; python datasets/prepare_ade20k.py makes the annotations"
SPLIT_REMEDY = ", then python datasets/prepare_nas_split.py --dataset ade20k the parts"


def ade20k_root() -> Path:
    """Folder of the data set."""
    return datasets_root() / "ADEChallengeData2016"


def label_folder(datasets: Path, split: str, labels: str) -> Path:
    """Where the label maps of "train" or "val" lie under a data set root."""
    return datasets / "derived" / f"ade20k_{'stuff' if labels == SEPARATED else 'all'}_{split}"


def ade20k_files(datasets: Path, split: str) -> Derivation:
    """What the preparation makes of one split under a data set root."""
    root, folder = datasets / "ADEChallengeData2016", label_folder(datasets, split, SEPARATED)
    return Derivation(
        title=f"ADE20K {split}",
        panoptic_json=root / f"ade20k_panoptic_{split}.json",
        panoptic_root=root / f"ade20k_panoptic_{split}",
        categories=CATEGORIES,
        folder=folder,
        label_maps={folder: SEPARATED},
        instances_json=root / f"ade20k_instance_{split}.json",
    )


def write_ade20k_split(root: Path, size: int, seed: int, overwrite: bool = False) -> dict[str, int]:
    """Write ``ade20k_{panoptic,instance}_nas_{train,val}.json``, as :func:`.write_split`."""
    sources = [root / f"ade20k_{kind}_train.json" for kind in ("panoptic", "instance")]
    return write_split(sources, size, seed, overwrite)


def ade20k_sources() -> list[PanopticSource]:
    """The four parts under the current ``$DETECTRON2_DATASETS``; nothing is read."""
    root, sources = ade20k_root(), []
    for part in (*FOLDERS, *PARTS):
        split = "val" if part == "val" else "train"
        source = PanopticSource(
            name=f"ade20k_panoptic_{part}",
            panoptic_json=str(root / f"ade20k_panoptic_{part}.json"),
            panoptic_root=str(root / f"ade20k_panoptic_{split}"),
            image_root=str(root / "images" / FOLDERS[split]),
            categories=CATEGORIES,
            instances_json=str(root / f"ade20k_instance_{part}.json"),
            remedy=REMEDY + (SPLIT_REMEDY if part in PARTS else ""),
            label_folders={labels: label_folder(root.parent, split, labels) for labels in LABELS},
        )
        sources.append(source)
    return sources


def register_ade20k() -> None:
    """Register ``ade20k_panoptic_{train,val,nas_train,nas_val}``, also as ``*_separated``."""
    for source in ade20k_sources():
        register_source(source)
