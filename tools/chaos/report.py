"""What a drill is given, and what it reports."""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm


@dataclass(frozen=True)
class Plan:
    """Args:
    folder: where a drill leaves its files.
    seed: of everything random in a drill.
    quick: small numbers.
    weights, config_file: supernet of the drill ``real``.
    bars: show progress.
    """

    folder: Path
    seed: int = 0
    quick: bool = False
    weights: str | None = None
    config_file: str | None = None
    bars: bool = True

    def number(self, full: int, quick: int) -> int:
        return quick if self.quick else full

    def rng(self) -> random.Random:
        return random.Random(f"{self.seed} {self.folder.name}")

    def bar(self, total: int, what: str) -> tqdm:
        return tqdm(total=total, desc=what, file=sys.stderr, mininterval=0.5, disable=not self.bars)


@dataclass
class Outcome:
    """``count`` trials of which ``failures`` failed, a line each; ``numbers`` measured on the way."""

    done: str
    count: int = 0
    failures: list[str] = field(default_factory=list)
    numbers: dict = field(default_factory=dict)
    seconds: float = 0.0

    def expect(self, truth: object, failure: str) -> None:
        """Count a failure unless ``truth``."""
        if not truth:
            self.failures.append(failure)

    @property
    def passed(self) -> bool:
        return not self.failures and self.count > 0


def table(outcomes: dict[str, Outcome], faults: Mapping[str, str] = {}, shown: int = 3) -> str:  # noqa: B006
    """One line per drill and, below, the first failures of each; ``faults`` are those of the drills."""
    head = ("drill", "faults", "what was done", "count", "failures", "seconds", "numbers")
    rows = [head]
    for name, o in outcomes.items():
        numbers = ", ".join(f"{key} {value}" for key, value in o.numbers.items())
        counts = (str(o.count), str(len(o.failures)), f"{o.seconds:.1f}")
        rows.append((name, faults.get(name, ""), o.done, *counts, numbers))
    widths = [max(len(row[column]) for row in rows) for column in range(len(head) - 1)]
    aligned = "<<<>>>"
    lines = [
        "  ".join([*(f"{v:{a}{w}}" for v, a, w in zip(row, aligned, widths, strict=False)), row[-1]]).rstrip()
        for row in rows
    ]
    for name, o in outcomes.items():
        lines += [f"{name}: {failure}" for failure in o.failures[:shown]]
        if len(o.failures) > shown:
            lines.append(f"{name}: and {len(o.failures) - shown} more")
        if not o.count:
            lines.append(f"{name}: nothing was tried")
    return "\n".join(lines)
