"""Colours by name, for light and dark pages.

Categories are those of Okabe and Ito (Color Universal Design, 2008), lightened for dark pages: people with
protan, deutan and tritan vision tell them apart, and so do print and projectors. They never stand alone: a
label, a shape or a position says the same. The steps ``q0`` .. ``q8`` go from the background to full blue in
even steps of lightness, so that they keep their order in grey, too; ``on0`` .. ``on8`` is text on them.
"""

from __future__ import annotations

STEPS = 9  # of the sequential scale

LIGHT = {
    "page": "#ffffff",
    "panel": "#f6f8fa",
    "ink": "#1b1f24",
    "muted": "#57606a",
    "grid": "#d5dbe1",
    "blue": "#0072b2",
    "vermillion": "#d55e00",
    "green": "#009e73",
    "purple": "#cc79a7",
    "orange": "#e69f00",
    "sky": "#56b4e9",
    "grey": "#8c959f",
}
DARK = {
    "page": "#12161b",
    "panel": "#1b2027",
    "ink": "#e8ebee",
    "muted": "#a3adb8",
    "grid": "#38414b",
    "blue": "#4aa8e0",
    "vermillion": "#f0803c",
    "green": "#2bbd93",
    "purple": "#e08fbd",
    "orange": "#f0b232",
    "sky": "#8accf5",
    "grey": "#8c959f",
}
CATEGORIES = ("blue", "vermillion", "green", "purple", "orange", "sky", "grey")
# Text on a category: the darker ones take white on a light page.
ON_CATEGORY = dict.fromkeys(CATEGORIES, "black") | {"blue": "onblue"}
for _colours, _on_blue in ((LIGHT, "#ffffff"), (DARK, "#0b0e12")):
    _colours |= {"black": "#0b0e12", "onblue": _on_blue}


def _mix(first: str, second: str, share: float) -> str:
    """``share`` of ``second`` in ``first``, both #rrggbb."""
    pairs = [(int(first[i : i + 2], 16), int(second[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(a + share * (b - a)):02x}" for a, b in pairs)


def _luminance(colour: str) -> float:
    """Of WCAG, 0 to 1; from 0.179 on, black has more contrast than white."""
    values = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    values = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
    return sum(w * v for w, v in zip((0.2126, 0.7152, 0.0722), values, strict=True))


for _colours, _ends in ((LIGHT, ("#eef4fa", "#0b4a86")), (DARK, ("#1d2630", "#9ad4fb"))):
    for _i in range(STEPS):
        _share = _i / (STEPS - 1)
        _colours[f"q{_i}"] = _mix(*_ends, _share)
        _colours[f"on{_i}"] = "#ffffff" if _luminance(_colours[f"q{_i}"]) < 0.179 else "#000000"


def step(value: float, low: float, high: float) -> int:
    """The step of the scale for a value between ``low`` and ``high``; the middle one where they are equal."""
    if high <= low:
        return STEPS // 2
    return min(max(int((value - low) / (high - low) * STEPS), 0), STEPS - 1)


def css() -> str:
    """Custom properties and the classes ``f-NAME`` (fill) and ``s-NAME`` (stroke) of every colour."""
    light, dark = (";".join(f"--{k}:{v}" for k, v in colours.items()) for colours in (LIGHT, DARK))
    classes = "".join(f".f-{k}{{fill:var(--{k})}}.s-{k}{{stroke:var(--{k})}}" for k in LIGHT)
    return f":root{{{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}{classes}"
