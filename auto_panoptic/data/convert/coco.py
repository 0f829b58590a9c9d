"""COCO's instances JSON, and one of stuff beside it: objects lie on stuff, small ones on large ones."""

from __future__ import annotations

import collections
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util

from ...errors import UserError
from ..derive.conversion import SourceImage
from ..formats.categories import check_categories
from ..formats.instances_json import mask_problem, run_lengths
from ..formats.json_file import check_entries, load_object, no_collection
from .paint import Region, check_number, named, paint, source_image, with_background

KEYS = {"images": list, "annotations": list, "categories": list}
IDS = {"images": ("id",), "annotations": ("image_id", "category_id"), "categories": ("id",)}


def _read(path: Path) -> dict:
    content = load_object(str(path), "instances JSON", KEYS)
    check_entries(str(path), content, IDS)
    check_categories([{**category, "isthing": 1} for category in content["categories"]], str(path))
    return content


def read_coco(
    instances_json: Path,
    stuff_json: Path | None = None,
    stuff: Sequence[str] = (),
    void: Sequence[str] = (),
    background: str | None = None,
) -> tuple[list[dict], list[SourceImage], functools.partial]:
    """The categories, the images and what draws one, for :func:`.write_set`.

    Args:
        instances_json: objects as polygons or run lengths, which may overlap.
        stuff_json: in the same format, all of its classes stuff, as COCO-Stuff's.
        stuff: names of classes in ``instances_json`` that are stuff.
        void: names of classes that are left out.
        background: name of a class for all that is not drawn.

    Raises:
        UserError: a file is missing or broken, an unknown class name, an id of two classes.
    """
    contents = {path: _read(path) for path in (instances_json, stuff_json) if path}
    names = {category["name"] for content in contents.values() for category in content["categories"]}
    stuff, void = named(stuff, names, "--stuff"), named(void, names, "--void")
    categories, places = [], {}
    for path, content in contents.items():
        for category in content["categories"]:
            places[path, category["id"]] = None if category["name"] in void else len(categories)
            if category["name"] not in void:
                isthing = int(path != stuff_json and category["name"] not in stuff)
                kept = {key: category[key] for key in ("supercategory", "color") if key in category}
                categories.append(
                    {"id": category["id"], "name": category["name"], "isthing": isthing, **kept}
                )
    shapes = _shapes(contents, places)
    sources = []
    for image in contents[instances_json]["images"]:
        size = image.get("width"), image.get("height")
        where = f"{instances_json}: image {image['id']}"
        if not all(type(side) is int and side > 0 for side in size):
            raise UserError(f"{where} has width and height {size}; write its pixels")
        content = size, tuple(shapes.pop(image["id"], ()))
        sources.append(source_image(image["id"], image.get("file_name"), tuple(contents), where, content))
    for image_id, ((name, *_), *_) in shapes.items():
        raise UserError(f"{name} is of image {image_id}, which {instances_json} does not list; remove it")
    categories, place = with_background(categories, background)
    kinds = tuple(bool(category["isthing"]) for category in categories)
    return categories, sources, functools.partial(draw, kinds, place)


def _shapes(contents: Mapping[Path, dict], places: Mapping) -> dict:
    """{image id: [(name for messages, place of the class, iscrowd, segmentation)]}, without void."""
    shapes = collections.defaultdict(list)
    for path, content in contents.items():
        for entry in content["annotations"]:
            name, key = f"{path}: annotation {entry.get('id')}", (path, entry["category_id"])
            if key not in places:
                raise UserError(f"{name} has category_id {key[1]!r}, which no class has; correct it")
            if places[key] is not None:
                crowd, mask = bool(entry.get("iscrowd", 0)), entry.get("segmentation")
                shapes[entry["image_id"]].append((name, places[key], crowd, mask))
    return shapes


@no_collection()
def draw(kinds: Sequence[bool], background: int | None, content: tuple) -> np.ndarray:
    """Segment ids (H, W): stuff, then crowds, then objects, each kind by falling area.

    Args:
        kinds: whether each class is of things.
        background: place of the class of what is not drawn, or None.
        content: ((W, H), ((name for messages, place of the class, iscrowd, segmentation), ...)).

    Raises:
        UserError: a mask that cannot be drawn.
    """
    size, shapes = content
    drawn, count = [], 0
    for name, place, crowd, segmentation in shapes:
        problem = mask_problem(segmentation, size)
        if problem and problem[0] != "mask-points":  # polygons without 3 points have no pixel
            raise UserError(f"{name}: {problem[1]}; correct it, or remove the annotation")
        runs = run_lengths(segmentation, size)
        if runs is not None:
            level = 0 if not kinds[place] else 1 if crowd else 2
            count += level > 0
            order = level, -int(mask_util.area(runs))  # equal ones stay in the order of the file
            drawn.append((order, place, count * (level > 0), crowd and level > 0, runs))
    check_number(count, shapes[0][0] if shapes else "")
    drawn.sort(key=lambda item: item[0])
    regions = (Region(mask_util.decode(runs).astype(bool), *rest) for _, *rest, runs in drawn)
    return paint(size[::-1], regions, background)
