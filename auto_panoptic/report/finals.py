"""The finals of a search: what its best networks and random ones of equal cost came to when trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import UserError
from ..files import read_json
from ..search.finals_text import verdict_line
from ..space import Architecture
from .axes import Axes, amount, padded, ticks
from .drawing import Drawing
from .facts import Search

_ROW = 26


@dataclass(frozen=True)
class Network:
    """A row of finals.json.

    Attributes:
        name: what it is, of few words.
        role: "winner", "finalist" or "random".
        macs, params: of the whole network.
        trained: {"steps", "seed", fitness or None} of each training.
        scores: of its whole trainings.
    """

    name: str
    role: str
    macs: int
    params: int
    trained: Sequence[Mapping]
    scores: Sequence[float]


@dataclass(frozen=True)
class FinalsFacts:
    """What finals.json says.

    Attributes:
        winner: the architecture that became the answer.
        networks: the winner, the other finalists, the random ones.
        fitness: the metric.
        steps: of a whole training.
        start: what the trainings started from.
        sentence: how the winner compares; empty without random networks.
    """

    winner: Architecture
    networks: Sequence[Network]
    fitness: str
    steps: int
    start: str
    sentence: str

    @property
    def summary(self) -> str:
        """For the paragraph on what was found."""
        best = next(n for n in self.networks if n.role == "winner")
        known = f" {self.sentence}." if self.sentence else ""
        return (
            f"Trained {self.start} for {self.steps:,} steps, the best of its finalists is {best.name}.{known}"
        )


def read_finals(search: Search) -> FinalsFacts | None:
    """The finals of this selection; None where there are none, or those of another."""
    try:
        content = read_json(search.directory / "finals.json")
        first = Architecture.from_indices(search.space, content["finalists"][0]["architecture"])
        if first != search.selected:
            return None
        winner = Architecture.from_indices(search.space, content["winner"])
        start = f"from weights {content['start']}" if content["start"] else "from scratch"
        fitness, steps, over = content["fitness"], content["steps"], content["over_random"]
        rows = [(row, "finalist") for row in content["finalists"]]
        rows += [(row, "random") for row in content["controls"]]
        networks = [_network(row, role, content["winner"], fitness, steps) for row, role in rows]
        sentence = verdict_line(fitness, over["mean"], over["low"], over["high"]) if over else ""
    except (UserError, KeyError, TypeError, IndexError):
        return None
    networks.sort(key=lambda n: ("winner", "finalist", "random").index(n.role))
    return FinalsFacts(winner, networks, fitness, steps, start, sentence)


def _network(row: Mapping, role: str, winner: object, fitness: str, steps: int) -> Network:
    scores = [t[fitness] for t in row["trained"] if t["steps"] == steps and t[fitness] is not None]
    role = "winner" if row["architecture"] == winner else role
    return Network(", ".join(row["roles"]), role, row["macs"], row["params"], row["trained"], scores)


def finals_figure(search: Search, width: float) -> Drawing | None:
    """A row for each network that was trained whole, a mark for each of those trainings."""
    facts = read_finals(search)
    networks = [n for n in facts.networks if n.scores] if facts else []
    if not networks:
        return None
    small = width < 500
    left, size = (8 if small else 300), (11 if small else 12)
    step = _ROW + 16 if small else _ROW
    d = Drawing(width, 0, f"{facts.fitness} of the trained finalists and of random networks of equal cost")
    scores = [score for n in networks for score in n.scores]
    top, bottom = 14, 14 + step * len(networks)
    axes = Axes(left, top, width - 20, bottom, padded(scores, 0.1), (0, 1))
    for value in _grid(axes):
        d.line([(axes.x(value), top), (axes.x(value), bottom)], "grid")
    for number, n in enumerate(networks):
        y = top + step * (number + 1) - _ROW / 2
        colour, shape = {
            "winner": ("vermillion", "diamond"),
            "finalist": ("blue", "circle"),
            "random": ("muted", "square"),
        }[n.role]
        label = f"{'found: ' * (n.role == 'winner')}{n.name}"
        if small:
            d.text(left, y - 12, label, size)
        else:
            d.text(left - 12, y + 4, label, size, anchor="end")
        d.line([(axes.x(min(n.scores)), y), (axes.x(max(n.scores)), y)], colour, 2)
        for score in n.scores:
            tip = f"{n.name}: {facts.fitness} {score:.2f}, {amount(n.macs)} MACs"
            d.mark(shape, axes.x(score), y, 5, colour, tip=tip)
    d.line([(left, bottom), (width - 20, bottom)], "muted")
    for value in _grid(axes):
        d.text(axes.x(value), bottom + 6 + size, f"{value:g}", size, "muted", "middle")
    name = f"{facts.fitness} after {facts.steps:,} steps"
    d.text(width - 20, bottom + 10 + 2.2 * size, name, size, "ink", "end")
    d.height = bottom + 44
    return d


def _grid(axes: Axes) -> list[float]:
    return ticks(*axes.xs, most=max(int((axes.right - axes.left) / 90), 3))
