"""Panoptic maps and their mistakes, as pictures.

Shape shorthand in this file: H, W = height and width of the picture.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .colours import OUTLINE, paint, paint_mistakes, rgb

SIDE = 300  # pixels of the longer side of a picture
TEXT = 12  # size of a name, in pixels


@functools.lru_cache(maxsize=64)
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Matplotlib's DejaVu Sans; Pillow's own font where that file is not there."""
    spec = importlib.util.find_spec("matplotlib")  # not imported: that takes half a second
    folder = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" if spec else Path()
    try:
        return ImageFont.truetype(str(folder / f"DejaVuSans{'-Bold' if bold else ''}.ttf"), size)
    except OSError:
        return ImageFont.load_default(size)


def fit(height: int, width: int, side: int = SIDE) -> tuple[int, int]:
    """(H, W) of the same proportions whose longer one is ``side``."""
    scale = side / max(height, width)
    return max(round(height * scale), 1), max(round(width * scale), 1)


def resize(values: np.ndarray, size: tuple[int, int], smooth: bool = False) -> np.ndarray:
    """``values`` (h, w) or (h, w, 3) at ``size`` (H, W); ids are taken from the nearest pixel."""
    if values.shape[:2] == tuple(size):
        return values
    shrinks = size[0] < values.shape[0]
    how = (cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR) if smooth else cv2.INTER_NEAREST
    kept = values if smooth else values.astype(np.float64)  # exact for ids; OpenCV resizes no int64
    return cv2.resize(kept, size[::-1], interpolation=how).astype(values.dtype, copy=False)


def draw_segments(
    ids: np.ndarray, classes: Mapping[int, int], names: Sequence[str], size: tuple[int, int]
) -> np.ndarray:
    """A panoptic map in the colours of its classes, segments outlined and, where there is room, named.

    Args:
        ids: (h, w) segment ids; those that ``classes`` lacks are void.
        classes: {segment id: class number}.
        names: of the classes, by their number.
        size: (H, W) of the picture.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    ids = resize(ids, size)
    known, dense = np.unique(ids, return_inverse=True)
    dense = dense.reshape(ids.shape)
    numbers = np.array([classes.get(i, -1) for i in known.tolist()])
    picture = paint(numbers[dense])
    picture[borders(dense)] = rgb(OUTLINE)
    image = Image.fromarray(picture)
    pen = ImageDraw.Draw(image)
    for index, number in enumerate(numbers.tolist()):
        if number >= 0:
            write_name(pen, dense == index, names[number])
    return np.asarray(image)


def borders(ids: np.ndarray, thick: int = 1) -> np.ndarray:
    """(H, W) bool: pixels with another segment within ``thick`` pixels to the right or below."""
    found = np.zeros(ids.shape, bool)
    for step in range(1, max(thick, 1) + 1):
        found[:, :-step] |= ids[:, step:] != ids[:, :-step]
        found[:-step] |= ids[step:] != ids[:-step]
    return found


def write_name(pen: ImageDraw.ImageDraw, mask: np.ndarray, name: str, size: int = TEXT) -> None:
    """Write a name where a segment (H, W) is widest, if it fits into the segment and the picture."""
    inside = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
    y, x = np.unravel_index(int(inside.argmax()), inside.shape)
    width = font(size).getlength(name)
    if inside[y, x] < 0.6 * size or width > np.count_nonzero(mask[y]) + size or width + 4 > mask.shape[1]:
        return
    x = min(max(float(x), width / 2 + 2), mask.shape[1] - width / 2 - 2)
    edge = max(size // 6, 1)
    pen.text((x, float(y)), name, "#ffffff", font(size), "mm", stroke_width=edge, stroke_fill=OUTLINE)


def draw_differences(
    photo: np.ndarray,
    predicted: np.ndarray,
    truth: np.ndarray,
    matches: Collection[tuple[int, int]],
    counted: tuple[Collection[int], Collection[int]],
    size: tuple[int, int],
) -> np.ndarray:
    """Where prediction and truth differ, over a pale photo; see :data:`MISTAKES`.

    A pixel is *missed* where the true segment has no match, *invented* where the predicted one has none,
    *taken for another* where neither has one, and *border* where both do or one is void, but not each other.

    Args:
        photo: (h, w, 3) RGB.
        predicted, truth: (h, w) segment ids, 0 where void.
        matches: pairs (true id, predicted id).
        counted: ids of the true and of the predicted segments that count. Where the truth is a crowd or void,
            nothing is judged.
        size: (H, W) of the picture.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    kinds = mistakes(resize(predicted, size), resize(truth, size), matches, counted)
    grey = cv2.cvtColor(resize(photo, size, smooth=True), cv2.COLOR_RGB2GRAY)[..., None].repeat(3, axis=2)
    pale = 255 - (255 - grey) // 24 * 8  # a third of the contrast, in few steps: a small file
    return paint_mistakes(kinds, pale)


def mistakes(
    predicted: np.ndarray,
    truth: np.ndarray,
    matches: Collection[tuple[int, int]],
    counted: tuple[Collection[int], Collection[int]],
) -> np.ndarray:
    """(H, W) kinds of mistakes of two maps (H, W), as :func:`draw_differences` says; 0 none."""
    true_matched, predicted_matched = ({pair[i] for pair in matches} for i in (0, 1))
    base = int(predicted.max(initial=0)) + 1
    pairs = np.array(sorted(g * base + p for g, p in matches), np.int64)
    right = np.isin(truth.astype(np.int64) * base + predicted, pairs)
    true_counts, predicted_counts = (
        np.isin(ids, list(kept)) for ids, kept in zip((truth, predicted), counted, strict=True)
    )
    lost = true_counts & ~np.isin(truth, list(true_matched))
    extra = predicted_counts & ~np.isin(predicted, list(predicted_matched))
    return true_counts * np.select([lost & extra, lost, extra, ~right], [3, 1, 2, 4])


def strip(panels: Sequence[np.ndarray], gap: int = 6) -> np.ndarray:
    """Pictures (H, W, 3) of one height, side by side on white."""
    space = np.full((panels[0].shape[0], gap, 3), 255, np.uint8)
    parts = [part for panel in panels for part in (panel, space)]
    return np.concatenate(parts[:-1], axis=1)
