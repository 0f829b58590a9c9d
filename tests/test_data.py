"""Registration of COCO-panoptic data, what is derived from it, the mapper, and errors that users see."""

import json
import os
import stat
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_train_loader
from detectron2.data.build import get_detection_dataset_dicts
from PIL import Image

from auto_panoptic import add_auto_panoptic_config
from auto_panoptic.data import (
    PanopticMapper,
    ensure_shapes,
    panoptic_metadata,
    register_coco_panoptic,
    register_shapes,
    setup_datasets,
)
from auto_panoptic.errors import UserError

SIZES = {"nas_train": 6, "nas_val": 3, "val": 3}
PHOTOS = Path(os.getenv("AUTO_PANOPTIC_PHOTOS", Path(__file__).parents[2] / "shared" / "data"))

CATEGORIES = [
    {"id": 4, "name": "cat", "isthing": 1, "color": [10, 20, 30]},
    {"id": 2, "name": "wall-other-merged", "isthing": 0},
    {"id": 9, "name": "dog", "isthing": 1},
    {"id": 7, "name": "floor", "isthing": 0},
]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return ensure_shapes(tmp_path_factory.mktemp("data") / "shapes", sizes=SIZES)


@pytest.fixture
def catalog():
    """Forget what a test registers."""
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def _config(**datasets):
    cfg = get_cfg()
    add_auto_panoptic_config(cfg)
    for key, value in datasets.items():
        cfg.DATASETS[key] = value
    return cfg


def _write_own(folder, categories=CATEGORIES, **changes) -> dict:
    """A user's data set of two images: a cat, a crowd of dogs, wall, floor, void; then only wall."""
    ids = np.zeros((20, 30), np.int32)
    ids[:8] = 70_000
    ids[12:] = 513
    ids[5:15, 4:10] = 3
    ids[5:10, 20:26] = 300
    first = [(70_000, 2, 0), (513, 7, 0), (3, 4, 0), (300, 9, 1)]
    plain = np.full((30, 20), 5, np.int32)
    images, annotations = [], []
    for image_id, (name, image_map, segments) in enumerate(
        [("sub/b.jpg", ids, first), ("a.png", plain, [(5, 2, 0)])], start=41
    ):
        for part in ("images", "panoptic"):
            (folder / part / Path(name).parent).mkdir(parents=True, exist_ok=True)
        h, w = image_map.shape
        png = str(Path(name).with_suffix(".png"))
        Image.new("RGB", (w, h), (image_id, 100, 0)).save(folder / "images" / name)
        rgb = np.stack([image_map & 255, image_map >> 8 & 255, image_map >> 16], axis=-1).astype(np.uint8)
        Image.fromarray(rgb).save(folder / "panoptic" / png)
        images.append({"id": image_id, "file_name": name, "height": h, "width": w})
        info = [
            {"id": i, "category_id": c, "iscrowd": crowd, "area": int((image_map == i).sum())}
            for i, c, crowd in segments
        ]
        annotations.append({"image_id": image_id, "file_name": png, "segments_info": info})
    content = {"images": images, "annotations": annotations, "categories": categories, **changes}
    (folder / "panoptic.json").write_text(json.dumps(content))
    return {
        "panoptic_json": str(folder / "panoptic.json"),
        "panoptic_root": str(folder / "panoptic"),
        "image_root": str(folder / "images"),
        "derived_root": str(folder / "derived"),
    }


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


def test_own_data_is_derived_and_loaded(tmp_path, catalog):
    own = _write_own(tmp_path)
    register_coco_panoptic("own", **own)
    assert not (tmp_path / "derived").exists()  # lazily
    records = DatasetCatalog.get("own")
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
    metadata = MetadataCatalog.get("own")
    assert metadata.evaluator_type == "coco_panoptic_seg"
    assert (metadata.ignore_label, metadata.label_divisor) == (255, 1000)
    assert metadata.panoptic_json == own["panoptic_json"]
    assert Path(metadata.json_file).is_file() and Path(metadata.sem_seg_root).is_dir()


