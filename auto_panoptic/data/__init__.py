"""Data sets in COCO-panoptic format and of classified images: registration, built-in drawn sets, mappers.

Importing this package registers ``shapes_panoptic_{train,val,nas_train,nas_val}`` and
``shapes_objects_{train,val}``, drawn on first use, ``coco_2017_nas_{train,val}_panoptic_separated``,
``{ade20k,cityscapes}_panoptic_{train,val,nas_train,nas_val}_separated`` and ``imagenet_{train,val}``.
"""

from .drawn.objects import ensure_shapes_objects, register_shapes_objects
from .drawn.shapes import ensure_shapes, register_shapes
from .id_table import id_table
from .mapper import PanopticMapper
from .metadata import panoptic_metadata
from .register import register_coco_panoptic
from .sets.ade20k import register_ade20k
from .sets.cityscapes import register_cityscapes
from .sets.coco import register_coco_splits
from .sets.imagenet import (
    EVALUATOR_TYPE,
    ClassificationMapper,
    find_image_folder,
    is_classifier,
    register_image_folder,
    register_imagenet,
)
from .setup import log_ids, setup_datasets

__all__ = [
    "EVALUATOR_TYPE",
    "ClassificationMapper",
    "PanopticMapper",
    "ensure_shapes",
    "ensure_shapes_objects",
    "find_image_folder",
    "id_table",
    "is_classifier",
    "log_ids",
    "panoptic_metadata",
    "register_coco_panoptic",
    "register_image_folder",
    "register_shapes",
    "setup_datasets",
]

register_shapes()
register_shapes_objects()
register_coco_splits()
register_ade20k()
register_cityscapes()
register_imagenet()
