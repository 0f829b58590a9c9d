"""ADE20K: classes, label maps, splits, and what is said when files are missing."""

import json
import runpy
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin_meta import ADE20K_SEM_SEG_CATEGORIES
from toy import ROOT

from auto_panoptic.data import setup
from auto_panoptic.data.formats.panoptic_png import instance_annotations, number_annotations, write_panoptic
from auto_panoptic.data.search_split import draw_val_ids
from auto_panoptic.data.sets.ade20k import CATEGORIES, STUFF_IDS, ade20k_sources
from auto_panoptic.errors import UserError

# Classes 0 (wall) and 145 (shower) are stuff, 7 (bed) and 149 (flag) things.
SEGMENTS = {11: 0, 12: 145, 70001: 7, 70002: 149}
SEMANTIC = {11: 1, 12: 50, 70001: 0, 70002: 0, 0: 255}


def panoptic_map(number):
    """8 x 10 pixels: bed, wall, void, and flag and shower from below; ``number`` shifts the rows."""
    ids = np.zeros((8, 10), dtype=np.int64)
    ids[:2], ids[2:4], ids[5:6], ids[6:] = 70001, 11, 70002, 12
    return np.roll(ids, number, axis=0)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A tree as the public scripts write it: six training and two validation images."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    root = tmp_path / "ADEChallengeData2016"
    for split, folder, count in (("train", "training", 6), ("val", "validation", 2)):
        (root / f"images/{folder}").mkdir(parents=True)
        (root / f"ade20k_panoptic_{split}").mkdir()
        images, annotations, instances = [], [], []
        for i in range(count):
            name, ids = f"ADE_{split}_{i + 1:08d}", panoptic_map(i)
            cv2.imwrite(str(root / f"images/{folder}/{name}.jpg"), np.full((8, 10, 3), 9 * i, np.uint8))
            write_panoptic(str(root / f"ade20k_panoptic_{split}/{name}.png"), ids)
            segments = [
                {"id": s, "category_id": c, "area": int((ids == s).sum()), "iscrowd": 0}
                for s, c in SEGMENTS.items()
            ]
            images.append({"id": name, "file_name": f"{name}.jpg", "width": 10, "height": 8})
            annotations.append({"image_id": name, "file_name": f"{name}.png", "segments_info": segments})
            instances.append(instance_annotations(ids, segments, {7, 149}, name))
        panoptic = {"images": images, "annotations": annotations, "categories": list(CATEGORIES)}
        (root / f"ade20k_panoptic_{split}.json").write_text(json.dumps(panoptic))
        things = [c for c in CATEGORIES if c["isthing"]]
        content = {"images": images, "annotations": number_annotations(instances), "categories": things}
        (root / f"ade20k_instance_{split}.json").write_text(json.dumps(content))
    return root


def sources():
    names = ("train", "val", "nas_train", "nas_val")
    return dict(zip(names, ade20k_sources(), strict=True))


def image_ids(part):
    """Ids of the images of a part, whose files exist."""
    records = sources()[part].load()
    keys = ("file_name", "pan_seg_file_name", "sem_seg_file_name")
    assert all(Path(record[key]).is_file() for record in records for key in keys)
    return {record["image_id"] for record in records}


def test_classes():
    """100 things and 50 stuff classes, named as in Detectron2, in its order."""
    assert [c["name"] for c in CATEGORIES] == list(ADE20K_SEM_SEG_CATEGORIES)
    assert (sum(c["isthing"] for c in CATEGORIES), len(STUFF_IDS)) == (100, 50)
    kinds = {c["name"].split(",")[0].strip(): c["isthing"] for c in CATEGORIES}
    stuff = ("wall", "building", "sky", "floor", "tree", "sea", "rug", "bridge", "tent", "pier", "shower")
    assert not any(kinds[name] for name in stuff)
    assert all(kinds[name] for name in ("bed", "person", "curtain", "fence", "sculpture", "clock", "flag"))


def test_registered_metadata():
    for part in ("train", "val", "nas_train", "nas_val"):
        name = f"ade20k_panoptic_{part}_separated"
        assert name in DatasetCatalog.list()
        metadata = MetadataCatalog.get(name)
        assert metadata.evaluator_type == "coco_panoptic_seg"
        assert (len(metadata.thing_classes), len(metadata.stuff_classes)) == (100, 51)
        assert (metadata.thing_classes[0], metadata.thing_classes[99]) == ("bed", "flag")
        assert metadata.stuff_classes[:2] + metadata.stuff_classes[50:] == ["things", "wall", "shower"]
        things, stuff = metadata.thing_dataset_id_to_contiguous_id, metadata.stuff_dataset_id_to_contiguous_id
        assert (things[7], things[149], stuff[0], stuff[145]) == (0, 99, 1, 50)
        assert sorted(things.values()) == list(range(100))


