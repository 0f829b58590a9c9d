"""The COCO-panoptic format: ids in PNGs, segment records, and what can be derived from them.

Shape shorthand in this file: H, W = height and width of one image.
"""

import collections
import itertools
from collections.abc import Collection, Iterator, Mapping

import cv2
import numpy as np

from .findings import Finding, Problem, findings_in, raise_first
from .json_file import is_box, is_number
from .picture_file import GREY, RGB, RGBA, open_plain, png_problem

VOID = 0  # panoptic id of unlabelled pixels
IGNORE = 255  # semantic label of unlabelled pixels
_GREY = 0x010101  # an id of three equal channels is a multiple of it


def read_ids(
    path: str, image_id=None, who: str = "", size: tuple = (None, None)
) -> tuple[np.ndarray | None, list[Finding]]:
    """Read a panoptic PNG, whose header is looked at before it is unpacked.

    Args:
        path: the file.
        image_id: for the findings.
        who, size: who says which (W, H) it has; (None, None) if nobody knows.

    Returns:
        int32 array (H, W) of segment ids ``R + 256 G + 65536 B``, 0 is void, or None; and what is wrong.
    """
    bgr, findings = _read(path, "png", image_id, (RGB, RGBA), who, size, cv2.IMREAD_COLOR)
    if bgr is None:
        return None, findings
    ids = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGBA).view("<i4")[..., 0].astype(np.int32, copy=False)
    ids &= 0xFFFFFF  # without alpha
    return ids, []


def read_labels(
    path: str, image_id=None, who: str = "", size: tuple = (None, None)
) -> tuple[np.ndarray | None, list[Finding]]:
    """Read a semantic PNG: uint8 labels (H, W), or None, and what is wrong; as :func:`read_ids`."""
    return _read(path, "semantic", image_id, (GREY,), who, size, cv2.IMREAD_UNCHANGED)


def _read(path, kind, image_id, allowed, who, size, flags) -> tuple[np.ndarray | None, list[Finding]]:
    file, problem = open_plain(path)
    if file is not None:
        with file:
            data = file.read()
        problem = png_problem(data, allowed, who, size)
    if problem is None:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION)
        if pixels is not None:
            return pixels, []
        problem = "truncated", f"PNG of {len(data)} bytes cannot be unpacked"
    return None, [Finding(f"{kind}-{problem[0]}", path, image_id, problem[1])]


def label_problems(labels: np.ndarray, label_of: Mapping, image_id) -> Iterator[Problem]:
    """Labels (H, W) of a semantic PNG that no class has; ``label_of`` is {category id: label}."""
    stuff = max(label_of.values(), default=0)
    present = np.flatnonzero(np.bincount(labels.ravel(), minlength=256))
    wrong = [value for value in present.tolist() if stuff < value != IGNORE]
    if wrong:
        what = f"labels {wrong[:10]} occur, allowed are 0 to {stuff} and {IGNORE}"
        yield "semantic-values", image_id, what


def label_pairs(wanted: np.ndarray, found: np.ndarray) -> collections.Counter:
    """{(label, label): pixels} of two label maps (H, W)."""
    pixels = np.bincount((wanted.astype(np.int32) * 256 + found).ravel())
    return collections.Counter({divmod(i, 256): int(pixels[i]) for i in np.flatnonzero(pixels).tolist()})


def exchanged_labels(pairs: Mapping) -> Iterator[Problem]:
    """Stuff under another label, which is mostly this stuff, by :func:`label_pairs` of a set; not merged."""
    there, here = {}, {}  # {label: the commonest one in the other maps}
    for (wanted, found), _ in sorted(pairs.items(), key=lambda item: -item[1]):
        if IGNORE not in (wanted, found):
            here.setdefault(found, wanted)
        there.setdefault(wanted, found)
    for wanted, found in sorted(there.items()):
        moved = found not in (wanted, IGNORE) and there.get(found) != found and here.get(found) == wanted
        if 0 < wanted < IGNORE and moved:
            what = f"label {found} lies where the panoptic PNGs have the class of label {wanted}"
            yield "semantic-classes", None, what


def read_panoptic(path: str) -> np.ndarray:
    """The ids of :func:`read_ids` alone; raises UserError for a file that is missing or no panoptic PNG."""
    ids, findings = read_ids(str(path))
    raise_first(findings)
    return ids


