"""Reading COCO-panoptic JSON files, with errors that name file, image and id."""

import contextlib
import functools
import json
import logging
import mmap
import os

from ...errors import UserError
from ..metadata import check_categories
from .names import check_names, png_name

logger = logging.getLogger(__name__)

LONG = 1 << 24  # bytes; parsing more takes a noticeable time


def read_json(path: str, what: str) -> dict:
    """Read a JSON object.

    Raises:
        UserError: missing or damaged file.
    """
    try:
        with open(path) as file:
            content = json.load(file)
    except FileNotFoundError as error:
        raise UserError(f"{what} {path} does not exist; check the path.") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{what} {path} cannot be read: {error}. Restore the file.") from error
    if not isinstance(content, dict):
        raise UserError(f"{what} {path} holds a {type(content).__name__}, expected a JSON object.")
    return content


@functools.lru_cache(maxsize=4)
def _read_panoptic(path: str, stamp: tuple) -> dict:
    """The panoptic JSON, read once per version (``stamp``) of the file. Not to be modified."""
    content = read_json(path, "panoptic JSON")
    missing = {"images", "annotations", "categories"} - set(content)
    if missing:
        raise UserError(f"panoptic JSON {path} lacks {sorted(missing)}; it is not in COCO-panoptic format.")
    check_categories(content["categories"], path)
    return content


def read_panoptic_json(path: str) -> dict:
    """Read and check a COCO-panoptic JSON (cached; treat as read-only).

    Raises:
        UserError: missing, damaged or not in COCO-panoptic format.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise UserError(f"panoptic JSON {path} cannot be read ({error.strerror}); check the path.") from error
    return _read_panoptic(path, (status.st_mtime_ns, status.st_size))


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


def read_segments(panoptic_json: str, category_ids: set) -> dict:
    """Annotations of a panoptic JSON by image, checked.

    Args:
        panoptic_json: path.
        category_ids: allowed category ids.

    Returns:
        {image id: (image entry, annotation entry)}, in the order of image ids.

    Raises:
        UserError: an unknown category id or image, an id or PNG that occurs twice, a file name that leads out
            of its folder, or a key that is missing.
    """
    content = read_panoptic_json(panoptic_json)
    try:
        return _read_segments(panoptic_json, content, category_ids)
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{panoptic_json}: an entry of 'images', 'annotations' or 'segments_info' lacks {error}; it is "
            "not in COCO-panoptic format."
        ) from error


def _read_segments(panoptic_json: str, content: dict, category_ids: set) -> dict:
    for key in ("images", "annotations"):
        check_names(f"{panoptic_json}: {key}", content[key])
    images: dict = {}
    for image in content["images"]:
        if image["id"] in images:
            raise UserError(f"{panoptic_json}: image id {image['id']} occurs twice in 'images'; keep one.")
        images[image["id"]] = image
    entries: dict = {}
    owners: dict = {}  # name of its label map -> image id
    for annotation in content["annotations"]:
        image_id = annotation["image_id"]
        if image_id not in images:
            raise UserError(
                f"{panoptic_json}: image {image_id} has an annotation but is absent from 'images'."
            )
        if image_id in entries:
            raise UserError(f"{panoptic_json}: image {image_id} has two annotations; keep one.")
        owner = owners.setdefault(png_name(annotation["file_name"]), image_id)
        if owner != image_id:
            raise UserError(
                f"{panoptic_json}: images {owner} and {image_id} have the same panoptic PNG "
                f"{annotation['file_name']}; give each its own, in subfolders if names are equal."
            )
        for segment in annotation["segments_info"]:
            if segment["category_id"] not in category_ids:
                raise UserError(
                    f"{panoptic_json}: image {image_id} ({annotation['file_name']}), segment "
                    f"{segment['id']} has category_id {segment['category_id']}, absent from 'categories'; "
                    "correct one of them."
                )
        entries[image_id] = (images[image_id], annotation)
    if not entries:
        raise UserError(f"{panoptic_json} has no annotations.")
    unlabelled = len(images) - len(entries)
    if unlabelled:
        logger.warning("%s: %d images have no annotation and are left out.", panoptic_json, unlabelled)
    return dict(sorted(entries.items()))
