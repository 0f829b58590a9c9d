"""The instances of one image: their masks against what the JSON says, and against the panoptic PNG.

Shape shorthand in this file: H, W = height and width of one image.
"""

from collections.abc import Callable

import numpy as np
import pycocotools.mask as mask_util

from ..formats.findings import ERROR, Finding, findings_in
from ..formats.instances_json import leaves_by, run_lengths, value_problems, with_area
from ..formats.json_file import is_box, is_number

# Hand-drawn polygons are rounded and rasterised: smaller differences mean nothing (pixels).
_SLACK = 2.0
_MATCH = 0.5  # IoU from which a mask is the panoptic segment
_SAME = 0.95  # IoU from which two masks of one class are one object
_OVERLAP = 0.1  # part of the smaller mask


def check_instances(instances: list, size: tuple, path: str, image_id, ids, segments: dict) -> list[Finding]:
    """Check the instances of an image of ``size`` (W, H), by themselves and against the panoptic PNG.

    ``ids`` (H, W) are those of the PNG, or None; ``segments``, {id: segment}, its things that are no crowds.
    """
    findings, masks, kept = [], [], []

    def report(kind, what):
        findings.append(Finding(kind, path, image_id, what))

    for instance in instances:
        wrong = list(findings_in(path, value_problems(instance, size, image_id)))
        findings += wrong
        if any(finding.kind.startswith("mask-") and finding.severity == ERROR for finding in wrong):
            continue
        mask = _check_mask(instance, size, report)
        if mask is not None and not instance.get("iscrowd"):
            masks.append(mask)
            kept.append(instance)
    if len(masks) > 1:
        _check_overlaps(kept, masks, report)
    if ids is not None and ids.shape == (size[1], size[0]) and segments:
        _compare_with_png(kept, masks, ids, segments, report)
    return findings


def _check_mask(instance: dict, size: tuple, report: Callable) -> dict | None:
    """Draw the mask of an instance and compare the JSON's box and area with it; returns its RLE."""
    where, segmentation = f"instance {instance.get('id')}", instance["segmentation"]
    mask = run_lengths(segmentation, size)
    if mask is not None and isinstance(segmentation, list):
        leaves = leaves_by(with_area(segmentation), size)
        if leaves > _SLACK:
            report("mask-leaves-image", f"{where}: polygons leave the image by {leaves:g} pixels")
    pixels = 0 if mask is None else int(mask_util.area(mask))
    if pixels == 0:
        report("instance-empty", f"{where} has no pixel")
        return None
    x, y, w, h = mask_util.toBbox(mask).tolist()
    box, area = instance.get("bbox"), instance.get("area")
    if is_box(box):
        cut = max(box[0] - x, box[1] - y, x + w - box[0] - box[2], y + h - box[1] - box[3])
        if cut > _SLACK:
            report("instance-box-cuts", f"{where} has bbox {box}, its mask {[x, y, w, h]}")
    if not is_number(area) or abs(area - pixels) > 25 + 0.25 * pixels:
        report("instance-area", f"{where} has area {area!r}, its mask {pixels} pixels")
    return mask


def _compare_with_png(instances: list, masks: list, ids: np.ndarray, segments: dict, report: Callable):
    numbers = list(segments)
    regions = [mask_util.encode(np.asfortranarray(ids == number).view(np.uint8)) for number in numbers]
    best = np.zeros(len(numbers))
    if masks:
        iou = np.asarray(mask_util.iou(regions, masks, [0] * len(masks)))
        classes = np.array([instance.get("category_id") for instance in instances], dtype=object)
        same = np.array([[segments[n]["category_id"] == c for c in classes] for n in numbers])
        best = np.where(same, iou, 0).max(1)
    lost = [number for number, value in zip(numbers, best, strict=True) if value < _MATCH]
    if lost:
        what = f"{len(lost)} of {len(numbers)} thing segments of the PNG match no instance of their class: "
        report("instances-differ", what + ", ".join(map(str, lost[:5])))


def _check_overlaps(instances: list, masks: list, report: Callable) -> None:
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
