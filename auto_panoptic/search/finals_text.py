"""How a found network compares with random ones, in one line."""

from __future__ import annotations


def verdict_line(fitness: str, mean: float, low: float | None, high: float | None) -> str:
    """The line; ``low`` and ``high`` of the 95 % interval are None, or infinite, where nothing is known."""
    known = low is not None and high is not None and high - low < float("inf")
    by = f"{mean:+.1f} {fitness} " + (f"[{low:+.1f}, {high:+.1f}]" if known else "[interval not known]")
    if known and low > 0:
        return f"The found network beats random ones of equal cost by {by}"
    if known and high < 0:
        return f"The found network is WORSE than random ones of equal cost: {by}"
    return f"The found network is NOT shown to beat random ones of equal cost: {by}"
