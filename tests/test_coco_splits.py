"""The search split of COCO's training images."""

import json
import runpy
import sys
from pathlib import Path

import pytest
from detectron2.data import MetadataCatalog

from auto_panoptic.data.search_split import draw_val_ids, split_json, write_split
from auto_panoptic.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


def _coco(count: int) -> dict:
    return {
        "images": [{"id": 7 * i} for i in range(count)],
        "annotations": [{"image_id": 7 * i, "id": i} for i in range(count)],
        "categories": [],
    }


def split_in(folder):
    files = [folder / f"{kind}_train2017.json" for kind in ("panoptic", "instances")]
    return write_split(files, lambda p, part: p.with_name(p.name.replace("train", part)), 3, seed=0)


def test_sizes_of_the_paper_disjoint_and_repeatable():
    # COCO train2017 has 118287 images: 5000 score the candidates, 113287 train the supernet.
    content = _coco(118287)
    val_ids = draw_val_ids(content, 5000, seed=0)
    parts = split_json(content, val_ids)
    ids = {part: {image["id"] for image in half["images"]} for part, half in parts.items()}
    assert (len(ids["nas_train"]), len(ids["nas_val"])) == (113287, 5000)
    assert not ids["nas_train"] & ids["nas_val"]
    assert {a["image_id"] for a in parts["nas_val"]["annotations"]} == ids["nas_val"]
    assert draw_val_ids({"images": content["images"][::-1]}, 5000, seed=0) == val_ids
    assert draw_val_ids(content, 5000, seed=1) != val_ids


def test_files_are_written_for_both_kinds(tmp_path, monkeypatch):
    folder = tmp_path / "coco" / "annotations"
    folder.mkdir(parents=True)
    for kind in ("panoptic", "instances"):
        (folder / f"{kind}_train2017.json").write_text(json.dumps(_coco(10)))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["prepare_nas_split.py", "--size", "3"])
    runpy.run_path(str(ROOT / "datasets/prepare_nas_split.py"), run_name="__main__")
    assert split_in(folder) == {"nas_train": 7, "nas_val": 3}  # the same draw
    read = {
        kind: {i["id"] for i in json.loads((folder / f"{kind}_nas_val2017.json").read_text())["images"]}
        for kind in ("panoptic", "instances")
    }
    assert read["panoptic"] == read["instances"]
    assert len(list(folder.iterdir())) == 6


def test_missing_annotations_and_impossible_size_are_named(tmp_path):
    with pytest.raises(UserError, match="panoptic_train2017.json"):
        split_in(tmp_path)
    with pytest.raises(UserError, match="--size 10"):
        draw_val_ids(_coco(10), 10, seed=0)


def test_nothing_is_written_where_one_kind_is_missing_or_from_another_draw(tmp_path):
    panoptic, instances = (tmp_path / f"{kind}_train2017.json" for kind in ("panoptic", "instances"))
    panoptic.write_text(json.dumps(_coco(10)))
    with pytest.raises(UserError, match="instances_train2017.json: the annotation file does not exist"):
        split_in(tmp_path)
    assert list(tmp_path.iterdir()) == [panoptic]
    instances.write_text(json.dumps(_coco(10)))
    other = tmp_path / "instances_nas_val2017.json"
    other.write_text(json.dumps({"images": []}))
    with pytest.raises(UserError, match="another draw"):
        split_in(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([panoptic, instances, other])


def test_registered_with_coco_metadata():
    import auto_panoptic.data  # noqa: F401  registers

    ours = MetadataCatalog.get("coco_2017_nas_train_panoptic_separated")
    theirs = MetadataCatalog.get("coco_2017_train_panoptic_separated")
    for key in ("thing_classes", "stuff_classes", "thing_dataset_id_to_contiguous_id"):
        assert getattr(ours, key) == getattr(theirs, key)
    assert ours.stuff_dataset_id_to_contiguous_id == theirs.stuff_dataset_id_to_contiguous_id
    assert ours.stuff_dataset_id_to_contiguous_id[92] == 1
    assert ours.stuff_dataset_id_to_contiguous_id[200] == 53
