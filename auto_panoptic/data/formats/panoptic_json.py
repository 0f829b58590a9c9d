"""COCO-panoptic JSON files: every rule about them, and reading them. Loading raises the first error found."""

from __future__ import annotations

import collections
import contextlib
import functools
import json
import logging
import mmap
import os
from collections.abc import Iterator, Mapping, Sequence

from ...errors import UserError
from .categories import Categories, check_categories
from .findings import Problem, findings_in, raise_first
from .json_file import is_box, is_id, is_number, load_object, no_collection
from .names import name_problem, png_name
from .picture_file import MAX_PIXELS

logger = logging.getLogger(__name__)

LONG = 1 << 24  # bytes; parsing more takes a noticeable time
IDS = 1 << 24  # ids that a PNG pixel can hold, 0 among them
KEYS = {"images": list, "annotations": list, "categories": list}


class PanopticIndex:
    """A panoptic JSON, sorted out as far as it can be read.

    Args:
        content: of the file; holds the three lists.
        categories: list that replaces the JSON's.

    Attributes, known after :meth:`problems`:
        categories: the classes.
        moved: {id in the file: id in ``categories``} of classes that stand there under another id.
        images: {image id: image entry}.
        pairs: one (image entry or None, annotation or None) for everything to look at on disk. Height and
            width of an image entry are None where the JSON has no usable ones.
        entries: of :func:`read_segments`, after that.
    """

    def __init__(self, content: dict, categories: object = None):
        self._content = content
        self.categories = Categories(content["categories"] if categories is None else categories)
        self.images, self.pairs, self.moved = {}, [], {}
        self._replaced = categories is not None
        self._extra = []  # second entries of an id, whose files are looked at alone

    def problems(self) -> Iterator[Problem]:
        """Everything that is wrong, but for what :func:`segment_problems` finds."""
        yield from self.categories.problems()
        if self._replaced:
            yield from self._find_by_name()
        yield from self._image_problems()
        seen = collections.Counter()
        yield from self._annotation_problems(seen)
        for number, image in self.images.items():
            if not seen[number]:
                yield "image-without-annotation", number, f"image {image['file_name']} has no annotation"
                self.pairs.append((image, None))
        self.pairs += [(image, None) for image in self._extra]
        if not any(annotation is not None for _, annotation in self.pairs):
            yield "no-images", None, "no image has a usable annotation"

    def _find_by_name(self) -> Iterator[Problem]:
        """Names count, not ids, where the given categories have a name of the file under another id."""
        own, given = Categories(self._content["categories"]), self.categories.names
        yield from own.problems()
        here, there = collections.Counter(own.names.values()), collections.Counter(given.values())
        places = {name: i for i, name in given.items() if here[name] == there[name] == 1}
        self.moved = {i: places[n] for i, n in own.names.items() if places.get(n, i) != i}
        lost = [i for i, name in own.names.items() if i in given and name not in given.values()]
        if self.moved and lost:
            old, new = next(iter(self.moved.items()))
            what = f"class {old}, {own.names[old]!r}, is {new} in the given categories, which lack "
            yield "bad-categories", None, what + repr(own.names[lost[0]])

    def _image_problems(self) -> Iterator[Problem]:
        files = {}
        for position, entry in enumerate(self._content["images"]):
            where = f"images[{position}]"
            if not isinstance(entry, dict):
                yield "json-format", None, f"{where} is {entry!r}, expected an object"
                continue
            number, name = entry.get("id"), entry.get("file_name")
            image_id = number if is_id(number) else None
            if image_id is None:
                yield "json-format", None, f"{where} has id {number!r}"
            problem = name_problem(name)
            if problem:
                yield "file-name", image_id, f"{where} has file_name {name!r}, which {problem}"
            if problem or image_id is None:
                continue
            width, height = entry.get("width"), entry.get("height")
            if not (
                type(width) is type(height) is int and width > 0 < height and width * height <= MAX_PIXELS
            ):
                yield "bad-size", number, f"{where} ({name}) has width {width!r} and height {height!r}"
                entry = {**entry, "width": None, "height": None}
            if name in files:
                what = f"image file {name} is named by images {files[name]} and {number}"
                yield "duplicate-image-file", number, what
            files.setdefault(name, number)
            if number in self.images:
                what = f"image id {number} stands for {self.images[number]['file_name']} and {name}"
                yield "duplicate-image-id", number, what
                self._extra.append(entry)
            else:
                self.images[number] = entry
        if len(set(map(type, self.images))) > 1:
            yield "json-format", None, "some images have numbers as ids, others strings"

    def _annotation_problems(self, seen: collections.Counter) -> Iterator[Problem]:
        files = {}
        for position, entry in enumerate(self._content["annotations"]):
            where = f"annotations[{position}]"
            useless = _useless(entry, where)
            image_id = entry.get("image_id") if isinstance(entry, dict) else None
            if useless:
                yield useless
                if is_id(image_id):
                    seen[image_id] += 1  # named above
                    self.pairs += [(image, None) for image in [self.images.get(image_id)] if image]
                continue
            name = entry["file_name"]
            if image_id not in self.images:
                what = f"{where} ({name}) is of image {image_id!r}, absent from 'images'"
                yield "annotation-without-image", image_id, what
            elif seen[image_id]:
                what = f"{where} ({name}) is a second one of image {image_id}"
                yield "duplicate-annotation", image_id, what
            derived = png_name(name)
            if derived in files:
                what = f"PNG {name} belongs to images {files[derived]} and {image_id}"
                yield "duplicate-png-file", image_id, what
            files.setdefault(derived, image_id)
            seen[image_id] += 1
            self.pairs.append((self.images.get(image_id), with_moved(entry, self.moved)))


