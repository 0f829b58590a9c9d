"""Everything that is saved: what is there before, the save, and what must hold after it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from data_util import write_own
from detectron2.data import DatasetCatalog
from toy import ROOT

from auto_panoptic.data import register_coco_panoptic
from auto_panoptic.files import PARTIAL
from auto_panoptic.search.costs import store_tables, stored_tables
from auto_panoptic.training import AutoPanopticTrainer
from auto_panoptic.training.checkpoint import newest_intact

from . import pure
from .finals import search_with_finals
from .readers import own_paths, small_tables
from .training import Training


@dataclass(frozen=True)
class Save:
    """One thing that is saved into a folder.

    Attributes:
        prepare: leaves the state before.
        save: does it; to be interrupted.
        problem: what is wrong with a folder in which ``save`` was interrupted; "" if nothing is. It may go on
            from there.
    """

    prepare: Callable[[Path], object]
    save: Callable[[Path], object]
    problem: Callable[[Path], str]


def saves(folder: Path) -> dict[str, Save]:
    """By name; ``folder`` is for what they have in common."""
    return {
        "checkpoint": checkpoint(folder),
        "search": search(folder),
        "finals": finals(folder),
        "stored_costs": Save(_first_tables, _second_tables, _tables_problem),
        "stage_file": stage(),
        "derived_data": derived(folder),
    }


def checkpoint(folder: Path) -> Save:
    """A second checkpoint after a first."""
    training = Training(folder)
    trainers: dict[Path, AutoPanopticTrainer] = {}

    def trainer(target: Path) -> AutoPanopticTrainer:
        if not trainers:
            trainers[folder] = AutoPanopticTrainer(training.cfg(folder))
        trainers[folder].checkpointer.save_dir = str(target)
        return trainers[folder]

    def put(target: Path, iteration: int) -> None:
        one = trainer(target)
        with torch.no_grad():
            for parameter in one.model.parameters():
                parameter.fill_(float(iteration))
        one.checkpointer.save(f"model_{iteration:07d}", iteration=iteration)

    def problem(target: Path) -> str:
        path, _ = newest_intact(str(target))
        if not path:
            return "no checkpoint is left"
        data = torch.load(path, weights_only=True)
        number = data["iteration"]
        if number not in (2, 5) or not all(
            (v == number).all() for k, v in data["model"].items() if "weight" in k
        ):
            return f"{path} holds neither the old nor the new checkpoint"
        put(target, 8)
        left = [p.name for p in target.iterdir() if p.name.startswith(PARTIAL)]
        return f"{left} are left" if left or not newest_intact(str(target))[0].endswith("8.pth") else ""

    trainer(folder)
    return Save(lambda target: put(target, 2), lambda target: put(target, 5), problem)


def search(folder: Path) -> Save:
    """The second half of a search of one cycle: ledger, scoreboard, architecture."""
    reference = folder / "search_reference"
    reference.mkdir(parents=True)

    def evaluate(architecture):  # without a log, which would be a file of its own
        return {"PQ": pure.utility(architecture), "SQ": 80.0}, {}

    def run(target: Path) -> None:
        pure.search(target, evaluate, cycles=1)

    def half(target: Path) -> None:
        seen = []

        def stops(architecture):
            seen.append(architecture)
            if len(seen) > pure.MODELS // 2:
                raise KeyboardInterrupt
            return evaluate(architecture)

        with contextlib.suppress(KeyboardInterrupt):
            pure.search(target, stops, cycles=1)

    def problem(target: Path) -> str:
        before = pure.records(target)
        if before != pure.records(reference)[: len(before)] and _untimed(before) != _untimed(
            pure.records(reference)[: len(before)]
        ):
            return "the ledger holds other records"
        run(target)
        return ", ".join(pure.differences(target, reference))

    run(reference)
    return Save(half, run, problem)


def finals(folder: Path) -> Save:
    """The last three trainings of the finals of a finished search: journal, finals.json, architecture."""
    reference = folder / "finals_reference"
    reference.mkdir(parents=True)
    most = []  # evaluations of a whole run

    def run(target: Path, stop: int = sys.maxsize) -> None:
        seen = []

        def evaluate(architecture):
            seen.append(architecture)
            if len(seen) > stop:
                raise KeyboardInterrupt
            return {"PQ": pure.utility(architecture), "SQ": 80.0, "bootstrap": [50.0, 51.0]}, {}

        search_with_finals(target, evaluate)
        most.append(len(seen))

    def half(target: Path) -> None:
        with contextlib.suppress(KeyboardInterrupt):
            run(target, most[0] - 3)

    def problem(target: Path) -> str:
        run(target)
        return ", ".join(pure.differences(target, reference))

    run(reference)
    return Save(half, run, problem)


def _untimed(records: list[dict]) -> list[dict]:
    return [{k: v for k, v in record.items() if k != "seconds"} for record in records]


def _first_tables(target: Path) -> None:
    store_tables(target, "first", small_tables())


def _second_tables(target: Path) -> None:
    store_tables(target, "second", small_tables())


def _tables_problem(target: Path) -> str:
    if stored_tables(target, "first") is None:
        return "the first tables are lost"
    _second_tables(target)
    return "" if stored_tables(target, "second") else "the second tables are not there"


def stage() -> Save:
    """A stage of the quickstart that is marked as done."""
    if str(ROOT / "tools") not in sys.path:
        sys.path.append(str(ROOT / "tools"))
    from quickstart import Stage

    def put(target: Path, done: bool) -> None:
        Stage("train", target / "stage", "inputs").mark(done)

    def problem(target: Path) -> str:
        found = Stage("train", target / "stage", "inputs")
        if not found.begun:
            return "the stage is forgotten"
        put(target, True)
        return "" if Stage("train", target / "stage", "inputs").done else "the stage is not done"

    return Save(lambda target: put(target, False), lambda target: put(target, True), problem)


def derived(folder: Path) -> Save:
    """What is derived of a data set of two images."""

    def load(target: Path) -> dict:
        for name in [n for n in DatasetCatalog.list() if n.startswith("own")]:
            DatasetCatalog.remove(name)
        register_coco_panoptic("own", **own_paths(target), show_ids=False)
        DatasetCatalog.get("own")
        made = [p for p in (target / "out/derived").rglob("*") if p.suffix in (".png", ".json")]
        return {p.name: p.read_bytes() for p in made if not p.name.startswith(".")}

    (folder / "own").mkdir(parents=True)
    write_own(folder / "own")
    expected = load(folder / "own")

    def problem(target: Path) -> str:
        found = load(target)
        wrong = [name for name in expected if found.get(name) != expected[name]]
        return f"derived are other {wrong}" if wrong or found.keys() != expected.keys() else ""

    return Save(write_own, load, problem)
