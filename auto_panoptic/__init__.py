"""Auto-Panoptic: search for panoptic-segmentation architectures on Detectron2.

Each room imports only from those before it: ``config``, ``space`` (what is searched), ``explore`` (how),
``modeling`` and ``systems`` (the networks), ``data``, ``evaluation``, ``training``, ``search``, ``report``.

Importing this package needs neither torch nor Detectron2; the names below are imported on first use.
"""

import sys

from .version import __version__

if sys.platform == "win32":
    raise ImportError("Auto-Panoptic runs on Linux and macOS; on Windows install it in WSL 2")

_HOMES = {
    "search": ".search",  # the room itself, which can be called
    "add_auto_panoptic_config": ".config",
    "load": ".bundle",
    "register_coco_panoptic": ".data",
    "train": ".training",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module, util

    if util.find_spec("detectron2") is None:
        from .errors import NO_DETECTRON2

        raise ImportError(NO_DETECTRON2)
    home = import_module(_HOMES[name], __name__)
    return home if name == "search" else getattr(home, name)
