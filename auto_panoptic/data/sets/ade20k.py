"""ADE20K for panoptic segmentation: 100 thing and 50 stuff classes, things as one class of the semantic head.

The tree is that of Mask2Former's preparation scripts (see ``datasets/README.md``); their category ids are the
positions in Detectron2's list of the 150 classes. It is made of the two annotation images of a photograph, as
released:

- ``annotations/``: one channel; 0 is "other objects", 1..150 the classes of the scene parsing challenge.
- ``annotations_instance/``: red is the class of the instance challenge, 1..100, the things in the order of
  the 150; green is the number of the instance in its image, 1..255; 0 is none.

Where both claim a pixel, the instance wins; thing pixels without an instance are void.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from detectron2.data.datasets.builtin_meta import ADE20K_SEM_SEG_CATEGORIES

from ...errors import UserError
from ..derive.conversion import SourceImage, convert, made_here
from ..derive.engine import Derivation
from ..derive.once import datasets_root
from ..derive.pool import parallel_map
from ..labels import LABELS, SEPARATED
from ..prepare import prepare
from ..search_split import PARTS
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
# Values in annotations/, by instance class minus 1.
THING_VALUES = np.array([c["id"] + 1 for c in CATEGORIES if c["isthing"]])
_IS_STUFF = np.isin(np.arange(256) - 1, STUFF_IDS)
DOWNLOADS = {
    "images": "unpack ADEChallengeData2016.zip (scene parsing challenge)",
    "annotations": "unpack ADEChallengeData2016.zip (scene parsing challenge)",
    "annotations_instance": "unpack annotations_instance.tar (instance segmentation challenge 2017)",
}
REMEDY = "Download ADEChallengeData2016; python datasets/prepare_ade20k.py makes the annotations"
SPLIT_REMEDY = ", then python datasets/prepare_nas_split.py --dataset ade20k the parts"


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


def ade20k_sources() -> list[PanopticSource]:
    """The four parts under the current ``$DETECTRON2_DATASETS``; nothing is read."""
    root, sources = datasets_root() / "ADEChallengeData2016", []
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


def prepare_ade20k(root: Path, split: str, processes: int | None = None) -> dict[str, str]:
    """Make and verify what training and evaluation read of "train" or "val": {what: what was done}.

    ``root`` is the data set root, which holds ``ADEChallengeData2016``.

    Raises:
        UserError: a source is missing or damaged.
    """
    task, report = ade20k_files(root, split), {}
    images = task.panoptic_json.parent / "images" / FOLDERS[split]
    there = all((root / "ADEChallengeData2016" / name / FOLDERS[split]).is_dir() for name in DOWNLOADS)
    if not task.panoptic_json.exists() or (there and made_here(task)):
        sources = _sources(task.panoptic_json.parent, split)
        _check_numbering(sources, processes)
        report[str(task.panoptic_json)] = convert(task, images, read_ids, describe, sources, processes)
    return report | prepare(task, processes)


def _sources(root: Path, split: str) -> list[SourceImage]:
    folders = {name: root / name / FOLDERS[split] for name in DOWNLOADS}
    for name, folder in folders.items():
        if not folder.is_dir():
            raise UserError(
                f"ADE20K: {folder} does not exist and there is no ade20k_panoptic_{split}.json; "
                f"{DOWNLOADS[name]}, set --root to the folder that holds ADEChallengeData2016, or "
                "choose other --splits"
            )
    names = sorted(path.stem for path in folders["images"].glob("*.jpg"))
    if not names:
        raise UserError(f"ADE20K: {folders['images']} holds no .jpg; {DOWNLOADS['images']}")
    kinds = ("annotations", "annotations_instance")
    sources = [
        SourceImage(
            name, f"{name}.jpg", f"{name}.png", tuple(folders[kind] / f"{name}.png" for kind in kinds)
        )
        for name in names
    ]
    missing = [path for source in sources for path in source.annotations if not path.is_file()]
    if missing:
        raise UserError(
            f"ADE20K: {len(missing)} annotations of {len(names)} images are missing, e.g. {missing[0]}; "
            f"{DOWNLOADS[missing[0].parents[1].name]}"
        )
    return sources


def _read(paths: tuple[Path, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scene parsing values, instance classes and instance numbers, each (H, W)."""
    semantic = cv2.imread(str(paths[0]), cv2.IMREAD_UNCHANGED)
    instances = cv2.imread(str(paths[1]), cv2.IMREAD_COLOR)
    for path, image, dimensions in ((paths[0], semantic, 2), (paths[1], instances, 3)):
        if image is None or image.ndim != dimensions or image.dtype != np.uint8:
            raise UserError(f"{path} is damaged or no 8-bit annotation image; unpack it again")
    if semantic.shape != instances.shape[:2]:
        raise UserError(f"{paths[0]} and {paths[1]} differ in size; unpack both again")
    if semantic.max() > len(CATEGORIES):
        raise UserError(f"{paths[0]} has the value {semantic.max()}; expected 0..150, as in the release")
    return semantic, instances[..., 2].astype(np.int32), instances[..., 1].astype(np.int32)


def read_ids(paths: tuple[Path, ...]) -> np.ndarray:
    """Segment ids of one image: the value v in ``annotations/`` for stuff, 256 v + number for an instance.

    Args:
        paths: the image in ``annotations/`` and in ``annotations_instance/``.

    Returns:
        int32 array (H, W), 0 is void.

    Raises:
        UserError: damaged images, or an instance number with two classes or none.
    """
    semantic, kind, number = _read(paths)
    ids = np.where(_IS_STUFF[semantic], semantic, 0).astype(np.int32)
    inside = number > 0
    pairs = np.unique(np.stack([number[inside], kind[inside]], axis=1), axis=0)
    if len(np.unique(pairs[:, 0])) < len(pairs) or (len(pairs) and not 1 <= pairs[:, 1].min()):
        raise UserError(f"{paths[1]}: an instance number has several classes or none; unpack it again")
    if len(pairs) and pairs[:, 1].max() > len(THING_VALUES):
        raise UserError(f"{paths[1]} has the instance class {pairs[:, 1].max()}; expected 1..100")
    ids[inside] = 256 * THING_VALUES[kind[inside] - 1] + number[inside]
    return ids


def describe(segment_id: int) -> tuple[int, int] | None:
    """(category id, iscrowd) of a segment id of :func:`read_ids`, None for others. ADE20K marks no crowds."""
    value, number = divmod(segment_id, 256)
    if value == 0:
        return (number - 1, 0) if _IS_STUFF[number] else None
    return (value - 1, 0) if number and value in THING_VALUES else None


def _check_numbering(sources: list[SourceImage], processes: int | None) -> None:
    """Refuse instance classes that are numbered otherwise: they would contradict the scene parsing labels."""
    chosen = np.random.default_rng(0).permutation(len(sources))[:200]
    counts = parallel_map(_agreement, [sources[i] for i in sorted(chosen)], processes, "ADE20K: numbering")
    agreeing, total = np.sum(counts, axis=0)
    if agreeing < total / 2:
        raise UserError(
            f"ADE20K: only {agreeing} of {total} instance pixels have the class that annotations/ gives; "
            "the classes in annotations_instance/ are not those of the challenge's release; unpack it again"
        )


def _agreement(source: SourceImage) -> tuple[int, int]:
    """Instance pixels whose classes agree in both images, and all instance pixels."""
    semantic, kind, number = _read(source.annotations)
    inside = (number > 0) & (kind > 0) & (kind <= len(THING_VALUES))
    return int((THING_VALUES[kind[inside] - 1] == semantic[inside]).sum()), int((number > 0).sum())
