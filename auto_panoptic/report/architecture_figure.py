"""An architecture layer by layer, of any network (supplement, Figure 1); several below one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..space import Architecture, OpSpec
from .drawing import Drawing, text_width
from .layout import lanes_of, site_rows, stages_of
from .palette import CATEGORIES, ON_CATEGORY

_BOX, _WIDE, _GAP, _STAGE_GAP = 21.0, 56.0, 3.0, 15.0  # units; a box grows up to _WIDE where there is room
_LINE = 62.0  # from line to line of a lane
_MARGIN, _BETWEEN = 12.0, 22.0  # within a lane, between lanes


def architecture_figure(drawn: Sequence[tuple[str, Architecture, Mapping | None]], width: float) -> Drawing:
    """Architectures below one another.

    A box is a site, its colour the kind of the operator, its number the kernel size or the reduction ratio;
    larger kernels make taller boxes. A bar under a box marks a site at which an architecture differs from
    the first one.

    Args:
        drawn: for each its title, the architecture, and the config of its search, if known.
        width: of the drawing.
    """
    d = Drawing(width, 0, "architecture: " + "; ".join(title for title, _, _ in drawn))
    colours = kind_colours([architecture for _, architecture, _ in drawn])
    y = _legend(d, [architecture for _, architecture, _ in drawn], colours, width) + 12
    first = drawn[0][1].names()
    for title, architecture, config in drawn:
        if len(drawn) > 1:
            names = architecture.names()
            other = {site for site, name in names.items() if first.get(site, name) != name}
            note = f": differs at {len(other)} of {len(names)} sites" if other else ""
            if names.keys() != first.keys():
                note, other = ": of another search space", set()
            d.text(4, y + 16, title + note, 14, bold=True)
            y += 26
        else:
            other = set()
        y = _network(d, architecture, config, colours, other, width, y) + (26 if len(drawn) > 1 else 0)
    d.height = y + 4
    return d


def kind_colours(architectures: Sequence[Architecture]) -> dict[str, str]:
    """{kind of operator: colour}, in the order in which the spaces have the kinds."""
    kinds = dict.fromkeys(op.kind for a in architectures for site in a.space.sites for op in site.ops)
    return {kind: CATEGORIES[i % len(CATEGORIES)] for i, kind in enumerate(kinds)}


def label(op: OpSpec) -> str:
    """What stands in an operator's box."""
    return str(op.kernel) if op.kernel else f"r{op.ratio}" if op.ratio else op.name[:3]


def _legend(d: Drawing, architectures, colours: Mapping[str, str], width: float) -> float:
    used = {architecture[site].kind for architecture in architectures for site in architecture.names()}
    x, y = 4.0, 16.0
    entries = [(kind, colour) for kind, colour in colours.items() if kind in used]
    for name, colour in [*entries, ("number: kernel size, or reduction ratio r", "")]:
        need = (20 if colour else 0) + text_width(name, 12)
        if x > 4 and x + need > width:
            x, y = 4.0, y + 20
        if colour:
            d.rect(x, y - 11, 14, 14, colour, radius=2)
        d.text(x + (20 if colour else 0), y, name, 12, "ink" if colour else "muted")
        x += need + 18
    return y


def _network(d: Drawing, architecture, config, colours, other, width: float, top: float) -> float:
    """All rows of one network; where they end."""
    y, previous = top, None
    for row in lanes_of(architecture, config):
        lanes = [[lane] for lane in row] if width < 500 else [row]
        for i, part in enumerate(lanes):  # of lanes beside one another, the first alone follows what is above
            follows = not part[0].get("apart") and (i == 0 or part[0].get("follows"))
            if previous is not None and follows:
                d.arrow((width / 2, previous + 2), (width / 2, y - 2))
            previous = _row(d, part, architecture, config, colours, other, width, y)
            y = previous + 18
    return previous if previous is not None else top