def with_moved(entry: dict, moved: Mapping[int, int]) -> dict:
    """An annotation with the ids of :attr:`PanopticIndex.moved` in its segments_info."""

    def move(segment):
        category = segment.get("category_id") if isinstance(segment, dict) else None
        known = type(category) is int and category in moved
        return {**segment, "category_id": moved[category]} if known else segment

    return {**entry, "segments_info": list(map(move, entry["segments_info"]))} if moved else entry


def _useless(entry: object, where: str) -> Problem | None:
    """Why an annotation cannot be looked at at all, or None."""
    if not isinstance(entry, dict):
        return "json-format", None, f"{where} is {entry!r}, expected an object"
    image_id, name, segments = entry.get("image_id"), entry.get("file_name"), entry.get("segments_info")
    known = image_id if is_id(image_id) else None
    problem = name_problem(name)
    if problem:
        return "file-name", known, f"{where} has file_name {name!r}, which {problem}"
    wrong = [] if is_id(image_id) else [f"image_id {image_id!r}"]
    if not isinstance(segments, list):
        wrong.append(f"segments_info {segments!r}")
    return ("json-format", known, f"{where} ({name!r}) has {', '.join(wrong)}") if wrong else None


def segment_problems(annotation: dict, things: dict, size: tuple, sound: dict) -> Iterator[Problem]:
    """What is wrong with the segments_info of an image of ``size`` (W, H) or (None, None).

    ``things`` are {category id: isthing}. ``sound`` gets {segment id: segment} of those that can be looked
    for in the PNG, with "iscrowd" 0 or 1 and an unknown "category_id" as None.
    """
    image_id, stuff = annotation["image_id"], []
    for position, segment in enumerate(annotation["segments_info"]):
        if not isinstance(segment, dict) or type(segment.get("id")) is not int:
            what = f"segments_info[{position}] is {segment!r}, expected an object with an integer id"
            yield "json-format", image_id, what
            continue
        number, category, crowd = segment["id"], segment.get("category_id"), segment.get("iscrowd", 0)
        where = f"segment {number}"
        if type(category) is not int or category not in things:
            what = f"{where} has category_id {category!r}, absent from 'categories'"
            yield "unknown-category", image_id, what
            category = None
        elif not things[category]:
            stuff.append(category)
        if crowd not in (0, 1):
            yield "bad-iscrowd", image_id, f"{where} has iscrowd {crowd!r}, expected 0 or 1"
            crowd = 0
        elif crowd and things.get(category) is False:
            yield "stuff-crowd", image_id, f"{where} of stuff class {category} is marked iscrowd"
        for kind, what in _measure_problems(segment, size):
            yield kind, image_id, f"{where} has {what}"
        if number == 0:
            yield "segment-id-zero", image_id, f"{where} of class {category} uses the id of void"
        elif not 0 < number < IDS:
            yield "segment-id-range", image_id, f"{where} does not fit into the 24 bits of a PNG pixel"
        elif number in sound:
            first = sound[number]["category_id"]
            what = f"{where} occurs twice, with classes {first} and {category}"
            yield "duplicate-segment-id", image_id, what
        else:
            sound[number] = {**segment, "category_id": category, "iscrowd": crowd}
    if len(stuff) != len(set(stuff)):
        for category, count in collections.Counter(stuff).items():
            if count > 1:
                yield "stuff-split", image_id, f"stuff class {category} has {count} segments"


