"""Segments and instances over a photo, as figures of papers show them.

Shape shorthand in this file: H, W = height and width of the picture.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from .colours import OUTLINE, paint, rgb
from .drawing import borders, fit, font, resize, write_name

SHORTEST = 640  # pixels of the longer side; smaller photos are enlarged, so that names can be read
OPACITY = 0.65


def overlay(
    photo: np.ndarray, masks: Sequence[np.ndarray], numbers: Sequence[int], names: Sequence[str]
) -> np.ndarray:
    """Masks in the colours of their numbers over a photo, outlined and, where there is room, named.

    Masks may overlap; the smaller one lies over the larger one.

    Args:
        photo: (h, w, 3) uint8 RGB.
        masks: (h, w) bool.
        numbers: which colour each has.
        names: what stands on each; "" writes nothing.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    longer = max(photo.shape[:2])
    size = fit(*photo.shape[:2], side=max(longer, SHORTEST))
    thick = max(size) // 400
    picture = resize(photo, size, smooth=True).astype(np.float32)
    order = sorted(range(len(masks)), key=lambda i: -int(np.count_nonzero(masks[i])))
    large = [resize(np.asarray(masks[i], np.uint8), size).astype(bool) for i in order]
    for mask, i in zip(large, order, strict=True):
        colour = paint(np.where(mask, numbers[i], -1))[mask]
        picture[mask] = (1 - OPACITY) * picture[mask] + OPACITY * colour
        picture[borders(mask, thick)] = rgb(OUTLINE)
    image = Image.fromarray(picture.round().astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for k, (mask, i) in enumerate(zip(large, order, strict=True)):
        seen = mask & ~np.any(large[k + 1 :], axis=0) if k + 1 < len(large) else mask
        if names[i] and seen.any():
            write_name(pen, seen, names[i], max(size) // 45)
    return np.asarray(image)


def stacked(pictures: Sequence[np.ndarray], titles: Sequence[str], side_by_side: bool = False) -> np.ndarray:
    """Pictures (H, W, 3) of one size in two rows, or side by side, with a title above each."""
    height, width = pictures[0].shape[:2]
    text = max(max(height, width) // 40, 12)
    parts = []
    for picture, title in zip(pictures, titles, strict=True):
        head = Image.new("RGB", (width, 2 * text), "#ffffff")
        ImageDraw.Draw(head).text((2, text), title, OUTLINE, font(text), "lm")
        parts.append(np.concatenate([np.asarray(head), picture]))
    gap = np.full((parts[0].shape[0], text, 3), 255, np.uint8)
    if side_by_side:
        return np.concatenate([*(p for part in parts[:-1] for p in (part, gap)), parts[-1]], axis=1)
    return np.concatenate(parts)
