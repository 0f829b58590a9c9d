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
from ...files import write_json, write_text
from ..formats import panoptic_png as coco
from ..formats.names import below
from .engine import STATE, Derivation, digest_of, read_state, stat_of, write_image
from .once import filling
from .pool import parallel_map


@dataclasses.dataclass(frozen=True)
class SourceImage:
    """One image to convert."""

    image_id: str | int
    file_name: str  # the photograph, relative to the image root
    png: str  # file name of the panoptic PNG
    annotations: tuple[Path, ...]  # images, or the files that ``content`` was read from
    content: object = None  # what is drawn, where the annotations are no images; picklable


def made_here(files: Derivation) -> bool:
    """Whether the JSON is there as :func:`convert` made it; one made by others is never replaced."""
    made = stat_of(files.panoptic_json)
    return bool(made) and read_state(files.panoptic_root).get("made") == made


def convert(
    files: Derivation,
    image_root: Path,
    read_ids: Callable[[object], np.ndarray],
    describe: Callable[[int], tuple[int, int] | None],
    sources: Sequence[SourceImage],
    processes: int | None = None,
    settings: Sequence[str] = (),
) -> str:
    """Make the panoptic PNGs and, last, the JSON, unless they are there and fresh, or made by others.

    Areas and boxes are counted from the PNGs as they lie on the disk. PNGs that an interrupted run left are
    kept where they say the same as their sources.

    Args:
        files: the set, whose panoptic JSON and PNGs are made.
        image_root: folder of the photographs.
        read_ids: annotation paths, or the content of a source -> segment ids (H, W), 0 where nothing is
            labelled; picklable.
        describe: segment id -> (category id, iscrowd), or None for ids that cannot occur; picklable.
        sources: the images.
        processes: as in :func:`.stream`.
        settings: what the ids depend on beside the annotations and the categories.

    Returns:
        "made" or "kept".

    Raises:
        UserError: a source is missing, damaged or does not fit its photograph.
    """
    paths = dict.fromkeys((path.name, path) for source in sources for path in source.annotations)
    inputs = digest_of([*files.categories, *settings], paths)

    def is_fresh() -> bool:
        fresh = not made_here(files) or read_state(files.panoptic_root).get("inputs") == inputs
        return fresh and files.panoptic_json.exists()

    if is_fresh():
        return "kept"
    with filling(files.panoptic_root):
        if is_fresh():  # made by a process that was waited for
            return "kept"
        job = functools.partial(_convert_image, files, image_root, read_ids, describe)
        done = parallel_map(job, sources, processes, f"{files.title}: panoptic PNGs")
        content = {
            "images": [image for image, _ in done],
            "annotations": [annotation for _, annotation in done],
            "categories": list(files.categories),
        }
        write_text(files.panoptic_json, json.dumps(content))
        write_json(files.panoptic_root / STATE, {"inputs": inputs, "made": stat_of(files.panoptic_json)})
        return "made"


def _convert_image(files, image_root, read_ids, describe, source: SourceImage) -> tuple[dict, dict]:
    """Make or keep one PNG; its image and annotation records."""
    path = below(files.panoptic_root, source.png, source.annotations[0].parent)
    photo = image_root / source.file_name
    try:
        with Image.open(photo) as image:
            width, height = image.size
    except OSError as error:
        problem = "cannot be read" if photo.exists() else "does not exist"
        raise UserError(f"image {photo} {problem} ({type(error).__name__}); download it again") from None
    ids = read_ids(source.annotations if source.content is None else source.content)
    if ids.shape != (height, width):
        raise UserError(
            f"{source.annotations[0]} has {ids.shape[1]} x {ids.shape[0]} pixels, but {photo} "
            f"{width} x {height}; download both again"
        )
    write_image(path, ids, coco.read_ids, coco.write_panoptic)
    described = {i: describe(i) for i in np.unique(ids).tolist() if i != coco.VOID}
    categories, crowds = ({i: value[n] for i, value in described.items()} for n in (0, 1))
    segments = coco.segment_records(ids, categories, {i for i, crowd in crowds.items() if crowd})
    image = {"id": source.image_id, "file_name": source.file_name, "height": height, "width": width}
    return image, {"image_id": source.image_id, "file_name": source.png, "segments_info": segments}
