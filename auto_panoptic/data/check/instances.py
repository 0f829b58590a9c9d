"""An instances JSON against the panoptic one: image lists, boxes, and masks against the panoptic PNG.

Shape shorthand in this file: H, W = height and width of one image.
"""

import collections

import numpy as np

from ..formats.findings import Finding
from ..formats.rules import check_category_list, is_box, is_id, is_number, read_json_file

# Hand-drawn polygons are rounded and rasterised: smaller differences mean nothing (pixels).
_SLACK = 2.0
_MATCH = 0.5  # IoU from which a mask is the panoptic segment
_SAME = 0.95  # IoU from which two masks of one class are one object
_OVERLAP = 0.1  # part of the smaller mask


def index_instances_json(path: str, images: dict, things: dict) -> tuple[dict | None, list[Finding]]:
    """Read an instances JSON and compare its images with the panoptic JSON's.

    Args:
        path: the file.
        images: {image id: entry} of the panoptic JSON.
        things: {category id: isthing} of the set.

    Returns:
        {image id: annotations} of what can be looked at (None if the file is of no use), and the findings.
    """
    content, findings = read_json_file(
        path, "instances JSON", {"images": list, "annotations": list, "categories": list}
    )
    if content is None:
        return None, findings

    def report(kind, image_id, what):
        findings.append(Finding(kind, path, image_id, what))

    categories = [
        {**c, "isthing": 1, "name": c.get("name", "?")} if isinstance(c, dict) else c
        for c in content["categories"]
    ]
    findings += [
        f for f in check_category_list(categories, path).findings if f.kind != "duplicate-category-name"
    ]
    listed = {}
    for position, entry in enumerate(content["images"]):
        if not isinstance(entry, dict) or not is_id(entry.get("id")):
            report("instance-format", None, f"images[{position}] is {entry!r}, expected an object with an id")
            continue
        if entry["id"] in listed:
            report("duplicate-image-id", entry["id"], f"images[{position}] has an id that occurred before")
        listed[entry["id"]] = entry
    for image_id, image in images.items():
        if image_id not in listed:
            report(
                "instances-image", image_id, f"image {image['file_name']} of the panoptic JSON is absent here"
            )
            continue
        for key in ("width", "height", "file_name"):
            here, there = listed[image_id].get(key), image[key]
            if there is not None and here != there:
                what = f"image {image_id} has {key} {here!r}, the panoptic JSON says {there!r}"
                report("instances-entry", image_id, what)
    grouped, numbers = collections.defaultdict(list), set()
    for position, entry in enumerate(content["annotations"]):
        image_id = entry.get("image_id") if isinstance(entry, dict) else None
        if not is_id(image_id):
            report(
                "instance-format", None, f"annotations[{position}] is {entry!r}, without a usable image_id"
            )
            continue
        number = entry.get("id")
        if type(number) is not int:
            report(
                "instance-format", image_id, f"annotations[{position}] has id {number!r}, expected an integer"
            )
        elif number == 0:
            report("instance-id-zero", image_id, f"annotations[{position}] has id 0")
        elif number in numbers:
            report("duplicate-instance-id", image_id, f"annotations[{position}] has id {number}, as another")
        else:
            numbers.add(number)
        if image_id not in listed:
            report("instance-without-image", image_id, f"instance {number} is of an image that is not listed")
        elif image_id not in images:
            report("instances-image", image_id, f"instance {number} is of an image the panoptic JSON lacks")
        elif not things.get(_hashable(entry.get("category_id")), False):
            what = f"instance {number} has category_id {entry.get('category_id')!r}, no thing of this set"
            report("instance-category", image_id, what)
            grouped[image_id].append(entry)
        else:
            grouped[image_id].append(entry)
    return dict(grouped), findings


def _hashable(value: object) -> object:
    return value if type(value) is int else None


def _counts_of(text: str) -> list[int]:
    """Run lengths of COCO's compressed RLE, decoded with care: pycocotools trusts its input.

    Raises:
        ValueError: the string ends early or holds other characters.
    """
    counts, position = [], 0
    while position < len(text):
        value, shift = 0, 0
        while True:
            if position == len(text) or shift > 35:
                raise ValueError("the counts end in the middle of a number")
            code = ord(text[position]) - 48
            if not 0 <= code < 64:
                raise ValueError(f"the counts hold {text[position]!r}")
            value |= (code & 31) << shift
            shift, position = shift + 5, position + 1
            if not code & 32:
                break
        if code & 16:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
    return counts


def _rle(segmentation: dict, size: tuple) -> tuple[str | None, object]:
    """Check a run-length encoded mask; returns (kind, what), or (None, compressed RLE)."""
    import pycocotools.mask as mask_util

    counts, (width, height) = segmentation.get("counts"), size
    if segmentation.get("size") != [height, width]:
        return "mask-size", f"RLE of size {segmentation.get('size')!r}, the image has [{height}, {width}]"
    if isinstance(counts, str):
        try:
            runs = _counts_of(counts)
        except ValueError as error:
            return "mask-format", f"RLE: {error}"
    else:
        runs = counts
    if not isinstance(runs, list) or not all(type(run) is int and run >= 0 for run in runs):
        return "mask-format", f"RLE counts are {str(runs)[:60]}, expected run lengths >= 0"
    if sum(runs) != width * height:
        return "mask-format", f"RLE counts add up to {sum(runs)} pixels, the image has {width * height}"
    return None, mask_util.frPyObjects({"size": [height, width], "counts": runs}, height, width)


