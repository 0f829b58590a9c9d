"""Training images in two disjoint parts: one trains the supernet, one scores the candidates.

``datasets/prepare_nas_split.py`` draws the parts; images and PNGs stay where they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..files import write_text
from .formats.json_file import check_entries, load_object

PARTS = ("nas_train", "nas_val")


def split_json(content: Mapping, val_ids: set) -> dict[str, dict]:
    """A COCO JSON (panoptic or instances) in two: "nas_train" without ``val_ids``, "nas_val" with them."""

    def part(inside: bool) -> dict:
        return {
            **content,
            "images": [image for image in content["images"] if (image["id"] in val_ids) == inside],
            "annotations": [a for a in content["annotations"] if (a["image_id"] in val_ids) == inside],
        }

    return {"nas_train": part(False), "nas_val": part(True)}


def draw_val_ids(content: Mapping, size: int, seed: int) -> set:
    """Ids of ``size`` images drawn without replacement, whatever their order in the file."""
    ids = sorted(image["id"] for image in content["images"])
    if not 0 < size < len(ids):
        raise UserError(
            f"--size {size}: expected 1 to {len(ids) - 1}, as there are {len(ids)} training images"
        )
    return {ids[i] for i in np.random.default_rng(seed).permutation(len(ids))[:size]}


def write_split(
    kinds: Mapping[Path, Mapping[str, Path]], size: int, seed: int, overwrite: bool = False
) -> dict[str, int]:
    """Write the two parts of annotation files of the same images, and read them back.

    Args:
        kinds: annotation file (the first decides the draw) -> file to write for each of :data:`PARTS`.
        size: images in "nas_val".
        seed: seed of the draw.
        overwrite: replace parts of another draw.

    Returns:
        {part: number of images}.

    Raises:
        UserError: an annotation file is missing or broken, the size is out of range, the files list different
            images, or there are parts of another draw.
    """
    counts: dict[str, int] = {}
    val_ids = None
    to_write: list[tuple[Path, dict, set]] = []  # nothing is written before every input was read and checked
    for source, targets in kinds.items():
        content = load_object(str(source), "annotation file", {"images": list, "annotations": list})
        check_entries(str(source), content, {"images": ("id",), "annotations": ("image_id",)})
        ids = {image["id"] for image in content["images"]}
        if val_ids is None:
            val_ids = draw_val_ids(content, size, seed)
        elif not val_ids <= ids:
            raise UserError(
                f"{source} lacks {len(val_ids - ids)} images of {next(iter(kinds))}; "
                "restore both from the same source"
            )
        expected = {"nas_train": ids - val_ids, "nas_val": ids & val_ids}
        for part, half in split_json(content, val_ids).items():
            if not overwrite:
                _check_same_draw(targets[part], expected[part])
            to_write.append((targets[part], half, expected[part]))
            counts.setdefault(part, len(half["images"]))
    for path, half, expected_ids in to_write:
        write_text(path, json.dumps(half))
        if _image_ids(path) != expected_ids:
            raise UserError(f"{path} was written but reads back differently; check the disk")
    return counts


def _image_ids(path: Path) -> set:
    return {image["id"] for image in load_object(str(path), "split", {"images": list})["images"]}


def _check_same_draw(path: Path, expected: set) -> None:
    if path.exists() and _image_ids(path) != expected:
        raise UserError(
            f"{path} is there with another draw of images; a network trained with it has seen what would now "
            "score it. Repeat with its --size and --seed, or replace it with --overwrite"
        )


def write_own_split(
    panoptic_json: Path, instances_json: Path | None, size: int, seed: int, overwrite: bool = False
) -> dict[str, int]:
    """Write ``<name>_nas_{train,val}.json`` beside ``<name>.json``, as :func:`write_split`."""
    kinds = {
        path: {part: path.with_name(f"{path.stem}_{part}.json") for part in PARTS}
        for path in (panoptic_json, instances_json)
        if path is not None
    }
    return write_split(kinds, size, seed, overwrite)
