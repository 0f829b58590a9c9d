"""Detectron2's project ``panoptic_deeplab``, which imports with and without panopticapi.

Its mapper, which is not used here, needs one function of panopticapi, and the whole project cannot be
imported where that is missing.
"""

import contextlib
import importlib.util
import sys
from collections.abc import Iterator
from types import ModuleType

import numpy as np

_NAMES = ("panopticapi", "panopticapi.utils")


def rgb2id(color: np.ndarray) -> np.ndarray:
    """(H, W, 3) of a panoptic PNG -> (H, W) int32 of segment ids, as panopticapi's function of this name."""
    return color.astype(np.int32) @ np.array([1, 256, 65536], np.int32)


@contextlib.contextmanager
def panopticapi_or_ours() -> Iterator[None]:
    """Context in which ``from panopticapi.utils import rgb2id`` works; it leaves nothing behind."""
    if importlib.util.find_spec("panopticapi"):
        yield
        return
    before = {name: sys.modules[name] for name in _NAMES if name in sys.modules}
    for name in _NAMES:
        sys.modules[name] = ModuleType(name)
    sys.modules[_NAMES[-1]].rgb2id = rgb2id
    try:
        yield
    finally:
        for name in _NAMES:
            del sys.modules[name]
        sys.modules.update(before)


with panopticapi_or_ours():
    from detectron2.projects.panoptic_deeplab import (  # noqa: F401
        INS_EMBED_BRANCHES_REGISTRY,
        PanopticDeepLab,
        PanopticDeepLabInsEmbedHead,
        PanopticDeepLabSemSegHead,
        add_panoptic_deeplab_config,
        build_ins_embed_branch,
    )
