"""Cropping after resizing and changes of colour: labels follow the image, and the sample's seed decides."""

import numpy as np
import pytest
import torch
from data_util import config_with, write_own
from detectron2.data import DatasetCatalog
from detectron2.data import transforms as T
from detectron2.data.detection_utils import read_image
from detectron2.projects.point_rend import ColorAugSSDTransform
from toy import ROOT

from auto_panoptic.data import PanopticMapper, declare_inputs, labels, register_coco_panoptic
from auto_panoptic.data.mapper import seeded
from auto_panoptic.errors import UserError
from auto_panoptic.read_config import read_config
from auto_panoptic.validate import validate


@pytest.fixture
def record(tmp_path, forget_data_sets):
    """An image of 20 x 30 pixels: a cat of 10 x 6, thing 0 of two; a crowd of dogs; wall, floor and void."""
    register_coco_panoptic("own", **write_own(tmp_path), show_ids=False)
    return DatasetCatalog.get("own")[0]


def recipe(**changes):
    """Between half and twice the size, then 16 x 24 pixels of it; COLOR_AUG_SSD and the rest as given."""
    cfg = config_with()
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    cfg.MODEL.MASK_ON = changes.pop("MASK_ON", True)
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = (10, 40), "range"
    cfg.INPUT.MASK_FORMAT = "bitmask"
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.AFTER_RESIZE = True, True
    cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = "absolute", [16, 24]
    cfg.INPUT.merge_from_list([x for item in changes.items() for x in item])
    validate(cfg)
    return cfg


def test_it_is_detectron2s_augmentations_in_this_order(record):
    mapper = PanopticMapper(recipe(COLOR_AUG_SSD=True), is_train=True)
    image = read_image(record["file_name"], "BGR")
    shapes = set()
    for seed in range(40):
        found = mapper({**record, "sample_seed": seed})["image"].numpy().transpose(1, 2, 0)
        size = T.ResizeShortestEdge((10, 40), 1333, "range")
        steps = [size, T.RandomCrop("absolute", [16, 24]), T.RandomFlip(), ColorAugSSDTransform("BGR")]
        with seeded(seed):
            given = T.AugInput(image)
            T.AugmentationList(steps)(given)
        assert np.array_equal(found, given.image)
        shapes.add(found.shape[:2])
    assert (16, 24) in shapes and all(h <= 16 and w <= 24 for h, w in shapes) and len(shapes) > 3


def test_labels_masks_and_boxes_follow_the_crop(record):
    """The cat is where its label is; its box is that of the pixels left of it, at every size and place."""
    mapper, seen = PanopticMapper(recipe(COLOR_AUG_SSD=True), is_train=True), {"none": 0, "part": 0}
    for seed in range(60):
        out = mapper({**record, "sample_seed": seed})
        cat, instances = out["sem_seg"] == 0, out["instances"]
        assert out["sem_seg"].shape == out["image"].shape[1:] == instances.image_size
        assert len(instances) == int(cat.any())
        if not cat.any():
            seen["none"] += 1
            continue
        torch.testing.assert_close(instances.gt_masks.tensor, cat[None], rtol=0, atol=0)
        rows, columns = torch.where(cat)
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert instances.gt_boxes.tensor[0].tolist() == [int(v) for v in box]
        seen["part"] += bool(box[0] == 0 or box[3] == cat.shape[0])
    assert seen["none"] > 2 and seen["part"] > 10


def test_colours_change_and_nothing_else(record):
    still = PanopticMapper(recipe(MIN_SIZE_TRAIN=(20, 20), RANDOM_FLIP="none"), is_train=True)
    changed = PanopticMapper(
        recipe(MIN_SIZE_TRAIN=(20, 20), RANDOM_FLIP="none", COLOR_AUG_SSD=True), is_train=True
    )
    differ = []
    for seed in range(60):
        before, after = (mapper({**record, "sample_seed": seed}) for mapper in (still, changed))
        again = changed({**record, "sample_seed": seed})
        assert torch.equal(before["sem_seg"], after["sem_seg"])
        assert torch.equal(after["image"], again["image"])
        differ.append(not torch.equal(before["image"], after["image"]))
    assert sum(differ) > 45  # each of four changes is made in half of the cases
    evaluated = PanopticMapper(recipe(COLOR_AUG_SSD=True), is_train=False)(record)
    assert evaluated["image"].shape[1] == 800


