"""What a drill is given, and what it reports."""

from __future__ import annotations

import random
import sys
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
    """

    folder: Path
    seed: int = 0
    quick: bool = False
    weights: str | None = None
    config_file: str | None = None

    def number(self, full: int, quick: int) -> int:
        return quick if self.quick else full

    def rng(self) -> random.Random:
        return random.Random(f"{self.seed} {self.folder.name}")

    def bar(self, total: int, what: str) -> tqdm:
        return tqdm(total=total, desc=what, file=sys.stderr, mininterval=0.5)


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


def table(outcomes: dict[str, Outcome], shown: int = 3) -> str:
    """One line per drill and, below, the first failures of each."""
    width = max(map(len, ["drill", *outcomes]))
    wide = max(map(len, ["what was done", *(o.done for o in outcomes.values())]))
    lines = [f"{'drill':<{width}}  {'what was done':<{wide}}  {'count':>6}  {'failures':>8}  {'seconds':>8}"]
    for name, o in outcomes.items():
        lines.append(
            f"{name:<{width}}  {o.done:<{wide}}  {o.count:>6}  {len(o.failures):>8}  {o.seconds:>8.1f}"
        )
    for name, o in outcomes.items():
        lines += [f"{name}: {failure}" for failure in o.failures[:shown]]
        if len(o.failures) > shown:
            lines.append(f"{name}: and {len(o.failures) - shown} more")
        if not o.count:
            lines.append(f"{name}: nothing was tried")
    return "\n".join(lines)
