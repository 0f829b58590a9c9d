"""A drawing of few primitives, written as SVG for a page, as an SVG file, and as PNG."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from html import escape

from PIL import Image, ImageDraw

from ..pictures.drawing import font
from .palette import LIGHT

PNG_SCALE = 2  # pixels of a PNG per unit of a drawing
_SMOOTH = 2  # drawn so much larger still, then reduced
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', Arial, sans-serif"
SHAPES = ("circle", "square", "diamond", "triangle")
_ANCHORS = {"start": "l", "middle": "m", "end": "r"}


class Drawing:
    """Rectangles, lines, marks and texts on a page of ``width`` x ``height`` units, y downwards.

    Colours are names of the palette. ``tip`` is what a reader sees who points at a shape.

    Args:
        width, height: size in units; ``height`` may be set later.
        title: what the drawing shows, for those who cannot see it.
    """

    def __init__(self, width: float, height: float, title: str):
        self.width, self.height, self.title = width, height, title
        self._items: list[tuple] = []

    def rect(self, x, y, w, h, fill="", stroke="", thick=1.0, radius=0.0, tip="") -> None:
        """A rectangle with its upper left corner at (x, y)."""
        self._items.append(("rect", (x, y, w, h), fill, stroke, thick, radius, tip))

    def line(self, points: Sequence[tuple[float, float]], stroke="ink", thick=1.0, dash=False) -> None:
        """A line through points."""
        self._items.append(("line", tuple(points), stroke, thick, dash))

    def mark(self, shape: str, x, y, size, fill="", stroke="", thick=1.5, tip="") -> None:
        """One of :data:`SHAPES` around (x, y), about ``size`` from its centre to its rim."""
        self._items.append(("mark", shape, (x, y), size, fill, stroke, thick, tip))

    def text(self, x, y, content, size=12.0, fill="ink", anchor="start", bold=False) -> None:
        """A line of text whose baseline begins, is centred or ends (``anchor``) at (x, y)."""
        self._items.append(("text", (x, y), str(content), size, fill, anchor, bold))

    def arrow(self, start: tuple[float, float], end: tuple[float, float], stroke="muted") -> None:
        """A straight line with a head at its end."""
        self.line([start, end], stroke, 1.4)
        angle = math.atan2(end[1] - start[1], end[0] - start[0])
        for side in (2.6, -2.6):
            x, y = end[0] + 6 * math.cos(angle + side), end[1] + 6 * math.sin(angle + side)
            self.line([(x, y), end], stroke, 1.4)

    def svg(self, inline: bool = False) -> str:
        """As SVG: ``inline`` with the page's classes and tips, else a file with the light colours."""
        size = f'viewBox="0 0 {_n(self.width)} {_n(self.height)}"'
        if inline:
            head = f'<svg {size} role="img" aria-label="{escape(self.title)}">'
        else:
            head = (
                f'<svg xmlns="http://www.w3.org/2000/svg" {size} width="{_n(self.width)}" '
                f'height="{_n(self.height)}" font-family="{FONT}"><title>{escape(self.title)}</title>'
                f'<rect width="100%" height="100%" fill="{LIGHT["page"]}"/>'
            )
        return head + "".join(_svg_item(item, inline) for item in self._items) + "</svg>\n"

    def png(self) -> bytes:
        """As PNG in the light colours, :data:`PNG_SCALE` pixels per unit."""
        scale = PNG_SCALE * _SMOOTH
        size = (math.ceil(self.width) * scale, math.ceil(self.height) * scale)
        image = Image.new("RGB", size, LIGHT["page"])
        pen = ImageDraw.Draw(image)
        for item in self._items:
            _png_item(pen, item, scale)
        stream = io.BytesIO()
        image.reduce(_SMOOTH).save(stream, "PNG", compress_level=3, dpi=(192, 192))
        return stream.getvalue()


def text_width(content: str, size: float, bold: bool = False) -> float:
    """Width of a text in units."""
    return font(20, bold).getlength(content) * size / 20


def polygon(shape: str, x: float, y: float, size: float) -> list[tuple[float, float]]:
    """Corners of a mark that is no circle."""
    unit = {
        "square": ((-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)),
        "diamond": ((0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)),
        "triangle": ((0, -1.2), (1.1, 0.8), (-1.1, 0.8)),
    }[shape]
    return [(x + size * dx, y + size * dy) for dx, dy in unit]


# ------------------------------------------------------------------ SVG


def _n(value: float) -> str:
    """A coordinate, to a tenth of a unit."""
    return f"{value:.1f}".removesuffix(".0")


