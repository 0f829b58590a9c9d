"""Cityscapes in the tree of its official tool: found, numbered, derived."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
from data_util import config_with
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from auto_panoptic.data import PanopticMapper, register_coco_panoptic, setup_datasets
from auto_panoptic.data.formats.panoptic_png import segment_records, write_panoptic
from auto_panoptic.data.register import register_source
from auto_panoptic.data.sets.cityscapes import CATEGORIES, cityscapes_sources, image_file
from auto_panoptic.errors import UserError

PHOTOS = (
    Path(os.getenv("AUTO_PANOPTIC_PHOTOS", Path(__file__).parents[2] / "shared" / "data")) / "cityscapes19"
)
NAME = "own_cityscapes_panoptic_train_separated"
# Stuff segments have the label id, instances 1000 times it plus a number, groups the label id: road 7,
# sky 23, a person 24000, a group of cars 26.
CLASS_OF = {7: 7, 23: 23, 24000: 24, 26: 26}


def write_cityscapes(root, file_name="{0}_gtFine_leftImg8bit.png", part="train", categories=CATEGORIES):
    """Two images of two cities, as createPanopticImgs.py leaves them."""
    images, annotations = [], []
    for i, city in enumerate(("aachen", "bochum")):
        image_id = f"{city}_00000{i}_000019"
        ids = np.zeros((16, 32), np.int32)
        ids[:6], ids[10:] = 23, 7
        ids[7:12, 3:8] = 24000
        ids[7:9, 20:30] = 26
        for folder in (f"leftImg8bit/{part}/{city}", f"gtFine/cityscapes_panoptic_{part}"):
            (root / "cityscapes" / folder).mkdir(parents=True, exist_ok=True)
        image = root / f"cityscapes/leftImg8bit/{part}/{city}/{image_id}_leftImg8bit.png"
        Image.new("RGB", (32, 16), (10 * i, 50, 0)).save(image)
        png = f"{image_id}_gtFine_panoptic.png"
        write_panoptic(str(root / f"cityscapes/gtFine/cityscapes_panoptic_{part}/{png}"), ids)
        name = file_name.format(image_id, city)
        images.append({"id": image_id, "file_name": name, "width": 32, "height": 16})
        info = segment_records(ids, CLASS_OF, crowds={26})
        annotations.append({"image_id": image_id, "file_name": png, "segments_info": info})
    content = {"images": images, "annotations": annotations, "categories": list(categories)}
    path = root / f"cityscapes/gtFine/cityscapes_panoptic_{part}.json"
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def root(tmp_path, monkeypatch, forget_data_sets):
    """A folder of our own, with the data sets registered in it as "own_<name>"."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    for source in cityscapes_sources():
        register_source(dataclasses.replace(source, name=f"own_{source.name}"))
    return tmp_path


def test_eight_things_and_eleven_stuff_classes():
    metadata = MetadataCatalog.get("cityscapes_panoptic_train_separated")
    assert metadata.thing_classes == [
        "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"
    ]  # fmt: skip
    assert metadata.thing_dataset_id_to_contiguous_id == {
        24: 0,
        25: 1,
        26: 2,
        27: 3,
        28: 4,
        31: 5,
        32: 6,
        33: 7,
    }
    assert metadata.stuff_classes == [
        "things", "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign",
        "vegetation", "terrain", "sky",
    ]  # fmt: skip
    labels = {7: 1, 8: 2, 11: 3, 12: 4, 13: 5, 17: 6, 19: 7, 20: 8, 21: 9, 22: 10, 23: 11}
    assert metadata.stuff_dataset_id_to_contiguous_id == {0: 0, **labels}
    assert metadata.stuff_colors[1] == [128, 64, 128] and metadata.evaluator_type == "coco_panoptic_seg"


@pytest.mark.parametrize(
    "spelling", ["{0}_gtFine_leftImg8bit.png", "{0}_leftImg8bit.png", "{1}/{0}_leftImg8bit.png"]
)
def test_records(root, spelling):
    write_cityscapes(root, spelling)
    cfg = config_with(TRAIN=(NAME,), TEST=(NAME,))
    setup_datasets(cfg)
    assert (cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES) == (8, 12)
    first, second = DatasetCatalog.get(NAME)
    assert (first["image_id"], second["image_id"]) == ("aachen_000000_000019", "bochum_000001_000019")
    assert os.path.relpath(first["file_name"], root) == (
        "cityscapes/leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png"
    )
    assert [(a["category_id"], a["iscrowd"], a["bbox"]) for a in first["annotations"]] == [
        (2, 1, [20, 7, 10, 2]),
        (0, 0, [3, 7, 5, 5]),
    ]
    semantic = np.array(Image.open(first["sem_seg_file_name"]))
    expected = np.full((16, 32), 255)
    expected[:6], expected[10:] = 11, 1
    expected[7:12, 3:8] = expected[7:9, 20:30] = 0
    assert np.array_equal(semantic, expected)
    image = PanopticMapper(cfg, is_train=False)(second)["image"]
    assert image[:, 0, 0].tolist() == [0, 50, 10]  # BGR of the second city's


