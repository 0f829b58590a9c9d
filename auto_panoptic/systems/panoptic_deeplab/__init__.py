"""Panoptic-DeepLab: bottom-up panoptic segmentation, every variant of its supplement, and searchable.

It is built on Detectron2's ``projects.panoptic_deeplab``.

- ``config``           its keys
- ``meta_arch``        ``AutoPanopticDeepLab``: all of it together
- ``heads``            the semantic branch and that of centres and offsets, with searched convolutions
- ``ops``              their operators
- ``post_processing``  ``group_pixels``, ``panoptic_segmentation``, ``instances_of``: from outputs to segments
"""

from .config import add_panoptic_deeplab_config
from .heads import AutoPanopticDeepLabInsEmbedHead, AutoPanopticDeepLabSemSegHead
from .meta_arch import AutoPanopticDeepLab
from .post_processing import find_centers, group_pixels, instances_of, panoptic_segmentation

__all__ = [
    "AutoPanopticDeepLab",
    "AutoPanopticDeepLabInsEmbedHead",
    "AutoPanopticDeepLabSemSegHead",
    "add_panoptic_deeplab_config",
    "find_centers",
    "group_pixels",
    "instances_of",
    "panoptic_segmentation",
]
