"""What a COCO-panoptic JSON says, read with tolerance: every mistake becomes a finding, the rest is kept."""

import collections
import dataclasses
import json
import math
import os

from .findings import Finding
from .names import name_problem, png_name
from .panoptic_png import IGNORE


def is_id(value: object) -> bool:
    """Whether ``value`` can be the id of an image (Cityscapes uses strings)."""
    return type(value) in (int, str)


def is_number(value: object) -> bool:
    """A finite number (JSON admits NaN and Infinity)."""
    return type(value) in (int, float) and math.isfinite(value)


def _is_byte(value: object) -> bool:
    return is_number(value) and 0 <= value <= 255


def is_box(box: object) -> bool:
    """x, y, width, height; finite, with positive sides."""
    return isinstance(box, list) and len(box) == 4 and all(map(is_number, box)) and min(box[2:]) > 0


def read_json_file(path: str, kind: str, keys: dict) -> tuple[dict | None, list[Finding]]:
    """Read a JSON object whose ``keys`` hold the given types.

    Args:
        path: the file.
        kind: what it is, for the messages.
        keys: {key: type}.

    Returns:
        the object, or None if nothing can be done with it; and what is wrong.
    """
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except FileNotFoundError:
        return None, [Finding("json-missing", path, None, f"the {kind} does not exist")]
    except json.JSONDecodeError as error:
        size = os.path.getsize(path)
        where = f"line {error.lineno}, column {error.colno}, character {error.pos} of a file of {size} bytes"
        return None, [Finding("json-broken", path, None, f"the {kind} is no JSON: {error.msg} at {where}")]
    except (OSError, ValueError, RecursionError) as error:
        return None, [Finding("json-broken", path, None, f"the {kind} cannot be read: {error}")]
    if not isinstance(content, dict):
        what = f"the {kind} holds a {type(content).__name__}, expected an object"
        return None, [Finding("json-format", path, None, what)]
    findings = []
    for key, expected in keys.items():
        if not isinstance(content.get(key), expected):
            found = type(content[key]).__name__ if key in content else "missing"
            findings.append(
                Finding("json-format", path, None, f"{key!r} is {found}, expected a {expected.__name__}")
            )
    return (None if findings else content), findings


@dataclasses.dataclass
class Categories:
    """The classes of a set: {id: isthing} and {id: name}; ``labels`` of the semantic head."""

    things: dict
    names: dict
    findings: list

    @property
    def labels(self) -> dict:
        """{category id: semantic label}: every thing 0, stuff 1..S by ascending id."""
        stuff = sorted(i for i, isthing in self.things.items() if not isthing)
        return {i: 0 for i, isthing in self.things.items() if isthing} | {
            c: n + 1 for n, c in enumerate(stuff)
        }


def check_category_list(categories: object, path: str) -> Categories:
    """Check a category list one by one."""
    result = Categories({}, {}, [])

    def report(kind, what):
        result.findings.append(Finding(kind, path, None, what))

    if not isinstance(categories, (list, tuple)) or not categories:
        report("bad-category", "'categories' is not a list with at least one category")
        return result
    for index, category in enumerate(categories):
        where = f"categories[{index}]"
        if not isinstance(category, dict):
            report("bad-category", f"{where} is {category!r}, expected an object")
            continue
        number, name, isthing = (category.get(key) for key in ("id", "name", "isthing"))
        if type(number) is not int or number < 0:
            report("bad-category", f"{where} has id {number!r}, expected an integer >= 0")
            continue
        if not isinstance(name, str):
            report("bad-category", f"{where} (id {number}) has name {name!r}, expected a string")
            name = str(number)
        if not isinstance(isthing, int) or isthing not in (0, 1):
            report("bad-category", f"{where} (id {number}, {name}) has isthing {isthing!r}, expected 0 or 1")
        color = category.get("color")
        if color is not None and not (
            isinstance(color, (list, tuple)) and len(color) == 3 and all(map(_is_byte, color))
        ):
            report("bad-category", f"{where} (id {number}) has color {color!r}, expected three of 0 to 255")
        if number in result.things:
            what = f"{where} has id {number} ({name}), as {result.names[number]!r} before it"
            report("duplicate-category-id", what)
            continue
        if name in result.names.values():
            report(
                "duplicate-category-name", f"{where} (id {number}) is named {name!r}, as another before it"
            )
        result.things[number], result.names[number] = bool(isthing), name
    stuff = len(result.things) - sum(result.things.values())
    if stuff >= IGNORE:
        report("bad-category", f"{stuff} stuff classes; label maps of 8 bits hold at most {IGNORE - 1}")
    return result


