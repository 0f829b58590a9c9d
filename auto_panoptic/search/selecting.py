"""Select anew from a finished or interrupted search: other estimators, limits, the score-against-MACs front.

Needs the ledger alone: no model, no data.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import UserError
from ..explore import Ledger, Scoreboard
from ..explore.budget import Point, check_budget, parse_amount
from ..explore.estimators import ESTIMATORS
from ..explore.selection import Selection, front, select
from ..space import Architecture, SearchSpace
from .header import ledger_path
from .results import write_json, write_results


def add_selection_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --rescore, --estimator, --max-macs, --max-params and --pareto."""
    group = parser.add_argument_group("selection")
    group.add_argument(
        "--rescore",
        action="store_true",
        help="select anew from OUTPUT_DIR/search/ledger.jsonl, evaluate nothing",
    )
    group.add_argument(
        "--estimator",
        choices=ESTIMATORS,
        help="what scores the operators: ranks (paper), mean fitness, ridge regression (default: ranks)",
    )
    for option, what in (("--max-macs", "3.5G"), ("--max-params", "24M")):
        group.add_argument(
            option,
            type=_amount(option),
            metavar="N",
            help=f"limit for the whole network, e.g. {what}; selects the best architecture within it",
        )
    group.add_argument("--pareto", action="store_true", help="write search/pareto.json: score against MACs")


def asks_for_selection(args: argparse.Namespace) -> bool:
    """Whether any option asks for another selection than the search's own."""
    return bool(args.rescore or args.estimator or args.max_macs or args.max_params or args.pareto)


def check_limits(cfg, args: argparse.Namespace) -> None:
    """Refuse limits that no architecture of the config's space meets.

    Raises:
        UserError: names the smallest feasible value.
    """
    if args.max_macs is not None or args.max_params is not None:
        from ..modeling.counting import configured_costs

        check_budget(configured_costs(cfg), args.max_macs, args.max_params)


def rescore(
    cfg,
    estimator: str = "ranks",
    max_macs: int | None = None,
    max_params: int | None = None,
    pareto: bool = False,
) -> Selection:
    """Select from the ledger in OUTPUT_DIR; rewrite scoreboard.json and architecture.json beside it.

    The scoreboard keeps its contents and gains "selection", see :meth:`Selection.to_json`.

    Args:
        cfg: config of the search: OUTPUT_DIR, and the model for the costs.
        estimator, max_macs, max_params: see :func:`select`.
        pareto: also write pareto.json, a list of {"macs", "params", "score", "architecture": the three index
            lists}, ascending in MACs and score; see :func:`pareto_front`.

    Raises:
        UserError: there is no ledger, a search is writing it, it is of another space than the config's, no
            candidate was evaluated, or no architecture is within the limits.
    """
    path = ledger_path(cfg)
    space = SearchSpace.from_config(cfg)
    from ..modeling.counting import configured_costs

    costs = configured_costs(cfg)
    header = Ledger(path).header
    recorded = SearchSpace.from_dict(header["space"])
    if recorded != space:
        raise UserError(
            f"{path}: a search of another space than the config's (recorded first): "
            f"{recorded.difference(space)}; give the config of the search"
        )
    with Ledger.open(path, header, resume=True) as ledger:  # not while a search is writing
        records = _last_records(ledger.records)
        cycles = [
            [(Architecture.from_indices(space, r["architecture"]), _fitness(r)) for r in cycle]
            for cycle in records
        ]
        selection = select(space, cycles, estimator, costs, max_macs, max_params)
        points = front(space, cycles, estimator, costs) if pareto else None
        board = Scoreboard(space)
        for cycle in cycles:
            board.add_cycle([a for a, _ in cycle], [fitness for _, fitness in cycle])
        write_results(
            path.parent,
            header,
            [(a, r) for (a, _), r in zip(sum(cycles, []), sum(records, []), strict=True)],
            selection.architecture,
            board.table(),
            {"estimator": selection.estimator, **selection.limits, **selection.cost},
            selection=selection.to_json(),
        )
        if points is not None:
            write_json(path.parent / "pareto.json", [_point(space, p) for p in points])
    return selection


def selection_summary(selection: Selection, directory: Path) -> str:
    """What was selected under which limits, how many sites are decided, where the estimators disagree."""
    limits = [f"{k[4:]} <= {v:,}" for k, v in selection.limits.items() if v is not None]
    lines = [
        f"Selected by {selection.estimator}" + (f" with {' and '.join(limits)}" if limits else "")
        + f": total score {selection.score:.6g}"
        + (f" (upper bound {selection.bound:.6g})" if limits else ""),
    ]  # fmt: skip
    if not selection.exact:
        gap = selection.bound - selection.score
        lines.append(f"NOT PROVED THE BEST: best found, its total score at most {gap:.3g} below the best")
    if selection.cost:
        lines.append(f"{selection.cost['macs']:,} MACs, {selection.cost['params']:,} parameters")
    lines.append(f"{'site':<18} {'selected':<13} {'lead in PQ, 95 % interval':<26} over")
    lines += [_verdict_line(site, verdict) for site, verdict in selection.verdicts.items()]
    total = len(selection.verdicts)
    lines.append(f"{selection.decided} of {total} sites are decided: their interval lies above 0")
    if selection.disagreements:
        lines.append(f"{len(selection.disagreements)} of {total} sites: the estimators disagree")
        for site, ops in selection.disagreements.items():
            lines.append(f"  {site:<18} " + ", ".join(f"{name} {op}" for name, op in ops.items()))
    lines.append(f"architecture  {directory / 'architecture.json'}")
    return "\n".join(lines)


def _verdict_line(site: str, verdict: dict) -> str:
    """One site of the table: its operator, by how much it leads, and whether that is decided."""
    line = f"{site:<18} {verdict['selected']:<13} "
    if verdict["interval"] is None:
        return line + ("nothing to choose" if verdict["rival"] is None else "too few candidates")
    low, high = verdict["interval"]
    lead = f"{verdict['difference']:+.2f} [{low:+.2f}, {high:+.2f}]"
    return f"{line}{lead:<26} {verdict['rival']:<13} {'decided' if verdict['decided'] else ''}".rstrip()


def _amount(option: str):
    def parse(text: str) -> int:
        try:
            return parse_amount(text, option)
        except UserError as error:
            raise argparse.ArgumentTypeError(str(error).removeprefix(f"{option} is ")) from error

    return parse


def _last_records(records: list[dict]) -> list[list[dict]]:
    """The last record of every candidate: per cycle, in the order of index."""
    last = {(r["cycle"], r["index"]): r for r in records}
    cycles: dict[int, list[dict]] = {}
    for cycle, index in sorted(last):
        cycles.setdefault(cycle, []).append(last[cycle, index])
    return list(cycles.values())


def _fitness(record: dict) -> float | None:
    return record["metrics"]["PQ"] if record["status"] == "ok" else None


def _point(space: SearchSpace, point: Point) -> dict:
    architecture = space.architecture(point.indices)
    return {
        "macs": point.macs,
        "params": point.params,
        "score": point.score,
        "architecture": architecture.indices(),
    }
