"""The built-in drawn data set: format, determinism, and safe generation."""

import hashlib
import json
import multiprocessing
import os
from pathlib import Path

import cv2
import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from auto_panoptic.data import ensure_shapes, register_shapes
from auto_panoptic.data.drawn import scene
from auto_panoptic.data.drawn import shapes as shapes_module
from auto_panoptic.errors import UserError

SIZES = {"nas_train": 30, "nas_val": 10, "val": 8}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return ensure_shapes(tmp_path_factory.mktemp("data") / "shapes", sizes=SIZES, processes=1)


def _digest(folder: Path) -> dict:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def _load(root, kind, split):
    return json.loads((root / "annotations" / f"{kind}_{split}.json").read_text())


def _ids(path) -> np.ndarray:
    rgb = np.array(Image.open(path), dtype=np.int64)
    return rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2]


def test_bytes_do_not_depend_on_processes(root, tmp_path):
    again = ensure_shapes(tmp_path / "again", sizes=SIZES, processes=2)
    assert _digest(again) == _digest(root)
    other = ensure_shapes(tmp_path / "other", sizes={"nas_train": 1, "nas_val": 1, "val": 1}, seed=21)
    image = "train/000000000001.jpg"
    assert _digest(other)[image] != _digest(root)[image]


def test_splits_are_disjoint_parts_of_train(root):
    ids = {s: [i["id"] for i in _load(root, "panoptic", s)["images"]] for s in shapes_module.SPLITS}
    assert {s: len(v) for s, v in ids.items()} == {"train": 40, "val": 8, "nas_train": 30, "nas_val": 10}
    assert not set(ids["nas_train"]) & set(ids["nas_val"])
    assert sorted(ids["nas_train"] + ids["nas_val"]) == ids["train"]
    assert not set(ids["train"]) & set(ids["val"])
    assert shapes_module.SIZES["nas_val"] >= 200  # fewer cannot rank candidates


@pytest.mark.parametrize("split", ["train", "val"])
def test_every_file_agrees_with_the_json(root, split):
    panoptic, instances = _load(root, "panoptic", split), _load(root, "instances", split)
    isthing = {c["id"]: c["isthing"] for c in panoptic["categories"]}
    stuff = [c["id"] for c in panoptic["categories"] if not c["isthing"]]
    assert sum(isthing.values()) >= 6 and len(stuff) >= 4
    assert [c["id"] for c in instances["categories"]] == [i for i, thing in isthing.items() if thing]
    by_image = {image["id"]: [] for image in panoptic["images"]}
    for annotation in instances["annotations"]:
        by_image[annotation["image_id"]].append(annotation)

    for image, annotation in zip(panoptic["images"], panoptic["annotations"], strict=True):
        assert image["id"] == annotation["image_id"]
        ids = _ids(root / f"panoptic_{split}" / annotation["file_name"])
        semantic = np.array(Image.open(root / f"panoptic_stuff_{split}" / annotation["file_name"]))
        pixels = np.array(Image.open(root / split / image["file_name"]))
        assert pixels.shape == (image["height"], image["width"], 3) and ids.shape == pixels.shape[:2]
        segments = {s["id"]: s for s in annotation["segments_info"]}
        assert set(segments) == set(np.unique(ids)) - {0}
        expected = np.full(ids.shape, 255)
        things = []
        for segment in annotation["segments_info"]:
            mask = ids == segment["id"]
            ys, xs = np.nonzero(mask)
            box = [xs.min(), ys.min(), xs.max() - xs.min() + 1, ys.max() - ys.min() + 1]
            assert segment["area"] == mask.sum() and segment["bbox"] == box
            category = segment["category_id"]
            expected[mask] = 0 if isthing[category] else 1 + stuff.index(category)
            if isthing[category]:
                things.append((category, segment["iscrowd"], segment["area"], box, mask))
        assert np.array_equal(semantic, expected)
        found = by_image[image["id"]]
        assert len(found) == len(things)
        for entry, (category, crowd, area, box, mask) in zip(found, things, strict=True):
            assert [entry[k] for k in ("category_id", "iscrowd", "area", "bbox")] == [
                category,
                crowd,
                area,
                box,
            ]
            assert np.array_equal(mask_util.decode(entry["segmentation"]), mask)
    assert len({a["id"] for a in instances["annotations"]}) == len(instances["annotations"])


def test_whole_objects_overlap_in_their_instance_annotation(root):
    """The visible part of each is the pixels of its whole mask that no object drawn later has."""
    panoptic = _load(root, "panoptic", "train")
    whole, visible = _load(root, "whole_instances", "train"), _load(root, "instances", "train")
    assert whole["categories"] == visible["categories"] and whole["images"] == visible["images"]
    keys = ("id", "image_id", "category_id", "iscrowd")
    pairs = list(zip(whole["annotations"], visible["annotations"], strict=True))
    covered = {image["id"]: 0 for image in panoptic["images"]}
    hidden = 0
    for entry, seen in pairs:
        assert [entry[k] for k in keys] == [seen[k] for k in keys]
        mask, part = (mask_util.decode(a["segmentation"]) for a in (entry, seen))
        assert entry["area"] == mask.sum() and not (part & ~mask).any()
        assert part.sum() >= scene.MIN_VISIBLE_PART * mask.sum() - 1 or seen["iscrowd"]
        hidden += mask.sum() > part.sum()
        covered[entry["image_id"]] = covered[entry["image_id"]] + mask.astype(int)
    assert hidden > len(pairs) / 20
    assert sum(np.max(count) > 1 for count in covered.values()) > len(covered) / 4


