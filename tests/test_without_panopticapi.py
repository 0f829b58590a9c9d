"""panopticapi is optional: Detectron2's project of Panoptic-DeepLab asks for one function of it."""

import importlib
import sys

import numpy as np
import pytest

from auto_panoptic.systems.panoptic_deeplab import upstream


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
