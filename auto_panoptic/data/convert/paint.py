"""Segments that are drawn one over another: what lies on top, and the ids of the panoptic PNG.

Shape shorthand in this file: H, W = height and width of one image.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from ...errors import UserError
from ..derive.conversion import SourceImage, convert, made_here
from ..derive.engine import Derivation
from ..formats.categories import check_categories
from ..formats.names import name_problem, png_name
from ..source import paths_in

# An id of 24 bits: 10 for the class (its place in the list, from 1), 1 for a crowd, 13 for the number.
CLASSES, NUMBERS = 1023, 8191


@dataclasses.dataclass(frozen=True)
class Region:
    """One drawn region; regions of stuff of one class are one segment.

    Args:
        mask: (H, W) bool.
        place: of its class in the list of categories.
        number: of the object in the image, 1 .. NUMBERS; 0 for stuff.
        crowd: whether it is a group of objects.
    """

    mask: np.ndarray
    place: int
    number: int = 0
    crowd: bool = False


def segment_id(place, number=0, crowd=0):
    """The id of a segment, from integers or arrays of them."""
    return (place + 1) << 14 | crowd << 13 | number


def describe(categories: Sequence[int], segment: int) -> tuple[int, int] | None:
    """(category id, iscrowd) of a segment id; ``categories`` are the ids in the order of the list."""
    place = (segment >> 14) - 1
    return (categories[place], segment >> 13 & 1) if 0 <= place < len(categories) else None


def paint(shape: tuple[int, int], regions: Iterable[Region], background: int | None = None) -> np.ndarray:
    """Segment ids (H, W), int32: each region covers those before it; the rest is ``background``, or 0 (void).

    ``background`` is the place of a class of stuff.
    """
    ids = np.full(shape, 0 if background is None else segment_id(background), np.int32)
    for region in regions:
        ids[region.mask] = segment_id(region.place, region.number, int(region.crowd))
    return ids


def check_number(objects: int, where: str | os.PathLike) -> None:
    """Raise UserError where an image has more objects than ids."""
    if objects > NUMBERS:
        raise UserError(f"{where}: an image has {objects} objects; at most {NUMBERS} can be told apart")


def named(names: Iterable[str], known: Iterable[str], option: str) -> set[str]:
    """The class names given to an option; UserError for one that no class has."""
    known = sorted(known)
    for name in names:
        if name not in known:
            shown = ", ".join(known[:20]) + (", ..." if len(known) > 20 else "")
            raise UserError(f"{option} {name!r}: no class has this name; there are {shown}")
    return set(names)


def with_background(categories: list[dict], name: str | None) -> tuple[list[dict], int | None]:
    """The list, with a class of stuff for all that is not drawn, and its place."""
    if name is None:
        return categories, None
    for place, category in enumerate(categories):
        if category["name"] == name:
            if category["isthing"]:
                raise UserError(f"--background {name!r} is a class of objects; name stuff, or a new class")
            return categories, place
    number = max((category["id"] for category in categories), default=0) + 1
    return [*categories, {"id": number, "name": name, "isthing": 0}], len(categories)


def write_set(
    output: Path,
    categories: list[dict],
    image_root: Path,
    sources: Sequence[SourceImage],
    read_ids: Callable[[object], np.ndarray],
    settings: Sequence[str] = (),
    processes: int | None = None,
) -> None:
    """Make the panoptic PNGs, the JSON and the link to the photographs in ``output``.

    Args:
        output: the folder; made if necessary.
        categories: in COCO-panoptic format; :func:`segment_id` counts them from 0.
        image_root: folder of the photographs.
        sources: the images; each has at least one annotation.
        read_ids, settings, processes: as for :func:`.convert`.

    Raises:
        UserError: no image or class, two images of one PNG, a file of others in ``output``, a damaged source.
    """
    check_categories(categories, f"the classes for {output}")
    if len(categories) > CLASSES:
        raise UserError(f"{len(categories)} classes; expected at most {CLASSES}")
    if not sources:
        raise UserError(f"{image_root}: there is no image with annotations to convert")
    _check_names(sources)
    paths = {key: Path(path) for key, path in paths_in(output).items()}
    files = Derivation(
        title=str(output),
        panoptic_json=paths["panoptic_json"],
        panoptic_root=paths["panoptic_root"],
        categories=categories,
        folder=paths["panoptic_root"],
    )
    if files.panoptic_json.exists() and not made_here(files):
        raise UserError(f"{files.panoptic_json} was made or changed by others; choose another --output")
    output.mkdir(parents=True, exist_ok=True)
    _link(paths["image_root"], image_root)
    ids = tuple(category["id"] for category in categories)
    convert(files, image_root, read_ids, functools.partial(describe, ids), sources, processes, settings)


def source_image(image_id, file_name: str, annotations: tuple, where, content=None) -> SourceImage:
    """One image to convert; UserError where its name leads out of the folder of the photographs."""
    if problem := name_problem(file_name):
        raise UserError(f"{where}: the image name {file_name!r} {problem}; name a file below --image-root")
    return SourceImage(image_id, file_name, png_name(file_name), annotations, content)


def _check_names(sources: Sequence[SourceImage]) -> None:
    seen: dict[str, str] = {}
    for source in sources:
        if source.png in seen:
            both = f"{seen[source.png]} and {source.file_name}"
            raise UserError(f"{both} would have one PNG, {source.png}; rename or remove one of the images")
        seen[source.png] = source.file_name


def _link(link: Path, image_root: Path) -> None:
    if not image_root.is_dir():
        raise UserError(f"--image-root: {image_root} is no folder")
    if not os.path.lexists(link):
        link.symlink_to(image_root.resolve(), target_is_directory=True)
    if link.resolve() != image_root.resolve():
        raise UserError(f"{link} holds other images than {image_root}; choose another --output")