@dataclasses.dataclass
class PanopticIndex:
    """A panoptic JSON, sorted out.

    Args:
        categories: the classes.
        images: {image id: image entry}.
        pairs: one (image entry or None, annotation or None) for everything to look at on disk. Height and
            width of an image entry are None where the JSON has no usable ones.
        findings: what is wrong with the JSON itself.
    """

    categories: Categories
    images: dict
    pairs: list
    findings: list


def _image_entry(entry: object, where: str, path: str) -> tuple[dict | None, list[Finding]]:
    if not isinstance(entry, dict):
        return None, [Finding("json-format", path, None, f"{where} is {entry!r}, expected an object")]
    number, name = entry.get("id"), entry.get("file_name")
    findings = []
    if not is_id(number):
        findings.append(Finding("json-format", path, None, f"{where} has id {number!r}"))
    problem = name_problem(name)
    if problem:
        image = number if is_id(number) else None
        findings.append(Finding("file-name", path, image, f"{where} has file_name {name!r}, which {problem}"))
    if findings:
        return None, findings
    size = (entry.get("width"), entry.get("height"))
    if not all(type(side) is int and side > 0 for side in size):
        what = f"{where} ({name}) has width {size[0]!r} and height {size[1]!r}"
        findings.append(Finding("bad-size", path, number, what))
        size = (None, None)
    return {"id": number, "file_name": name, "width": size[0], "height": size[1]}, findings


def _index_images(entries: list, path: str, index: PanopticIndex) -> list:
    """Fill ``index.images``; returns second entries of an id, whose files are looked at alone."""
    files, extra = {}, []
    for position, entry in enumerate(entries):
        image, findings = _image_entry(entry, f"images[{position}]", path)
        index.findings += findings
        if image is None:
            continue
        number, name = image["id"], image["file_name"]
        if name in files:
            what = f"image file {name} is named by images {files[name]} and {number}"
            index.findings.append(Finding("duplicate-image-file", path, number, what))
        files.setdefault(name, number)
        if number in index.images:
            what = f"image id {number} stands for {index.images[number]['file_name']} and {name}"
            index.findings.append(Finding("duplicate-image-id", path, number, what))
            extra.append(image)
        else:
            index.images[number] = image
    return extra


def _annotation(entry: object, where: str, path: str) -> tuple[dict | None, list[Finding]]:
    if not isinstance(entry, dict):
        return None, [Finding("json-format", path, None, f"{where} is {entry!r}, expected an object")]
    image_id, name, segments = (entry.get(key) for key in ("image_id", "file_name", "segments_info"))
    image = image_id if is_id(image_id) else None
    wrong = []
    if image is None:
        wrong.append(f"image_id {image_id!r}")
    problem = name_problem(name)
    if problem:
        what = f"{where} has file_name {name!r}, which {problem}"
        return None, [Finding("file-name", path, image, what)]
    if not isinstance(segments, list):
        wrong.append(f"segments_info {segments!r}")
    if wrong:
        return None, [Finding("json-format", path, image, f"{where} ({name!r}) has {', '.join(wrong)}")]
    return {"image_id": image_id, "file_name": name, "segments_info": segments}, []


