"""The built-in data set: drawn scenes in genuine COCO-panoptic format, made on first use.

Layout under ``$DETECTRON2_DATASETS/shapes`` (``datasets/shapes`` by default), as for COCO:

    train/ val/                              JPEG images
    panoptic_train/ panoptic_val/            panoptic PNGs
    panoptic_stuff_train/ panoptic_stuff_val/  semantic PNGs (things 0, stuff 1..n, void 255)
    annotations/panoptic_{train,val,nas_train,nas_val}.json
    annotations/instances_{train,val,nas_train,nas_val}.json
    annotations/whole_instances_{train,val,...}.json   objects as if nothing lay over them: masks overlap

``nas_train`` and ``nas_val`` are disjoint parts of ``train`` and share its image files: the supernet trains
on one, the search scores candidates on the other. All files depend on the seed and the sizes only, whatever
the number of processes.
"""

import functools
import hashlib
import json
import logging
import os
from pathlib import Path

import cv2
import numpy as np

from ..derive.once import build_once, datasets_root
from ..derive.pool import parallel_map
from ..formats import panoptic_png as coco
from ..labels import label_map
from ..register import register_source
from ..source import PanopticSource
from . import scene

logger = logging.getLogger(__name__)

PREFIX = "shapes_panoptic"
SPLITS = ("train", "val", "nas_train", "nas_val")
SEED, TUNING_SEED = 1, 7
# Images of the two subsets of "train", and of "val".
SIZES = {"nas_train": 800, "nas_val": 200, "val": 200}
JPEG = (cv2.IMWRITE_JPEG_QUALITY, 95)

_THINGS = {c["id"] for c in scene.CATEGORIES if c["isthing"]}
_LABELS = label_map(scene.CATEGORIES)


def register_tuning_scenes() -> list:
    """Register ``shapes_tuning_{train,val,nas_train,nas_val}``, other scenes: settings are chosen on them."""
    return register_shapes(datasets_root() / "shapes_tuning", prefix="shapes_tuning", seed=TUNING_SEED)


def shapes_root() -> Path:
    """``$DETECTRON2_DATASETS/shapes``."""
    return datasets_root() / "shapes"


def _stamp(seed: int, sizes: dict) -> dict:
    """What the files depend on: seed, sizes, and the code that draws and writes them."""
    code = hashlib.sha256()
    for module in (scene.__file__, coco.__file__, __file__):
        code.update(Path(module).read_bytes())
    return {"generator": code.hexdigest(), "seed": seed, "sizes": sizes}


def _folders(sizes: dict) -> dict:
    """{folder: number of files in it}."""
    train = sizes["nas_train"] + sizes["nas_val"]
    counts = {"annotations": 3 * len(SPLITS)}
    for kind in ("{}", "panoptic_{}", "panoptic_stuff_{}"):
        counts[kind.format("train")] = train
        counts[kind.format("val")] = sizes["val"]
    return counts


def _is_complete(root: Path, stamp: dict) -> bool:
    try:
        if json.loads((root / "stamp.json").read_text()) != stamp:
            return False
        return all(len(os.listdir(root / name)) == n for name, n in _folders(stamp["sizes"]).items())
    except (OSError, ValueError):
        return False


def _draw_image(job: tuple) -> tuple:
    """Draw and write one image with its label maps; returns its JSON entries."""
    root, split, index, image_id, seed = job
    rng = np.random.default_rng([seed, split == "val", index])
    image, ids, categories, crowds, whole = scene.draw_scene(rng)
    name = f"{image_id:012d}"
    segments = coco.segment_records(ids, categories, crowds)
    coco.write_image(os.path.join(root, split, name + ".jpg"), image[..., ::-1], JPEG)
    coco.write_panoptic(os.path.join(root, "panoptic_" + split, name + ".png"), ids)
    semantic = coco.semantic_labels(ids, segments, _LABELS)
    coco.write_image(os.path.join(root, "panoptic_stuff_" + split, name + ".png"), semantic)
    overlapping = []
    for segment in segments:
        if (mask := whole.get(segment["id"])) is not None:
            drawn = mask * np.int32(segment["id"])
            overlapping += coco.instance_annotations(drawn, [segment], _THINGS, image_id)
    height, width = ids.shape
    return (
        {"id": image_id, "file_name": name + ".jpg", "height": height, "width": width},
        {"image_id": image_id, "file_name": name + ".png", "segments_info": segments},
        coco.instance_annotations(ids, segments, _THINGS, image_id),
        overlapping,
    )