def _measure_problems(segment: dict, size: tuple) -> list[tuple[str, str]]:
    """(kind, what) of area and box, which may be absent."""
    found, area = [], segment.get("area")
    if area is None:
        found.append(("area-missing", "no area"))
    elif not is_number(area) or area < 0:
        found.append(("bad-area", f"area {area!r}"))
    if "bbox" in segment:
        box = segment["bbox"]
        if not is_box(box):
            found.append(("bad-box", f"bbox {box!r}"))
        elif size[0] is not None and not (
            -1 <= box[0] <= size[0] + 1 - box[2] and -1 <= box[1] <= size[1] + 1 - box[3]
        ):
            found.append(("box-outside", f"bbox {box}, outside the image of {size[0]} x {size[1]}"))
    return found


def _stamp(path: str) -> tuple:
    """Tells the versions of a file apart; of one that is missing, loading says so."""
    with contextlib.suppress(OSError):
        status = os.stat(path)
        return status.st_mtime_ns, status.st_size, status.st_ino
    return ()


@functools.lru_cache(maxsize=4)
def _load(path: str, stamp: tuple) -> dict:
    content = load_object(path, "panoptic JSON", KEYS)
    check_categories(content["categories"], path)
    return content


def read_panoptic_json(path: str) -> dict:
    """Read a COCO-panoptic JSON, whose categories alone are checked (cached; treat as read-only).

    Raises:
        UserError: missing, damaged or not in COCO-panoptic format.
    """
    return _load(str(path), _stamp(path))


def read_categories(path: str) -> list:
    """The categories of a panoptic JSON; of a long file, only the text after "categories" is parsed.

    Raises:
        UserError: missing, damaged or not in COCO-panoptic format.
    """
    with contextlib.suppress(OSError, ValueError, UserError):
        if os.path.getsize(path) > LONG:
            with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                key = content.rfind(b'"categories"')
                start = content.find(b"[", key)
                if key >= 0 and content[key + len(b'"categories"') : start].strip() == b":":
                    text = content[start : start + LONG].decode(errors="ignore")
                    categories, _ = json.JSONDecoder().raw_decode(text)
                    check_categories(categories, path)
                    return categories
    return read_panoptic_json(path)["categories"]


def read_segments(path: str, categories: Sequence | None = None) -> dict:
    """Read a panoptic JSON and check all of it (cached; treat as read-only).

    Args:
        path: the file.
        categories: checked category list that replaces the JSON's.

    Returns:
        {image id: (image entry, annotation entry)}, by image id.

    Raises:
        UserError: the first error, with file and entry.
    """
    return read_index(path, categories).entries


def read_index(path: str, categories: Sequence | None = None) -> PanopticIndex:
    """Images, classes and annotations; otherwise as :func:`read_segments`."""
    used = read_panoptic_json(path)["categories"] if categories is None else categories
    given = tuple((category["id"], bool(category["isthing"]), category["name"]) for category in used)
    return _check_all(str(path), _stamp(path), given)


@functools.lru_cache(maxsize=4)
@no_collection()
def _check_all(path: str, stamp: tuple, given: tuple) -> PanopticIndex:
    categories = [{"id": i, "isthing": isthing, "name": name} for i, isthing, name in given]
    index = PanopticIndex(_load(path, stamp), categories)
    raise_first(findings_in(path, index.problems()))
    classes, entries = index.categories.things, {}
    for image, annotation in index.pairs:
        if annotation is not None:
            size = (image["width"], image["height"])
            problems = segment_problems(annotation, classes, size, {})
            raise_first(findings_in(path, problems))
            entries[image["id"]] = (image, annotation)
    unlabelled = len(index.images) - len(entries)
    if unlabelled:
        logger.warning("%s: %d images have no annotation and are left out.", path, unlabelled)
    index.entries = dict(sorted(entries.items()))
    return index
