"""What a person reads at the end of a search."""

from __future__ import annotations

import itertools

from .loop import SearchResult


def summary(result: SearchResult) -> str:
    """Selected operators part by part, how much the ranking means, and where the files are."""
    lines = [
        "",
        f"Selected from {result.evaluated} candidates"
        + (f" ({result.failed} failed)" if result.failed else ""),
    ]
    names = result.architecture.names().items()
    for part, sites in itertools.groupby(names, key=lambda item: item[0].rpartition(".")[0]):
        lines.append(f"  {part:<14} {' '.join(name for _, name in sites)}")
    if result.noise:
        lines.append(result.noise.sentence())
    lines += [f"{name:<13} {result.directory / file}" for name, file in FILES]
    return "\n".join(lines)


FILES = (("architecture", "architecture.json"), ("scoreboard", "scoreboard.json"), ("ledger", "ledger.jsonl"))
