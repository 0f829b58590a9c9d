"""Axes: even ticks, and from values to places on a drawing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .drawing import Drawing


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """At most ``most`` + 1 even numbers that lie within ``low`` .. ``high``."""
    if high <= low:
        return [low]
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def padded(values: Sequence[float], share: float = 0.06) -> tuple[float, float]:
    """Range of some values with room around; of equal ones, some range around them."""
    low, high = min(values), max(values)
    room = (high - low) * share or abs(high) * 0.05 or 1.0
    return low - room, high + room


def amount(value: float) -> str:
    """A count in few letters: 647335168 is 647 M."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size * 0.9995:
            return f"{value / size:.3g} {letter}"
    return f"{value:.3g}"


@dataclass(frozen=True)
class Axes:
    """A frame with the corners (left, top) and (right, bottom) in units, and the values at its sides."""

    left: float
    top: float
    right: float
    bottom: float
    xs: tuple[float, float]
    ys: tuple[float, float]

    def x(self, value: float) -> float:
        low, high = self.xs
        return self.left + (value - low) / (high - low) * (self.right - self.left)

    def y(self, value: float) -> float:
        low, high = self.ys
        return self.bottom - (value - low) / (high - low) * (self.bottom - self.top)

    def draw(self, d: Drawing, x_name: str, y_name: str, x_text=amount, size: float = 12) -> None:
        """Grid, ticks and names."""
        for value in ticks(*self.ys):
            d.line([(self.left, self.y(value)), (self.right, self.y(value))], "grid")
            d.text(self.left - 7, self.y(value) + size * 0.35, f"{value:g}", size, "muted", "end")
        d.line([(self.left, self.bottom), (self.right, self.bottom)], "muted")
        for value in ticks(*self.xs, most=max(int((self.right - self.left) / 90), 3)):
            d.line([(self.x(value), self.bottom), (self.x(value), self.bottom + 4)], "muted")
            d.text(self.x(value), self.bottom + 6 + size, x_text(value), size, "muted", "middle")
        d.text(self.right, self.bottom + 10 + 2.2 * size, x_name, size, "ink", "end")
        d.text(self.left - 7, self.top - 9, y_name, size, "ink")
