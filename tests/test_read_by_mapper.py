"""Files that are damaged while a run goes on, and masks of records that nobody checked: one line each."""

import itertools
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
from data_util import config_with, write_own
from detectron2.data import DatasetCatalog

from auto_panoptic.data import PanopticMapper, register_coco_panoptic, setup_datasets
from auto_panoptic.errors import UserError
from auto_panoptic.training.loader import build_test_loader, build_train_loader


@pytest.fixture
def own(tmp_path, forget_data_sets):
    return write_own(tmp_path)


def test_a_damaged_file_is_named_by_the_mapper(own):
    cfg = config_with(TRAIN=("own",), TEST=())
    register_coco_panoptic("own", **own, show_ids=False)
    setup_datasets(cfg)
    first = DatasetCatalog.get("own_separated")[0]
    mapper = PanopticMapper(cfg, is_train=True)
    mapper(dict(first))
    photo = Path(first["file_name"])
    for damage, message in (
        (
            lambda: photo.write_bytes(photo.read_bytes()[:-200]),
            "b.jpg .image 41.: JPEG is cut or damaged",
        ),
        (lambda: photo.write_bytes(b"<html>"), "b.jpg .image 41.: it is no image"),
        (photo.unlink, "b.jpg .image 41.: the file does not exist"),
    ):
        damage()
        with pytest.raises(UserError, match=message):
            mapper(dict(first))


def test_an_error_of_a_worker_is_one_line(own):
    """A data loader's workers send their traceback with it."""
    register_coco_panoptic("own", **own, show_ids=False)
    cfg = config_with(TRAIN=("own",), TEST=("own",))
    cfg.DATALOADER.NUM_WORKERS, cfg.SOLVER.IMS_PER_BATCH = 1, 2
    setup_datasets(cfg)
    photo = Path(DatasetCatalog.get("own_separated")[0]["file_name"])
    loaders = build_train_loader(cfg, seed=0), build_test_loader(cfg, "own")
    photo.write_bytes(photo.read_bytes()[:-200])
    for loader in loaders:
        with pytest.raises(
            UserError, match=f"^{photo} .image 41.: JPEG is cut or damaged: .*; fetch"
        ) as caught:
            list(itertools.islice(loader, 5))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "mask",
    [
        {"size": [10**5, 10**5], "counts": "52203"},
        {"size": [20, 30], "counts": [5, 12000]},
        {"size": [20, 30], "counts": b"\xff"},
        {"size": [-1, -1], "counts": [0]},
        [[0, 0, 1e9, 0, 1e9, 1e9]],
    ],
)
def test_no_mask_reaches_pycocotools_unseen(own, mask):
    """Records of any loader: a size of its own makes pycocotools write where it may not."""
    register_coco_panoptic("own", **own, show_ids=False)
    record = dict(DatasetCatalog.get("own_separated")[0])
    mapper = PanopticMapper(config_with(TRAIN=("own",), TEST=()), is_train=True)
    record["annotations"] = [{**record["annotations"][0], "segmentation": mask}]
    with pytest.raises(UserError, match="b.jpg: the mask of an instance: (RLE|polygons)"):
        mapper(record)


@pytest.mark.parametrize("kind", [dict, list, bytes, tuple])
def test_every_kind_of_sound_mask_is_mapped(own, kind):
    register_coco_panoptic("own", **own, show_ids=False)
    record = dict(DatasetCatalog.get("own_separated")[0])
    mapper = PanopticMapper(config_with(TRAIN=("own",), TEST=()), is_train=False)
    mapper.is_train = True  # without augmentation
    instance = next(a for a in record["annotations"] if not a["iscrowd"])
    truth = mask_util.decode(instance["segmentation"])
    encoded = mask_util.encode(np.asfortranarray(truth))
    masks = {
        dict: instance["segmentation"],
        bytes: encoded,
        tuple: {**encoded, "size": tuple(encoded["size"])},
        list: [[4, 5, 10, 5, 10, 15, 4, 15]],
    }
    record["annotations"] = [{**instance, "segmentation": masks[kind]}]
    assert len(mapper(record)["instances"]) == 1 and truth.sum() == 60
