"""labelme's JSON files, one per photograph, drawn as labelme draws them: later shapes lie on earlier ones."""

from __future__ import annotations

import base64
import binascii
import functools
import io
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PureWindowsPath

import numpy as np
from PIL import Image, ImageDraw

from ...errors import UserError
from ..derive.conversion import SourceImage
from ..formats.json_file import is_number, load_object
from .paint import Region, check_number, named, paint, source_image, with_background

KEYS = {"shapes": list, "imagePath": str, "imageHeight": int, "imageWidth": int}
IGNORE = "__ignore__"  # labelme's own name for void
_POINTS = {"polygon": (3, 10**6), "rectangle": (2, 2), "circle": (2, 2), "mask": (2, 2)}
_POINTS["oriented_rectangle"] = (4, 4)


def read_labelme(
    folder: Path,
    image_root: Path,
    stuff: Sequence[str] = (),
    void: Sequence[str] = (),
    background: str | None = None,
    classes: Sequence[dict] | None = None,
) -> tuple[list[dict], list[SourceImage], functools.partial]:
    """The categories, the images and what draws one, for :func:`.write_set`.

    Args:
        folder: of the JSON files; those in folders below it count.
        image_root: folder of the photographs.
        stuff: labels that are stuff; all others are things.
        void: labels that are left out, as ``__ignore__`` is.
        background: name of a class for all that is not drawn.
        classes: COCO-panoptic categories; without them, those of the labels by name.

    Raises:
        UserError: no JSON file, a broken one, an unknown label, a photograph that is not there.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder of labelme's JSON files")
    files, labels, sources = sorted(folder.rglob("*.json")), set(), []
    if not files:
        raise UserError(f"{folder} holds no .json; name the folder that labelme saves to")
    for path in files:
        content = load_object(str(path), "labelme file", KEYS)
        labels |= {_label(path, place, shape) for place, shape in enumerate(content["shapes"])}
        photo = _photo(path, content["imagePath"], image_root)
        sources.append(source_image(_stem(photo), photo, (path,), path))
    void = named(void, labels, "--void") | {IGNORE}
    used = labels - void
    if classes is None:
        stuff = named(stuff, labels, "--stuff")
        names = sorted(used)
        classes = [{"id": i, "name": n, "isthing": int(n not in stuff)} for i, n in enumerate(names, 1)]
    elif unknown := sorted(used - {category["name"] for category in classes}):
        name = unknown[0]
        raise UserError(f"{folder}: label {name!r} is none of --classes; add it, or give --void {name}")
    categories, place = with_background(list(classes), background)
    places = {c["name"]: (i, bool(c["isthing"])) for i, c in enumerate(categories)}
    return categories, sources, functools.partial(draw, places, frozenset(void), place)


def _stem(photo: str) -> str:
    return photo.rpartition(".")[0] or photo


def _label(path: Path, place: int, shape: object) -> str:
    label = shape.get("label") if isinstance(shape, Mapping) else None
    if not isinstance(label, str) or not label:
        raise UserError(f"{path}: shapes[{place}] has no label; open it in labelme and save it again")
    return label


def _photo(path: Path, name: str, image_root: Path) -> str:
    """The photograph of a JSON file, relative to ``image_root``; labelme writes it relative to the file."""
    name = "/".join(PureWindowsPath(name).parts) if "\\" in name else name
    for photo in (path.parent / name, image_root / name, image_root / Path(name).name):
        if photo.is_file() and photo.resolve().is_relative_to(image_root.resolve()):
            return str(photo.resolve().relative_to(image_root.resolve()))
    raise UserError(
        f"{path}: its imagePath {name!r} is not to be found below {image_root}; give --image-root FOLDER"
    )


def draw(
    places: Mapping[str, tuple[int, bool]], void: Collection[str], background: int | None, paths: tuple
) -> np.ndarray:
    """Segment ids (H, W) of a JSON file; shapes of one label and group_id are one object.

    Args:
        places: {label: (place of the class, whether it is of things)}.
        void: labels that are left out; what they cover stays visible.
        background: place of the class of what is not drawn, or None.
        paths: (the JSON file,).

    Raises:
        UserError: a shape without an area, or with broken points.
    """
    (path,) = paths
    content = load_object(str(path), "labelme file", KEYS)
    shape, numbers, regions = (content["imageHeight"], content["imageWidth"]), {}, []
    if min(shape) < 1:
        raise UserError(f"{path}: imageHeight and imageWidth are {shape}; save it again in labelme")
    for index, entry in enumerate(content["shapes"]):
        label = _label(path, index, entry)
        if label in void:
            continue
        place, isthing = places[label]
        group, number = entry.get("group_id"), 0
        if isthing:
            key = (label, index if group is None else f"group {group}")
            number = numbers.setdefault(key, len(numbers) + 1)
        mask = _mask(entry, shape, f"{path}: shapes[{index}] ({label})")
        regions.append(Region(mask, place, number))
    check_number(len(numbers), path)
    return paint(shape, regions, background)


def _mask(entry: Mapping, shape: tuple[int, int], where: str) -> np.ndarray:
    """(H, W) bool, as labelme's ``shape_to_mask``."""
    kind, points = entry.get("shape_type") or "polygon", entry.get("points")
    if kind not in _POINTS:
        label = entry["label"]
        raise UserError(f"{where} is a {kind}, which has no area; draw a polygon, or give --void {label}")
    pairs = isinstance(points, list) and all(isinstance(p, list) and len(p) == 2 for p in points)
    least, most = _POINTS[kind]
    if not pairs or not least <= len(points) <= most or not all(is_number(v) for p in points for v in p):
        raise UserError(f"{where} has points {str(points)[:60]}, which make no {kind}; draw it again")
    if kind == "mask":
        return _pasted(entry, points, shape, where)
    canvas = Image.new("1", shape[::-1])
    pen, xy = ImageDraw.Draw(canvas), [tuple(point) for point in points]
    if kind == "circle":
        (x, y), edge = xy
        radius = math.dist((x, y), edge)
        pen.ellipse([x - radius, y - radius, x + radius, y + radius], outline=1, fill=1)
    elif kind == "rectangle":
        (left, right), (top, bottom) = (sorted(values) for values in zip(*xy, strict=True))
        pen.rectangle([left, top, right, bottom], outline=1, fill=1)
    else:
        pen.polygon(xy, outline=1, fill=1)
    return np.array(canvas, bool)


def _pasted(entry: Mapping, points: list, shape: tuple[int, int], where: str) -> np.ndarray:
    """A shape_type "mask": a PNG in base64 that fills the box of its two points, both included."""
    (left, top), (right, bottom) = ((round(x), round(y)) for x, y in points)
    try:
        with Image.open(io.BytesIO(base64.b64decode(entry.get("mask") or ""))) as image:
            found = np.array(image.convert("1"), bool)
    except (OSError, ValueError, TypeError, binascii.Error, SyntaxError):
        raise UserError(f"{where}: its mask is no picture; draw it again") from None
    mask = np.zeros(shape, bool)
    inside = 0 <= top <= bottom < shape[0] and 0 <= left <= right < shape[1]
    if not inside or found.shape != (bottom - top + 1, right - left + 1):
        size = found.shape[::-1]
        raise UserError(f"{where}: its mask has {size} pixels for the box {points}; draw it again")
    mask[top : bottom + 1, left : right + 1] = found
    return mask
