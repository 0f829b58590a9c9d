"""Every operator of every site by its score (paper, Figure 2a), and by how much the selected one leads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..space import ChoiceSite
from .axes import ticks
from .drawing import Drawing, text_width
from .facts import Search
from .palette import STEPS, step

ROW = 20.0  # units of a site
_HEAD = 44.0
_NARROW = 400.0  # units; columns below it have room for less


def score_map(search: Search, width: float) -> Drawing:
    """A row for each site, a cell for each of its operators; beside it the lead with its interval.

    The lead is that of the selected operator over the one of the others with the highest effect. Wide
    drawings have two columns of rows.
    """
    cells = cell_values(search)
    shown = [v for row in cells.values() for v in row.values() if v["shade"] is not None]
    d = Drawing(width, 0, "scores of the operators at every site")
    if not shown:
        d.text(8, 24, "No candidate was evaluated.", 13, "muted")
        d.height = 40
        return d
    shades = [v["shade"] for v in shown]
    scale = min(shades), max(shades)
    top = _legend(d, search, scale, width)
    leads = _lead_range(search)
    groups = rows_by_domain(search.space.sites)
    columns = _columns(groups, 2 if width > 700 else 1)
    each = (width - 28 * (len(columns) - 1)) / len(columns)
    ends = []
    for number, column in enumerate(columns):
        left, y = number * (each + 28), top
        labels = (_label(site, each) for sites in column for site in sites)
        name_width = min(max(text_width(label, 11) for label in labels) + 10, 104)
        most = max(len(sites[0].names) for sites in column)
        share = 0.9 if not leads else 0.56 if each >= _NARROW else 0.64
        cell = min((each - name_width) * share / max(most, 3), 48)
        widths = each, name_width, cell, cell * most
        for sites in column:
            y = _block(d, search, sites, cells, scale, leads, (left, y), widths) + 14
        ends.append(y)
    d.height = max(ends)
    return d


def cell_values(search: Search) -> dict[str, dict[str, dict]]:
    """{site: {operator: {"text", "shade", "tip"}}}; the shade is comparable between sites.

    The text is the score of the estimator that selected; without scores, the mean fitness. Points of a
    scoreboard add up over the candidates, so that their shade is by candidate.
    """
    scores = (search.selection or {}).get("scores")
    points = search.selection is None or search.selection["estimator"] == "ranks"
    found: dict[str, dict[str, dict]] = {}
    for site, rows in search.table.items():
        for row in rows:
            score = scores[site][row["op"]] if scores else row["score"]
            if score is None:
                shade, text = row["mean"], "" if row["mean"] is None else f"{row['mean']:.1f}"
            else:
                shade = score / row["count"] if points and row["count"] else None if points else score
                text = f"{score:.4g}" if points else f"{score:+.2f}"
            said = (
                f"{search.fitness} {row['mean']:.2f} on average"
                if row["mean"] is not None
                else "none evaluated"
            )
            said = f"{row['count']} candidates, {said}"
            tip = f"{site}, {row['op']}: " + (said if score is None else f"score {score:.6g}, {said}")
            found.setdefault(site, {})[row["op"]] = {"text": text, "shade": shade, "tip": tip}
    return found


def rows_by_domain(sites: Sequence[ChoiceSite]) -> list[list[ChoiceSite]]:
    """Runs of sites of one row of the network with the same operators."""
    groups: list[list[ChoiceSite]] = []
    for site in sites:
        last = groups[-1][-1] if groups else None
        same = last and last.names == site.names and _prefix(last) == _prefix(site)
        groups[-1].append(site) if same else groups.append([site])
    return groups


def _prefix(site: ChoiceSite) -> str:
    return site.name.rpartition(".")[0]


def _label(site: ChoiceSite, width: float) -> str:
    """The site's name, or what of it stands beside a row of a narrow column."""
    return site.name if width >= _NARROW else site.name.rpartition(".")[2]


def _columns(groups: list[list[ChoiceSite]], number: int) -> list[list[list[ChoiceSite]]]:
    """The groups in at most ``number`` columns of about the same height, in order."""
    heights = [_HEAD + 14 + ROW * len(group) for group in groups]
    cuts = range(1, len(groups)) if number > 1 else ()
    cut = min(cuts, key=lambda i: max(sum(heights[:i]), sum(heights[i:])), default=len(groups))
    return [part for part in (groups[:cut], groups[cut:]) if part]


def _lead_range(search: Search) -> tuple[float, float] | None:
    """Values that the axis of the leads covers, zero among them; None where there is no interval."""
    verdicts = (search.selection or {}).get("verdicts", {}).values()
    ends = [end for verdict in verdicts if verdict["interval"] for end in verdict["interval"]]
    return (min(*ends, 0.0), max(*ends, 0.0)) if ends else None


