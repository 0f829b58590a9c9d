"""A search around a pure function: whole searches in a tenth of a second, with a log of the evaluations."""

from __future__ import annotations

import itertools
import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from detectron2.config import get_cfg
from toy import toy_space

from auto_panoptic import add_auto_panoptic_config
from auto_panoptic.errors import UserError
from auto_panoptic.explore import POLICY_REGISTRY, Ledger
from auto_panoptic.search import Executor, InProcess, SearchResult, ledger_path, run_search
from auto_panoptic.search.header import search_policy
from auto_panoptic.space import Architecture

from .processes import fork

SPACE = toy_space(backbone=4, head=2, inter=2)
CYCLES, MODELS = 5, 12
RESULTS = ("scoreboard.json", "architecture.json")
_VALUES = np.random.default_rng(0).normal(size=(len(SPACE.sites), 6))


def utility(architecture: Architecture) -> float:
    """One fixed number per operator of every site, added up."""
    return 50 + float(sum(_VALUES[site, op] for site, op in enumerate(flat(architecture))))


def flat(architecture: Architecture) -> list[int]:
    """Number of the operator at every site."""
    sites = zip(architecture.space.sites, architecture.choices, strict=True)
    return [site.names.index(name) for site, name in sites]


def key(architecture: Architecture) -> str:
    return "".join(map(str, flat(architecture)))


class Evaluate:
    """Scores by :func:`utility`; writes a line ``key pid time`` (monotonic, seconds) before it starts.

    Args:
        log: the file of the lines.
        seconds: how long an evaluation takes.
        events: {key: "nan", "crash" or a PQ of its own}.
        gate: a file; without it an evaluation waits.
    """

    def __init__(self, log: Path, seconds: float = 0.0, events: Mapping = {}, gate: Path | None = None):  # noqa: B006
        self.log, self.seconds, self.events, self.gate = Path(log), seconds, dict(events), gate

    def __call__(self, architecture: Architecture) -> tuple[dict, dict]:
        start = time.monotonic()
        append(self.log, f"{key(architecture)} {os.getpid()} {start}\n")
        while self.gate is not None and not self.gate.exists():
            time.sleep(0.005)
        time.sleep(self.seconds)
        event = self.events.get(key(architecture))
        if event == "crash":
            raise RuntimeError("out of memory")
        pq = math.nan if event == "nan" else utility(architecture) if event is None else event
        metrics = {"PQ": pq, "SQ": 80.0, "bootstrap": [pq + value for value in _VALUES[0]]}
        return metrics, {"evaluation": time.monotonic() - start}


def append(path: Path, text: str) -> None:
    """One write, so that processes do not mix their lines."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def evaluations(log: Path) -> list[tuple[str, int, float]]:
    """(key, pid, time) of the evaluations begun so far."""
    lines = log.read_text().splitlines() if log.exists() else []
    return [(k, int(pid), float(start)) for k, pid, start in map(str.split, lines)]


def config(folder: Path, policy: str = "path_priority", cycles: int = CYCLES, models: int = MODELS):
    cfg = get_cfg()
    add_auto_panoptic_config(cfg)
    cfg.OUTPUT_DIR, cfg.NAS.POLICY = str(folder), policy
    keys = POLICY_REGISTRY.of(policy).cycle_keys()
    cfg.merge_from_list([*itertools.chain(*zip(keys, (cycles, models), strict=True))])
    return cfg


def header(policy: str = "path_priority") -> dict:
    versions = {"auto_panoptic": "1", "torch": "2"}
    facts = {"config": "0123", "weights": "4567", "data": {"search": "89", "calibration": "ab"}}
    return {"space": SPACE.to_dict(), "seed": 0, "policy": policy, **facts, "versions": versions}


def search(
    folder: Path,
    evaluate=None,
    executor: Executor | None = None,
    policy: str = "path_priority",
    **size,
) -> SearchResult:
    """Begin or continue the search in ``folder``, in this process."""
    named = search_policy(config(folder, policy, **size), SPACE)
    with Ledger.open(ledger_path(folder), header(policy), resume=True) as ledger:
        return run_search(named, ledger, executor or InProcess(evaluate))


def whole(folder: Path, evaluate=None, **settings) -> int | None:
    """:func:`search` to its end in a forked process; its exit code."""
    folder.mkdir(parents=True, exist_ok=True)
    return fork(lambda: search(folder, evaluate, **settings), folder / "output.log").wait()


def candidates(policy: str = "path_priority", **size) -> list[Architecture]:
    """All candidates, in order, of a policy that does not breed."""
    named = search_policy(config(Path(), policy, **size), SPACE)
    return [a for cycle in range(named.cycles) for a in named.candidates(cycle, [])]


# ------------------------------------------------------------------ what a search leaves


def results(folder: Path) -> dict[str, bytes | None]:
    """The bytes of scoreboard, architecture and, after finals, what came of them."""
    names = (*RESULTS, "finals.json") if (folder / "search/finals.jsonl").exists() else RESULTS
    paths = {name: folder / "search" / name for name in names}
    return {name: path.read_bytes() if path.exists() else None for name, path in paths.items()}


def records(folder: Path) -> list[dict]:
    """Complete records of the ledger; none while it has no header."""
    return _records(folder / "search/ledger.jsonl")


def trainings(folder: Path) -> list[dict]:
    """Those of the journal of the finals."""
    return _records(folder / "search/finals.jsonl")


def _records(path: Path) -> list[dict]:
    try:
        return Ledger(path).records
    except UserError:
        if path.exists() and b"\n" in path.read_bytes():
            raise
        return []


def contents(folder: Path, in_order: bool = True) -> list[dict]:
    """What ledger and journal say, without times; ``in_order=False`` also without the order of arrival."""
    left_out = {"seconds"} if in_order else {"seconds", "seq"}
    everything = records(folder) + trainings(folder)
    found = [{k: v for k, v in record.items() if k not in left_out} for record in everything]
    return found if in_order else sorted(found, key=lambda r: json.dumps(r, sort_keys=True))


def differences(folder: Path, reference: Path, in_order: bool = True) -> list[str]:
    """Names of what differs between two finished searches."""
    found, expected = results(folder), results(reference)
    names = [name for name in expected if found.get(name) is None or found[name] != expected[name]]
    if contents(folder, in_order) != contents(reference, in_order):
        names.append("ledger.jsonl or finals.jsonl")
    return names
