"""The candidates in the order of their evaluation, and the best so far (paper, Figure 2b)."""

from __future__ import annotations

import itertools

from .axes import Axes, amount, padded
from .drawing import SHAPES, Drawing, text_width
from .facts import Candidate, Run, Search

COLOURS = ("blue", "vermillion", "green", "purple", "orange", "sky")
MOST_TIPS = 2000  # points beyond which a figure is drawn without tips
MOST_TIPS_NARROW = 300  # where more of them are too small to be touched


def candidates_figure(search: Search, width: float) -> Drawing:
    """Fitness against the number of the evaluation; a mark for each candidate, a step line for the best."""
    runs = [search, *search.others]
    small = width < 500
    d = Drawing(width, 0, f"{search.fitness} of the candidates in the order of their evaluation")
    top = _legend(d, [run_name(run, search) for run in runs], width) + 34
    values = [c.fitness for run in runs for c in run.good]
    if not values:
        return _nothing(d, top)
    last = max(len(run.candidates) for run in runs)
    bottom = top + (230 if small else 330)
    axes = Axes(46, top, width - 20, bottom, (0, max(last, 2) + 0.5), padded(values))
    name = "evaluation" if small else "number of the evaluation, in the order of the ledger"
    axes.draw(d, name, f"{search.fitness} in the supernet", lambda value: f"{value:g}", 11 if small else 12)
    tips = has_tips(len(values), width)
    size = 4.5 if last <= 150 else 2.2
    for i, run in enumerate(runs):
        for number, c in enumerate(run.candidates, start=1):
            if c.fitness is not None:
                place = axes.x(number), axes.y(c.fitness)
                d.mark(shape_of(i), *place, size, colour_of(i), tip=describe(c, run) if tips else "")
    for i, run in enumerate(runs):
        steps = best_so_far(run)
        line = [(axes.x(n), axes.y(v)) for n, v in steps]
        flat = [(b[0], a[1]) for a, b in itertools.pairwise(line)]
        points = [p for pair in itertools.zip_longest(line, flat) for p in pair if p is not None]
        points.append((axes.x(len(run.candidates)), points[-1][1]))
        d.line(points, "page", 3.6)
        d.line(points, colour_of(i), 2.2)
    d.height = bottom + 42
    return d


def best_so_far(run: Run) -> list[tuple[int, float]]:
    """(number of the evaluation from 1, fitness) wherever a candidate is better than all before it."""
    found: list[tuple[int, float]] = []
    for number, c in enumerate(run.candidates, start=1):
        if c.fitness is not None and (not found or c.fitness > found[-1][1]):
            found.append((number, c.fitness))
    return found


def run_name(run: Run, search: Search) -> str:
    """Policy and number of candidates; of other runs, their folder, too."""
    name = f"{run.policy}, {len(run.candidates)} candidates"
    return name if run is search else f"{name} ({run.path.parent.parent.name or run.path.parent})"


def colour_of(i: int) -> str:
    return COLOURS[i % len(COLOURS)]


def shape_of(i: int) -> str:
    return SHAPES[i % len(SHAPES)]


def has_tips(points: int, width: float) -> bool:
    """Whether a figure says of every candidate which one it is."""
    return points <= (MOST_TIPS if width > 500 else MOST_TIPS_NARROW)


def describe(c: Candidate, run: Run) -> str:
    """A candidate in one line."""
    cost = f", {amount(c.cost[0])} MACs, {amount(c.cost[1])} parameters" if c.cost else ""
    return f"no. {c.record['seq']}: {run.fitness} {c.fitness:.2f}{cost}"


def _legend(d: Drawing, names: list[str], width: float) -> float:
    """The runs with their marks; where the legend ends."""
    x, y = 8.0, 16.0
    for i, name in enumerate(names):
        need = 26 + text_width(name, 12)
        if x > 8 and x + need > width:
            x, y = 8.0, y + 20
        d.mark(shape_of(i), x + 5, y - 4, 4.5, colour_of(i))
        d.text(x + 16, y, name, 12)
        x += need + 16
    if x > 8 and x + 130 > width:
        x, y = 8.0, y + 20
    d.line([(x, y - 4), (x + 22, y - 4)], "muted", 2.2)
    d.text(x + 28, y, "best so far", 12, "muted")
    return y


def _nothing(d: Drawing, top: float) -> Drawing:
    d.text(8, top + 10, "No candidate was evaluated.", 13, "muted")
    d.height = top + 30
    return d
