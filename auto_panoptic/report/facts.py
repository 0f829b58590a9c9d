"""What a report is about: a ledger, and what was selected from it.

Numbers come from the files where those are of this ledger as it stands; while a search runs, or where it was
cut off, they are computed from the ledger by the functions that write the files.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path

from ..errors import UserError
from ..explore import POLICY_REGISTRY, Ledger, Scoreboard
from ..explore.selection import select
from ..files import plain, read_json
from ..search.latency import FILE, costs_digest, read_table
from ..search.noise import RankingNoise
from ..search.records import check_content
from ..search.selection import (
    candidates_noise,
    fitness_name,
    fitness_of,
    ledger_path,
    resampled_scores,
)
from ..space import Architecture, CostTables, LatencyTable, SearchSpace

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidate:
    """A candidate's last record.

    Attributes:
        architecture: of the search's space.
        fitness: what ranks it, in percent; None if it failed.
        record: its line of the ledger.
    """

    architecture: Architecture
    fitness: float | None
    record: Mapping

    @property
    def cost(self) -> tuple[int, int] | None:
        """MACs and parameters, None where the search counted none."""
        pair = (self.record.get("macs"), self.record.get("params"))
        return None if None in pair else pair


@dataclass(frozen=True)
class Run:
    """The candidates of one ledger.

    Attributes:
        path: the ledger.
        header: its first line.
        space: that of the candidates.
        fitness: name of the metric that ranks them.
        candidates: in the order in which they were finished.
    """

    path: Path
    header: Mapping
    space: SearchSpace
    fitness: str
    candidates: Sequence[Candidate]

    @property
    def policy(self) -> str:
        return self.header["policy"]

    @property
    def good(self) -> list[Candidate]:
        """Those that were evaluated."""
        return [c for c in self.candidates if c.fitness is not None]

    @property
    def failed(self) -> list[Candidate]:
        return [c for c in self.candidates if c.fitness is None]

    @cached_property
    def best(self) -> Candidate | None:
        """The candidate of the highest fitness, of equal ones the earliest; None if all failed."""
        order = sorted(self.good, key=lambda c: (c.record["cycle"], c.record["index"]))
        return max(order, key=lambda c: c.fitness, default=None)

    @property
    def cycles(self) -> list[list[tuple[Architecture, float | None]]]:
        """Per cycle its (architecture, fitness) pairs in the order of their index."""
        found: dict[int, list] = {}
        for c in sorted(self.candidates, key=lambda c: (c.record["cycle"], c.record["index"])):
            found.setdefault(c.record["cycle"], []).append((c.architecture, c.fitness))
        return list(found.values())


@dataclass(frozen=True)
class Search(Run):
    """A run, and what was selected from it.

    Attributes:
        table: {site: [{"op", "score", "count", "mean"}]}, as in scoreboard.json.
        ranking: spread and noise of PQ, as there; None without bootstrap samples.
        selection: scores and verdicts, as there; None where the best candidate is taken.
        selected: the architecture; None if all candidates failed.
        final: whether the files hold a selection from all candidates of the ledger. It is not final while a
            search runs, and after one that was cut off.
        provenance: of architecture.json; empty if it is not of these candidates.
        costs: tables by which the candidates' costs were counted; None if costs.json has no such ones.
        latency: measured times of the operators; None if latency.json has none of these networks.
        others: further runs to compare with.
    """

    table: Mapping[str, Sequence[Mapping]] = field(default_factory=dict)
    ranking: Mapping | None = None
    selection: Mapping | None = None
    selected: Architecture | None = None
    final: bool = False
    provenance: Mapping = field(default_factory=dict)
    costs: CostTables | None = None
    latency: LatencyTable | None = None
    others: Sequence[Run] = ()

    @property
    def directory(self) -> Path:
        return self.path.parent

    @cached_property
    def selected_candidate(self) -> Candidate | None:
        """The candidate that is the selected architecture, if it was evaluated."""
        choices = self.selected and self.selected.choices
        return next((c for c in self.good if c.architecture.choices == choices), None)

    @property
    def selected_cost(self) -> tuple[int, int] | None:
        """MACs and parameters of the selection, counted as those of the candidates are."""
        return None if self.costs is None or self.selected is None else tuple(self.costs.cost(self.selected))


def read_run(path: str | os.PathLike) -> Run:
    """The candidates of a ledger, which is named, or lies in the OUTPUT_DIR that is named.

    Raises:
        UserError: there is no ledger, it is damaged, holds no candidates, or is not as a search writes it.
    """
    path = Path(path)
    path = ledger_path(path) if path.is_dir() else path
    ledger = Ledger(path)
    if not ledger.records:
        raise UserError(f"{path}: holds no candidates yet; wait for the first one, or start the search again")
    with_operators(lambda: check_content(ledger))
    for record in ledger.records:
        _check_rest(path, record)
    space, fitness = SearchSpace.from_dict(ledger.header["space"]), fitness_name(ledger.header)
    last = {(r["cycle"], r["index"]): r for r in ledger.records}
    candidates = [
        Candidate(Architecture.from_indices(space, r["architecture"]), fitness_of(r, fitness), r)
        for r in sorted(last.values(), key=lambda r: r["seq"])
    ]
    return Run(path, ledger.header, space, fitness, candidates)


def _check_rest(path: Path, record: Mapping) -> None:
    """Raise UserError for what a report shows of a record and :func:`check_content` does not read."""
    seconds = record.get("seconds", {})
    good = isinstance(seconds, dict) and all(map(_is_number, seconds.values()))
    good = good and all(_is_number(record.get(key, 0)) for key in ("macs", "params"))
    if not good:
        raise UserError(
            f"{path}: line {record['seq'] + 2} is not as a search writes it (seconds, macs or params are no "
            "numbers): restore the file from a copy"
        )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def with_operators(read):
    """``read()``; where it finds an operator unknown, again with those that the systems register."""
    try:
        return read()
    except UserError as error:
        if "unknown operator" not in str(error):
            raise
        from .. import systems  # noqa: F401  takes seconds: torch and Detectron2

    try:
        return read()
    except UserError as error:
        raise UserError(f"{error}; name the module that registers it: --import MODULE") from None


def read_search(path: str | os.PathLike, compare: Sequence[str | os.PathLike] = ()) -> Search:
    """A search under way or done, by its OUTPUT_DIR or ledger; ``compare`` are further ledgers.

    Raises:
        UserError: as :func:`read_run`; a ledger to compare with is ranked by another metric.
    """
    run = read_run(path)
    others = [read_run(other) for other in compare]
    for other in others:
        if other.fitness != run.fitness:
            raise UserError(
                f"{other.path}: is ranked by {other.fitness}, {run.path} by {run.fitness}; compare searches "
                "of one metric"
            )
    same = {f.name: getattr(run, f.name) for f in fields(run)}
    costs = _costs(run)
    return Search(**same, **_selected(run), costs=costs, latency=_latency(run, costs), others=others)


def _selected(run: Run) -> dict:
    """The attributes that :class:`Search` adds: from the files, else computed as they are."""
    mode = run.header.get("scoreboard", "exact")
    board = Scoreboard.of(run.space, run.cycles, mode)
    policy = POLICY_REGISTRY.get(run.policy)
    by_scores = policy is not None and policy.selects != "best"
    stored = _stored(run.path.with_name("scoreboard.json"))
    stated = stored.get("selection")
    table = board.table()
    if not by_scores and not stated:
        table = {site: [{**row, "score": None} for row in rows] for site, rows in table.items()}
    if run.best is None:
        return {"table": table}
    if plain(table) != stored.get("sites"):
        logger.info(
            "%s: of other candidates than the ledger, computed anew", run.path.with_name("scoreboard.json")
        )
        stored, stated = {}, None
    if stated is not None and not _is_sound(stated, run.space):
        logger.info("%s: its selection is damaged, computed anew", run.path.with_name("scoreboard.json"))
        stored, stated = {}, None
    if stated is not None:
        chosen = {"selected": run.space.architecture(stated["selected"]), "selection": stated}
    elif by_scores:
        how = {"mode": mode, "adaptive": policy.uses_history}
        if policy.own_scores and _noise(run):
            ordered = sorted(run.candidates, key=lambda c: (c.record["cycle"], c.record["index"]))
            how["resampled"] = resampled_scores([c.record for c in ordered])
        found = select(run.space, run.cycles, policy.selects, **how)
        chosen = {"selected": found.architecture, "selection": plain(found.to_json())}
    else:
        chosen = {"selected": run.best.architecture}
    ranking = stored["ranking"] if "ranking" in stored else _ranking(run)
    provenance = _provenance(run, chosen["selected"])
    final = bool(stored) and (stated is not None or not by_scores)
    return {"table": table, "ranking": ranking, "final": final, "provenance": provenance, **chosen}


def _is_sound(selection: object, space: SearchSpace) -> bool:
    """Whether a selection has all that :meth:`Selection.to_json` gives."""
    try:
        space.architecture(selection["selected"])
        keys = {"estimator", "limits", "score", "bound", "exact", "disagreements"}
        verdict = {"selected", "rival", "difference", "interval", "decided"}
        if (own := selection.get("own")) is not None:
            sum(own[key] for key in ("share", "deviation", "ahead"))  # numbers
        if (over := selection.get("over_random")) is not None:
            sum((over["lead"], *over["interval"]))
        return keys <= selection.keys() and all(
            verdict <= selection["verdicts"][site.name].keys()
            and set(site.names) <= selection["scores"][site.name].keys()
            for site in space.sites
        )
    except (UserError, KeyError, TypeError, AttributeError):
        return False


def _ranking(run: Run) -> dict | None:
    noise = _noise(run)
    return noise and noise.to_json()


def _noise(run: Run) -> RankingNoise | None:
    good = [(c.architecture, c.record["metrics"]) for c in run.good]
    return candidates_noise(good) if run.fitness == "PQ" else None


def _stored(path: Path) -> dict:
    """The content of a JSON file of a search; empty where it is missing or damaged."""
    try:
        content = read_json(path)
    except UserError:
        return {}
    return content if isinstance(content, dict) else {}


def _provenance(run: Run, selected: Architecture) -> dict:
    """That of architecture.json, if it is the selection from these candidates."""
    try:
        found = Architecture.load(run.path.with_name("architecture.json"), run.space)
    except UserError:
        return {}
    counts = (len(run.good), len(run.failed))
    same = found == selected and (found.provenance.get("evaluated"), found.provenance.get("failed")) == counts
    return found.provenance if same else {}


def _costs(run: Run) -> CostTables | None:
    """The tables of costs.json that give the costs in the ledger; a rescored search has more of them."""
    known = next((c for c in run.candidates if c.cost), None)
    for entry in _stored(run.path.with_name("costs.json")).values() if known else ():
        try:
            tables = CostTables.from_json(entry["tables"])
        except (KeyError, TypeError, ValueError):
            continue
        if tables.space == run.space and tuple(tables.cost(known.architecture)) == known.cost:
            return tables
    return None


def _latency(run: Run, costs: CostTables | None) -> LatencyTable | None:
    """The table of latency.json, if it is of the networks of this search."""
    path = run.path.with_name(FILE)
    if not path.exists():
        return None
    try:
        table = read_table(path)
    except UserError as error:
        logger.warning("%s", error)
        return None
    other = costs is not None and table.conditions["network"] != costs_digest(costs)
    return None if other or table.space != run.space else table
