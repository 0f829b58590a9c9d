"""Data sets in COCO-panoptic format: registration, the built-in drawn set, the mapper.

Importing this package registers ``shapes_panoptic_{train,val,nas_train,nas_val}``, drawn on first use, and
``coco_2017_nas_{train,val}_panoptic_separated``.
"""

from .coco_splits import register_coco_splits
from .mapper import PanopticMapper
from .metadata import panoptic_metadata
from .register import register_coco_panoptic
from .setup import setup_datasets
from .shapes import ensure_shapes, register_shapes

__all__ = [
    "PanopticMapper",
    "ensure_shapes",
    "panoptic_metadata",
    "register_coco_panoptic",
    "register_shapes",
    "setup_datasets",
]

register_shapes()
register_coco_splits()