@pytest.mark.parametrize("image_format", ["BGR", "RGB"])
def test_the_order_of_channels_is_that_of_the_images(image_format):
    cfg = recipe(COLOR_AUG_SSD=True, FORMAT=image_format)
    change = PanopticMapper.from_config(cfg, True)["augmentations"][-1]
    assert isinstance(change, ColorAugSSDTransform) and change.is_rgb == (image_format == "RGB")


def test_detectron2s_own_order_is_the_default(record):
    """Cropped before it is resized: 10 x 15 pixels become 40 x 60."""
    cfg = recipe(MIN_SIZE_TRAIN=(40, 40))
    cfg.INPUT.CROP.AFTER_RESIZE, cfg.INPUT.CROP.SIZE = False, [10, 15]
    assert PanopticMapper(cfg, is_train=True)({**record, "sample_seed": 1})["image"].shape == (3, 40, 60)
    kinds = [type(step).__name__ for step in PanopticMapper.from_config(cfg, True)["augmentations"]]
    assert kinds == ["RandomCrop", "ResizeShortestEdge", "RandomFlip"]
    assert not config_with().INPUT.CROP.AFTER_RESIZE and not config_with().INPUT.COLOR_AUG_SSD


@pytest.mark.parametrize("mask_format", ["bitmask", "polygon"])
def test_cropped_polygons_become_bitmaps(record, mask_format):
    cfg = recipe(MASK_FORMAT=mask_format)
    runs = PanopticMapper(cfg, is_train=True)
    polygon = {**record["annotations"][0], "segmentation": [[4, 5, 10, 5, 10, 15, 4, 15]]}
    for seed in range(20):
        expected, found = (
            runs({**record, "annotations": annotations, "sample_seed": seed})["instances"]
            for annotations in (record["annotations"], [polygon])
        )
        assert torch.equal(found.gt_masks.tensor, expected.gt_masks.tensor)
        assert torch.equal(found.gt_boxes.tensor, expected.gt_boxes.tensor)


@pytest.mark.parametrize("needed", [False, True])
def test_masks_of_a_network_without_a_mask_head(record, monkeypatch, needed):
    monkeypatch.setattr(labels, "_DECLARED", {})
    declare_inputs("GeneralizedRCNN", masks=needed)
    mapper = PanopticMapper(recipe(MASK_ON=False), is_train=True)
    outs = [mapper({**record, "sample_seed": seed}) for seed in range(20)]
    (instances, label), *_ = (
        (out["instances"], out["sem_seg"]) for out in outs if (out["sem_seg"] == 0).any()
    )
    assert instances.has("gt_masks") == needed
    if needed:
        assert torch.equal(instances.gt_masks.tensor, (label == 0)[None])
        assert torch.equal(instances.gt_boxes.tensor, instances.gt_masks.get_bounding_boxes().tensor)


@pytest.mark.parametrize("kind, size, expected", [
    ("absolute", [0.5, 0.5], "whole numbers of pixels"),
    ("absolute_range", [40, 20], "(least, most)"),
    ("relative", [512, 1024], "at most 1"),
])  # fmt: skip
def test_sizes_that_do_not_fit_their_type(kind, size, expected):
    options = ["INPUT.CROP.ENABLED", "True", "INPUT.CROP.TYPE", kind, "INPUT.CROP.SIZE", str(size)]
    with pytest.raises(UserError) as caught:
        read_config(str(ROOT / "configs/quick/supernet.yaml"), options)
    assert str(caught.value).startswith(f"INPUT.CROP.SIZE is {size}; expected ")
    assert expected in str(caught.value) and kind in str(caught.value)