def _write_json(root: Path, split: str, drawn: list) -> None:
    """Write the panoptic and both instances JSONs of one split."""
    images, panoptic, *instances = ([entry[i] for entry in drawn] for i in range(4))
    info = {"description": "Drawn scenes of auto_panoptic", "version": "1"}
    things = [c for c in scene.CATEGORIES if c["isthing"]]
    contents = {"panoptic": {"annotations": panoptic, "categories": scene.CATEGORIES}}
    for kind, found in zip(("instances", "whole_instances"), instances, strict=True):
        contents[kind] = {"annotations": coco.number_annotations(found), "categories": things}
    for kind, content in contents.items():
        text = json.dumps({"info": info, "licenses": [], "images": images, **content})
        (root / "annotations" / f"{kind}_{split}.json").write_text(text)


def _generate(root: Path, stamp: dict, processes: int | None) -> None:
    sizes, seed = stamp["sizes"], stamp["seed"]
    for name in _folders(sizes):
        (root / name).mkdir()
    train = sizes["nas_train"] + sizes["nas_val"]
    jobs = [(str(root), "train", i, i + 1, seed) for i in range(train)]
    jobs += [(str(root), "val", i, 100_001 + i, seed) for i in range(sizes["val"])]
    drawn = parallel_map(_draw_image, jobs, processes, title="drawing shapes")
    first = sizes["nas_train"]
    parts = {
        "train": drawn[:train],
        "val": drawn[train:],
        "nas_train": drawn[:first],
        "nas_val": drawn[first:train],
    }
    for split in SPLITS:
        _write_json(root, split, parts[split])
    (root / "stamp.json").write_text(json.dumps(stamp))


def ensure_shapes(
    root: str | Path | None = None,
    *,
    sizes: dict | None = None,
    seed: int = SEED,
    processes: int | None = None,
) -> Path:
    """Make the data set unless it is there already, made by this version from this seed.

    Safe to call from several processes at once: one generates, the others wait.

    Args:
        root: folder; ``$DETECTRON2_DATASETS/shapes`` by default.
        sizes: {"nas_train", "nas_val", "val": number of images}; ``SIZES`` by default. The training split
            is nas_train and nas_val together.
        seed: of the drawings.
        processes: all available CPUs by default; does not change a byte.

    Returns:
        The folder.

    Raises:
        UserError: the folder cannot be written, or holds something else.
    """
    root = Path(root) if root is not None else shapes_root()
    stamp = _stamp(seed, dict(sizes or SIZES))

    def build(folder: Path) -> None:
        logger.info("Drawing the built-in data set into %s (a few seconds) ...", root)
        _generate(folder, stamp, processes)

    return build_once(
        root,
        is_complete=lambda folder: _is_complete(folder, stamp),
        build=build,
        ours=lambda folder: (folder / "stamp.json").exists(),
    )


def register_shapes(
    root: str | Path | None = None, *, prefix: str = PREFIX, sizes: dict | None = None, seed: int = SEED
) -> list:
    """Register ``<prefix>_{train,val,nas_train,nas_val}``; nothing is drawn before the first use.

    And the same splits as ``<prefix>_..._overlapping``, whose instances are whole objects: their masks
    overlap, as in COCO's instance annotation.

    Args:
        root, sizes, seed: as in :func:`ensure_shapes`.
        prefix: start of the registered names.

    Returns:
        The eight names.
    """
    root = Path(root) if root is not None else shapes_root()
    names = []
    for split in SPLITS:
        folder = "val" if split == "val" else "train"
        for suffix, instances in (("", "instances"), ("_overlapping", "whole_instances")):
            source = PanopticSource(
                name=f"{prefix}_{split}{suffix}",
                panoptic_json=str(root / "annotations" / f"panoptic_{split}.json"),
                panoptic_root=str(root / f"panoptic_{folder}"),
                image_root=str(root / folder),
                categories=tuple(scene.CATEGORIES),
                instances_json=str(root / "annotations" / f"{instances}_{split}.json"),
                sem_seg_root=str(root / f"panoptic_stuff_{folder}"),
                prepare=functools.partial(ensure_shapes, root, sizes=sizes, seed=seed),
            )
            register_source(source)
            names.append(source.name)
    return names
