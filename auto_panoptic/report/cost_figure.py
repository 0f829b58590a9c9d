"""Fitness against multiply-adds, parameters and time, with the front of the candidates and the selection."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from .axes import Axes, amount, padded
from .candidates_figure import describe, has_tips
from .drawing import Drawing
from .facts import Candidate, Search


class Measure(NamedTuple):
    """What a panel shows fitness against.

    Attributes:
        name: of the axis.
        of: its value for a candidate.
        selected: its value for the selected network, if that is known.
    """

    name: str
    of: Callable[[Candidate], float]
    selected: float | None


def measures(search: Search) -> list[Measure]:
    """Multiply-adds, parameters and, where operators were measured, milliseconds."""
    pair, table = search.selected_cost or (None, None), search.latency
    found = [
        Measure("multiply-adds of the network", lambda c: c.cost[0], pair[0]),
        Measure("parameters of the network", lambda c: c.cost[1], pair[1]),
    ]
    if table is not None:
        time = None if search.selected is None else table.nanoseconds(search.selected) / 1e6
        found.append(
            Measure("ms of an image, predicted", lambda c: table.nanoseconds(c.architecture) / 1e6, time)
        )
    return found


def cost_figure(search: Search, width: float) -> Drawing | None:
    """A panel for each cost, beside or below one another; None where the search counted no costs."""
    good = [c for c in search.good if c.cost]
    if not good:
        return None
    small = width < 500
    d = Drawing(width, 0, f"{search.fitness} of the candidates against their costs")
    _legend(d, search, small)
    panels = measures(search)
    gaps = len(panels) - 1
    top, wide = (84 if small else 62), (width if small else (width - 24 * gaps) / len(panels))
    height = 210 if small else 290
    for number, measure in enumerate(panels):
        left = 0 if small else number * (wide + 24)
        start = top + number * (height + 78) if small else top
        frame = (left + 46, start, left + wide - 22, start + height)
        _panel(d, search, good, measure, frame, 11 if small else 12)
    d.height = top + (height + gaps * (height + 78) if small else height) + 44
    return d


def front(candidates: Sequence[Candidate], of: Callable[[Candidate], float]) -> list[Candidate]:
    """The candidates that none of at most their cost surpasses, ascending in cost and fitness."""
    found: list[Candidate] = []
    for c in sorted(candidates, key=lambda c: (of(c), -c.fitness)):
        if not found or c.fitness > found[-1].fitness:
            found.append(c)
    return found


def _panel(d: Drawing, search: Search, good, measure: Measure, frame, size: float) -> None:
    name, of, selected = measure
    candidate = search.selected_candidate
    costs = [of(c) for c in good] + ([] if selected is None else [selected])
    axes = Axes(*frame, padded(costs), padded([c.fitness for c in good]))
    axes.draw(d, name, f"{search.fitness} in the supernet", amount, size)
    if selected is not None and candidate is None:
        x = axes.x(selected)
        d.line([(x, axes.top), (x, axes.bottom)], "vermillion", 2, dash=True)
    tips = has_tips(len(good), d.width)
    for c in good:
        tip = describe(c, search) if tips else ""
        d.mark(
            "circle",
            axes.x(of(c)),
            axes.y(c.fitness),
            4.5 if len(good) <= 150 else 2.2,
            "blue",
            tip=tip,
        )
    best = front(good, of)
    line = [(axes.x(of(best[0])), axes.y(best[0].fitness))]
    for c in best[1:]:
        line += [(axes.x(of(c)), line[-1][1]), (axes.x(of(c)), axes.y(c.fitness))]
    line.append((axes.right, line[-1][1]))
    d.line(line, "ink", 1.6)
    if candidate is not None and candidate.cost:
        place = axes.x(of(candidate)), axes.y(candidate.fitness)
        d.mark("diamond", *place, 6, "vermillion", "page", tip=f"selected: {describe(candidate, search)}")


def _legend(d: Drawing, search: Search, small: bool) -> None:
    d.mark("circle", 12, 12, 4, "blue")
    d.text(22, 16, "candidate", 12)
    d.line([(106, 12), (130, 12)], "ink", 1.6)
    d.text(136, 16, "best of the candidates up to a cost", 12)
    if search.selected_cost is None and search.selected_candidate is None:
        return
    x, y = (8, 38) if small else (390, 16)
    if search.selected_candidate is not None:
        d.mark("diamond", x + 5, y - 4, 6, "vermillion")
        d.text(x + 18, y, "selected, itself a candidate", 12)
    else:
        d.line([(x + 4, y - 14), (x + 4, y + 3)], "vermillion", 2, dash=True)
        d.text(x + 18, y, "cost of the selected network; it was not evaluated", 12)
