"""Configs and architecture files of any content: properties that hold for whatever hypothesis finds."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Callable
from pathlib import Path

import yaml
from detectron2.config import CfgNode, get_cfg
from hypothesis import HealthCheck, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from toy import ROOT

from auto_panoptic import add_auto_panoptic_config
from auto_panoptic.errors import UserError
from auto_panoptic.read_config import read_config
from auto_panoptic.space import Architecture

from . import pure
from .corpus import changed
from .report import Outcome, Plan

SCALARS = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=30)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
)
OPERATORS = sorted({name for site in pure.SPACE.sites for name in site.names})


def keys(node: CfgNode, prefix: str = "") -> list[str]:
    """Full names of everything in a config."""
    found = []
    for key, value in node.items():
        inner = keys(value, f"{prefix}{key}.") if isinstance(value, CfgNode) else []
        found += [prefix + key, *inner]
    return found


def all_keys() -> list[str]:
    cfg = get_cfg()
    add_auto_panoptic_config(cfg)
    return keys(cfg)


KEYS = all_keys()


@contextlib.contextmanager
def nothing_but_a_line(folder: Path, files: set[Path]):
    """Success, or a UserError of one line; and no file is new."""
    try:
        yield
    except UserError as error:
        text = str(error)
        assert text and "\n" not in text, f"a message of several lines: {text!r}"
    new = {p for p in folder.rglob("*")} - files
    assert not new, f"written: {new}"


def config_cases(folder: Path) -> Callable[[str, object], None]:
    """Reads a config in which a key has a value."""
    path = folder / "config.yaml"
    path.touch()

    def read(key: str, value) -> None:
        tree = inner = {"_BASE_": str(ROOT / "configs/Base-AutoPanoptic.yaml")}
        *parents, last = key.split(".")
        for part in parents:
            inner[part] = {}
            inner = inner[part]
        inner[last] = value
        path.write_text(yaml.safe_dump(tree), encoding="utf-8", errors="replace")
        with nothing_but_a_line(folder, {path}):
            read_config(str(path))
        with nothing_but_a_line(folder, {path}):
            read_config(str(ROOT / "configs/Base-AutoPanoptic.yaml"), [key, str(value)])

    return read


def architecture_cases(folder: Path) -> Callable[[object], None]:
    """Reads an architecture file with such a content, for its own space and for another."""
    path = folder / "architecture.json"
    path.touch()

    def read(content) -> None:
        path.write_text(json.dumps(content), encoding="utf-8", errors="replace")
        for space in (None, pure.SPACE):
            with nothing_but_a_line(folder, {path}):
                Architecture.load(path, space)

    return read


def sound_architecture(folder: Path) -> dict:
    path = folder / "sound.json"
    pure.SPACE.architecture([0] * len(pure.SPACE.sites)).save(path)
    return json.loads(path.read_text())


def malformed(plan: Plan) -> Outcome:
    """Refused by one line or understood; nothing is written. Each of two properties has its examples."""
    count = plan.number(600, 30)
    outcome = Outcome("configs and architecture files from hypothesis: any key, type, length, range, space")
    for name, test in properties(plan.folder, count, plan.seed, outcome).items():
        try:
            test()
        except Exception as error:
            outcome.expect(False, f"{name}: {type(error).__name__}: {error!s:.300}")
        outcome.numbers[name] = count
    return outcome


def properties(folder: Path, count: int, seed: int, outcome: Outcome) -> dict[str, Callable]:
    """The tests, by name; ``outcome`` counts their examples."""
    checks = settings(
        max_examples=count,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    folders = [folder / name for name in ("configs", "changed", "architectures")]
    for one in folders:
        one.mkdir(parents=True)
    read, read_architecture = config_cases(folders[0]), architecture_cases(folders[1])
    read_any = architecture_cases(folders[2])
    sound = sound_architecture(folder)

    @seeded(seed)
    @checks
    @given(st.sampled_from(KEYS) | st.text(min_size=1, max_size=20), VALUES)
    def configs(key, value):
        outcome.count += 1
        read(key, value)

    @seeded(seed)
    @checks
    @given(st.integers(0, 2**32))
    def changed_architectures(number):
        outcome.count += 1
        read_architecture(changed(sound, random.Random(number)))

    sites = st.dictionaries(
        st.text(max_size=12) | st.sampled_from(list(sound["sites"])), VALUES | st.sampled_from(OPERATORS)
    )
    content = st.fixed_dictionaries(
        {}, optional={"sites": sites | VALUES, "space": VALUES, "backbone": VALUES, "head": VALUES}
    )

    @seeded(seed)
    @checks
    @given(content | VALUES | st.lists(content, max_size=2))
    def architectures(content):
        outcome.count += 1
        read_any(content)

    return {
        "configs": configs,
        "changed_architectures": changed_architectures,
        "architectures": architectures,
    }
