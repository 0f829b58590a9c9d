"""What a person reads at the end of a search."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from ..explore.budget import shown
from ..explore.selection import Selection
from .selection import SearchResult

FILES = (("architecture", "architecture.json"), ("scoreboard", "scoreboard.json"), ("ledger", "ledger.jsonl"))

FRONT_ROWS = 10


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
    if result.front:
        lines += front_lines(result.front)
    lines.append("Not measured by a search: how good the networks are when they are trained.")
    lines += [f"{name:<13} {result.directory / file}" for name, file in FILES]
    return "\n".join(lines)


def selection_lines(selection: Selection) -> list[str]:
    """The limits, how many sites are decided, where the estimators disagree."""
    limits = [f"{k[4:]} <= {shown(k[4:], v)}" for k, v in selection.limits.items() if v is not None]
    within = f" with {' and '.join(limits)}" if limits else ""
    bound = f" (upper bound {selection.bound:.6g})" if limits else ""
    lines = [f"Selected by {selection.estimator}{within}: total score {selection.score:.6g}{bound}"]
    if selection.own:
        lines.append(own_line(selection.own))
    if selection.trade:
        lines += trade_lines(selection)
    elif not selection.exact:
        gap = selection.bound - selection.score
        lines.append(f"NOT PROVED THE BEST: best found, its total score at most {gap:.3g} below the best")
    if selection.cost:
        latency = selection.cost.get("latency")
        time = "" if latency is None else f", {latency / 1e6:,.1f} ms predicted"
        lines.append(f"{selection.cost['macs']:,} MACs, {selection.cost['params']:,} parameters{time}")
    if selection.over_random:
        lines.append(over_random_line(selection.over_random))
    lines.append(f"{'site':<18} {'selected':<13} {'lead, 95 % interval':<26} over")
    lines += [_verdict_line(site, verdict) for site, verdict in selection.verdicts.items()]
    total = sum(verdict["rival"] is not None for verdict in selection.verdicts.values())
    lines.append(decided_line(selection.decided, total))
    if selection.disagreements:
        lines.append(f"{len(selection.disagreements)} of {total} sites: the estimators disagree")
        for site, ops in selection.disagreements.items():
            lines.append(f"  {site:<18} " + ", ".join(f"{name} {op}" for name, op in ops.items()))
    return lines


def own_line(own: Mapping) -> str:
    """Why an evaluated candidate was taken."""
    deviation, share, ahead = (own[key] for key in ("deviation", "share", "ahead"))
    return (
        f"A candidate is taken, which scored {deviation:+.2f} beside what its operators predict; of that "
        f"{share:.0%} count, what is not image noise: {ahead:.2f} ahead of the best operators"
    )


def over_random_line(over: Mapping) -> str:
    """What the search is predicted to be worth at this cost."""
    low, high = over["interval"]
    lead = f"{over['lead']:+.2f} [{low:+.2f}, {high:+.2f}]"
    line = f"Predicted {lead} in the supernet, against random networks of its MACs"
    return line if low > 0 else f"{line}: another limit may leave more to decide"


def trade_lines(selection: Selection) -> list[str]:
    """What --within-noise gave up, and what it saved."""
    trade, (low, high) = selection.trade, selection.trade["interval"]
    saved = {name: trade[name] - selection.cost[name] for name in ("macs", "params")}
    shares = (f"{n:+,} {what} ({n / max(trade[key], 1):+.0%})" for key, what, n in (
        ("macs", "MACs", -saved["macs"]), ("params", "parameters", -saved["params"])))  # fmt: skip
    lines = [
        f"The cheapest within a standard error, {trade['standard_error']:.2f}, of the best, which scores "
        f"{trade['score']:.6g} with {trade['macs']:,} MACs",
        f"  given up: {trade['given_up']:.2f} [{low:.2f}, {high:.2f}] by prediction; "
        f"against the best: {', '.join(shares)}",
    ]
    return lines if selection.exact else [*lines, "NOT PROVED THE CHEAPEST: the cheapest that was found"]


def front_lines(front: list[dict]) -> list[str]:
    """At most FRONT_ROWS points of the front, spread over it, with what each is predicted to lack."""
    step = max(1, -(-(len(front) - 1) // (FRONT_ROWS - 1)))
    shown = [*front[:-1][::step], front[-1]]
    lines = [f"{len(shown)} of the {len(front)} points of score against MACs, all in pareto.json"]
    lines.append(f"{'MACs':>20} {'parameters':>14} {'score':>10}   below the best, 95 % interval")
    for p in shown:
        low, high = p["interval"]
        lack = f"{p['behind']:.2f} [{low:.2f}, {high:.2f}]"
        lines.append(f"{p['macs']:>20,} {p['params']:>14,} {p['score']:>10.5g}   {lack}")
    return lines


def decided_line(decided: int, total: int) -> str:
    """At how many of the sites with a choice it is known which operator is best."""
    line = f"Best operator of a site: {decided} of {total} sites are decided (their interval lies above 0)"
    if not decided:
        return f"{line}; not resolved, other candidates or images may select others."
    return f"{line}; not resolved at the other {total - decided}." if decided < total else f"{line}."


def _verdict_line(site: str, verdict: dict) -> str:
    """One site of the table: its operator, by how much it leads, and whether that is decided."""
    line = f"{site:<18} {verdict['selected']:<13} "
    if verdict["interval"] is None:
        return line + ("nothing to choose" if verdict["rival"] is None else "too few candidates")
    low, high = verdict["interval"]
    lead = f"{verdict['difference']:+.2f} [{low:+.2f}, {high:+.2f}]"
    return f"{line}{lead:<26} {verdict['rival']:<13} {'decided' if verdict['decided'] else ''}".rstrip()
