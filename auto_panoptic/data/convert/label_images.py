"""Label images: a class per pixel; objects by Cityscapes' ids, by a second image, or by lying apart."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from ...errors import UserError
from ..derive.conversion import SourceImage
from .paint import check_number, segment_id, source_image

PHOTOS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")


def read_label_images(
    labels: Path,
    image_root: Path,
    classes: Sequence[dict],
    instances: Path | None = None,
    divisor: int | None = None,
    label_suffix: str = ".png",
    image_suffix: str | None = None,
    instance_suffix: str | None = None,
) -> tuple[list[SourceImage], functools.partial]:
    """The images and what draws one, for :func:`.write_set`.

    Args:
        labels: folder of the label images; those in folders below it count.
        image_root: folder of the photographs, with the same folders in it.
        classes: COCO-panoptic categories; ``id`` is the value of a pixel, ``color`` of one in an RGB image;
            others are void.
        instances: folder of images with the number of each pixel's object, 0 for none.
        divisor: values from here on are ``class * divisor + number``, as Cityscapes' (1000).
        label_suffix, image_suffix, instance_suffix: end of the names, which otherwise agree; None for the
            photographs tries those of :data:`PHOTOS`, for instances takes ``label_suffix``.

    Raises:
        UserError: a folder or a partner is missing, the options contradict each other.
    """
    if instances is not None and divisor is not None:
        raise UserError("--instances and --divisor are two ways to tell objects apart; give one of them")
    for option, folder in (("--labels", labels), ("--instances", instances)):
        if folder is not None and not folder.is_dir():
            raise UserError(f"{option}: {folder} is no folder")
    sources = []
    for path in sorted(labels.rglob(f"*{label_suffix}")):
        stem = str(path.relative_to(labels)).removesuffix(label_suffix)
        endings = PHOTOS if image_suffix is None else (image_suffix,)
        photo = next((stem + e for e in endings if (image_root / (stem + e)).is_file()), None)
        if photo is None:
            raise UserError(
                f"{path}: there is no photograph {image_root / stem}{endings[0]}; give --image-suffix and "
                "--label-suffix, the ends of the names in which the two differ"
            )
        files = [path]
        if instances is not None:
            second = instances / (stem + (instance_suffix or label_suffix))
            if not second.is_file():
                raise UserError(f"{path}: there is no {second}; give --instance-suffix, the end of its name")
            files.append(second)
        sources.append(source_image(stem, photo, tuple(files), path))
    if not sources:
        raise UserError(f"--labels: {labels} holds no file that ends in {label_suffix}; give --label-suffix")
    places = {c["id"]: (place, bool(c["isthing"])) for place, c in enumerate(classes)}
    colors = {packed(np.array(c["color"])).item(): c["id"] for c in classes if c.get("color")}
    return sources, functools.partial(draw, places, colors, divisor)


def packed(rgb: np.ndarray) -> np.ndarray:
    """(..., 3) colours as integers."""
    rgb = rgb.astype(np.int32)
    return rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2]


def draw(
    places: Mapping[int, tuple[int, bool]], colors: Mapping[int, int], divisor: int | None, paths: tuple
) -> np.ndarray:
    """Segment ids (H, W) of a label image.

    Args:
        places: {value of a pixel: (place of the class, whether it is of things)}.
        colors: {:func:`packed` colour of a pixel: value}.
        divisor: as for :func:`read_label_images`; things without a number are a crowd.
        paths: (label image,), or (label image, image of numbers), where 0 is a crowd, too. With neither,
            the regions of a thing class that touch nowhere, not even at corners, are one object each.

    Raises:
        UserError: a damaged image, sizes that differ, too many objects.
    """
    values, coloured = read_values(paths[0])
    if coloured:
        if not colors:
            raise UserError(f"{paths[0]} holds colours; give each class of --classes its color, [R, G, B]")
        found, which = np.unique(values, return_inverse=True)
        values = np.array([colors.get(value, -1) for value in found.tolist()])[which].reshape(values.shape)
    labels, numbers = values, None
    if divisor is not None:
        labels = np.where(values < divisor, values, values // divisor)
        numbers = np.where(values < divisor, 0, values % divisor + 1)
    elif len(paths) > 1:
        numbers, _ = read_values(paths[1])
        if numbers.shape != labels.shape:
            raise UserError(f"{paths[0]} and {paths[1]} differ in size; export both again")
    ids, count = np.zeros(labels.shape, np.int32), 0
    for value in np.unique(labels).tolist():
        if value not in places:
            continue
        place, isthing = places[value]
        inside = labels == value
        if not isthing:
            ids[inside] = segment_id(place)
            continue
        if numbers is None:
            _, own = cv2.connectedComponents(inside.view(np.uint8), connectivity=8)
            own = own[inside]
        else:
            own = numbers[inside]
        found, which = np.unique(own, return_inverse=True)
        single = found > 0
        order = np.where(single, count + np.cumsum(single), 0)  # 0 only for the crowd
        ids[inside] = segment_id(place, order, (~single).astype(int))[which]
        count += int(single.sum())
        check_number(count, paths[0])
    return ids


def read_values(path: Path) -> tuple[np.ndarray, bool]:
    """int32 values (H, W), and whether they are colours.

    Greyscale of 8 or 16 bits, a palette's indices, or :func:`packed` RGB; transparency is not read.
    """
    try:
        with Image.open(path) as image:
            mode, values = image.mode, np.array(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        problem = f"{path} cannot be read as a picture ({type(error).__name__})"
        raise UserError(f"{problem}; export it again") from None
    if mode in ("RGB", "RGBA"):
        return packed(values), True
    if mode not in ("L", "P", "I", "I;16", "I;16B"):
        raise UserError(f"{path} has the pixel format {mode}; expected greyscale, a palette or RGB")
    return values.astype(np.int32), False
