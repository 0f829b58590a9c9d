"""The built-in data set of the ImageNet stage: single objects cut out of drawn scenes, a folder per class.

Layout under ``$DETECTRON2_DATASETS/shapes_objects``: ``{train,val}/<thing class>/<number>.png``, squares of
64 pixels around an object of the built-in scenes (see ``shapes_scene``). Made on first use; all files depend
on the seed and the sizes only.
"""

import functools
import hashlib
import json
import os
from pathlib import Path

import cv2
import numpy as np

from ..derive.once import build_once, datasets_root
from ..formats.panoptic_png import segment_records, write_image
from ..sets.imagenet import ImageFolder, register_folder
from . import scene

PREFIX = "shapes_objects"
SEED = 21
SIZES = {"train": 60, "val": 20}  # images per class
SIDE = 64  # pixels
MIN_AREA = 150  # visible pixels of an object
MARGIN = 1.3  # side of the cut square over the longer side of the object's box


def _stamp(seed: int, sizes: dict) -> dict:
    code = hashlib.sha256()
    for module in (scene.__file__, __file__):
        code.update(Path(module).read_bytes())
    return {"generator": code.hexdigest(), "seed": seed, "sizes": sizes}


def _is_complete(root: Path, stamp: dict) -> bool:
    try:
        if json.loads((root / "stamp.json").read_text()) != stamp:
            return False
        folders = [(root / split / name, n) for split, n in stamp["sizes"].items() for name in scene.THINGS]
        return all(len(os.listdir(folder)) == n for folder, n in folders)
    except (OSError, ValueError):
        return False


def _cut(image: np.ndarray, box: list) -> np.ndarray:
    """The square about a box (x, y, width, height), resized to SIDE; edge pixels continue the image."""
    x, y, width, height = box
    side = round(MARGIN * max(width, height))
    left, top = x + width // 2 - side // 2, y + height // 2 - side // 2
    padded = cv2.copyMakeBorder(image, side, side, side, side, cv2.BORDER_REPLICATE)
    square = padded[top + side : top + 2 * side, left + side : left + 2 * side]
    return cv2.resize(square, (SIDE, SIDE), interpolation=cv2.INTER_AREA)


def _objects(seed: int, split: int):
    """Endless (class name, RGB square) of the objects in one scene after the other."""
    names = {number: name for name, number in scene.IDS.items() if name in scene.THINGS}
    index = 0
    while True:
        image, ids, categories, crowds, _ = scene.draw_scene(np.random.default_rng([seed, split, index]))
        index += 1
        for record in segment_records(ids, categories, crowds):
            if record["category_id"] in names and not record["iscrowd"] and record["area"] >= MIN_AREA:
                yield names[record["category_id"]], _cut(image, record["bbox"])


def _generate(root: Path, stamp: dict) -> None:
    for number, (split, wanted) in enumerate(stamp["sizes"].items()):
        counts = dict.fromkeys(scene.THINGS, 0)
        for name in counts:
            (root / split / name).mkdir(parents=True)
        for name, square in _objects(stamp["seed"], number):
            if counts[name] < wanted:
                write_image(str(root / split / name / f"{counts[name]:04d}.png"), square[..., ::-1])
                counts[name] += 1
            if min(counts.values()) == wanted:
                break
    (root / "stamp.json").write_text(json.dumps(stamp))


def ensure_shapes_objects(
    root: str | Path | None = None, *, sizes: dict | None = None, seed: int = SEED
) -> Path:
    """Make the data set unless it is there already, made by this version from this seed.

    Args:
        root: folder; ``$DETECTRON2_DATASETS/shapes_objects`` by default.
        sizes: {"train", "val": images per class}; ``SIZES`` by default.
        seed: of the drawings.

    Returns:
        The folder.

    Raises:
        UserError: the folder cannot be written, or holds something else.
    """
    root = Path(root) if root is not None else datasets_root() / PREFIX
    stamp = _stamp(seed, dict(sizes or SIZES))
    return build_once(
        root,
        is_complete=lambda folder: _is_complete(folder, stamp),
        build=lambda folder: _generate(folder, stamp),
        ours=lambda folder: (folder / "stamp.json").exists(),
    )


def register_shapes_objects() -> None:
    """Register ``shapes_objects_{train,val}``; nothing is drawn before the first use."""
    root = datasets_root() / PREFIX
    for split in SIZES:
        prepare = functools.partial(ensure_shapes_objects, root)
        register_folder(ImageFolder(f"{PREFIX}_{split}", str(root / split), prepare))