def read_truth(path: str, image: Mapping, segments: list, things: Mapping) -> tuple[np.ndarray, tuple]:
    """Read a panoptic PNG and compare it with what the JSON says of it.

    Args:
        path: the file.
        image: entry of the image in the JSON.
        segments: its sound ``segments_info``.
        things: {category id: isthing}.

    Returns:
        int32 segment ids (H, W), and their :func:`runs_of`.

    Raises:
        UserError: the first error, with file, segment and remedy.
    """
    ids, findings = read_ids(path, image["id"], "the JSON says", (image["width"], image["height"]))
    raise_first(findings)
    runs = runs_of(ids)
    check_areas(path, image["id"], areas_of(ids, runs), segments, things)
    return ids, runs


def check_areas(path: str, image_id, areas: Mapping, segments: list, things: Mapping) -> None:
    """Raise UserError for the first error of :func:`truth_problems`."""
    listed = {segment["id"]: segment for segment in segments}
    raise_first(findings_in(path, truth_problems(areas, {}, listed, things, image_id)))


def truth_problems(
    areas: Mapping, boxes: Mapping, segments: Mapping, things: Mapping, image_id
) -> Iterator[Problem]:
    """What is wrong with a panoptic PNG against ``segments_info``.

    Args:
        areas, boxes: {id: pixels, tight box} in the PNG; a box that is missing is not compared.
        segments: {id: segment} of the JSON.
        things: {category id: isthing}.
        image_id: for the problems.
    """
    found = areas.keys() - {VOID}
    if found != segments.keys() and (other := _other_reading(found, segments.keys())):
        yield "png-format", image_id, f"it is no RGB of the ids: {other} gives those of the JSON"
        return
    for number in sorted(found - segments.keys()):
        box = f" (box {list(boxes[number])})" if number in boxes else ""
        what = f"id {number} has {areas[number]} pixels{box}, but no entry in the JSON"
        yield "id-not-in-json", image_id, what
    for number in sorted(segments.keys() - found):
        what = f"segment {number} of class {segments[number]['category_id']} has no pixel"
        yield "id-not-in-png", image_id, what
    for number in sorted(segments.keys() & found):
        area, where = areas[number], f"segment {number}"
        said = segments[number].get("area")
        if said != area and is_number(said) and said >= 0:
            yield "area-differs", image_id, f"{where} has {area} pixels, the JSON says {said}"
        if number in boxes and is_box(segments[number].get("bbox")):
            yield from _box_problems(segments[number]["bbox"], boxes[number], where, image_id)
    real = [s for i, s in segments.items() if i in found and things.get(s["category_id"])]
    if not segments and not found:
        yield "all-void", image_id, "the image has no segment, all pixels are void"
    elif not real:
        yield "no-object", image_id, "the image has stuff only"
    elif all(segment.get("iscrowd", 0) for segment in real):
        yield "crowd-only", image_id, f"all {len(real)} thing segments of the image are crowds"


def _box_problems(said: list, box: tuple, where: str, image_id) -> Iterator[Problem]:
    (x, y, w, h), (left, top, width, height) = said, box
    cut = max(x - left, y - top, left + width - x - w, top + height - y - h)
    if cut > 1:
        what = f"{where} has bbox {said}, which cuts off part of its pixels in {list(box)}"
        yield "box-cuts", image_id, what
    elif [x, y, w, h] != list(box):
        yield "box-loose", image_id, f"{where} has bbox {said}, its pixels {list(box)}"


