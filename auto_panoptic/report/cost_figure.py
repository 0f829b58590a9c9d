"""Fitness against multiply-adds and parameters, with the front of the candidates and the selection."""

from __future__ import annotations

from collections.abc import Sequence

from .axes import Axes, amount, padded
from .candidates_figure import describe, has_tips
from .drawing import Drawing
from .facts import Candidate, Search

PANELS = (("multiply-adds", 0), ("parameters", 1))


def cost_figure(search: Search, width: float) -> Drawing | None:
    """A panel for each cost, beside or below one another; None where the search counted no costs."""
    good = [c for c in search.good if c.cost]
    if not good:
        return None
    small = width < 500
    d = Drawing(width, 0, f"{search.fitness} of the candidates against their costs")
    _legend(d, search, small)
    top, wide = (84 if small else 62), (width if small else (width - 24) / 2)
    height = 210 if small else 290
    for number, (name, which) in enumerate(PANELS):
        left = 0 if small else number * (wide + 24)
        start = top + number * (height + 78) if small else top
        frame = (left + 46, start, left + wide - 22, start + height)
        _panel(d, search, good, which, f"{name} of the network", frame, 11 if small else 12)
    d.height = top + (2 * height + 78 if small else height) + 44
    return d


def front(candidates: Sequence[Candidate], which: int) -> list[Candidate]:
    """The candidates that none of at most their cost surpasses, ascending in cost and fitness."""
    found: list[Candidate] = []
    for c in sorted(candidates, key=lambda c: (c.cost[which], -c.fitness)):
        if not found or c.fitness > found[-1].fitness:
            found.append(c)
    return found


def _panel(d: Drawing, search: Search, good, which: int, name: str, frame, size: float) -> None:
    selected, candidate = search.selected_cost, search.selected_candidate
    costs = [c.cost[which] for c in good] + ([selected[which]] if selected else [])
    axes = Axes(*frame, padded(costs), padded([c.fitness for c in good]))
    axes.draw(d, name, f"{search.fitness} in the supernet", amount, size)
    if selected and candidate is None:
        x = axes.x(selected[which])
        d.line([(x, axes.top), (x, axes.bottom)], "vermillion", 2, dash=True)
    tips = has_tips(len(good), d.width)
    for c in good:
        tip = describe(c, search) if tips else ""
        d.mark(
            "circle",
            axes.x(c.cost[which]),
            axes.y(c.fitness),
            4.5 if len(good) <= 150 else 2.2,
            "blue",
            tip=tip,
        )
    best = front(good, which)
    line = [(axes.x(best[0].cost[which]), axes.y(best[0].fitness))]
    for c in best[1:]:
        line += [(axes.x(c.cost[which]), line[-1][1]), (axes.x(c.cost[which]), axes.y(c.fitness))]
    line.append((axes.right, line[-1][1]))
    d.line(line, "ink", 1.6)
    if candidate is not None and candidate.cost:
        place = axes.x(candidate.cost[which]), axes.y(candidate.fitness)
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
