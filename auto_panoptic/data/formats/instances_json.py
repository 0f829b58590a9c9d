"""COCO instances JSON files beside a panoptic one: every rule about them, and reading them.

Shape shorthand in this file: H, W = height and width of one image.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterator, Mapping

import numpy as np
import pycocotools.mask as mask_util
from detectron2.structures import BoxMode

from .categories import Categories
from .findings import Problem, findings_in, raise_first
from .json_file import are_numbers, is_box, is_id, load_object, no_collection
from .panoptic_json import KEYS, PanopticIndex

BOX_IMAGES = 1000  # that are looked at to see whether both files number their classes alike


class InstancesIndex:
    """An instances JSON, compared with the panoptic JSON of the same images, whose problems are known.

    ``instances``, {image id: annotations} of what can be looked at, are known after :meth:`problems`.
    """

    def __init__(self, content: dict, panoptic: PanopticIndex):
        self._content, self._panoptic = content, panoptic
        self._images, self._things = panoptic.images, panoptic.categories.things
        self.instances = collections.defaultdict(list)

    def problems(self) -> Iterator[Problem]:
        """Everything that is wrong, but for what :func:`value_problems` finds."""
        complete = [
            {**c, "isthing": 1, "name": c.get("name", "?")} if isinstance(c, dict) else c
            for c in self._content["categories"]
        ]
        own = Categories(complete)
        yield from (p for p in own.problems() if p[0] != "duplicate-category-name")
        names, moved = self._panoptic.categories.names, self._panoptic.moved
        for here, name in own.names.items():
            number = moved.get(here, here)
            if names.get(number) != name and name in names.values():
                there = next(i for i, n in names.items() if n == name)
                what = f"category {here} is {name!r} here, which the panoptic JSON numbers {there}"
                yield "instances-classes", None, what
        listed = {}
        yield from self._image_problems(listed)
        numbers = set()
        for position, entry in enumerate(self._content["annotations"]):
            where, image_id = f"annotations[{position}]", None
            if isinstance(entry, dict):
                image_id, number, category = (entry.get(key) for key in ("image_id", "id", "category_id"))
            if not is_id(image_id):
                yield "instance-format", None, f"{where} is {entry!r}, without a usable image_id"
                continue
            if type(number) is not int:
                yield "instance-format", image_id, f"{where} has id {number!r}, expected an integer"
            elif number == 0:
                yield "instance-id-zero", image_id, f"{where} has id 0"
            elif number in numbers:
                yield "duplicate-instance-id", image_id, f"{where} has id {number}, as another"
            else:
                numbers.add(number)
            where = f"instance {number}"
            if image_id not in listed:
                yield "instance-without-image", image_id, f"{where} is of an image that is not listed"
                continue
            if image_id not in self._images:
                yield "instances-image", image_id, f"{where} is of an image the panoptic JSON lacks"
                continue
            if type(category) is int and category in moved:
                category = moved[category]
                entry = {**entry, "category_id": category}
            if type(category) is not int or not self._things.get(category, False):
                what = f"{where} has category_id {category!r}, no thing of this set"
                yield "instance-category", image_id, what
            self.instances[image_id].append(entry)
        yield from self._box_problems()

    def _box_problems(self) -> Iterator[Problem]:
        """A class whose boxes in the panoptic JSON are mostly those of another class here, or of none."""
        right, wrong, alone = collections.Counter(), collections.Counter(), 0
        compared = [a for _, a in itertools.islice((p for p in self._panoptic.pairs if p[1]), BOX_IMAGES)]
        used = {c for a in compared for c, _ in _objects(self.instances.get(a["image_id"], ()))}
        for annotation in compared:
            here = _objects(self.instances.get(annotation["image_id"], ()))
            there = [s for s in _objects(annotation["segments_info"]) if self._things.get(s[0])]
            if not here:  # a class may be left out
                alone += sum(category in used or not used for category, _ in there)
            if here and there:
                boxes = (np.array([box for _, box in found], float) for found in (here, there))
                for (category, _), row in zip(there, mask_util.iou(*boxes, [0] * len(there)).T, strict=True):
                    if any(v > 0.5 and c == category for v, (c, _) in zip(row, here, strict=True)):
                        right[category] += 1
                    elif row.max() > 0.8:
                        wrong[category, here[row.argmax()][0]] += 1
                    elif row.max() <= 0.5:
                        alone += category in used
        names, few = self._panoptic.categories.names, 0 if wrong.total() > right.total() else 2
        for (there, here), count in wrong.most_common(1):
            if count > max(right[there], few):
                pair = f"{names[there]!r} in the panoptic JSON and {names.get(here, here)!r} here"
                yield "instances-classes", None, f"{count} objects are {pair}, {right[there]} agree"
        if alone > max(2, 2 * right.total()):
            what = f"{alone} objects of the panoptic JSON have no box here around them, {right.total()} have"
            yield "instances-boxes", None, what

    def _image_problems(self, listed: dict) -> Iterator[Problem]:
        """Fills ``listed`` with {image id: entry}."""
        for position, entry in enumerate(self._content["images"]):
            if not isinstance(entry, dict) or not is_id(entry.get("id")):
                what = f"images[{position}] is {entry!r}, expected an object with an id"
                yield "instance-format", None, what
                continue
            if entry["id"] in listed:
                yield "duplicate-image-id", entry["id"], f"images[{position}] has an id that occurred before"
            listed[entry["id"]] = entry
        for image_id, image in self._images.items():
            if image_id not in listed:
                what = f"image {image['file_name']} of the panoptic JSON is absent here"
                yield "instances-image", image_id, what
                continue
            for key in ("width", "height", "file_name"):
                here, there = listed[image_id].get(key), image[key]
                if there is not None and here != there:
                    what = f"image {image_id} has {key} {here!r}, the panoptic JSON says {there!r}"
                    yield "instances-entry", image_id, what


def _objects(entries: list) -> list[tuple[int, list]]:
    """(class, box) of the instances or segments that have both and are no crowds."""
    found = (e for e in entries if isinstance(e, dict) and is_box(e.get("bbox")) and not e.get("iscrowd"))
    return [(e["category_id"], e["bbox"]) for e in found if type(e.get("category_id")) is int]


def value_problems(instance: dict, size: tuple, image_id) -> Iterator[Problem]:
    """What is wrong with box, crowd flag and mask of an instance in an image of ``size`` (W, H), undrawn."""
    where, box, crowd = f"instance {instance.get('id')}", instance.get("bbox"), instance.get("iscrowd", 0)
    if not is_box(box):
        flat = type(box) is list and len(box) == 4 and are_numbers(box) and min(box[2:]) == 0
        yield "instance-box-flat" if flat else "instance-box", image_id, f"{where} has bbox {box!r}"
    if crowd not in (0, 1):
        yield "bad-iscrowd", image_id, f"{where} has iscrowd {crowd!r}"
    problem = mask_problem(instance.get("segmentation"), size)
    if problem:
        yield problem[0], image_id, f"{where}: {problem[1]}"


def mask_problem(segmentation: object, size: tuple) -> tuple[str, str] | None:
    """(kind, what) of a mask that cannot be drawn in an image of ``size`` (W, H), or None."""
    if isinstance(segmentation, dict):
        return _rle_problem(segmentation, size)
    if isinstance(segmentation, list) and segmentation:
        return _polygon_problem(segmentation, size)
    return "mask-format", f"segmentation is {str(segmentation)[:60]}"


def _rle_problem(segmentation: dict, size: tuple) -> tuple[str, str] | None:
    runs, (width, height) = segmentation.get("counts"), size
    said = segmentation.get("size")
    if not isinstance(said, (list, tuple)) or list(said) != [height, width]:
        return "mask-size", f"RLE of size {segmentation.get('size')!r}, the image has [{height}, {width}]"
    if isinstance(runs, (str, bytes)):  # bytes as pycocotools makes them
        try:
            runs = decode_counts(runs if isinstance(runs, str) else runs.decode("latin-1"))
        except ValueError as error:
            return "mask-format", f"RLE: {error}"
    if not isinstance(runs, list) or not all(type(run) is int and run >= 0 for run in runs):
        return "mask-format", f"RLE counts are {str(runs)[:60]}, expected run lengths >= 0"
    if sum(runs) != width * height:
        return "mask-format", f"RLE counts add up to {sum(runs)} pixels, the image has {width * height}"
    return None


def _polygon_problem(polygons: list, size: tuple) -> tuple[str, str] | None:
    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) % 2 or not are_numbers(polygon):
            return "mask-format", f"polygon {str(polygon)[:60]} is no list of finite x, y"
    kept = with_area(polygons)
    leaves = leaves_by(kept, size) if kept else 0
    if leaves > 0:
        low = [float(min(min(polygon[axis::2]) for polygon in kept)) for axis in (0, 1)]
        high = [float(max(max(polygon[axis::2]) for polygon in kept)) for axis in (0, 1)]
        if min(high) <= 0 or low[0] >= size[0] or low[1] >= size[1]:
            where = f"outside the image of {size[0]} x {size[1]}"
            return "mask-outside", f"polygons from {low} to {high} lie {where}"
        if leaves > max(size):  # pycocotools walks along every edge, pixel by pixel
            return "mask-outside", f"polygons leave the image of {size[0]} x {size[1]} by {leaves:g} pixels"
    if len(kept) < len(polygons):
        return "mask-points", f"{len(polygons) - len(kept)} of {len(polygons)} polygons have no 3 points"
    return None


def with_area(polygons: list) -> list:
    """Those of at least 3 points; Detectron2 leaves out the others, and objects without any."""
    return [polygon for polygon in polygons if len(polygon) >= 6]


def run_lengths(segmentation: dict | list, size: tuple) -> dict | None:
    """A sound mask in an image of ``size`` (W, H) as compressed run lengths; None without a polygon."""
    width, height = size
    if isinstance(segmentation, dict):
        counts = segmentation["counts"]
        runs = decode_counts(counts) if isinstance(counts, str) else counts
        return mask_util.frPyObjects({"size": [height, width], "counts": runs}, height, width)
    polygons = with_area(segmentation)
    return mask_util.merge(mask_util.frPyObjects(polygons, height, width)) if polygons else None


def leaves_by(polygons: list, size: tuple) -> float:
    """By how many pixels polygons leave an image of ``size`` (W, H); not above 0 if they do not."""
    (width, height), low = size, min(map(min, polygons))
    x, y = (max(max(polygon[axis::2]) for polygon in polygons) for axis in (0, 1))
    return max(-low, x - width, y - height)


def decode_counts(text: str) -> list[int]:
    """Run lengths of COCO's compressed RLE, decoded with care: pycocotools trusts its input.

    A number is written in groups of five bits, the lowest first, as characters from "0" on; all but its last
    group have bit 32 set, the last one's bit 16 is the sign. From the fourth on, the number two places before
    is subtracted.

    Raises:
        ValueError: the string ends early or holds other characters.
    """
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32).astype(np.int64) - 48
    wrong = np.flatnonzero((codes < 0) | (codes >= 64))
    if len(wrong):
        raise ValueError(f"the counts hold {text[wrong[0]]!r}")
    ends = np.flatnonzero(codes < 32)
    if not len(ends):
        if len(codes):
            raise ValueError("the counts end in the middle of a number")
        return []
    starts = np.concatenate(([0], ends[:-1] + 1))
    if ends[-1] != len(codes) - 1 or (ends - starts).max() > 7:
        raise ValueError("the counts end in the middle of a number")
    place = 5 * (np.arange(len(codes)) - np.repeat(starts, ends - starts + 1))
    values = np.add.reduceat((codes & 31) << place, starts)
    values -= np.where(codes[ends] & 16, np.int64(1) << 5 * (ends - starts + 1), 0)
    odd, even = values[1::2], values[2::2]  # the first number stands alone
    values[1::2], values[2::2] = odd.cumsum(), even.cumsum()
    return values.tolist()


@no_collection()
def read_instances(path: str, panoptic: PanopticIndex) -> dict:
    """Read an instances JSON and check all of it: {image id: annotations in the order of the file}.

    Raises:
        UserError: the first error, with file and entry.
    """
    index = InstancesIndex(load_object(path, "instances JSON", KEYS), panoptic)
    raise_first(findings_in(path, index.problems()))
    images = panoptic.images
    for image_id, instances in index.instances.items():
        size = (images[image_id]["width"], images[image_id]["height"])
        kept = []
        for instance in instances:
            raise_first(findings_in(path, value_problems(instance, size, image_id)))
            mask = instance["segmentation"]
            polygons = with_area(mask) if isinstance(mask, list) else mask
            if polygons:
                same = len(polygons) == len(mask)
                kept.append(instance if same else {**instance, "segmentation": polygons})
        index.instances[image_id] = kept
    return index.instances


def detectron2_instance(instance: dict, categories: Mapping) -> dict:
    """A sound annotation in Detectron2's format; ``categories`` are {category id: contiguous id}."""
    mask = instance["segmentation"]
    if isinstance(mask, dict) and isinstance(mask["counts"], list):
        mask = mask_util.frPyObjects(mask, *mask["size"])
    result = {key: instance[key] for key in ("iscrowd", "bbox") if key in instance}
    return result | {
        "category_id": categories[instance["category_id"]],
        "segmentation": mask,
        "bbox_mode": BoxMode.XYWH_ABS,
    }