def _row(d: Drawing, lanes, architecture, config, colours, other, width: float, top: float) -> float:
    """One row: its lanes share the width by what they need; where it ends."""
    rows = site_rows(architecture)
    needs = [_need(lane, rows, config) for lane in lanes]
    room = width - _BETWEEN * (len(lanes) - 1)
    spare = (room - sum(needs)) / len(lanes)
    widths = [need + spare if spare > 0 else need * room / sum(needs) for need in needs]
    lines = [
        _lines(stages_of(lane, len(rows[lane["sites"]]), config), w - 2 * _MARGIN) if "sites" in lane else []
        for lane, w in zip(lanes, widths, strict=True)
    ]
    height = max(34 + _LINE * len(line) if line else 34 for line in lines)
    x = 0.0
    for lane, w, line in zip(lanes, widths, lines, strict=True):
        d.rect(x + 0.5, top + 0.5, w - 1, height - 1, "panel", "grid", 1, 6)
        if lane.get("follows") and x:
            d.arrow((x - _BETWEEN + 3, top + height / 2), (x - 3, top + height / 2))
        if "box" in lane:
            size = min(12.5, 12.5 * (w - 16) / text_width(lane["box"], 12.5))
            d.text(x + w / 2, top + height / 2 + 4.5, lane["box"], size, "ink", "middle")
        else:
            name = lane["name"]
            size = min(12.5, 12.5 * (w - 2 * _MARGIN) / text_width(name, 12.5, True))
            d.text(x + _MARGIN, top + 20, name, size, bold=True)
            sites = [(site, architecture[site]) for site in rows[lane["sites"]]]
            most = max(sum(part) for part in line), max(len(part) for part in line)
            box = (w - 2 * _MARGIN - (most[1] - 1) * _STAGE_GAP + _GAP) / most[0] - _GAP
            place = x + _MARGIN, top + 30, min(max(box, _BOX), _WIDE)
            _boxes(d, lane, sites, line, colours, other, place)
        x += w + _BETWEEN
    return top + height


def _need(lane, rows, config) -> float:
    """The width that a lane would like: all its boxes in one line."""
    if "box" in lane:
        return text_width(lane["box"], 12.5) + 2 * _MARGIN
    stages = stages_of(lane, len(rows[lane["sites"]]), config)
    boxes = sum(stages) * (_BOX + _GAP) + (len(stages) - 1) * _STAGE_GAP
    return max(boxes, text_width(lane["name"], 12.5, True) + 4) + 2 * _MARGIN


def _lines(stages: Sequence[int], width: float) -> list[list[int]]:
    """How many boxes of each stage stand in each line; a stage goes on in the next line where it must."""
    lines, room = [[]], width
    for i, count in enumerate(stages):
        if i and lines[-1]:
            room -= _STAGE_GAP
        left = count
        while left:
            fit = min(left, int((room + _GAP) // (_BOX + _GAP)))
            whole = lines[-1] and fit < left and left * (_BOX + _GAP) <= width
            if fit < 1 or whole:
                lines.append([])
                room = width
                continue
            lines[-1].append(fit)
            left -= fit
            room -= fit * (_BOX + _GAP)
    return lines


def _boxes(d: Drawing, lane, sites, lines, colours, other, place) -> None:
    """The sites of a lane in lines of stages, joined in the order of the network unless they are parallel."""
    left, y, box = place
    sites = iter(enumerate(sites))
    for line in lines:
        middle, x = y + _LINE / 2 - 6, left
        length = sum(line) * (box + _GAP) - _GAP + (len(line) - 1) * _STAGE_GAP
        if not lane.get("parallel") and sum(line) > 1:
            d.line([(left + 2, middle), (left + length - 2, middle)], "muted", 1.4)
        for count in line:
            for _ in range(count):
                number, (site, op) = next(sites)
                _box(d, site, op, number, colours, site in other, (x, middle, box))
                x += box + _GAP
            x += _STAGE_GAP
        y += _LINE


def _box(d: Drawing, site: str, op: OpSpec, number: int, colours, differs: bool, place) -> None:
    x, middle, width = place
    height = min(22 + 4.0 * max(op.kernel - 3, 0), 42) if op.kernel else 26
    colour = colours[op.kind]
    d.rect(x, middle - height / 2, width, height, colour, radius=3, tip=f"{site}: {op.name}")
    size = min(11.5, (width - 4) / text_width(label(op), 1, True))
    d.text(x + width / 2, middle + size * 0.36, label(op), size, ON_CATEGORY[colour], "middle", True)
    name = f"{number} {op.kind}"
    d.text(
        x + width / 2, middle + 32, name if text_width(name, 8.5) <= width else number, 8.5, "muted", "middle"
    )
    if differs:
        d.rect(x, middle + 34.5, width, 2.5, "ink")
