"""The mapper: labels follow the image exactly, and the sample's seed decides the augmentation."""

import numpy as np
import pytest
import torch
from data_util import config_with, write_own
from detectron2.data import DatasetCatalog
from detectron2.data.build import get_detection_dataset_dicts
from PIL import Image

from auto_panoptic.data import PanopticMapper, register_coco_panoptic


def _mapper(is_train=True, **changes):
    cfg = config_with()
    cfg.MODEL.MASK_ON = True
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (20, 32, 48), 100
    cfg.INPUT.MASK_FORMAT = changes.get("mask_format", "bitmask")
    return PanopticMapper(cfg, is_train)


@pytest.mark.parametrize("mask_format", ["bitmask", "polygon"])
def test_mapped_labels_are_exact(tmp_path, forget_data_sets, mask_format):
    """Without resizing, labels and masks are those of the PNG, mirrored or not; the crowd is gone."""
    register_coco_panoptic("own", **write_own(tmp_path))
    record = DatasetCatalog.get("own_separated")[0]
    mapper = _mapper(mask_format=mask_format)
    semantic = torch.as_tensor(np.array(Image.open(record["sem_seg_file_name"])).astype("int64"))
    cat = torch.zeros(20, 30, dtype=torch.bool)
    cat[5:15, 4:10] = True
    mirrored = set()
    for seed in range(60):
        out = mapper({**record, "sample_seed": seed})
        if out["image"].shape[1:] != (20, 30):
            continue
        flip = bool(out["instances"].gt_boxes.tensor[0, 0] != 4)
        mirrored.add(flip)
        turn = (lambda x: x.flip(-1)) if flip else (lambda x: x)
        torch.testing.assert_close(out["sem_seg"], turn(semantic), rtol=0, atol=0)
        torch.testing.assert_close(out["instances"].gt_masks.tensor, turn(cat)[None], rtol=0, atol=0)
        assert out["instances"].gt_classes.tolist() == [0]
    assert mirrored == {False, True}


def test_sample_seed_decides_the_augmentation(tmp_path, forget_data_sets):
    register_coco_panoptic("own", **write_own(tmp_path))
    record, mapper = DatasetCatalog.get("own_separated")[0], _mapper()
    np.random.seed(0)
    state = np.random.get_state()
    first = mapper({**record, "sample_seed": 5})
    after = np.random.get_state()
    assert state[2] == after[2] and np.array_equal(state[1], after[1])  # the global generator is untouched
    np.random.seed(99)
    again = mapper({**record, "sample_seed": 5})
    torch.testing.assert_close(first["image"], again["image"], rtol=0, atol=0)
    torch.testing.assert_close(first["sem_seg"], again["sem_seg"], rtol=0, atol=0)
    shapes_seen = {tuple(mapper({**record, "sample_seed": s})["image"].shape) for s in range(30)}
    assert len(shapes_seen) == 3  # the three sizes occur


def test_inference_record_has_no_labels(tmp_path, forget_data_sets):
    register_coco_panoptic("own", **write_own(tmp_path))
    out = _mapper(is_train=False)(DatasetCatalog.get("own_separated")[0])
    assert "annotations" not in out and "instances" not in out
    assert (out["image_id"], out["height"], out["width"]) == (41, 20, 30)


def test_images_without_usable_boxes_leave_training(tmp_path, forget_data_sets):
    """Filtered as Detectron2 does: image 42 has no thing; with the cat gone, 41 has a crowd only."""
    own = write_own(tmp_path)
    register_coco_panoptic("own", **own)
    assert [r["image_id"] for r in get_detection_dataset_dicts("own", filter_empty=True)] == [41]
    assert [r["image_id"] for r in get_detection_dataset_dicts("own", filter_empty=False)] == [41, 42]
    mapped = _mapper()(DatasetCatalog.get("own_separated")[1])  # still trainable when filtering is off
    assert len(mapped["instances"]) == 0 and mapped["sem_seg"].unique().tolist() == [1]
