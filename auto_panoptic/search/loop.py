"""Evaluate the candidates that the ledger lacks, one by one; everything else follows from the ledger."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from .. import __version__
from ..errors import UserError
from ..explore import Ledger, Scoreboard, path_priority_candidates
from ..space import Architecture, SearchSpace
from .ranking import RankingNoise, ranking_noise

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SearchResult:
    """What a search leaves: the selection, where it lies, and how much its ranking means."""

    architecture: Architecture
    directory: Path
    evaluated: int
    failed: int
    noise: RankingNoise | None


def ledger_path(cfg) -> Path:
    """OUTPUT_DIR/search/ledger.jsonl; scoreboard.json and architecture.json lie beside it."""
    return Path(cfg.OUTPUT_DIR) / "search" / "ledger.jsonl"


def search_header(cfg, space: SearchSpace, weights: str) -> dict:
    """First line of the ledger: everything that the candidates' scores depend on."""
    with open(weights, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    relevant = cfg.clone()
    relevant.defrost()
    relevant.OUTPUT_DIR = relevant.MODEL.WEIGHTS = ""
    relevant.NAS.CYCLES = 0  # a search may be prolonged
    return {
        "space": space.to_dict(),
        "seed": cfg.NAS.SEED,
        "policy": "path_priority",
        "models_per_cycle": cfg.NAS.MODELS_PER_CYCLE,
        "config": hashlib.sha256(relevant.dump().encode()).hexdigest()[:16],
        "weights": digest[:16],
        "versions": {"auto_panoptic": __version__, "torch": torch.__version__},
    }


def search_cycles(cfg, space: SearchSpace) -> list[list[Architecture]]:
    """The candidates of all cycles.

    Raises:
        UserError: NAS.CYCLES is not positive, or MODELS_PER_CYCLE no multiple of the cycle length.
    """
    if cfg.NAS.CYCLES < 1:
        raise UserError(f"NAS.CYCLES is {cfg.NAS.CYCLES}; expected at least 1")
    return [
        path_priority_candidates(space, cfg.NAS.SEED, cycle, cfg.NAS.MODELS_PER_CYCLE)
        for cycle in range(cfg.NAS.CYCLES)
    ]


def run_search(
    cfg,
    space: SearchSpace,
    evaluate: Callable[[Architecture], tuple[dict, dict]],
    header: dict,
    resume: bool = False,
    describe: Callable[[Architecture], dict] = lambda _: {},
) -> SearchResult:
    """Search OUTPUT_DIR/search for the architecture with the highest path priorities.

    The candidates are a pure function of (space, seed, cycle). A candidate in the ledger is never evaluated
    again; killed at any moment, a resumed search ends with the same scoreboard and architecture.

    Args:
        cfg: NAS.CYCLES ("T"), NAS.MODELS_PER_CYCLE ("E"), NAS.SEED, OUTPUT_DIR.
        space: what to search.
        evaluate: architecture -> (metrics with "PQ" in percent, seconds per phase).
        header: see :func:`search_header`.
        resume: continue an existing ledger.
        describe: further facts of an architecture for its record, such as its size.

    Raises:
        UserError: see :func:`search_cycles` and :meth:`Ledger.open`; every candidate failed.
    """
    cycles = search_cycles(cfg, space)
    directory = ledger_path(cfg).parent
    with Ledger.open(ledger_path(cfg), header, resume=resume) as ledger:
        done = {(record["cycle"], record["index"]) for record in ledger.records}
        todo = [
            (cycle, index, architecture)
            for cycle, candidates in enumerate(cycles)
            for index, architecture in enumerate(candidates)
            if (cycle, index) not in done
        ]
        if done:
            logger.info("%d candidates are in the ledger, %d are left", len(done), len(todo))
        for cycle, index, architecture in _progress(todo, len(done), ledger):
            record = {"cycle": cycle, "index": index, "architecture": architecture.indices()}
            ledger.append({**record, **_evaluated(evaluate, architecture), **describe(architecture)})
            if any(r["status"] == "ok" for r in ledger.records):
                write_selection(directory, cycles, ledger.records, header)
        return write_selection(directory, cycles, ledger.records, header)


def _evaluated(evaluate, architecture: Architecture) -> dict:
    """Facts of one evaluation; a crash or a PQ that is no number is a fact too, and never selected."""
    try:
        metrics, seconds = evaluate(architecture)
    except Exception as error:  # one broken candidate must not end a search of hours
        logger.exception("candidate failed: %s", architecture.indices())
        return {"status": "failed", "metrics": {}, "seconds": {}, "error": f"{type(error).__name__}: {error}"}
    if not math.isfinite(metrics.get("PQ", math.nan)):
        return {"status": "failed", "metrics": {}, "seconds": seconds, "error": "PQ is not a number"}
    return {"status": "ok", "metrics": metrics, "seconds": seconds}


def _progress(todo: list, done: int, ledger: Ledger) -> Iterable:
    """Progress bar with the time left; plain lines where there is no terminal."""
    with tqdm(
        todo,
        initial=done,
        total=done + len(todo),
        unit="candidate",
        desc="search",
        file=sys.stderr,
        mininterval=0.5,
    ) as bar:
        for item in bar:
            yield item
            scores = [r["metrics"]["PQ"] for r in ledger.records if r["status"] == "ok"]
            last = ledger.records[-1]
            bar.set_postfix(
                PQ=f"{last['metrics']['PQ']:.1f}" if last["status"] == "ok" else "failed",
                best=f"{max(scores):.1f}" if scores else "-",
            )


def write_selection(
    directory: Path, cycles: list[list[Architecture]], records: list[dict], header: dict
) -> SearchResult:
    """Recompute scoreboard.json and architecture.json from the ledger's records; both are replaced whole."""
    space = cycles[0][0].space
    board = Scoreboard(space)
    by_place = {(record["cycle"], record["index"]): record for record in records}
    for cycle, candidates in enumerate(cycles):
        scored = [(a, by_place[cycle, i]) for i, a in enumerate(candidates) if (cycle, i) in by_place]
        if scored:
            fitness = [r["metrics"]["PQ"] if r["status"] == "ok" else None for _, r in scored]
            board.add_cycle([a for a, _ in scored], fitness)
    good = [r for r in records if r["status"] == "ok"]
    architecture = Architecture(
        space,
        board.select().choices,
        {
            "policy": header["policy"],
            "seed": header["seed"],
            "evaluated": len(good),
            "failed": len(records) - len(good),
            "best_candidate_PQ": max((r["metrics"]["PQ"] for r in good), default=None),
            "config": header["config"],
            "weights": header["weights"],
            "version": header["versions"]["auto_panoptic"],
        },
    )
    noise = None
    resampled = [r["metrics"].get("bootstrap") for r in good]
    if len(good) > 1 and all(resampled):
        noise = ranking_noise([r["metrics"]["PQ"] for r in good], resampled)
    content = {
        "candidates": len(records),
        "ranking": None
        if noise is None
        else {
            "spread": noise.spread,
            "noise": noise.noise,
            "signal": noise.signal,
            "reliability": noise.reliability,
        },
        "sites": board.table(),
    }
    partial = directory / f".scoreboard.{os.getpid()}"
    partial.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(partial, directory / "scoreboard.json")
    architecture.save(directory / "architecture.json")
    return SearchResult(architecture, directory, len(good), len(records) - len(good), noise)
