"""The mapper of Panoptic-DeepLab: an image, and the targets of its panoptic map."""

import functools

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.data import MetadataCatalog
from detectron2.data import transforms as T
from detectron2.data.detection_utils import check_image_size, read_image

from auto_panoptic.data.formats.findings import raise_first
from auto_panoptic.data.formats.instances_json import mask_problem, with_area
from auto_panoptic.data.formats.panoptic_png import read_ids
from auto_panoptic.data.labels import data_set_for, data_set_names
from auto_panoptic.data.mapper import DATASET_MAPPER_REGISTRY, build_augmentations, check_files, seeded
from auto_panoptic.errors import UserError

from .targets import TargetGenerator

__all__ = ["PanopticDeepLabMapper"]


@DATASET_MAPPER_REGISTRY.register()
class PanopticDeepLabMapper:
    """From a record of a panoptic data set with labels "all" to what ``PanopticDeepLab`` takes.

    As ``PanopticDeeplabDatasetMapper`` of ``detectron2.projects.panoptic_deeplab``: the image is resized,
    cropped, then flipped (``INPUT.RANDOM_FLIP``), and the map with it. A record with "sample_seed" is
    augmented by that seed alone. In training, the result has "image" (3, H, W) uint8 and what
    :class:`TargetGenerator` makes, no annotations; else it has "image", and what does not serve training.

    ``MODEL.PANOPTIC_DEEPLAB.GT_SOURCE`` "instance" takes centres and offsets from the instance annotation of
    the record, whose masks may overlap (supplement, section 5): a pixel belongs to the smallest mask that has
    it, to a crowd only where no other has. Masks are compared as the file has them, before any crop.

    Args:
        cfg: reads INPUT and MODEL.PANOPTIC_DEEPLAB.GT_SOURCE. The classes are those of DATASETS.TRAIN.
        is_train: augment, and make targets.
    """

    def __init__(self, cfg, is_train: bool):
        self.is_train = is_train
        self.augmentations = T.AugmentationList(build_augmentations(cfg, is_train, crop_after_resize=True))
        self.image_format = cfg.INPUT.FORMAT
        self.of_instances = cfg.MODEL.PANOPTIC_DEEPLAB.GT_SOURCE == "instance"
        self.data_set = data_set_for(cfg, data_set_names(cfg)[0])
        self.options = {
            "sigma": cfg.INPUT.GAUSSIAN_SIGMA,
            "ignore_stuff_in_offset": cfg.INPUT.IGNORE_STUFF_IN_OFFSET,
            "small_instance_area": cfg.INPUT.SMALL_INSTANCE_AREA,
            "small_instance_weight": cfg.INPUT.SMALL_INSTANCE_WEIGHT,
            "ignore_crowd_in_semantic": cfg.INPUT.IGNORE_CROWD_IN_SEMANTIC,
        }

    @functools.cached_property
    def targets(self) -> TargetGenerator:
        """Made when it is needed: some data sets have their metadata once they are loaded."""
        metadata = MetadataCatalog.get(self.data_set)
        things = metadata.thing_dataset_id_to_contiguous_id.values()
        return TargetGenerator(metadata.ignore_label, things, **self.options)

    def __call__(self, record: dict) -> dict:
        """
        Raises:
            UserError: a file that is missing, damaged or of another size, a mask that cannot be drawn, or a
                record without what the targets are made of.
        """
        with seeded(record.get("sample_seed")):
            try:
                image = read_image(record["file_name"], format=self.image_format)
                check_image_size(record, image)
            except Exception:
                check_files(record)
                raise
            size = image.shape[1::-1]
            ids = self._ids(record, size) if self.is_train else None
            given = T.AugInput(image, sem_seg=ids)
            transforms = self.augmentations(given)
        pixels = torch.as_tensor(np.ascontiguousarray(given.image.transpose(2, 0, 1)))
        found = {**record, "image": pixels}
        for key in ("annotations", "sem_seg_file_name"):
            found.pop(key, None)
        if not self.is_train:
            return found
        panoptic = np.ascontiguousarray(given.sem_seg).view("<i4")[..., 0]
        segments = found.pop("segments_info")
        found.pop("pan_seg_file_name")
        instances = self._instances(record, size, transforms) if self.of_instances else None
        return found | self.targets(panoptic, segments, instances)

    def _ids(self, record: dict, size: tuple[int, int]) -> np.ndarray:
        """(H, W, 4) uint8, the bytes of the ids: what augmentations take for a picture, they do not mix."""
        if "pan_seg_file_name" not in record or "segments_info" not in record:
            raise UserError(
                f"{record['file_name']}: its record has no panoptic map, of which {type(self).__name__} "
                "makes the targets; train on a panoptic data set (see datasets/README.md)"
            )
        path = record["pan_seg_file_name"]
        ids, findings = read_ids(path, record.get("image_id"), "the image says", size)
        raise_first(findings)
        return ids.astype("<i4", copy=False).view(np.uint8).reshape(*ids.shape, 4)

    def _instances(self, record: dict, size: tuple[int, int], transforms: T.TransformList) -> list:
        """Masks and whether they are crowds, in the order that they are painted."""
        if "annotations" not in record:
            raise UserError(
                f"{record['file_name']}: its record has no instances; set MODEL.PANOPTIC_DEEPLAB.GT_SOURCE "
                "panoptic, or train on a data set that has them"
            )
        found = [
            (_mask(instance.get("segmentation"), size, record["file_name"]), bool(instance.get("iscrowd")))
            for instance in record["annotations"]
        ]
        found.sort(key=lambda pair: (not pair[1], -np.count_nonzero(pair[0])))
        return [(transforms.apply_segmentation(mask) > 0, is_crowd) for mask, is_crowd in found]


def _mask(segmentation, size: tuple[int, int], file_name: str) -> np.ndarray:
    """(H, W) uint8, 1 inside; ``size`` is (W, H). pycocotools trusts what it is given."""
    kind, wrong = mask_problem(segmentation, size) or (None, "")
    if kind not in (None, "mask-points"):
        raise UserError(f"{file_name}: the mask of an instance: {wrong}")
    runs = with_area(segmentation) if isinstance(segmentation, list) else segmentation
    if not runs:
        return np.zeros(size[::-1], np.uint8)
    if isinstance(runs, list):
        runs = mask_util.merge(mask_util.frPyObjects(runs, *size[::-1]))
    elif isinstance(runs["counts"], list):
        runs = mask_util.frPyObjects(runs, *size[::-1])
    return mask_util.decode(runs)