def test_the_records_are_detectron2s(root):
    source = sources()["val"]
    records = source.load()
    assert [r["image_id"] for r in records] == ["ADE_val_00000001", "ADE_val_00000002"]
    for i, record in enumerate(records):
        assert record["file_name"] == str(root / f"images/validation/{record['image_id']}.jpg")
        assert (record["height"], record["width"]) == (8, 10)
        assert [a["category_id"] for a in record["annotations"]] == [0, 99]
        labels = cv2.imread(record["sem_seg_file_name"], cv2.IMREAD_UNCHANGED)
        expected = np.vectorize(SEMANTIC.get)(panoptic_map(i))
        assert labels.dtype == np.uint8
        np.testing.assert_array_equal(labels, expected)
        contiguous = [(s["category_id"], s["isthing"]) for s in record["segments_info"]]
        assert contiguous == [(1, False), (50, False), (0, True), (99, True)]


def test_nothing_is_written_into_the_data_set(root):
    before = sorted(root.rglob("*"))
    sources()["train"].load()
    assert sorted(root.rglob("*")) == before
    made = root.parent / "derived/ade20k_stuff_train"
    stamps = {p: p.stat().st_mtime_ns for p in made.iterdir()}
    assert len(stamps) == 6 + 1
    sources()["train"].load()
    assert {p: p.stat().st_mtime_ns for p in made.iterdir()} == stamps


def test_sizes_of_the_search_split():
    content = {"images": [{"id": f"ADE_train_{i:08d}"} for i in range(1, 20211)]}
    val_ids = draw_val_ids(content, 2000, seed=0)
    assert (len(val_ids), 20210 - len(val_ids)) == (2000, 18210)


def test_the_split_command(root, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["prepare_nas_split.py", "--dataset", "ade20k", "--size", "2"])
    runpy.run_path(str(ROOT / "datasets/prepare_nas_split.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"{root / 'ade20k_panoptic_nas_train.json'}: 4 images",
        f"{root / 'ade20k_panoptic_nas_val.json'}: 2 images",
    ]
    parts = {
        name: {r["image_id"] for r in sources()[name].load()} for name in ("nas_train", "nas_val", "train")
    }
    assert len(parts["nas_val"]) == 2 and not parts["nas_train"] & parts["nas_val"]
    assert parts["nas_train"] | parts["nas_val"] == parts["train"]
    runpy.run_path(str(ROOT / "datasets/prepare_nas_split.py"), run_name="__main__")  # the same draw again
    assert image_ids("nas_val") == parts["nas_val"]
    # Both parts share the label maps of the training images.
    assert not (root.parent / "derived/ade20k_stuff_nas_val").exists()


@pytest.mark.parametrize(
    "part, path, remedy",
    [
        ("val", "ade20k_panoptic_val.json", "datasets/prepare_ade20k.py"),
        ("val", "ade20k_instance_val.json", "datasets/prepare_ade20k.py"),
        ("nas_val", "ade20k_panoptic_nas_val.json", "prepare_nas_split.py --dataset ade20k"),
        ("train", "images/training", "Download ADEChallengeData2016"),
    ],
)
def test_a_missing_file_is_named_before_anything_runs(root, monkeypatch, part, path, remedy):
    """Also by the check of a config, which writes nothing."""
    if (root / path).exists():
        (root / path).rename(root / "elsewhere")
    source = sources()[part]
    monkeypatch.setattr(setup, "find_source", {source.name: source}.get)
    before = sorted(root.parent.rglob("*"))
    for ask in (lambda: setup._check_data_set(source.name), source.load):
        with pytest.raises(UserError, match=f"{path} does not exist.*{remedy}"):
            ask()
    assert sorted(root.parent.rglob("*")) == before


def test_other_category_ids_are_refused(root):
    """Numbered from 1, as in ADE20K's own class list, every class would be its neighbour."""
    path = root / "ade20k_panoptic_val.json"
    content = json.loads(path.read_text())
    content["categories"] = [{**c, "id": c["id"] + 1} for c in content["categories"]]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="are not those of .*, ids 0 to 149.*prepare_ade20k.py"):
        sources()["val"].load()