def _other_reading(found: Collection[int], listed: Collection[int]) -> str | None:
    """Another way to read the channels that gives the ids of the JSON, which the right one does not."""
    most = max(len(found & listed), len(listed) // 2, len(found) // 2)
    for places in itertools.permutations((2, 1, 0)):  # BGR, the likely one, first
        read = {sum((i >> 8 * place & 255) << 8 * n for n, place in enumerate(places)) for i in found}
        if len(read & listed) > most:
            return "{} + 256 {} + 65536 {}".format(*("RGB"[place] for place in places))
    grey = {i // _GREY for i in found if i % _GREY == 0}
    return "the grey value of its equal channels" if len(grey & listed) > most else None


def runs_of(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Runs of equal pixels within rows (H, W): their starts, lengths, the values, and which one each has."""
    flat = ids.reshape(-1)
    new = np.empty(flat.size, bool)
    np.not_equal(flat[1:], flat[:-1], out=new[1:])
    new[:: ids.shape[1]] = True
    starts = np.flatnonzero(new)
    values, which = np.unique(flat[starts], return_inverse=True)
    return starts, np.diff(starts, append=flat.size), values, which


def areas_of(ids: np.ndarray, runs: tuple | None = None) -> dict[int, int]:
    """{id: pixels} of a map (H, W) and its runs, id 0 included."""
    _, lengths, values, which = runs or runs_of(ids)
    return dict(zip(values.tolist(), np.bincount(which, lengths).astype(int).tolist(), strict=True))


def boxes_of(ids: np.ndarray, runs: tuple | None = None) -> dict[int, tuple]:
    """{id: tight box (x, y, width, height)} of a map (H, W) and its runs, id 0 included."""
    starts, lengths, values, which = runs or runs_of(ids)
    order = np.argsort(which, kind="stable")
    first = np.searchsorted(which[order], np.arange(len(values)))
    rows, left = np.divmod(starts[order], ids.shape[1])
    right = left + lengths[order]
    x, y = np.minimum.reduceat(left, first), np.minimum.reduceat(rows, first)
    w, h = np.maximum.reduceat(right, first) - x, np.maximum.reduceat(rows, first) + 1 - y
    boxes = map(tuple, np.stack([x, y, w, h], axis=1).tolist())
    return dict(zip(values.tolist(), boxes, strict=True))


def write_panoptic(path: str, ids: np.ndarray) -> None:
    """Write segment ids (H, W), 0 <= id < 2**24, as a panoptic PNG."""
    ids = np.asarray(ids)
    bgr = np.stack([ids >> 16, ids >> 8 & 255, ids & 255], axis=-1).astype(np.uint8)
    write_image(path, bgr)


def write_image(path: str, image: np.ndarray, parameters: tuple = ()) -> None:
    """``cv2.imwrite`` that raises OSError instead of returning False."""
    if not cv2.imwrite(str(path), image, list(parameters)):
        raise OSError(f"could not write {path}")


def segment_records(ids: np.ndarray, categories: dict, crowds: set) -> list:
    """``segments_info`` of a map of segment ids.

    Args:
        ids: (H, W) segment ids.
        categories: {segment id: category id}; ids without a pixel are left out.
        crowds: segment ids that are groups.

    Returns:
        list of {"id", "category_id", "area" (pixels), "bbox" (x, y, width, height), "iscrowd"}, by id.
    """
    areas, boxes = areas_of(ids), boxes_of(ids)
    return [
        {
            "id": i,
            "category_id": categories[i],
            "area": areas[i],
            "bbox": list(boxes[i]),
            "iscrowd": int(i in crowds),
        }
        for i in sorted(areas.keys() - {VOID})
    ]


def semantic_labels(ids: np.ndarray, segments: list, labels: dict, runs: tuple | None = None) -> np.ndarray:
    """Semantic label map of a panoptic map: all things 0, stuff 1..n, everything else 255.

    Same rule as Detectron2's ``datasets/prepare_panoptic_fpn.py``.

    Args:
        ids: (H, W) segment ids.
        segments: ``segments_info``.
        labels: {category id: semantic label}.
        runs: of ``ids``, where they are known.

    Returns:
        uint8 array (H, W).
    """
    _, lengths, values, which = runs or runs_of(ids)
    label = {segment["id"]: labels[segment["category_id"]] for segment in segments}
    table = np.array([label.get(value, IGNORE) for value in values.tolist()], np.uint8)
    return np.repeat(table[which], lengths).reshape(ids.shape)


def instance_annotations(ids: np.ndarray, segments: list, things: set, image_id: int) -> list:
    """COCO instance annotations of the thing segments of one image.

    The mask is the segment's *visible* region, as run-length encoding: instances never overlap. (COCO's own
    instances JSON holds hand-drawn polygons, which may.)

    Args:
        ids: (H, W) segment ids.
        segments: ``segments_info``.
        things: category ids of things.
        image_id: id of the image.

    Returns:
        list of COCO annotations without "id", with areas and boxes counted from the mask; thing segments
        without a pixel are left out.
    """
    import pycocotools.mask as mask_util

    annotations = []
    for segment in segments:
        if segment["category_id"] not in things:
            continue
        mask = (ids == segment["id"]).astype(np.uint8)
        area = int(np.count_nonzero(mask))
        if area == 0:
            continue
        rle = mask_util.encode(np.asfortranarray(mask))
        annotations.append(
            {
                "image_id": image_id,
                "category_id": segment["category_id"],
                "iscrowd": int(segment.get("iscrowd", 0)),
                "area": area,
                "bbox": list(cv2.boundingRect(mask)),
                "segmentation": {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")},
            }
        )
    return annotations


def number_annotations(per_image: list) -> list:
    """Flatten lists of annotations and give them the ids 1, 2, ... (COCO's API needs non-zero ids)."""
    flat = [annotation for annotations in per_image for annotation in annotations]
    return [{"id": i, **annotation} for i, annotation in enumerate(flat, start=1)]
