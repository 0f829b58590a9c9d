"""The COCO-panoptic format: ids in PNGs, segment records, and what can be derived from them.

Shape shorthand in this file: H, W = height and width of one image.
"""

import os

import cv2
import numpy as np

from ...errors import UserError

VOID = 0  # panoptic id of unlabelled pixels
IGNORE = 255  # semantic label of unlabelled pixels


def read_panoptic(path: str) -> np.ndarray:
    """Read a panoptic PNG.

    Returns:
        int32 array (H, W) of segment ids ``R + 256 G + 65536 B``; 0 is void.

    Raises:
        UserError: missing or unreadable file.
    """
    bgr = cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if bgr is None:
        problem = "cannot be decoded" if os.path.exists(path) else "does not exist"
        raise UserError(f"panoptic PNG {path} {problem}; restore it or drop its annotation.")
    ids = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGBA).view("<i4")[..., 0].astype(np.int32, copy=False)
    ids &= 0xFFFFFF  # without alpha
    return ids


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
    records = []
    for segment_id in np.unique(ids).tolist():
        if segment_id == VOID:
            continue
        mask = (ids == segment_id).astype(np.uint8)
        records.append(
            {
                "id": segment_id,
                "category_id": categories[segment_id],
                "area": int(np.count_nonzero(mask)),
                "bbox": list(cv2.boundingRect(mask)),
                "iscrowd": int(segment_id in crowds),
            }
        )
    return records


def semantic_labels(ids: np.ndarray, segments: list, labels: dict) -> np.ndarray:
    """Semantic label map of a panoptic map: all things 0, stuff 1..n, everything else 255.

    Same rule as Detectron2's ``datasets/prepare_panoptic_fpn.py``.

    Args:
        ids: (H, W) segment ids.
        segments: ``segments_info``.
        labels: {category id: semantic label}.

    Returns:
        uint8 array (H, W).
    """
    semantic = np.full(ids.shape, IGNORE, dtype=np.uint8)
    for segment in segments:
        semantic[ids == segment["id"]] = labels[segment["category_id"]]
    return semantic


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