def test_derived_semantic_maps_equal_detectron2s_script(shapes, tmp_path, catalog):
    """The rule of prepare_panoptic_fpn.py (things 0, stuff 1.., else 255), here from the drawn set's PNGs."""
    arguments = [shapes / "annotations/panoptic_val.json", shapes / "panoptic_val", shapes / "val"]
    register_coco_panoptic("rederived", *map(str, arguments), derived_root=str(tmp_path))
    for record in DatasetCatalog.get("rederived"):
        drawn = shapes / "panoptic_stuff_val" / Path(record["sem_seg_file_name"]).name
        assert np.array_equal(cv2.imread(record["sem_seg_file_name"], 0), cv2.imread(str(drawn), 0))
    given = json.loads((shapes / "annotations/instances_val.json").read_text())["annotations"]
    assert json.loads(Path(MetadataCatalog.get("rederived").json_file).read_text())["annotations"] == given


def test_sources_may_be_read_only(tmp_path, catalog):
    own = _write_own(tmp_path / "source")
    before = sorted(p for p in (tmp_path / "source").rglob("*"))
    for path in before:
        path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
    try:
        register_coco_panoptic("own", **{**own, "derived_root": str(tmp_path / "elsewhere")})
        assert len(DatasetCatalog.get("own")) == 2
        assert sorted((tmp_path / "source").rglob("*")) == before
    finally:
        for path in before:
            path.chmod(path.stat().st_mode | stat.S_IWUSR)


def test_derivation_is_reused_and_follows_the_json(tmp_path, catalog):
    register_coco_panoptic("own", **_write_own(tmp_path))
    DatasetCatalog.get("own")
    (folder,) = (p for p in (tmp_path / "derived").iterdir() if p.is_dir())
    inode = os.stat(folder).st_ino
    DatasetCatalog.get("own")
    assert os.stat(folder).st_ino == inode
    DatasetCatalog.remove("own")
    MetadataCatalog.remove("own")
    register_coco_panoptic(
        "own", **_write_own(tmp_path, categories=[*CATEGORIES, {**CATEGORIES[0], "id": 11}])
    )
    DatasetCatalog.get("own")
    assert len([p for p in (tmp_path / "derived").iterdir() if p.is_dir()]) == 2


def test_registering_twice(tmp_path, catalog):
    own = _write_own(tmp_path)
    register_coco_panoptic("own", **own)
    register_coco_panoptic("own", **own)  # the same again is fine
    with pytest.raises(UserError, match="already registered with other arguments"):
        register_coco_panoptic("own", **{**own, "image_root": str(tmp_path)})
    with pytest.raises(UserError, match="already registered by somebody else"):
        register_coco_panoptic("coco_2017_val", **own)


def test_partial_set_under_a_wider_category_list(tmp_path, catalog):
    """A set that lists some things only trains together with one that lists all."""
    full = _write_own(tmp_path / "full")
    partial = _write_own(tmp_path / "partial", categories=CATEGORIES[:3])
    content = json.loads(Path(partial["panoptic_json"]).read_text())
    content["annotations"][0]["segments_info"] = content["annotations"][0]["segments_info"][2:3]
    Path(partial["panoptic_json"]).write_text(json.dumps(content))
    entries = [{"name": "full", **full}, {"name": "partial", **partial}]
    cfg = _config(COCO_PANOPTIC=entries, TRAIN=("full", "partial"), TEST=("full",))
    with pytest.raises(UserError, match=r"stuff classes.*'floor'.*same 'categories'"):
        setup_datasets(cfg)
    for name in ("full", "partial"):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    entries[1]["categories"] = full["panoptic_json"]
    setup_datasets(cfg)
    records = get_detection_dataset_dicts(("full", "partial"), filter_empty=False)
    semantic = np.array(Image.open(records[2]["sem_seg_file_name"]))
    assert sorted(np.unique(semantic)) == [0, 255]  # what the partial set does not list is void
    metadata = MetadataCatalog.get("partial")
    written = json.loads(Path(metadata.panoptic_json).read_text())
    assert written["categories"] == CATEGORIES and written["annotations"] == content["annotations"]


# ------------------------------------------------------------------ configs


def test_setup_sizes_the_model(tmp_path, catalog):
    names = register_shapes(tmp_path / "shapes", prefix="small", sizes=SIZES)
    cfg = _config(TRAIN=("small_nas_train",), TEST=("small_val",), SEARCH=("small_nas_val",))
    cfg.freeze()
    setup_datasets(cfg)
    assert cfg.is_frozen()
    assert (cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES) == (7, 6)
    assert all(len(DatasetCatalog.get(name)) for name in names)


