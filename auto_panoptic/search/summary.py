"""What a person reads at the end of a search."""

from __future__ import annotations

import itertools

from ..explore.selection import Selection
from .selection import SearchResult

FILES = (("architecture", "architecture.json"), ("scoreboard", "scoreboard.json"), ("ledger", "ledger.jsonl"))


def summary(result: SearchResult) -> str:
    """Selected operators part by part, what the choice rests on, and where the files are."""
    failed = f" ({result.failed} failed)" if result.failed else ""
    lines = ["", f"Selected from {result.evaluated} candidates{failed}"]
    names = result.architecture.names().items()
    for part, sites in itertools.groupby(names, key=lambda item: item[0].rpartition(".")[0]):
        lines.append(f"  {part:<14} {' '.join(name for _, name in sites)}")
    if result.noise:
        lines.append(result.noise.sentence())
    if result.selection:
        lines += selection_lines(result.selection)
    lines += [f"{name:<13} {result.directory / file}" for name, file in FILES]
    return "\n".join(lines)


def selection_lines(selection: Selection) -> list[str]:
    """The limits, how many sites are decided, where the estimators disagree."""
    limits = [f"{k[4:]} <= {v:,}" for k, v in selection.limits.items() if v is not None]
    within = f" with {' and '.join(limits)}" if limits else ""
    bound = f" (upper bound {selection.bound:.6g})" if limits else ""
    lines = [f"Selected by {selection.estimator}{within}: total score {selection.score:.6g}{bound}"]
    if not selection.exact:
        gap = selection.bound - selection.score
        lines.append(f"NOT PROVED THE BEST: best found, its total score at most {gap:.3g} below the best")
    if selection.cost:
        lines.append(f"{selection.cost['macs']:,} MACs, {selection.cost['params']:,} parameters")
    lines.append(f"{'site':<18} {'selected':<13} {'lead, 95 % interval':<26} over")
    lines += [_verdict_line(site, verdict) for site, verdict in selection.verdicts.items()]
    total = len(selection.verdicts)
    lines.append(f"{selection.decided} of {total} sites are decided: their interval lies above 0")
    if selection.disagreements:
        lines.append(f"{len(selection.disagreements)} of {total} sites: the estimators disagree")
        for site, ops in selection.disagreements.items():
            lines.append(f"  {site:<18} " + ", ".join(f"{name} {op}" for name, op in ops.items()))
    return lines


def _verdict_line(site: str, verdict: dict) -> str:
    """One site of the table: its operator, by how much it leads, and whether that is decided."""
    line = f"{site:<18} {verdict['selected']:<13} "
    if verdict["interval"] is None:
        return line + ("nothing to choose" if verdict["rival"] is None else "too few candidates")
    low, high = verdict["interval"]
    lead = f"{verdict['difference']:+.2f} [{low:+.2f}, {high:+.2f}]"
    return f"{line}{lead:<26} {verdict['rival']:<13} {'decided' if verdict['decided'] else ''}".rstrip()
