"""From the records of a search to scoreboard.json, architecture.json and pareto.json.

The one way to select: after every candidate, at the end of a search, and anew from a ledger. It needs
neither model nor data.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..explore import POLICY_REGISTRY, Ledger, Scoreboard
from ..explore.selection import FrontPoint, Selection, front, select
from ..files import write_json
from ..space import Architecture, CostTables, SearchSpace
from .noise import RankingNoise, ranking_noise

FITNESS = {"pq": "PQ", "miou": "mIoU"}  # metrics that may rank candidates, and their names in the records
Cycle = list[tuple[Architecture, dict]]  # candidates with their last records, in the order of their index


@dataclass(frozen=True)
class Request:
    """How to select: see :func:`~auto_panoptic.explore.selection.select`.

    Attributes:
        estimator, max_macs, max_params, within_noise, max_latency: its arguments.
        pareto: also write pareto.json, a list of {"macs", "params", "score", "behind", "interval",
            "architecture": the index lists}, ascending in MACs and score; see
            :class:`~auto_panoptic.explore.selection.FrontPoint`.
        own_scores: let candidates count with what they scored themselves, as far as that is not the noise of
            their images; nothing where that is not known.
    """

    estimator: str = "ranks"
    max_macs: int | None = None
    max_params: int | None = None
    pareto: bool = False
    within_noise: bool = False
    max_latency: int | None = None
    own_scores: bool = False


@dataclass(frozen=True)
class SearchResult:
    """What a search leaves.

    Attributes:
        architecture: the selected one.
        directory: where the files are.
        evaluated, failed: numbers of candidates.
        noise: how much the ranking means; None without bootstrap samples.
        selection: what the choice rests on; None where the best candidate was taken.
        front: the content of pareto.json, if it was asked for.
    """

    architecture: Architecture
    directory: Path
    evaluated: int
    failed: int
    noise: RankingNoise | None
    selection: Selection | None = None
    front: list[dict] | None = None


def ledger_path(output_dir: str) -> Path:
    """OUTPUT_DIR/search/ledger.jsonl; the other files of a search lie beside it."""
    return Path(output_dir) / "search" / "ledger.jsonl"


def ranking_metric(metrics: Sequence[str]) -> str:
    """The fitness of a search for these metrics: the first that may rank candidates."""
    return next(FITNESS[name] for name in metrics if name in FITNESS)


def fitness_name(header: dict) -> str:
    """The metric that ranks the candidates of a ledger."""
    return header.get("fitness", "PQ")


def fitness_of(record: dict, name: str) -> float | None:
    """The fitness of a candidate, None for a failed one."""
    return record["metrics"][name] if record["status"] == "ok" else None


def write_selection(
    directory: Path,
    header: dict,
    space: SearchSpace,
    cycles: list[Cycle],
    request: Request | None = None,
    costs: CostTables | None = None,
    best: bool = False,
) -> SearchResult:
    """Select, and write the files; each is replaced whole.

    Without a request, operators are ranked as by :class:`Scoreboard`, and it alone is written: enough for a
    search under way. With ``best`` instead, the candidate of the highest fitness is selected (of equal ones
    the earliest); scores are null then, while counts and mean fitness remain. Limits need ``costs``.

    Raises:
        UserError: all candidates failed, no architecture is within the limits, a file cannot be written.
    """
    fitness = fitness_name(header)
    pairs = [[(a, fitness_of(record, fitness)) for a, record in cycle] for cycle in cycles if cycle]
    good = [(a, record["metrics"]) for cycle in cycles for a, record in cycle if record["status"] == "ok"]
    total = sum(map(len, cycles))
    mode = header.get("scoreboard", "exact")
    board = Scoreboard.of(space, pairs, mode)
    table, selected, selection, extra = board.table(), board.select(), None, {}
    noise = candidates_noise(good) if fitness == "PQ" else None
    if request is not None:
        limits = (request.max_macs, request.max_params)
        policy = POLICY_REGISTRY.get(header["policy"])  # None: of a module that this process has not read
        records = [record for cycle in cycles for _, record in cycle]
        adaptive = policy is not None and policy.uses_history
        selection = select(
            *(space, pairs, request.estimator, costs, *limits, mode, request.within_noise, adaptive),
            max_latency=request.max_latency,
            noise=noise and noise.noise,
            resampled=resampled_scores(records) if noise and request.own_scores else None,
        )
        selected = selection.architecture
        extra = {"estimator": selection.estimator, **selection.limits, **(selection.cost or {})}
        extra |= {"within_noise": True} if request.within_noise else {}
    elif best:
        selected = max(good, key=lambda pair: pair[1][fitness])[0]
        table = {site: [{**row, "score": None} for row in rows] for site, rows in table.items()}
    content = {"candidates": total, "ranking": noise and noise.to_json(), "sites": table}
    content |= {"selection": selection.to_json()} if selection else {}
    provenance = {
        "policy": header["policy"],
        "seed": header["seed"],
        "evaluated": len(good),
        "failed": total - len(good),
        f"best_candidate_{fitness}": max(metrics[fitness] for _, metrics in good),
        "config": hashlib.sha256(json.dumps(header["config"]).encode()).hexdigest()[:16],
        "weights": header["weights"],
        "version": header["versions"]["auto_panoptic"],
        **extra,
    }
    points = front(space, pairs, request.estimator, costs, mode) if request and request.pareto else None
    write_json(directory / "scoreboard.json", content)
    Architecture(space, selected.choices, provenance).save(directory / "architecture.json")
    if points is not None:
        points = [_front_row(space, found) for found in points]
        write_json(directory / "pareto.json", points)
    return SearchResult(selected, directory, len(good), total - len(good), noise, selection, points)


def _front_row(space: SearchSpace, found: FrontPoint) -> dict:
    row = {key: getattr(found.point, key) for key in ("macs", "params", "score")}
    row |= {"behind": found.behind, "interval": found.interval}
    return row | {"architecture": space.architecture(found.point.indices).indices()}


def select_again(ledger: Ledger, costs: CostTables, request: Request) -> SearchResult:
    """:func:`write_selection` from an open ledger; the scoreboard stays and gains "selection"."""
    last = {(r["cycle"], r["index"]): r for r in ledger.records}
    cycles: dict[int, Cycle] = {}
    for (cycle, _), record in sorted(last.items()):
        architecture = Architecture.from_indices(costs.space, record["architecture"])
        cycles.setdefault(cycle, []).append((architecture, record))
    candidates = list(cycles.values())
    return write_selection(ledger.path.parent, ledger.header, costs.space, candidates, request, costs)


def resampled_scores(records: Sequence[dict]) -> np.ndarray:
    """(n, B) PQ on resampled images, NaN for failed candidates; all others must have been resampled."""
    rows = [r["metrics"]["bootstrap"] if r["status"] == "ok" else None for r in records]
    missing = [np.nan] * len(next(filter(None, rows)))
    return np.array([row or missing for row in rows], dtype=float)


def candidates_noise(good: list[tuple[Architecture, dict]]) -> RankingNoise | None:
    """How much the ranking by PQ means, equal architectures counted once."""
    unique = list({a.choices: metrics for a, metrics in good}.values())
    if len(unique) < 2 or any(None in (metrics.get("bootstrap") or [None]) for metrics in unique):
        return None
    return ranking_noise([m["PQ"] for m in unique], [m["bootstrap"] for m in unique])