def test_registration_from_a_config(tmp_path, catalog):
    cfg = _config(COCO_PANOPTIC=[{"name": "own", **_write_own(tmp_path)}], TRAIN=("own",), TEST=())
    setup_datasets(cfg)
    setup_datasets(cfg)  # training and evaluation may both call it
    assert (cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES) == (2, 3)


@pytest.mark.parametrize(
    "datasets, message",
    [
        ({"TRAIN": ("shapes_panoptc_train",)}, "unknown data set .*did you mean shapes_panoptic_train"),
        ({"TRAIN": ("qqq",)}, "did you mean shapes_panoptic_"),
        ({"TRAIN": (), "TEST": ()}, "are empty"),
        ({"COCO_PANOPTIC": [{"name": "x", "json": "y"}]}, r"unknown keys \['json'\].*panoptic_json"),
        ({"COCO_PANOPTIC": ["x"]}, "not a mapping"),
        ({"TRAIN": ("coco_2017_val",)}, "does not exist"),
    ],
)
def test_config_mistakes_are_named(datasets, message):
    with pytest.raises(UserError, match=message):
        setup_datasets(_config(**datasets))


def test_missing_files_are_named(tmp_path, catalog):
    own = _write_own(tmp_path)
    with pytest.raises(UserError, match="nowhere.json"):
        register_coco_panoptic("own", **{**own, "panoptic_json": str(tmp_path / "nowhere.json")})
    register_coco_panoptic("own", **{**own, "image_root": str(tmp_path / "nowhere")})
    with pytest.raises(UserError, match="own: .*nowhere does not exist; expected there: a folder of images"):
        setup_datasets(_config(TRAIN=("own",)))


def test_data_set_without_stuff_names_is_named(catalog):
    DatasetCatalog.register("boxes", lambda: [])
    MetadataCatalog.get("boxes").set(thing_classes=["a"])
    with pytest.raises(UserError, match="boxes has no stuff_classes"):
        setup_datasets(_config(TRAIN=("boxes",)))


# ------------------------------------------------------------------ damaged data


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"categories": [*CATEGORIES, CATEGORIES[0]]}, r"\[4\] occur more than once"),
        ({"categories": [{"id": 1, "name": "x"}]}, "lacks .*isthing"),
        ({"categories": [{"id": "1", "name": "x", "isthing": 1}]}, "'1' is not an integer"),
        ({"categories": []}, "non-empty list"),
        (
            {"categories": [{"id": i, "name": str(i), "isthing": 0} for i in range(255)]},
            "255 stuff classes",
        ),
    ],
)
def test_broken_categories_are_named(tmp_path, changes, message, catalog):
    with pytest.raises(UserError, match=message):
        register_coco_panoptic("own", **_write_own(tmp_path, **changes))


def _damage(content, how):
    if how == "unknown category":
        content["annotations"][0]["segments_info"][0]["category_id"] = 202
    elif how == "unknown image":
        content["annotations"][0]["image_id"] = 1
    elif how == "two annotations":
        content["annotations"][1]["image_id"] = 41
    elif how == "wrong size":
        content["images"][0]["width"] = 31
    elif how == "no annotations":
        content["annotations"] = []


@pytest.mark.parametrize(
    "how, message",
    [
        ("unknown category", r"image 41 \(sub/b.png\), segment 70000 has category_id 202"),
        ("unknown image", "image 1 has an annotation but is absent"),
        ("two annotations", "image 41 has two annotations"),
        ("wrong size", "has 30 x 20 pixels, but image 41 has 31 x 20"),
        ("no annotations", "has no annotations"),
    ],
)
def test_broken_annotations_are_named(tmp_path, how, message, catalog):
    own = _write_own(tmp_path)
    content = json.loads(Path(own["panoptic_json"]).read_text())
    _damage(content, how)
    Path(own["panoptic_json"]).write_text(json.dumps(content))
    register_coco_panoptic("own", **own)
    with pytest.raises(UserError, match=message):
        DatasetCatalog.get("own")
    assert not list((tmp_path / "derived").glob("own-*"))  # nothing half-made


