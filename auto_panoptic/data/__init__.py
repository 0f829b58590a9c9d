"""Data sets in COCO-panoptic format and of classified images: registration, built-in drawn sets, mappers.

Importing this package registers ``{shapes,ade20k,cityscapes}_panoptic_{train,val,nas_train,nas_val}``,
``mapillary_vistas_panoptic_{train,val}``, ``coco_2017_nas_{train,val}_panoptic`` and
``coco_2017_{train,val}_panoptic_with_sem_seg``, each also with the suffix ``_separated``, see :mod:`.labels`;
and ``shapes_objects_{train,val}`` and ``imagenet_{train,val}``.
Built-in sets are drawn on first use.
"""

from .drawn.objects import ensure_shapes_objects, register_shapes_objects
from .drawn.shapes import ensure_shapes, register_shapes, register_tuning_scenes
from .id_table import id_table
from .labels import data_set_for, declare_inputs, holds_classes, with_data_sets
from .mapper import DATASET_MAPPER_REGISTRY, PanopticMapper, build_mapper
from .metadata import panoptic_metadata
from .register import register_coco_panoptic, register_source
from .sets.ade20k import ade20k_sources
from .sets.cityscapes import cityscapes_sources
from .sets.coco import coco_sources
from .sets.imagenet import find_image_folder, register_image_folder, register_imagenet
from .sets.mapillary import mapillary_sources
from .setup import check_ground_truth, log_ids, setup_datasets

__all__ = [
    "DATASET_MAPPER_REGISTRY",
    "PanopticMapper",
    "build_mapper",
    "check_ground_truth",
    "data_set_for",
    "declare_inputs",
    "ensure_shapes",
    "ensure_shapes_objects",
    "find_image_folder",
    "holds_classes",
    "id_table",
    "log_ids",
    "panoptic_metadata",
    "register_coco_panoptic",
    "register_image_folder",
    "register_shapes",
    "setup_datasets",
    "with_data_sets",
]

register_shapes()
register_tuning_scenes()
register_shapes_objects()
for _set in (*coco_sources(), *ade20k_sources(), *cityscapes_sources(), *mapillary_sources()):
    register_source(_set)
register_imagenet()
