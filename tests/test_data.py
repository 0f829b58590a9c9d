"""Registration of COCO-panoptic data and what is derived from it."""

import json
import os
import stat
from pathlib import Path

import cv2
import numpy as np
import pytest
from data_util import CATEGORIES, agree, config_with, write_own
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_train_loader
from detectron2.data.build import get_detection_dataset_dicts
from PIL import Image

from auto_panoptic.data import (
    PanopticMapper,
    ensure_shapes,
    panoptic_metadata,
    register_coco_panoptic,
    register_shapes,
    setup_datasets,
    with_data_sets,
)
from auto_panoptic.errors import UserError

SIZES = {"nas_train": 6, "nas_val": 3, "val": 3}
PHOTOS = Path(os.getenv("AUTO_PANOPTIC_PHOTOS", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return ensure_shapes(tmp_path_factory.mktemp("data") / "shapes", sizes=SIZES)


# ------------------------------------------------------------------ metadata


def test_metadata_by_hand():
    assert panoptic_metadata(CATEGORIES) == {
        "thing_classes": ["cat", "dog"],
        "thing_colors": [[10, 20, 30], panoptic_metadata(CATEGORIES)["thing_colors"][1]],
        "thing_dataset_id_to_contiguous_id": {4: 0, 9: 1},
        "stuff_classes": ["things", "wall", "floor"],
        "stuff_colors": [[82, 18, 128], *panoptic_metadata(CATEGORIES)["stuff_colors"][1:]],
        "stuff_dataset_id_to_contiguous_id": {0: 0, 2: 1, 7: 2},
    }
    assert all(0 <= v <= 255 for c in panoptic_metadata(CATEGORIES)["stuff_colors"] for v in c)


def test_metadata_equals_detectron2_for_coco():
    from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

    reference = MetadataCatalog.get("coco_2017_val_panoptic_separated")
    found = panoptic_metadata(COCO_CATEGORIES)
    assert found == {key: reference.get(key) for key in found}
    labels = found["stuff_dataset_id_to_contiguous_id"]
    assert (labels[92], labels[200], labels[0]) == (1, 53, 0) and len(found["stuff_classes"]) == 54


def test_stuff_with_id_zero_is_not_lost():
    found = panoptic_metadata([{"id": 0, "name": "sky", "isthing": 0}, {"id": 1, "name": "x", "isthing": 1}])
    assert found["stuff_dataset_id_to_contiguous_id"] == {0: 1, -1: 0}


def test_names_that_would_collide_stay_whole():
    names = ["wall", "wall-other"]
    found = panoptic_metadata([{"id": i, "name": n, "isthing": 0} for i, n in enumerate(names, start=1)])
    assert found["stuff_classes"] == ["things", *names]


# ------------------------------------------------------------------ a user's own data


def test_own_data_is_derived_and_loaded(tmp_path, forget_data_sets):
    own = write_own(tmp_path)
    register_coco_panoptic("own", **own)
    assert not (tmp_path / "derived").exists()  # lazily
    records = DatasetCatalog.get("own_separated")
    assert [r["image_id"] for r in records] == [41, 42]
    first, second = records
    assert first["file_name"] == str(tmp_path / "images" / "sub/b.jpg")
    assert second["file_name"] == str(tmp_path / "images" / "a.png")
    assert (first["height"], first["width"]) == (20, 30)
    assert [(a["category_id"], a["iscrowd"], a["bbox"]) for a in first["annotations"]] == [
        (0, 0, [4, 5, 6, 10]),
        (1, 1, [20, 5, 6, 5]),
    ]
    assert second["annotations"] == []
    semantic = np.array(Image.open(first["sem_seg_file_name"]))
    expected = np.full((20, 30), 255)
    expected[:8], expected[12:] = 1, 2
    expected[5:15, 4:10] = 0
    expected[5:10, 20:26] = 0
    assert np.array_equal(semantic, expected)
    assert [(s["category_id"], s["isthing"]) for s in first["segments_info"]] == [
        (1, False),
        (2, False),
        (0, True),
        (1, True),
    ]
    metadata = MetadataCatalog.get("own_separated")
    assert metadata.evaluator_type == "coco_panoptic_seg"
    assert (metadata.ignore_label, metadata.label_divisor) == (255, 1000)
    assert metadata.panoptic_json == own["panoptic_json"]
    assert Path(metadata.json_file).is_file() and Path(metadata.sem_seg_root).is_dir()


def test_derived_semantic_maps_equal_detectron2s_script(shapes, tmp_path, forget_data_sets):
    """The rule of prepare_panoptic_fpn.py (things 0, stuff 1.., else 255), here from the drawn set's PNGs."""
    arguments = [shapes / "annotations/panoptic_val.json", shapes / "panoptic_val", shapes / "val"]
    register_coco_panoptic("rederived", *map(str, arguments), derived_root=str(tmp_path))
    for record in DatasetCatalog.get("rederived_separated"):
        drawn = shapes / "panoptic_stuff_val" / Path(record["sem_seg_file_name"]).name
        assert np.array_equal(cv2.imread(record["sem_seg_file_name"], 0), cv2.imread(str(drawn), 0))
    given = json.loads((shapes / "annotations/instances_val.json").read_text())["annotations"]
    made = Path(MetadataCatalog.get("rederived").json_file).read_text()
    assert json.loads(made)["annotations"] == given


def test_sources_may_be_read_only(tmp_path, forget_data_sets):
    own = write_own(tmp_path / "source")
    before = sorted(p for p in (tmp_path / "source").rglob("*"))
    for path in before:
        path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
    try:
        register_coco_panoptic("own", **{**own, "derived_root": str(tmp_path / "elsewhere")})
        assert len(DatasetCatalog.get("own_separated")) == 2
        assert sorted((tmp_path / "source").rglob("*")) == before
    finally:
        for path in before:
            path.chmod(path.stat().st_mode | stat.S_IWUSR)


def test_registering_twice(tmp_path, forget_data_sets):
    own = write_own(tmp_path)
    register_coco_panoptic("own", **own)
    register_coco_panoptic("own", **own)  # the same again is fine
    with pytest.raises(UserError, match="already registered with other arguments"):
        register_coco_panoptic("own", **{**own, "image_root": str(tmp_path)})
    with pytest.raises(UserError, match="already registered by somebody else"):
        register_coco_panoptic("coco_2017_val", **own)


def test_partial_set_under_a_wider_category_list(tmp_path, forget_data_sets):
    """A set that lists some things only trains together with one that lists all."""
    full = write_own(tmp_path / "full")
    partial = write_own(tmp_path / "partial", categories=CATEGORIES[:3])
    content = json.loads(Path(partial["panoptic_json"]).read_text())
    content["annotations"][0]["segments_info"] = content["annotations"][0]["segments_info"][2:3]
    Path(partial["panoptic_json"]).write_text(json.dumps(content))
    agree(partial)
    entries = [{"name": "full", **full}, {"name": "partial", **partial}]
    cfg = config_with(COCO_PANOPTIC=entries, TRAIN=("full", "partial"), TEST=("full",))
    with pytest.raises(UserError, match=r"stuff classes.*'floor'.*same 'categories'"):
        setup_datasets(cfg)
    for name in ("full", "partial"):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    entries[1]["categories"] = full["panoptic_json"]
    setup_datasets(cfg)
    records = get_detection_dataset_dicts(("full_separated", "partial_separated"), filter_empty=False)
    semantic = np.array(Image.open(records[2]["sem_seg_file_name"]))
    assert sorted(np.unique(semantic)) == [0, 255]  # what the partial set does not list is void
    metadata = MetadataCatalog.get("partial")
    written = json.loads(Path(metadata.panoptic_json).read_text())
    assert written["categories"] == CATEGORIES and written["annotations"] == content["annotations"]


# ------------------------------------------------------------------ configs


def test_setup_sizes_the_model(tmp_path, forget_data_sets):
    names = register_shapes(tmp_path / "shapes", prefix="small", sizes=SIZES)
    cfg = config_with(TRAIN=("small_nas_train",), TEST=("small_val",), SEARCH=("small_nas_val",))
    cfg.freeze()
    setup_datasets(cfg)
    assert cfg.is_frozen()
    assert (cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES) == (7, 6)
    assert all(len(DatasetCatalog.get(name)) for name in names)


@pytest.mark.parametrize(
    "datasets, message",
    [
        ({"TRAIN": ("shapes_panoptc_train",)}, "unknown data set .*did you mean shapes_panoptic_train"),
        ({"TRAIN": ("qqq",)}, "there is, for example, shapes_panoptic_train. Register your own"),
        ({"TRAIN": (), "TEST": ()}, "are empty"),
        ({"COCO_PANOPTIC": [{"name": "x", "json": "y"}]}, r"unknown keys \['json'\].*panoptic_json"),
        ({"COCO_PANOPTIC": ["x"]}, "not a mapping"),
        ({"TRAIN": ("coco_2017_val",)}, "does not exist"),
        ({"TRAIN": ("voc_2007_train",)}, "cannot be read: .*train.txt.* Put it there"),
    ],
)
def test_config_mistakes_are_named(datasets, message):
    with pytest.raises(UserError, match=message):
        setup_datasets(config_with(**datasets))


def test_missing_files_are_named(tmp_path, forget_data_sets):
    own = write_own(tmp_path)
    with pytest.raises(UserError, match="nowhere.json"):
        register_coco_panoptic("own", **{**own, "panoptic_json": str(tmp_path / "nowhere.json")})
    register_coco_panoptic("own", **{**own, "image_root": str(tmp_path / "nowhere")})
    with pytest.raises(UserError, match="own: .*nowhere does not exist; expected there: a folder of images"):
        setup_datasets(config_with(TRAIN=("own",)))


def test_data_set_without_stuff_names_is_named(forget_data_sets):
    DatasetCatalog.register("boxes", lambda: [])
    MetadataCatalog.get("boxes").set(thing_classes=["a"])
    with pytest.raises(UserError, match="boxes has no stuff_classes"):
        setup_datasets(config_with(TRAIN=("boxes",)))


@pytest.mark.slow
@pytest.mark.skipif(not (PHOTOS / "coco133").is_dir(), reason="annotated photographs are not here")
def test_real_photographs_together(tmp_path, forget_data_sets):
    entries = []
    for name in ("coco133", "tinycoco80_train"):
        folder = PHOTOS / name
        entry = {"name": name, "panoptic_json": str(folder / "panoptic.json"), "derived_root": str(tmp_path)}
        entry |= {"panoptic_root": str(folder / "panoptic"), "image_root": str(folder / "images")}
        entries.append({**entry, "categories": str(PHOTOS / "coco133" / "panoptic.json")})
    names = tuple(e["name"] for e in entries)
    cfg = config_with(COCO_PANOPTIC=entries, TRAIN=names, TEST=names[:1])
    cfg.MODEL.MASK_ON, cfg.INPUT.MASK_FORMAT, cfg.SOLVER.IMS_PER_BATCH = True, "bitmask", 2
    setup_datasets(cfg)
    assert (cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES) == (80, 54)
    reference, cfg = MetadataCatalog.get("coco_2017_val_panoptic_separated"), with_data_sets(cfg)
    for name in cfg.DATASETS.TRAIN:
        assert MetadataCatalog.get(name).stuff_classes == reference.stuff_classes
        assert MetadataCatalog.get(name).thing_classes == reference.thing_classes
    cfg.DATALOADER.NUM_WORKERS = 0
    batch = next(iter(build_detection_train_loader(cfg, mapper=PanopticMapper(cfg, True))))
    for image in batch:
        assert image["sem_seg"].shape == image["image"].shape[1:]
        labels = image["sem_seg"].unique()
        assert ((labels < 54) | (labels == 255)).all() and len(image["instances"]) > 0
