"""Colours of classes and of mistakes, which print, projectors and all kinds of colour vision keep apart.

The twelve colours were chosen by a search for the largest smallest difference between any two, as seen with
normal, protan, deutan and tritan vision (Machado, Oliveira and Fernandes, 2009); and any two differ in
lightness, so that a grey print keeps them apart, too. Further classes have the same colours with a pattern.
A colour never stands alone: segments are outlined, and their names stand on them or below.
"""

from __future__ import annotations

import numpy as np

PALETTE = ("#c23816", "#ffb40a", "#38816d", "#b9e5ce", "#897eff", "#f47551")
PALETTE += ("#7c3e77", "#d1d28e", "#a86f9e", "#4dfefe", "#7738d2", "#c79dd7")
VOID = "#ffffff"
OUTLINE = "#1b1f24"
# Kinds of mistakes, each with its colour and pattern; what is right has none.
MISTAKES = {
    "missed": ("#0072b2", "rising"),
    "invented": ("#e69f00", "falling"),
    "taken for another": ("#d55e00", "solid"),
    "border": (OUTLINE, "solid"),
}
PATTERNS = ("solid", "rising", "dots", "grid")
_PERIOD = 8  # pixels


def rgb(colour: str) -> tuple[int, int, int]:
    """The parts of #rrggbb."""
    return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))


def pattern(name: str, height: int, width: int) -> np.ndarray:
    """(H, W) bool: where the pattern is drawn over its colour."""
    y, x = np.mgrid[:height, :width]
    if name == "solid":
        return np.zeros((height, width), bool)
    if name == "dots":
        return (y % _PERIOD < 2) & (x % _PERIOD < 2)
    if name == "grid":
        return (y % _PERIOD < 1) | (x % _PERIOD < 1)
    return ((x + y) if name == "rising" else (x - y)) % _PERIOD < 3


def paint(classes: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a map (H, W) of class numbers from 0; negative is void."""
    picture = np.empty((*classes.shape, 3), np.uint8)
    picture[...] = rgb(VOID)
    for number in np.unique(classes[classes >= 0]).tolist():
        own = classes == number
        colour = np.array(rgb(PALETTE[number % len(PALETTE)]))
        picture[own] = colour
        over = PATTERNS[number // len(PALETTE) % len(PATTERNS)]
        picture[own & pattern(over, *classes.shape)] = colour // 2
    return picture


def swatch(number: int, size: int = 16) -> np.ndarray:
    """(size, size, 3): a sample of a class's colour."""
    return paint(np.full((size, size), number))


def paint_mistakes(kinds: np.ndarray, ground: np.ndarray) -> np.ndarray:
    """``ground`` (H, W, 3) with the mistakes of a map (H, W): 0 none, then in the order of MISTAKES."""
    picture = ground.copy()
    for number, (colour, over) in enumerate(MISTAKES.values(), 1):
        own = kinds == number
        picture[own] = rgb(colour)
        stripes = own & pattern(over, *kinds.shape)
        picture[stripes] = (picture[stripes] + 2 * np.array([255, 255, 255])) // 3
    return picture


def mistake_swatch(name: str, size: int = 16) -> np.ndarray:
    """(size, size, 3): a sample of a kind of mistake."""
    kind = list(MISTAKES).index(name) + 1
    return paint_mistakes(np.full((size, size), kind), np.full((size, size, 3), 255, np.uint8))
