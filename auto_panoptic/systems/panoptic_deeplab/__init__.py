"""Panoptic-DeepLab: bottom-up panoptic segmentation, every variant of its supplement, and searchable.

It is built on Detectron2's ``projects.panoptic_deeplab``.

- ``config``  its keys
"""

from .config import add_panoptic_deeplab_config

__all__ = ["add_panoptic_deeplab_config"]