def _paint(fill: str, stroke: str, thick: float, inline: bool) -> str:
    if inline:
        names = " ".join([f"f-{fill}" if fill else "f-none", *([f"s-{stroke}"] if stroke else [])])
        return f' class="{names}"' + (f' stroke-width="{_n(thick)}"' if stroke and thick != 1 else "")
    text = f' fill="{LIGHT[fill] if fill else "none"}"'
    return text + (f' stroke="{LIGHT[stroke]}" stroke-width="{_n(thick)}"' if stroke else "")


def _closed(tag: str, tip: str, inline: bool) -> str:
    """An element, ended; with its tip inside."""
    name = tag[1:].partition(" ")[0]
    return f"{tag}><title>{escape(tip)}</title></{name}>" if tip and inline else f"{tag}/>"


def _svg_item(item: tuple, inline: bool) -> str:
    kind = item[0]
    if kind == "rect":
        _, (x, y, w, h), fill, stroke, thick, radius, tip = item
        tag = f'<rect x="{_n(x)}" y="{_n(y)}" width="{_n(w)}" height="{_n(h)}"'
        tag += f' rx="{_n(radius)}"' if radius else ""
        return _closed(tag + _paint(fill, stroke, thick, inline), tip, inline)
    if kind == "line":
        _, points, stroke, thick, dash = item
        path = " ".join(f"{_n(x)},{_n(y)}" for x, y in points)
        dashes = ' stroke-dasharray="4 3"' if dash else ""
        return f'<polyline points="{path}"{_paint("", stroke, thick, inline)}{dashes}/>'
    if kind == "mark":
        _, shape, (x, y), size, fill, stroke, thick, tip = item
        if shape == "circle":
            tag = f'<circle cx="{_n(x)}" cy="{_n(y)}" r="{_n(size)}"'
        else:
            corners = " ".join(f"{_n(a)},{_n(b)}" for a, b in polygon(shape, x, y, size))
            tag = f'<polygon points="{corners}"'
        return _closed(tag + _paint(fill, stroke, thick, inline), tip, inline)
    _, (x, y), content, size, fill, anchor, bold = item
    where = f'x="{_n(x)}" y="{_n(y)}" font-size="{_n(size)}"'
    where += f' text-anchor="{anchor}"' if anchor != "start" else ""
    where += ' font-weight="600"' if bold else ""
    return f"<text {where}{_paint(fill, '', 1, inline)}>{escape(content)}</text>"


# ------------------------------------------------------------------ PNG


def _png_item(pen: ImageDraw.ImageDraw, item: tuple, scale: int) -> None:
    kind = item[0]
    if kind == "rect":
        _, (x, y, w, h), fill, stroke, thick, radius, _ = item
        box = [x * scale, y * scale, (x + w) * scale - 1, (y + h) * scale - 1]
        if box[2] < box[0] or box[3] < box[1]:
            return
        options = {"fill": LIGHT.get(fill), "outline": LIGHT.get(stroke), "width": round(thick * scale)}
        pen.rounded_rectangle(box, radius * scale, **(options if stroke else options | {"width": 0}))
    elif kind == "line":
        _, points, stroke, thick, dash = item
        for run in _dashes(points) if dash else [points]:
            pen.line(
                [(x * scale, y * scale) for x, y in run], LIGHT[stroke], max(round(thick * scale), 1), "curve"
            )
    elif kind == "mark":
        _, shape, (x, y), size, fill, stroke, thick, _ = item
        options = {"fill": LIGHT.get(fill), "outline": LIGHT.get(stroke)}
        options["width"] = round(thick * scale) if stroke else 0
        if shape == "circle":
            pen.ellipse(
                [(x - size) * scale, (y - size) * scale, (x + size) * scale, (y + size) * scale], **options
            )
        else:
            pen.polygon([(a * scale, b * scale) for a, b in polygon(shape, x, y, size)], **options)
    else:
        _, (x, y), content, size, fill, anchor, bold = item
        shape = font(round(size * scale), bold)
        pen.text((x * scale, y * scale), content, LIGHT[fill], shape, _ANCHORS[anchor] + "s")


def _dashes(points: Sequence[tuple[float, float]], on=4.0, off=3.0) -> list[list[tuple[float, float]]]:
    """The dashes of a line."""
    found = []
    for (x0, y0), (x1, y1) in zip(points, points[1:], strict=False):
        length = math.hypot(x1 - x0, y1 - y0)
        start = 0.0
        while start < length:
            ends = [min(s, length) / length for s in (start, start + on)]
            found.append([(x0 + s * (x1 - x0), y0 + s * (y1 - y0)) for s in ends])
            start += on + off
    return found