@pytest.mark.parametrize(
    "missing, remedy",
    [
        ("leftImg8bit/train", "Download leftImg8bit"),
        ("gtFine/cityscapes_panoptic_train.json", "prepare_cityscapes.py"),
        ("gtFine/cityscapes_panoptic_train", "prepare_cityscapes.py"),
    ],
)
def test_missing_files_are_named(root, missing, remedy):
    write_cityscapes(root)
    (root / "cityscapes" / missing).rename(root / "away")
    with pytest.raises(UserError, match=f"{missing} does not exist.*{remedy}"):
        setup_datasets(config_with(TRAIN=(NAME,), TEST=()))


def test_train_ids_are_refused(root):
    categories = [{**c, "id": i} for i, c in enumerate(CATEGORIES)]
    write_cityscapes(root, categories=categories)
    with pytest.raises(UserError, match="without --use-train-id, .*or register it as your own"):
        setup_datasets(config_with(TRAIN=(NAME,), TEST=()))


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="annotated photographs are not here")
def test_a_real_photograph(root):
    """One with classes 1..19 in Cityscapes' order, put into Cityscapes' tree: the same labels and objects."""
    content = json.loads((PHOTOS / "panoptic.json").read_text())
    own = (PHOTOS / "panoptic.json", PHOTOS / "panoptic", PHOTOS / "images")
    register_coco_panoptic("photo", *map(str, own), derived_root=str(root / "own"))
    (expected,) = DatasetCatalog.get("photo_separated")
    label_ids = {c["name"]: c["id"] for c in CATEGORIES}
    new = {c["id"]: label_ids[c["name"]] for c in content["categories"]}
    assert len(new) == 19
    (image,), (annotation,) = content["images"], content["annotations"]
    for folder, path, name in (
        ("leftImg8bit/train/dummy", expected["file_name"], "dummy_000000_000000_leftImg8bit.png"),
        ("gtFine/cityscapes_panoptic_train", expected["pan_seg_file_name"], annotation["file_name"]),
    ):
        (root / "cityscapes" / folder).mkdir(parents=True)
        (root / "cityscapes" / folder / name).symlink_to(path)
    image["file_name"] = "dummy_000000_000000_leftImg8bit.png"
    for segment in annotation["segments_info"]:
        segment["category_id"] = new[segment["category_id"]]
    content["categories"] = list(CATEGORIES)
    (root / "cityscapes/gtFine/cityscapes_panoptic_train.json").write_text(json.dumps(content))
    setup_datasets(config_with(TRAIN=(NAME,), TEST=(NAME,)))
    (found,) = DatasetCatalog.get(NAME)
    assert found["annotations"] == expected["annotations"] and len(found["annotations"]) > 1
    assert found["segments_info"] == expected["segments_info"]
    labels = [np.array(Image.open(record["sem_seg_file_name"])) for record in (found, expected)]
    assert np.array_equal(*labels) and len(np.unique(labels[0])) > 5


def test_search_parts(root):
    path = write_cityscapes(root)
    name = "own_cityscapes_panoptic_nas_val_separated"
    with pytest.raises(
        UserError, match="cityscapes_panoptic_nas_val.json does not exist.*prepare_nas_split.py"
    ):
        setup_datasets(config_with(TRAIN=(NAME,), TEST=(), SEARCH=(name,)))
    content = json.loads(path.read_text())
    part = {**content, "images": content["images"][1:], "annotations": content["annotations"][1:]}
    path.with_name("cityscapes_panoptic_nas_val.json").write_text(json.dumps(part))
    setup_datasets(config_with(TRAIN=(NAME,), TEST=(), SEARCH=(name,)))
    (record,) = DatasetCatalog.get(name)
    assert record["image_id"] == "bochum_000001_000019"


def test_image_file():
    assert image_file({"file_name": "ulm_1_2_leftImg8bit.png"}) == "ulm/ulm_1_2_leftImg8bit.png"
    assert image_file({"file_name": "x/ulm_1_2_leftImg8bit.png"}) == "x/ulm_1_2_leftImg8bit.png"
