"""From a data set record to what a panoptic model trains on."""

import contextlib
import copy
import random
import warnings
from collections.abc import Callable

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.data.detection_utils import build_augmentation
from fvcore.common.registry import Registry

from ..errors import UserError, one_of
from .formats.findings import raise_first
from .formats.instances_json import mask_problem
from .formats.panoptic_png import read_ids, read_labels
from .formats.picture_file import check_photo
from .labels import inputs_of

DATASET_MAPPER_REGISTRY = Registry("DATASET_MAPPER")
DATASET_MAPPER_REGISTRY.__doc__ = """
Mappers by name, for INPUT.DATASET_MAPPER_NAME. Called with (cfg, is_train), they return a callable from a
record of a data set to what the model takes.
"""

# Decoded masks are read-only; Detectron2 stacks them, which copies.
warnings.filterwarnings(
    "ignore", message="The given NumPy array is not writ", module=r"detectron2\.data\.detection_utils"
)


@contextlib.contextmanager
def seeded(seed: int | None):
    """Run a block under its own seed, leaving the global generators as they were; None does nothing.

    Detectron2's augmentations draw from numpy's global generator, torchvision's from torch's.
    """
    if seed is None:
        yield
        return
    numpy_state, python_state, torch_state = np.random.get_state(), random.getstate(), torch.get_rng_state()
    np.random.seed(seed % 2**32)
    random.seed(seed)
    torch.default_generator.manual_seed(seed)  # not those of the accelerators
    try:
        yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)
        torch.set_rng_state(torch_state)


def mapper_name(cfg) -> str:
    """The name of the config's mapper; raises UserError if no mapper has it."""
    name = cfg.INPUT.DATASET_MAPPER_NAME or inputs_of(cfg).mapper or PanopticMapper.__name__
    return one_of("INPUT.DATASET_MAPPER_NAME", name, sorted(name for name, _ in DATASET_MAPPER_REGISTRY))


def build_mapper(cfg, is_train: bool) -> Callable[[dict], dict]:
    """The mapper INPUT.DATASET_MAPPER_NAME, else the one the model declares, else :class:`PanopticMapper`.

    Raises:
        UserError: no mapper has that name.
    """
    return DATASET_MAPPER_REGISTRY.get(mapper_name(cfg))(cfg, is_train)


def build_augmentations(cfg, is_train: bool, crop_after_resize: bool) -> list:
    """Detectron2's augmentations of INPUT, and ours: where it is cropped, and INPUT.COLOR_AUG_SSD."""
    augmentations = build_augmentation(cfg, is_train)
    if is_train and cfg.INPUT.CROP.ENABLED:
        crop = T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE)
        augmentations.insert(int(crop_after_resize), crop)
    if is_train and cfg.INPUT.COLOR_AUG_SSD:
        from detectron2.projects.point_rend import ColorAugSSDTransform  # registers heads of its own

        augmentations.append(ColorAugSSDTransform(img_format=cfg.INPUT.FORMAT))
    return augmentations


def check_files(record: dict) -> None:
    """Raise UserError for the first file of a record that is missing, damaged or of another size."""
    image_id, size = record.get("image_id"), (record.get("width"), record.get("height"))
    raise_first(check_photo(record["file_name"], image_id, size)[1])
    if "sem_seg_file_name" in record:
        raise_first(read_labels(record["sem_seg_file_name"], image_id, "the JSON says", size)[1])
    if "pan_seg_file_name" in record:
        raise_first(read_ids(record["pan_seg_file_name"], image_id, "the JSON says", size)[1])


@DATASET_MAPPER_REGISTRY.register()
class PanopticMapper(DatasetMapper):
    """Detectron2's mapper for images with instances and a semantic map.

    Differences from :class:`detectron2.data.DatasetMapper`:

    - A record with "sample_seed" is augmented by that seed: the result then depends on the record only, not
      on the worker process or on what was loaded before.
    - Instance masks that are run-length encoded (crowd-free COCO-panoptic data) become bitmaps even if
      ``INPUT.MASK_FORMAT`` is "polygon", which Detectron2 refuses; polygons stay polygons, unless cropped.
    - ``INPUT.CROP.AFTER_RESIZE`` crops the resized image, ``INPUT.COLOR_AUG_SSD`` changes its colours.

    In training, the result has "image" (C, H, W), "sem_seg" (H, W) int64 with 255 where unlabelled, and
    "instances" without crowds and empty boxes; padding of batches is the model's task.
    """

    @classmethod
    def from_config(cls, cfg, is_train: bool = True) -> dict:
        parts, crop = super().from_config(cfg, is_train), cfg.INPUT.CROP
        parts["augmentations"] = build_augmentations(cfg, is_train, crop.AFTER_RESIZE)
        if inputs_of(cfg).masks:
            parts |= {"use_instance_mask": True, "recompute_boxes": is_train and crop.ENABLED}
        return parts

    def __call__(self, dataset_dict: dict) -> dict:
        try:
            with seeded(dataset_dict.get("sample_seed")):
                return super().__call__(dataset_dict)
        except Exception:
            check_files(dataset_dict)
            raise

    def _transform_annotations(self, dataset_dict, transforms, image_shape):
        mapper, size = self, (dataset_dict["width"], dataset_dict["height"])
        for instance in dataset_dict["annotations"]:  # pycocotools trusts what it is given
            mask = instance.get("segmentation")
            wrong = mask_problem(mask, size) if isinstance(mask, (dict, list)) else None
            if wrong and (isinstance(mask, dict) or wrong[0] == "mask-outside"):
                raise UserError(f"{dataset_dict['file_name']}: the mask of an instance: {wrong[1]}")
            if self.recompute_boxes and isinstance(mask, list):  # cropping polygons needs a library more
                runs = mask_util.frPyObjects(mask, *size[::-1])
                instance["segmentation"] = mask_util.merge(runs)
        if any(isinstance(a.get("segmentation"), dict) for a in dataset_dict["annotations"]):
            mapper = copy.copy(self)
            mapper.instance_mask_format = "bitmask"
        DatasetMapper._transform_annotations(mapper, dataset_dict, transforms, image_shape)
