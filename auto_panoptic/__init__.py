"""Auto-Panoptic: search for panoptic-segmentation architectures on Detectron2.

Room by room, each importing only from those before it:

- ``auto_panoptic.config``      every config key
- ``auto_panoptic.space``       what is searched: sites, operators, architectures, cost (no torch)
- ``auto_panoptic.explore``     how it is explored: fair cycles, scoreboard, ledger (numpy only)
- ``auto_panoptic.modeling``    what networks are built from: choice blocks, backbones, layers
- ``auto_panoptic.data``        data sets in COCO-panoptic format, the built-in drawn set, mapper
- ``auto_panoptic.evaluation``  panoptic quality and Detectron2's evaluators
- ``auto_panoptic.systems``     whole networks, each in a folder: heads, attention, meta-architecture
- ``auto_panoptic.training``    supernet and retraining loops, checkpoints
- ``auto_panoptic.search``      BatchNorm recalibration, candidate evaluation, the search loop

Importing ``auto_panoptic`` itself needs neither torch nor detectron2: its names are imported on first use.
Importing ``auto_panoptic.systems`` and ``auto_panoptic.data`` registers the components and data sets in
Detectron2; so does ``add_auto_panoptic_config`` with the components.
"""

__version__ = "0.1.0"
__all__ = ["add_auto_panoptic_config", "register_coco_panoptic", "train"]


def __getattr__(name):
    if name == "add_auto_panoptic_config":
        from .config import add_auto_panoptic_config

        return add_auto_panoptic_config
    if name == "register_coco_panoptic":
        from .data import register_coco_panoptic

        return register_coco_panoptic
    if name == "train":
        from .training import train

        return train
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
