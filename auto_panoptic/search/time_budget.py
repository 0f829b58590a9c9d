"""``--budget 30m``: as many whole cycles as end in time."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence

from ..errors import UserError

UNITS = {"h": 3600, "m": 60, "s": 1}
_TIME = re.compile("".join(rf"(?:(\d+){unit})?" for unit in UNITS))


def parse_time(text: str, option: str) -> int:
    """Seconds of ``30m``, ``2h``, ``90s`` or ``1h30m``. UserError if it is none of these, or 0."""
    match = _TIME.fullmatch(text.strip())
    numbers = match.groups() if match else [0] * len(UNITS)
    seconds = sum(int(n or 0) * unit for n, unit in zip(numbers, UNITS.values(), strict=True))
    if not seconds:
        raise UserError(f"{option} is {text!r}: expected a time, e.g. 30m, 2h, 1h30m or 90s")
    return seconds


class TimeBudget:
    """The time of a search over all its runs, and whether another cycle fits into it.

    A cycle is taken to last as long as those before it on average; the first one always fits.

    Args:
        seconds: the budget.
        records: of the ledger: what earlier runs took.
    """

    def __init__(self, seconds: float, records: Sequence[dict] = ()):
        self.seconds = seconds
        self.before = 0.0
        for record in records:  # those of a run without a budget say only how long each of them took
            self.before = record.get("elapsed", self.before + sum(record.get("seconds", {}).values()))
        self.start = time.monotonic()

    @property
    def elapsed(self) -> float:
        return self.before + time.monotonic() - self.start

    def cycles(self, done: int) -> int:
        """How many cycles end in time, ``done`` of them being past."""
        if not done:
            return 1
        left = self.seconds - self.elapsed
        return done + max(0, int(left / (self.elapsed / done)))
