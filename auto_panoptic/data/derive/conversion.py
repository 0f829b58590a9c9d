"""Convert a data set's own annotation images to COCO-panoptic format: one PNG per image and one JSON."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ...errors import UserError
from ..formats import panoptic_png as coco
from .label_maps import fail, is_newer, sample
from .once import filling, parallel_map, replacing


@dataclasses.dataclass(frozen=True)
class SourceImage:
    """One image to convert.

    Args:
        image_id: its id in the JSON.
        file_name: the photograph, relative to the image root.
        png: file name of the panoptic PNG.
        annotations: the annotation images.
    """

    image_id: str
    file_name: str
    png: str
    annotations: tuple[Path, ...]


@dataclasses.dataclass(frozen=True)
class Conversion:
    """One split to convert.

    Args:
        title: for progress bars and messages.
        image_root: folder of the photographs.
        panoptic_json, panoptic_root: what is made.
        categories: COCO-panoptic categories.
        read_ids: annotation paths -> segment ids (H, W), 0 where nothing is labelled. Picklable.
        describe: segment id -> (category id, iscrowd), or None for ids that cannot occur. Picklable.
    """

    title: str
    image_root: Path
    panoptic_json: Path
    panoptic_root: Path
    categories: Sequence[dict]
    read_ids: Callable[[tuple[Path, ...]], np.ndarray]
    describe: Callable[[int], tuple[int, int] | None]


def convert(task: Conversion, sources: Sequence[SourceImage], processes: int | None = None) -> str:
    """Make the panoptic PNGs and, last, the JSON; a JSON that exists ends the matter.

    Areas and boxes are counted from the PNGs as they lie on the disk. PNGs that an interrupted run left are
    kept where they are valid and not older than their sources.

    Returns:
        "made" or "kept".

    Raises:
        UserError: a source is missing, damaged or does not fit its photograph; a sample read back differs.
    """
    with filling(task.panoptic_root):
        if task.panoptic_json.exists():
            return "kept"
        job = functools.partial(_convert_image, task)
        done = parallel_map(job, sources, processes, f"{task.title}: panoptic PNGs")
        check, chosen = functools.partial(_differs, task), sample(sources)
        differing = parallel_map(check, chosen, processes, f"{task.title}: verifying a sample")
        fail(
            [d for d in differing if d], len(chosen), f"{task.title}, panoptic PNGs", "Delete them and repeat"
        )
        content = {
            "images": [image for image, _ in done],
            "annotations": [annotation for _, annotation in done],
            "categories": list(task.categories),
        }
        with replacing(task.panoptic_json) as partial:
            partial.write_text(json.dumps(content))
        return "made"


def _image_size(path: Path) -> tuple[int, int]:
    """(height, width) of a photograph, from its header."""
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except OSError as error:
        problem = "cannot be read" if path.exists() else "does not exist"
        raise UserError(f"image {path} {problem} ({type(error).__name__}); download it again") from None


def _convert_image(task: Conversion, source: SourceImage) -> tuple[dict, dict]:
    """Make or keep one PNG; its image and annotation records."""
    path, size = task.panoptic_root / source.png, _image_size(task.image_root / source.file_name)
    ids = _valid(task, path, size) if is_newer(path, *source.annotations) else None
    if ids is None:
        made = task.read_ids(source.annotations)
        if made.shape != size:
            raise UserError(
                f"{source.annotations[0]} has {made.shape[1]} x {made.shape[0]} pixels, but "
                f"{task.image_root / source.file_name} {size[1]} x {size[0]}; download both again"
            )
        with replacing(path) as partial:
            coco.write_panoptic(str(partial), made)
        ids = _valid(task, path, size)
        if ids is None:
            raise UserError(f"{path} was written but reads back damaged; check the disk and repeat")
    described = {i: task.describe(i) for i in np.unique(ids).tolist() if i != coco.VOID}
    segments = coco.segment_records(
        ids,
        {i: category for i, (category, _) in described.items()},
        {i for i, (_, crowd) in described.items() if crowd},
    )
    height, width = size
    image = {"id": source.image_id, "file_name": source.file_name, "height": height, "width": width}
    return image, {"image_id": source.image_id, "file_name": source.png, "segments_info": segments}


def _valid(task: Conversion, path: Path, size: tuple[int, int]) -> np.ndarray | None:
    """The segment ids of a PNG that is whole, of the right size and holds only possible ids."""
    try:
        ids = coco.read_panoptic(str(path))
    except UserError:
        return None
    possible = all(task.describe(i) is not None for i in np.unique(ids).tolist() if i != coco.VOID)
    return ids if possible and ids.shape == size else None


def _differs(task: Conversion, source: SourceImage) -> str | None:
    path = task.panoptic_root / source.png
    equal = np.array_equal(coco.read_panoptic(str(path)), task.read_ids(source.annotations))
    return None if equal else f"{path} differs from its sources"