def _block(d: Drawing, search: Search, sites, cells, scale, leads, place, widths) -> float:
    """The rows of some sites with the same operators; where they end."""
    (left, top), (width, name_width, cell, cells_width) = place, widths
    names = sites[0].names
    start = left + name_width
    lead_left = start + cells_width + 16
    lead_right = left + width - (14 if width < _NARROW else 64)
    if width < _NARROW and _prefix(sites[0]):  # the rows have the numbers of the sites only
        d.text(left, top + 12, _prefix(sites[0]), 12, bold=True)
        top += 14
    for i, name in enumerate(names):
        for part, text in enumerate(short(name)):
            size = min(10, 10 * (cell - 2) / text_width(text, 10))
            d.text(start + (i + 0.5) * cell, top + 14 + 12 * part, text, size, "muted", "middle")
    y = top + _HEAD - 12
    if leads and any(len(site.ops) > 1 for site in sites):
        _lead_axis(d, search.fitness, leads, (lead_left, lead_right), y, y + ROW * len(sites))
    verdicts = (search.selection or {}).get("verdicts", {})
    for site in sites:
        d.text(left + name_width - 8, y + ROW * 0.68, _label(site, width), 11, "ink", "end")
        chosen = search.selected[site.name].name if search.selected else None
        for i, name in enumerate(names):
            _cell(d, cells[site.name][name], scale, (start + i * cell, y, cell), name == chosen)
        if leads:
            _lead(d, verdicts.get(site.name), site, leads, (lead_left, lead_right), y, width >= _NARROW)
        y += ROW
    return y


def _cell(d: Drawing, value: Mapping, scale, place, chosen: bool) -> None:
    x, y, width = place
    shade = value["shade"]
    q = None if shade is None else step(shade, *scale)
    d.rect(x + 1, y + 1, width - 2, ROW - 2, "panel" if q is None else f"q{q}", radius=2, tip=value["tip"])
    if chosen:
        d.rect(x + 1, y + 1, width - 2, ROW - 2, "", "vermillion", 2.4, 2)
    size = min(10.5, (width - 4) / max(text_width(value["text"], 1, chosen), 1))
    d.text(
        x + width / 2,
        y + ROW * 0.68,
        value["text"],
        size,
        "muted" if q is None else f"on{q}",
        "middle",
        chosen,
    )


def _lead_axis(d: Drawing, fitness: str, leads, sides, top: float, bottom: float) -> None:
    at = _place(leads, sides)
    values = ticks(*leads, most=5)
    for value in values:
        d.line(
            [(at(value), top), (at(value), bottom)], "ink" if value == 0 else "grid", 1.2 if value == 0 else 1
        )
        d.text(at(value), top - 4, f"{value:+g}" if value else "0", 9.5, "muted", "middle")
    d.text(sides[0], top - 17, f"lead, {fitness}", 9.5, "muted")


def _lead(d: Drawing, verdict: Mapping | None, site: ChoiceSite, leads, sides, y: float, words: bool) -> None:
    """The interval as a line; filled where the site is decided, hollow where it is not."""
    middle = y + ROW / 2
    if not verdict or verdict["interval"] is None:
        text = "nothing to choose" if len(site.ops) == 1 else "too few candidates"
        d.text(sides[0], y + ROW * 0.68, text, 9.5, "muted")
        return
    at, (low, high) = _place(leads, sides), verdict["interval"]
    colour = "vermillion" if verdict["decided"] else "muted"
    d.line([(at(low), middle), (at(high), middle)], colour, 2.2 if verdict["decided"] else 1.2)
    tip = f"{site.name}: {verdict['selected']} leads {verdict['rival']} by {verdict['difference']:+.2f} "
    tip += f"[{low:+.2f}, {high:+.2f}], {'decided' if verdict['decided'] else 'undecided'}"
    fill = colour if verdict["decided"] else "page"
    d.mark("circle", at(verdict["difference"]), middle, 4, fill, colour, 1.6, tip)
    if words and verdict["decided"]:
        d.text(sides[1] + 10, y + ROW * 0.68, "decided", 10, "vermillion", bold=True)


def _place(leads, sides):
    (low, high), (left, right) = leads, sides
    return lambda value: left + (value - low) / (high - low or 1) * (right - left)


def short(name: str) -> list[str]:
    """An operator's name in the lines of a narrow column."""
    head, _, tail = name.partition("_")
    return [part for part in (head, tail.replace("_", " ")) if part]


def _legend(d: Drawing, search: Search, scale, width: float) -> float:
    """What the colours and marks say; where it ends."""
    selection = search.selection
    if selection is None:
        name = f"mean {search.fitness} of the candidates that use it"
    elif selection["estimator"] == "ranks":
        name = "points per candidate that uses it (cells: sum)"
    else:
        name = f"effect on {search.fitness} by {selection['estimator']}"
    low, high = (f"{v:.2f}" if abs(v) < 10 else f"{v:.1f}" for v in scale)
    d.text(8, 16, low, 11, "muted")
    x = 12 + text_width(low, 11)
    for i in range(STEPS):
        d.rect(x + 4 + 13 * i, 6, 13, 12, f"q{i}")
    x += 10 + 13 * STEPS
    d.text(x, 16, high, 11, "muted")
    x += 10 + text_width(high, 11)
    x, y = (x, 16) if x + text_width(name, 11) < width else (8, 34)
    d.text(x, y, name, 11)
    x += text_width(name, 11) + 22
    marks = [("selected", "box")]
    if selection and _lead_range(search):
        marks += [("lead with 95 % interval: undecided", "open"), ("decided", "full")]
    for text, kind in marks:
        if x + 24 + text_width(text, 11) > width:
            x, y = 8, y + 18
        if kind == "box":
            d.rect(x, y - 10, 16, 12, "", "vermillion", 2.4, 2)
        else:
            colour = "muted" if kind == "open" else "vermillion"
            d.line([(x, y - 4), (x + 18, y - 4)], colour, 1.6)
            d.mark("circle", x + 9, y - 4, 4, "page" if kind == "open" else colour, colour, 1.6)
        d.text(x + 24, y, text, 11)
        x += 46 + text_width(text, 11)
    return y + 16
