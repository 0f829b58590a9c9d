"""A table of counts as a picture, for TensorBoard."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from .colours import OUTLINE
from .drawing import TEXT, font

ROW, MARGIN = 18, 6  # pixels
_LIGHT, _DARK = np.array([238, 244, 250]), np.array([86, 140, 196])  # both under dark text


def draw_counts(rows: Sequence[tuple[str, Sequence[str], Sequence[int]]]) -> np.ndarray:
    """(H, W, 3) uint8 RGB: a row for each (title, names, counts), a darker cell for a larger count.

    Cells of one row that hold equal counts have one colour, so that an unequal row is seen at once.
    """
    texts = [[f"{name}  {count:,}" for name, count in zip(*row[1:], strict=True)] for row in rows]
    cell = max(font(TEXT).getlength(text) for row in texts for text in row) + 2 * MARGIN
    left = max(font(TEXT).getlength(title) for title, *_ in rows) + 2 * MARGIN
    size = round(left + cell * max(map(len, texts))) + MARGIN, ROW * len(rows) + MARGIN
    image = Image.new("RGB", size, "#ffffff")
    pen = ImageDraw.Draw(image)
    for i, (row, (title, _, counts)) in enumerate(zip(texts, rows, strict=True)):
        top = i * ROW + MARGIN // 2
        pen.text((MARGIN, top + ROW / 2), title, OUTLINE, font(TEXT), "lm")
        for k, (text, count) in enumerate(zip(row, counts, strict=True)):
            colour = _LIGHT + (_DARK - _LIGHT) * count / max(*counts, 1)
            x = left + k * cell
            pen.rectangle([x, top, x + cell - 2, top + ROW - 2], tuple(colour.round().astype(int)))
            pen.text((x + MARGIN, top + ROW / 2 - 1), text, OUTLINE, font(TEXT), "lm")
    return np.asarray(image)
