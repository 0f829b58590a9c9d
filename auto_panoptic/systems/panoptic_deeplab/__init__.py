"""Panoptic-DeepLab: bottom-up panoptic segmentation, every variant of its supplement, and searchable.

It is built on Detectron2's ``projects.panoptic_deeplab``.

- ``config``           its keys; ``encoder_config``: those of the encoders
- ``upstream``         what is taken from Detectron2's project
- ``meta_arch``        ``AutoPanopticDeepLab``: all of it together
- ``heads``            the semantic branch and that of centres and offsets, with searched convolutions
- ``ops``              their operators
- ``hrnet``            HRNet, HRNet+, HRNet-Wider+, Atrous: ``build_hrnet_backbone``
- ``xception``         Xception-71: ``build_xception71_backbone``
- ``auto_deeplab``     Auto-DeepLab and Auto-DeepLab+: ``build_auto_deeplab_backbone``
- ``encoder``          what these have in common
- ``mapper``           ``PanopticDeepLabMapper``: images and their targets, of either annotation
- ``targets``          labels, centres and offsets of a panoptic map
- ``post_processing``  ``group_pixels``, ``panoptic_segmentation``, ``instances_of``: from outputs to segments
"""

from ...data.labels import ALL, declare_inputs
from .auto_deeplab import AutoDeepLab
from .config import DETECTRON2S, OURS, add_panoptic_deeplab_config
from .heads import AutoPanopticDeepLabInsEmbedHead, AutoPanopticDeepLabSemSegHead
from .hrnet import HRNet
from .mapper import PanopticDeepLabMapper
from .meta_arch import AutoPanopticDeepLab
from .post_processing import find_centers, group_pixels, instances_of, panoptic_segmentation
from .targets import TargetGenerator
from .xception import Xception71

__all__ = [
    "AutoDeepLab",
    "AutoPanopticDeepLab",
    "AutoPanopticDeepLabInsEmbedHead",
    "AutoPanopticDeepLabSemSegHead",
    "HRNet",
    "PanopticDeepLabMapper",
    "TargetGenerator",
    "Xception71",
    "add_panoptic_deeplab_config",
    "find_centers",
    "group_pixels",
    "instances_of",
    "panoptic_segmentation",
]

for _name in (OURS, DETECTRON2S):
    declare_inputs(_name, labels=ALL, mapper="PanopticDeepLabMapper")
