"""No file outside ``systems/`` names a system's component, one of its sites, or its label convention.

A component's or site's own file (a backbone names the sites that it makes) is its home and may.
"""

import ast
import inspect
import re
from pathlib import Path

import pytest
from detectron2.config import get_cfg
from detectron2.modeling import (
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_BOX_HEAD_REGISTRY,
    ROI_HEADS_REGISTRY,
    ROI_MASK_HEAD_REGISTRY,
    SEM_SEG_HEADS_REGISTRY,
)
from detectron2.modeling.proposal_generator.rpn import RPN_HEAD_REGISTRY

import auto_panoptic.systems  # noqa: F401 - registers the components
from auto_panoptic import add_auto_panoptic_config
from auto_panoptic.space import SearchSpace

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "auto_panoptic"
REGISTRIES = (
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_BOX_HEAD_REGISTRY,
    ROI_HEADS_REGISTRY,
    ROI_MASK_HEAD_REGISTRY,
    RPN_HEAD_REGISTRY,
    SEM_SEG_HEADS_REGISTRY,
)
FILES = sorted(
    path
    for path in [
        *PACKAGE.rglob("*.py"),
        ROOT / "train_net.py",
        ROOT / "search_net.py",
        *ROOT.glob("tools/*.py"),
    ]
    if PACKAGE / "systems" not in path.parents
)
# A backbone, which several systems share, names its own sites.
BACKBONES = PACKAGE / "modeling" / "backbones"
# Where the labels of a data set are made and where a system says which it needs.
LABELS = PACKAGE / "data"


def components() -> dict[str, Path]:
    """{name of a registered component of this package: the file that defines it}."""
    found = {}
    for registry in REGISTRIES:
        for name, thing in registry:
            file = Path(inspect.getsourcefile(inspect.unwrap(thing)))
            if PACKAGE in file.parents:
                found[name] = file
    return found


def site_prefixes() -> set[str]:
    """``backbone``, ``mask``, ... : what the published sites begin with."""
    return {site.name.rpartition(".")[0] for site in SearchSpace.default().sites}


def strings_and_names(path: Path):
    """(line, text) of the string constants that are no docstrings, and of the names, that a file uses.

    The beginning of an f-string ends in "{", which tells a site's name from Detectron2's prefix of weights.
    """
    tree = ast.parse(path.read_text())
    told = set()
    for node in ast.walk(tree):
        if (
            isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
            and ast.get_docstring(node) is not None
        ):
            told.add(id(node.body[0].value))
        elif isinstance(node, ast.JoinedStr) and isinstance(node.values[0], ast.Constant):
            told.add(id(node.values[0]))
            yield node.lineno, node.values[0].value + "{"
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in told:
            yield node.lineno, node.value
        elif isinstance(node, ast.Name):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute):
            yield node.lineno, node.attr
        elif isinstance(node, ast.alias):
            yield node.lineno, node.name


COMPONENTS = components()
SITE = re.compile(rf"^({'|'.join(map(re.escape, sorted(site_prefixes())))})\.(\d+|{{)$")
LABEL = re.compile(r"(^|_)separated$")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_names_no_system(path):
    found = []
    for line, text in strings_and_names(path):
        words = set(re.findall(r"\w+", text))
        found += [
            f"{path.name}:{line}: {name}"
            for name in words & COMPONENTS.keys()
            if COMPONENTS[name].parent != path.parent
        ]
        if SITE.match(text) and path.parent != BACKBONES:
            found.append(f"{path.name}:{line}: site {text!r}")
        if LABEL.search(text) and LABELS not in path.parents:
            found.append(f"{path.name}:{line}: labels {text!r}")
    assert not found


def test_the_guard_knows_the_components():
    assert {"AutoPanopticFPN", "SearchableMaskHead", "build_shufflenet_fpn_backbone"} <= COMPONENTS.keys()
    assert site_prefixes() == {"backbone", "mask", "sem_seg", "attention.f2b", "attention.b2f"}


def test_the_keys_of_a_system_are_added_by_it():
    cfg = get_cfg()
    add_auto_panoptic_config(cfg)
    shared = (PACKAGE / "config.py").read_text()
    for node in ("CROSS_ATTENTION", "CLASSIFIER"):
        assert node in cfg.MODEL and f"MODEL.{node}" not in shared
