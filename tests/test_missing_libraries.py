"""Without Detectron2 one line says what installs it; without panopticapi all but one evaluator works."""

import importlib
import sys

import numpy as np
import pytest

import auto_panoptic
from auto_panoptic.__main__ import main
from auto_panoptic.systems.panoptic_deeplab import upstream

REMEDY = "Detectron2 is not installed; python -m auto_panoptic install-detectron2 installs it"


@pytest.fixture
def no_detectron2(monkeypatch):
    monkeypatch.setitem(sys.modules, "detectron2", None)  # as if it were not installed


@pytest.mark.parametrize("command", ["train", "search", "demo", "bundle", "check", "own-data"])
def test_commands_without_detectron2(no_detectron2, monkeypatch, capsys, command):
    monkeypatch.setattr(sys, "argv", ["auto-panoptic", command, "--help"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2 and capsys.readouterr().err == f"error: {REMEDY}\n"


def test_python_without_detectron2(no_detectron2):
    with pytest.raises(ImportError, match=REMEDY):
        auto_panoptic.load("bundle.pth")


# ------------------------------------------------------------------ panopticapi: Panoptic-DeepLab's mapper


@pytest.mark.parametrize("shape", [(5, 7, 3), (0, 3, 3)])
def test_our_function_is_theirs(shape):
    theirs = pytest.importorskip("panopticapi.utils").rgb2id
    color = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    ids = upstream.rgb2id(color)
    assert ids.dtype == theirs(color).dtype and np.array_equal(ids, theirs(color))


def test_the_project_is_imported_with_it(monkeypatch):
    """And nothing is left that others could take for panopticapi."""
    monkeypatch.setitem(sys.modules, "panopticapi", None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, "panopticapi.utils", raising=False)
    with upstream.panopticapi_or_ours():
        from panopticapi.utils import rgb2id
    assert rgb2id is upstream.rgb2id
    with pytest.raises(ImportError):
        importlib.import_module("panopticapi.utils")


def test_where_it_is_installed_it_is_taken():
    utils = pytest.importorskip("panopticapi.utils")
    with upstream.panopticapi_or_ours():
        from panopticapi.utils import rgb2id
    assert rgb2id is utils.rgb2id