def index_panoptic_json(path: str, categories: object = None) -> PanopticIndex | None | list[Finding]:
    """Read a panoptic JSON as far as it can be read.

    Args:
        path: the file.
        categories: category list that replaces the JSON's.

    Returns:
        the index, or the findings that make everything else impossible.
    """
    content, findings = read_json_file(
        path, "panoptic JSON", {"images": list, "annotations": list, "categories": list}
    )
    if content is None:
        return findings
    classes = check_category_list(content["categories"] if categories is None else categories, path)
    index = PanopticIndex(classes, {}, [], list(classes.findings))
    extra = _index_images(content["images"], path, index)
    seen, files = collections.Counter(), {}
    for position, entry in enumerate(content["annotations"]):
        annotation, findings = _annotation(entry, f"annotations[{position}]", path)
        index.findings += findings
        if annotation is None:
            if isinstance(entry, dict) and is_id(entry.get("image_id")):
                seen[entry["image_id"]] += 1  # named above
                index.pairs += [(image, None) for image in [index.images.get(entry["image_id"])] if image]
            continue
        image_id, name = annotation["image_id"], annotation["file_name"]
        if image_id not in index.images:
            what = f"annotations[{position}] ({name}) is of image {image_id!r}, absent from 'images'"
            index.findings.append(Finding("annotation-without-image", path, image_id, what))
        elif seen[image_id]:
            what = f"annotations[{position}] ({name}) is a second one of image {image_id}"
            index.findings.append(Finding("duplicate-annotation", path, image_id, what))
        derived = png_name(name)
        if derived in files:
            what = f"PNG {name} belongs to images {files[derived]} and {image_id}"
            index.findings.append(Finding("duplicate-png-file", path, image_id, what))
        files.setdefault(derived, image_id)
        seen[image_id] += 1
        index.pairs.append((index.images.get(image_id), annotation))
    for number, image in index.images.items():
        if not seen[number]:
            what = f"image {image['file_name']} has no annotation"
            index.findings.append(Finding("image-without-annotation", path, number, what))
            index.pairs.append((image, None))
    index.pairs += [(image, None) for image in extra]
    if not any(annotation is not None for _, annotation in index.pairs):
        index.findings.append(Finding("no-images", path, None, "no image has a usable annotation"))
    return index


def check_segments(annotation: dict, things: dict, size: tuple, path: str) -> tuple[dict, list[Finding]]:
    """Check the segments_info of one image by itself.

    Args:
        annotation: the annotation.
        things: {category id: isthing}.
        size: width and height of the image, or (None, None).
        path: the panoptic JSON, or where the findings are to point.

    Returns:
        {segment id: segment} of those that can be looked for in the PNG, and the findings.
    """
    segments, findings, stuff = {}, [], collections.Counter()

    def report(kind, what):
        findings.append(Finding(kind, path, annotation["image_id"], what))

    for position, segment in enumerate(annotation["segments_info"]):
        if not isinstance(segment, dict) or type(segment.get("id")) is not int:
            report(
                "json-format",
                f"segments_info[{position}] is {segment!r}, expected an object with an integer id",
            )
            continue
        number, category = segment["id"], segment.get("category_id")
        where = f"segment {number}"
        if type(category) is not int or category not in things:
            report("unknown-category", f"{where} has category_id {category!r}, absent from 'categories'")
            category = None
        crowd = segment.get("iscrowd", 0)
        if crowd not in (0, 1):
            report("bad-iscrowd", f"{where} has iscrowd {crowd!r}, expected 0 or 1")
            crowd = 0
        if category is not None and not things[category]:
            stuff[category] += 1
            if crowd:
                report("stuff-crowd", f"{where} of stuff class {category} is marked iscrowd")
        _check_measures(segment, where, size, report)
        if number == 0:
            report("segment-id-zero", f"{where} of class {category} uses the id of void")
        elif not 0 < number < 1 << 24:
            report("segment-id-range", f"{where} does not fit into the 24 bits of a PNG pixel")
        elif number in segments:
            first = segments[number]["category_id"]
            report("duplicate-segment-id", f"{where} occurs twice, with classes {first} and {category}")
        else:
            segments[number] = {**segment, "category_id": category, "iscrowd": crowd}
    for category, count in stuff.items():
        if count > 1:
            report("stuff-split", f"stuff class {category} has {count} segments")
    return segments, findings


def _check_measures(segment: dict, where: str, size: tuple, report) -> None:
    area = segment.get("area")
    if area is None:
        report("area-missing", f"{where} has no area")
    elif not is_number(area) or area < 0:
        report("bad-area", f"{where} has area {area!r}")
    if "bbox" not in segment:
        return
    box = segment["bbox"]
    if not is_box(box):
        report("bad-box", f"{where} has bbox {box!r}")
    elif size[0] is not None and (
        min(box[:2]) < -1 or box[0] + box[2] > size[0] + 1 or box[1] + box[3] > size[1] + 1
    ):
        report("box-outside", f"{where} has bbox {box}, outside the image of {size[0]} x {size[1]}")
