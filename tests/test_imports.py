"""The package's rooms import only from those before them, and the first ones need no torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "auto_panoptic"
FILES = sorted(PACKAGE.rglob("*.py"))
ROOMS = (
    "signals",
    "errors",
    "progress",
    "screen",
    "files",
    "config_files",
    "config",
    "validate",
    "read_config",
    "space",
    "explore",
    "modeling",
    "data",
    "pictures",
    "evaluation",
    "bench",
    "systems",
    "training",
    "search",
    "bundle",
    "report",
)
LEVEL = {room: i for i, room in enumerate(ROOMS)}
# The only imports against the order, inside functions: the keys of the systems and policies, the published
# operators, the space of a config's model and the paper's costs under their public names; the report of a
# search in Python.
FORWARDS = {
    ("config.py", "explore"),
    ("config.py", "space"),
    ("config.py", "systems"),
    ("search/command.py", "report"),
    ("space/cost.py", "systems"),
    ("space/space.py", "modeling"),
}
MODULES = {p.stem for p in PACKAGE.glob("*.py")} | {p.name for p in PACKAGE.iterdir() if p.is_dir()}
MAX_LINES = 400


def imported_modules(path):
    """Absolute names of the modules that ``path`` imports, anywhere in it, type-checking blocks left out."""
    tree = ast.parse(path.read_text())
    skipped = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            skipped |= {id(inner) for statement in node.body for inner in ast.walk(statement)}
    package = ("auto_panoptic", *path.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *(node.module or "").split("."))).strip(".")
            yield module
            if not node.module or module == "auto_panoptic":
                yield from (f"{module}.{alias.name}" for alias in node.names)


def room(module):
    parts = module.split(".")
    return parts[1] if parts[0] == "auto_panoptic" and len(parts) > 1 else None


def relative(path):
    return str(path.relative_to(PACKAGE))


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_imports_only_earlier_rooms(path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if own not in LEVEL:
        return  # the table of contents and stand-alone commands may use everything
    for module in imported_modules(path):
        target = room(module)
        if (relative(path), target) in FORWARDS:
            continue
        assert target not in LEVEL or target == own or LEVEL[target] <= LEVEL[own], f"{own} imports {module}"
        # An earlier room must not reach a stand-alone module either, which may use everything.
        assert target in LEVEL or target not in MODULES, f"{own} imports {module}"


@pytest.mark.parametrize("path", [p for p in FILES if p.parent.name in ("space", "explore")], ids=relative)
def test_space_and_explore_need_no_framework(path):
    allowed = {"auto_panoptic", "__future__"} | set(sys.stdlib_module_names)
    if path.parent.name == "explore":
        allowed |= {"numpy", "scipy"}
    assert {module.split(".")[0] for module in imported_modules(path)} <= allowed


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_files_stay_readable(path):
    assert len(path.read_text().splitlines()) <= MAX_LINES


def test_every_room_is_listed():
    folders = {p.name for p in PACKAGE.iterdir() if p.is_dir() and any(p.glob("*.py"))}
    assert folders <= set(ROOMS)


@pytest.mark.parametrize("module", ["auto_panoptic", "auto_panoptic.space", "auto_panoptic.explore"])
def test_importing_leaves_torch_out(module):
    code = (
        f"import sys, {module}; from auto_panoptic.space import SearchSpace; SearchSpace.default();"
        "print(sorted({'torch', 'torchvision', 'detectron2', 'fvcore', 'yacs'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_the_import_reader_sees_through_all_forms(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    (tmp_path / "space").mkdir()
    path = tmp_path / "space" / "x.py"
    path.write_text(
        "import torch.nn as nn\n"
        "from .. import search\n"
        "from ..search.loop import run\n"
        "from . import ops\n"
        "from .ops import op\n"
        "from auto_panoptic import data\n"
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from ..report import html\n"
        "def f():\n    from ..training import trainer\n"
    )
    modules = set(imported_modules(path))
    assert modules >= {
        "torch.nn",
        "auto_panoptic.search",
        "auto_panoptic.search.loop",
        "auto_panoptic.space.ops",
        "auto_panoptic.data",
        "auto_panoptic.training",
    }
    assert "auto_panoptic.report" not in modules
