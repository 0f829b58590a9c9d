"""Damaged or contradictory data: every mistake is named, nothing is left half-made."""

import json
from pathlib import Path

import pytest
from data_util import CATEGORIES, write_own
from detectron2.data import DatasetCatalog

from auto_panoptic.data import register_coco_panoptic
from auto_panoptic.errors import UserError


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
def test_broken_categories_are_named(tmp_path, changes, message, forget_data_sets):
    with pytest.raises(UserError, match=message):
        register_coco_panoptic("own", **write_own(tmp_path, **changes))


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
def test_broken_annotations_are_named(tmp_path, how, message, forget_data_sets):
    own = write_own(tmp_path)
    content = json.loads(Path(own["panoptic_json"]).read_text())
    _damage(content, how)
    Path(own["panoptic_json"]).write_text(json.dumps(content))
    register_coco_panoptic("own", **own)
    with pytest.raises(UserError, match=message):
        DatasetCatalog.get("own")
    assert not list((tmp_path / "derived").glob("own-*"))  # nothing half-made


@pytest.mark.parametrize("damage, message", [("truncate", "cannot be decoded"), ("remove", "does not exist")])
def test_damaged_png_is_named(tmp_path, damage, message, forget_data_sets):
    own = write_own(tmp_path)
    png = tmp_path / "panoptic" / "a.png"
    if damage == "remove":
        png.unlink()
    else:
        png.write_bytes(png.read_bytes()[:20])
    register_coco_panoptic("own", **own)
    with pytest.raises(UserError, match=f"a.png {message}"):
        DatasetCatalog.get("own")


def test_instances_of_other_images_are_refused(tmp_path, shapes, forget_data_sets):
    other = str(shapes / "annotations" / "instances_val.json")
    register_coco_panoptic("own", **write_own(tmp_path), instances_json=other)
    with pytest.raises(UserError, match="hold different images.*leave instances_json out"):
        DatasetCatalog.get("own")
