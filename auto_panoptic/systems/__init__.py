"""The systems: whole networks, each in a folder of its own. Importing this package registers their parts.

- ``panoptic_fpn``      Auto-Panoptic on Panoptic-FPN: the paper
- ``unified``           one panoptic output, trained as it is used
- ``panoptic_deeplab``  bottom-up: semantic labels, centres and offsets
- ``classifier``        the ImageNet stage, which pre-trains the backbone

Nothing outside names a system: Detectron2's registries and the model's choice blocks say what others need.
"""

from detectron2.config import CfgNode

from . import classifier, panoptic_deeplab, panoptic_fpn, unified

__all__ = ["add_configs", "classifier", "panoptic_deeplab", "panoptic_fpn", "unified"]


def add_configs(cfg: CfgNode) -> None:
    """Add the keys of every system to a config, in place."""
    panoptic_fpn.add_panoptic_fpn_config(cfg)
    unified.add_unified_config(cfg)
    panoptic_deeplab.add_panoptic_deeplab_config(cfg)
    classifier.add_classifier_config(cfg)
