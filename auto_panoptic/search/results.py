"""scoreboard.json and architecture.json, however the architecture was selected; both are replaced whole."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from ..errors import UserError
from ..space import Architecture
from .ranking import RankingNoise, ranking_noise


def write_results(
    directory: Path,
    header: dict,
    evaluated: list[tuple[Architecture, dict]],
    selected: Architecture,
    table: dict,
    provenance: dict | None = None,
    **content,
) -> RankingNoise | None:
    """Write both files.

    Args:
        directory: where to.
        header: the ledger's.
        evaluated: every candidate with its last record, failed ones too; at least one is ok.
        selected: what architecture.json holds.
        table: the scoreboard's sites.
        provenance: further facts of the selection for architecture.json.
        content: further entries of scoreboard.json.

    Returns:
        How much the ranking means, equal architectures counted once; None without bootstrap samples.

    Raises:
        UserError: the files cannot be written.
    """
    good = [(a, r["metrics"]) for a, r in evaluated if r["status"] == "ok"]
    unique = list({a.choices: metrics for a, metrics in good}.values())
    noise = None
    if len(unique) > 1 and all(metrics.get("bootstrap") for metrics in unique):
        noise = ranking_noise([m["PQ"] for m in unique], [m["bootstrap"] for m in unique])
    ranking = None
    if noise is not None:
        names = ("spread", "noise", "signal", "reliability")
        ranking = {name: getattr(noise, name) for name in names}
    board = {"candidates": len(evaluated), "ranking": ranking, "sites": table, **content}
    write_json(directory / "scoreboard.json", board)
    facts = {
        "policy": header["policy"],
        "seed": header["seed"],
        "evaluated": len(good),
        "failed": len(evaluated) - len(good),
        "best_candidate_PQ": max(metrics["PQ"] for _, metrics in good),
        "config": hashlib.sha256(json.dumps(header["config"]).encode()).hexdigest()[:16],
        "weights": header["weights"],
        "version": header["versions"]["auto_panoptic"],
        **(provenance or {}),
    }
    Architecture(selected.space, selected.choices, facts).save(directory / "architecture.json")
    return noise


def write_json(path: Path, content) -> None:
    """Replace the file whole; lists in one line.

    Raises:
        UserError: it cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(json.dumps(content, indent=None if isinstance(content, list) else 1) + "\n")
        os.replace(partial, path)
    except OSError as e:
        partial.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot write: {e.strerror}") from e