def test_scenes_are_varied():
    """Every class, crowds, void and occlusion occur; objects range from tiny to large."""
    seen, crowds, void, areas = set(), 0, 0, []
    for i in range(60):
        image, ids, categories, groups, _ = scene.draw_scene(np.random.default_rng([1, i]))
        present = set(np.unique(ids).tolist())
        assert image.dtype == np.uint8 and image.shape[:2] in scene.SIZES and image.std() > 10
        seen |= {categories[s] for s in present - {0}}
        crowds += bool(groups & present)
        void += 0 in present
        things = [s for s in present - {0} if categories[s] < 100 and s not in groups]
        areas += [int((ids == s).sum()) for s in things]
        stuff = [categories[s] for s in present - {0} if categories[s] > 100]
        assert len(stuff) == len(set(stuff)) >= 1  # one segment per stuff class
    assert seen == {c["id"] for c in scene.CATEGORIES}
    assert 2 <= crowds <= 20 and 8 <= void <= 40
    assert min(areas) >= scene.MIN_VISIBLE_AREA * scene.MIN_VISIBLE_PART
    assert np.percentile(areas, 10) < 400 and max(areas) > 3000  # of 20480 pixels
    assert 2 < len(areas) / 60 < 6


def test_ground_truth_against_itself_is_perfect(root):
    from auto_panoptic.evaluation import PanopticQuality

    truth = _load(root, "panoptic", "val")
    quality = PanopticQuality(truth["categories"])
    for annotation in truth["annotations"]:
        ids, segments = _ids(root / "panoptic_val" / annotation["file_name"]), annotation["segments_info"]
        quality.update(ids, segments, ids, segments)
    result = quality.compute()
    assert {k: result[k] for k in ("PQ", "SQ", "RQ", "PQ_th", "PQ_st")} == dict.fromkeys(
        ("PQ", "SQ", "RQ", "PQ_th", "PQ_st"), 100.0
    )


def test_existing_data_is_kept_and_damage_is_repaired(tmp_path):
    sizes = {"nas_train": 2, "nas_val": 1, "val": 1}
    root = ensure_shapes(tmp_path / "shapes", sizes=sizes)
    before = _digest(root)
    marker = os.stat(root).st_ino
    assert os.stat(ensure_shapes(root, sizes=sizes)).st_ino == marker  # untouched
    (root / "train" / "000000000002.jpg").unlink()
    ensure_shapes(root, sizes=sizes)
    assert os.stat(root).st_ino != marker and _digest(root) == before
    stamp = json.loads((root / "stamp.json").read_text())
    (root / "stamp.json").write_text(json.dumps({**stamp, "generator": "older"}))
    ensure_shapes(root, sizes=sizes)
    assert _digest(root) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == [".shapes.lock", "shapes"]  # nothing left behind


def test_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "shapes").mkdir()
    (tmp_path / "shapes" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="not made by auto_panoptic"):
        ensure_shapes(tmp_path / "shapes", sizes={"nas_train": 1, "nas_val": 1, "val": 1})
    assert (tmp_path / "shapes" / "thesis.txt").read_text() == "mine"


def _ensure_and_report(root, sizes, queue):
    ensure_shapes(root, sizes=sizes, processes=1)
    queue.put(os.stat(root).st_ino)


def test_concurrent_first_use_generates_once(tmp_path):
    context = multiprocessing.get_context("fork")
    queue, sizes = context.Queue(), {"nas_train": 6, "nas_val": 2, "val": 2}
    jobs = [
        context.Process(target=_ensure_and_report, args=(tmp_path / "shapes", sizes, queue)) for _ in range(3)
    ]
    for job in jobs:
        job.start()
    inodes = {queue.get(timeout=60) for _ in jobs}
    for job in jobs:
        job.join()
    assert len(inodes) == 1  # one generation: the folder was never replaced


def test_interrupted_generation_leaves_nothing_that_counts(tmp_path, monkeypatch):
    sizes = {"nas_train": 2, "nas_val": 1, "val": 1}

    def fail(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr(shapes_module, "_write_json", fail)
    with pytest.raises(UserError, match="No space left"):
        ensure_shapes(tmp_path / "shapes", sizes=sizes)
    assert not (tmp_path / "shapes").exists()
    monkeypatch.undo()
    stale = tmp_path / ".shapes.tmp-killed"  # as left by SIGKILL
    (stale / "new").mkdir(parents=True)
    ensure_shapes(tmp_path / "shapes", sizes=sizes)
    assert not stale.exists()


def test_registered_names_and_lazy_generation(tmp_path):
    kinds = [f"shapes_panoptic_{s}{kind}" for s in shapes_module.SPLITS for kind in ("", "_overlapping")]
    assert set(kinds) <= set(DatasetCatalog.list())
    sizes = {"nas_train": 3, "nas_val": 2, "val": 1}
    names = register_shapes(tmp_path / "shapes", prefix="tiny_shapes", sizes=sizes)
    try:
        assert not (tmp_path / "shapes").exists()
        records = DatasetCatalog.get("tiny_shapes_nas_val")
        assert [r["image_id"] for r in records] == [4, 5]
        for record in records:
            assert cv2.imread(record["file_name"]).shape[:2] == (record["height"], record["width"])
    finally:
        for name in names:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