@pytest.mark.parametrize("damage, message", [("truncate", "cannot be decoded"), ("remove", "does not exist")])
def test_damaged_png_is_named(tmp_path, damage, message, catalog):
    own = _write_own(tmp_path)
    png = tmp_path / "panoptic" / "a.png"
    if damage == "remove":
        png.unlink()
    else:
        png.write_bytes(png.read_bytes()[:20])
    register_coco_panoptic("own", **own)
    with pytest.raises(UserError, match=f"a.png {message}"):
        DatasetCatalog.get("own")


def test_instances_of_other_images_are_refused(tmp_path, shapes, catalog):
    other = str(shapes / "annotations" / "instances_val.json")
    register_coco_panoptic("own", **_write_own(tmp_path), instances_json=other)
    with pytest.raises(UserError, match="hold different images.*leave instances_json out"):
        DatasetCatalog.get("own")


# ------------------------------------------------------------------ mapper


def _mapper(is_train=True, **changes):
    cfg = _config()
    cfg.MODEL.MASK_ON = True
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (20, 32, 48), 100
    cfg.INPUT.MASK_FORMAT = changes.get("mask_format", "bitmask")
    return PanopticMapper(cfg, is_train)


@pytest.mark.parametrize("mask_format", ["bitmask", "polygon"])
def test_mapped_labels_are_exact(tmp_path, catalog, mask_format):
    """Without resizing, labels and masks are those of the PNG, mirrored or not; the crowd is gone."""
    register_coco_panoptic("own", **_write_own(tmp_path))
    record = DatasetCatalog.get("own")[0]
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


def test_sample_seed_decides_the_augmentation(tmp_path, catalog):
    register_coco_panoptic("own", **_write_own(tmp_path))
    record, mapper = DatasetCatalog.get("own")[0], _mapper()
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


def test_inference_record_has_no_labels(tmp_path, catalog):
    register_coco_panoptic("own", **_write_own(tmp_path))
    out = _mapper(is_train=False)(DatasetCatalog.get("own")[0])
    assert "annotations" not in out and "instances" not in out
    assert (out["image_id"], out["height"], out["width"]) == (41, 20, 30)


def test_images_without_usable_boxes_leave_training(tmp_path, catalog):
    """Filtered as Detectron2 does: image 42 has no thing; with the cat gone, 41 has a crowd only."""
    own = _write_own(tmp_path)
    register_coco_panoptic("own", **own)
    assert [r["image_id"] for r in get_detection_dataset_dicts("own", filter_empty=True)] == [41]
    assert [r["image_id"] for r in get_detection_dataset_dicts("own", filter_empty=False)] == [41, 42]
    mapped = _mapper()(DatasetCatalog.get("own")[1])  # still trainable when filtering is off
    assert len(mapped["instances"]) == 0 and mapped["sem_seg"].unique().tolist() == [1]


@pytest.mark.slow
@pytest.mark.skipif(not (PHOTOS / "coco133").is_dir(), reason="annotated photographs are not here")
def test_real_photographs_together(tmp_path, catalog):
    entries = []
    for name in ("coco133", "tinycoco80_train"):
        folder = PHOTOS / name
        entry = {"name": name, "panoptic_json": str(folder / "panoptic.json"), "derived_root": str(tmp_path)}
        entry |= {"panoptic_root": str(folder / "panoptic"), "image_root": str(folder / "images")}
        entries.append({**entry, "categories": str(PHOTOS / "coco133" / "panoptic.json")})
    names = tuple(e["name"] for e in entries)
    cfg = _config(COCO_PANOPTIC=entries, TRAIN=names, TEST=names[:1])
    cfg.MODEL.MASK_ON, cfg.INPUT.MASK_FORMAT, cfg.SOLVER.IMS_PER_BATCH = True, "bitmask", 2
    setup_datasets(cfg)
    assert (cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES) == (80, 54)
    reference = MetadataCatalog.get("coco_2017_val_panoptic_separated")
    for name in names:
        assert MetadataCatalog.get(name).stuff_classes == reference.stuff_classes
        assert MetadataCatalog.get(name).thing_classes == reference.thing_classes
    cfg.DATALOADER.NUM_WORKERS = 0
    batch = next(iter(build_detection_train_loader(cfg, mapper=PanopticMapper(cfg, True))))
    for image in batch:
        assert image["sem_seg"].shape == image["image"].shape[1:]
        labels = image["sem_seg"].unique()
        assert ((labels < 54) | (labels == 255)).all() and len(image["instances"]) > 0
