"""The drills of tools/chaos beyond searches, in small numbers; and that they see what does not hold."""

import os
import random
import sys

import pytest
import torch
from toy import ROOT, make_config

sys.path.append(str(ROOT / "tools"))

from chaos import boundaries, command, damage, drills, fuzz, images, memory, readers, train_kill
from chaos.report import Plan

from auto_panoptic import files
from auto_panoptic.training import checkpoint

LONG = ("signals", "pickles", "memory", "ranks", "orphans", "nan", "full")
SHORT = ("train_kill", "boundaries", "damage", "clock", "changed", "malformed", "images", "preflight")
SHORT += ("finals",)


def drilled(name, folder):
    """The outcome of a drill in a process of its own."""
    return command.drill({name: Plan(folder / name, quick=True, bars=False)}, jobs=1)[name]


@pytest.mark.parametrize("name", [*SHORT, *(pytest.param(n, marks=pytest.mark.slow) for n in LONG)])
def test_drill(tmp_path, name):
    outcome = drilled(name, tmp_path)
    assert outcome.failures == [] and outcome.count > 0


@pytest.mark.slow
def test_a_drill_does_not_see_the_data_sets_of_its_caller(tmp_path, shapes, forget_data_sets):
    make_config(tmp_path, shapes)
    assert drilled("memory", tmp_path / "drill").failures == []


def test_every_drill_is_tried():
    others = {"kill", "journal", "lock", "worker", "order"}  # test_chaos, test_workers
    assert {*SHORT, *LONG, *others, "fuzz", *drills.ASKED_FOR} == set(drills.DRILLS)


@pytest.mark.slow
@pytest.mark.parametrize("name", readers.READERS)
def test_malformed_files(tmp_path, name):
    found = fuzz.fuzzed(name, 100, tmp_path / name)
    assert found["failures"] == []
    assert found["cases"] >= 30 and (found["refused"] or found["read"])


# ------------------------------------------------------------------ drills that find something


def forgets_momentum(self, whole=checkpoint.AtomicCheckpointer.resume):
    found = whole(self)
    (trainer,) = self.checkpointables.values()
    trainer._trainer.optimizer.state.clear()
    return found


def in_place(path, content):
    path.write_bytes(content[: len(content) // 2])
    path.write_bytes(content)


def torn(data, path, whole=checkpoint._write):
    """Writes to the final name."""
    return whole(data, str(path.with_name(path.name.partition("-")[2].partition("-")[2])))


@pytest.mark.slow
@pytest.mark.parametrize(
    "drill, place, name, broken, failure",
    [
        (
            train_kill.train_kill,
            checkpoint.AtomicCheckpointer,
            "resume",
            forgets_momentum,
            "than uninterrupted",
        ),
        (boundaries.boundaries, files, "write_bytes", in_place, "boundary"),
        (damage.damage, checkpoint, "damage", lambda path: "", "is used"),
        (images.images, images, "check_data_set", lambda **_: [], "is not named"),
        (memory.memory, memory, "children", iter(range(99)).__next__, "(children, open files)"),
    ],
)
def test_the_drills_find_what_is_broken(tmp_path, monkeypatch, drill, place, name, broken, failure):
    monkeypatch.setattr(place, name, broken)
    monkeypatch.setitem(command.DRILLS, "broken", drill)
    assert failure in " ".join(drilled("broken", tmp_path).failures)


def raises(path, folder):
    raise KeyError("name")


def runs(path, folder):
    os.system("true")


def writes(path, folder):
    (path.parent / "beside").write_text("new")


def dies(path, folder):
    os.kill(os.getpid(), 9)


def never_ends(path, folder):
    while True:
        pass


def takes_memory(path, folder):
    torch.zeros(8 * 2**30, dtype=torch.uint8)


@pytest.mark.parametrize(
    "read, failure",
    [
        (raises, "KeyError at"),
        (runs, "touched the world: os.system"),
        (writes, "touched the world: open "),
        (dies, "died with exit code -9 at case 0"),
        (never_ends, "Hang at"),
        (takes_memory, "RuntimeError at"),
    ],
)
def test_what_counts_as_a_failure_of_a_reader(tmp_path, monkeypatch, read, failure):
    def make(folder):
        (folder / "file.txt").write_text("sound")
        return folder / "file.txt"

    def careful(path, folder):
        if path.read_bytes() != b"sound":
            read(path, folder)

    reader = readers.Reader(make, careful, lambda data, rng: b"damaged")
    monkeypatch.setitem(readers.READERS, "own", reader)
    monkeypatch.setattr(fuzz, "LIMIT", 0.5)
    found = fuzz.fuzzed("own", 2, tmp_path / "own")
    assert failure in " ".join(found["failures"])


@pytest.mark.parametrize("name", ["architecture", "ledger", "panoptic_png", "config", "photo_jpg"])
def test_cases_are_the_same_every_time(tmp_path, name):
    sound = readers.READERS[name].make(tmp_path).read_bytes()
    first, again = (
        [readers.READERS[name].mutate(sound, random.Random(n)) for n in range(9)] for _ in range(2)
    )
    assert first == again and len(set(first)) > 4
