"""Training images in two disjoint parts: one trains the supernet, one scores the candidates.

``datasets/prepare_nas_split.py`` draws the parts; images and PNGs stay where they are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..files import write_text
from .formats.json_file import check_entries, load_object

PARTS = ("nas_train", "nas_val")


def split_json(content: Mapping, val_ids: set) -> dict[str, dict]:
    """A COCO JSON (panoptic or instances) in two: "nas_train" without ``val_ids``, "nas_val" with them."""
    keys, halves = {"images": "id", "annotations": "image_id"}, {}
    for part in PARTS:
        inside = part == "nas_val"
        lists = {k: [e for e in content[k] if (e[i] in val_ids) == inside] for k, i in keys.items()}
        halves[part] = {**content, **lists}
    return halves


def draw_val_ids(content: Mapping, size: int, seed: int) -> set:
    """Ids of ``size`` images drawn without replacement, whatever their order in the file."""
    ids = sorted(image["id"] for image in content["images"])
    if not 0 < size < len(ids):
        raise UserError(
            f"--size {size}: expected 1 to {len(ids) - 1}, as there are {len(ids)} training images"
        )
    return {ids[i] for i in np.random.default_rng(seed).permutation(len(ids))[:size]}


def write_split(
    sources: Sequence[Path],
    target: Callable[[Path, str], Path],
    size: int,
    seed: int,
    overwrite: bool = False,
) -> dict[str, int]:
    """Write the two parts of annotation files of the same images, and read them back.

    Args:
        sources: annotation files; the first decides the draw.
        target: (annotation file, one of :data:`PARTS`) -> the file to write.
        size: images in "nas_val".
        seed: seed of the draw.
        overwrite: replace parts of another draw.

    Returns:
        {part: number of images}.

    Raises:
        UserError: an annotation file is missing or broken, the size is out of range, the files list different
            images, or there are parts of another draw.
    """
    contents = []
    for source in sources:
        content = load_object(str(source), "annotation file", {"images": list, "annotations": list})
        check_entries(str(source), content, {"images": ("id",), "annotations": ("image_id",)})
        contents.append(content)
    val_ids, counts, to_write = draw_val_ids(contents[0], size, seed), {}, []
    for source, content in zip(sources, contents, strict=True):
        if lost := val_ids - {image["id"] for image in content["images"]}:
            missing = f"lacks {len(lost)} images of {sources[0]}"
            raise UserError(f"{source} {missing}; restore both from the same source")
        for part, half in split_json(content, val_ids).items():
            path, ids = target(source, part), {image["id"] for image in half["images"]}
            if path.exists() and not overwrite and _image_ids(path) != ids:
                raise UserError(
                    f"{path} is there with another draw of images; a network trained with it has seen what "
                    "would now score it. Repeat with its --size and --seed, or replace it with --overwrite"
                )
            to_write.append((path, half, ids))
            counts.setdefault(part, len(ids))
    for path, half, ids in to_write:  # nothing is written before every input was read and checked
        write_text(path, json.dumps(half))
        if _image_ids(path) != ids:
            raise UserError(f"{path} was written but reads back differently; check the disk")
    return counts


def _image_ids(path: Path) -> set:
    return {image["id"] for image in load_object(str(path), "split", {"images": list})["images"]}