def _polygons(segmentation: list, size: tuple) -> tuple[str | None, object, float]:
    """Check polygons; returns (kind, what, 0), or (None, RLE, pixels they leave the image by)."""
    import pycocotools.mask as mask_util

    for polygon in segmentation:
        if (
            not isinstance(polygon, list)
            or len(polygon) < 6
            or len(polygon) % 2
            or not all(map(is_number, polygon))
        ):
            return "mask-format", f"polygon {str(polygon)[:60]} is no list of at least 3 finite x, y", 0.0
    points = np.concatenate([np.asarray(polygon, float).reshape(-1, 2) for polygon in segmentation])
    low, high = points.min(0), points.max(0)
    if (high <= 0).any() or (low >= size).any():
        what = (
            f"polygons from {low.tolist()} to {high.tolist()} lie outside the image of {size[0]} x {size[1]}"
        )
        return "mask-outside", what, 0.0
    leaves = max(-low.min(), (high - size).max())
    if leaves > max(size):  # pycocotools walks along every edge, pixel by pixel
        return "mask-outside", f"polygons leave the image of {size[0]} x {size[1]} by {leaves:g} pixels", 0.0
    return None, mask_util.merge(mask_util.frPyObjects(segmentation, size[1], size[0])), leaves


def _check_mask(instance: dict, size: tuple, report) -> dict | None:
    """Check the mask of an instance and what the JSON says of it; returns its RLE."""
    import pycocotools.mask as mask_util

    where, segmentation, leaves = f"instance {instance.get('id')}", instance.get("segmentation"), 0.0
    if isinstance(segmentation, dict):
        kind, found = _rle(segmentation, size)
    elif isinstance(segmentation, list) and segmentation:
        kind, found, leaves = _polygons(segmentation, size)
    else:
        kind, found = "mask-format", f"segmentation is {str(segmentation)[:60]}"
    if kind:
        report(kind, f"{where}: {found}")
        return None
    if leaves > _SLACK:
        report("mask-leaves-image", f"{where}: polygons leave the image by {leaves:g} pixels")
    pixels = int(mask_util.area(found))
    if pixels == 0:
        report("instance-empty", f"{where} has no pixel")
        return None
    x, y, width, height = mask_util.toBbox(found).tolist()
    box, area = instance.get("bbox"), instance.get("area")
    if is_box(box):
        cut = max(box[0] - x, box[1] - y, x + width - box[0] - box[2], y + height - box[1] - box[3])
        if cut > _SLACK:
            report("instance-box-cuts", f"{where} has bbox {box}, its mask {[x, y, width, height]}")
    if not is_number(area) or abs(area - pixels) > 25 + 0.25 * pixels:
        report("instance-area", f"{where} has area {area!r}, its mask {pixels} pixels")
    return found


def check_instances(instances: list, size: tuple, path: str, image_id, ids, segments: dict) -> list[Finding]:
    """Check the instances of one image by themselves and against the panoptic PNG.

    Args:
        instances: annotations of the image.
        size: (W, H) of the image.
        path: the instances JSON.
        image_id: id of the image.
        ids: segment ids (H, W), or None.
        segments: {segment id: segment} of the *thing* segments that are no crowds.
    """
    import pycocotools.mask as mask_util

    findings, masks, kept = [], [], []

    def report(kind, what):
        findings.append(Finding(kind, path, image_id, what))

    for instance in instances:
        if not is_box(instance.get("bbox")):
            report("instance-box", f"instance {instance.get('id')} has bbox {instance.get('bbox')!r}")
        if instance.get("iscrowd", 0) not in (0, 1):
            report("bad-iscrowd", f"instance {instance.get('id')} has iscrowd {instance['iscrowd']!r}")
        mask = _check_mask(instance, size, report)
        if mask is not None and not instance.get("iscrowd"):
            masks.append(mask)
            kept.append(instance)
    if len(masks) > 1:
        _check_overlaps(kept, masks, report)
    if ids is not None and ids.shape == (size[1], size[0]) and segments:
        numbers = list(segments)
        regions = [mask_util.encode(np.asfortranarray(ids == number).view(np.uint8)) for number in numbers]
        best = np.zeros(len(numbers))
        if masks:
            iou = np.asarray(mask_util.iou(regions, masks, [0] * len(masks)))
            classes = np.array([instance["category_id"] for instance in kept], dtype=object)
            same = np.array([[segments[n]["category_id"] == c for c in classes] for n in numbers])
            best = np.where(same, iou, 0).max(1)
        lost = [number for number, value in zip(numbers, best, strict=True) if value < _MATCH]
        if lost:
            what = (
                f"{len(lost)} of {len(numbers)} thing segments of the PNG match no instance of their class: "
            )
            report("instances-differ", what + ", ".join(map(str, lost[:5])))
    return findings


def _check_overlaps(instances: list, masks: list, report) -> None:
    import pycocotools.mask as mask_util

    iou = np.triu(np.asarray(mask_util.iou(masks, masks, [0] * len(masks))), 1)
    area = mask_util.area(masks).astype(float)
    common = iou * (area[:, None] + area[None]) / (1 + iou)
    shared = common / np.minimum(area[:, None], area[None])
    pairs = 0
    for a, b in zip(*np.nonzero(shared > _OVERLAP), strict=True):
        same = instances[a].get("category_id") == instances[b].get("category_id")
        if same and iou[a, b] > _SAME:
            numbers = f"{instances[a].get('id')} and {instances[b].get('id')}"
            report("instance-duplicate", f"instances {numbers} have the same mask (IoU {iou[a, b]:.2f})")
        else:
            pairs += 1
    if pairs:
        a, b = np.unravel_index(shared.argmax(), shared.shape)
        numbers = f"{instances[a].get('id')} and {instances[b].get('id')}"
        report("instance-overlap", f"{pairs} pairs of masks overlap, most {numbers} ({shared[a, b]:.0%})")
