"""Damaged PNGs are named by loading, and nothing is left half-made (JSON files: test_json_rules)."""

import json
from pathlib import Path

import pytest
from data_util import write_own
from detectron2.data import DatasetCatalog

from auto_panoptic.data import register_coco_panoptic
from auto_panoptic.errors import UserError


def test_png_of_another_size_is_named(tmp_path, forget_data_sets):
    own = write_own(tmp_path)
    path = Path(own["panoptic_json"])
    content = json.loads(path.read_text())
    content["images"][0]["width"] = 31
    path.write_text(json.dumps(content))
    register_coco_panoptic("own", **own)
    with pytest.raises(UserError, match=r"image 41\): the PNG has 30 x 20 pixels, the JSON says 31 x 20"):
        DatasetCatalog.get("own")
    assert not list((tmp_path / "derived").glob("own-*/instances.json"))  # nothing half-made


@pytest.mark.parametrize(
    "damage, message",
    [("truncate", "begins as PNG, but its header is cut"), ("remove", "the file does not exist")],
)
def test_damaged_png_is_named(tmp_path, damage, message, forget_data_sets):
    own = write_own(tmp_path)
    png = tmp_path / "panoptic" / "a.png"
    if damage == "remove":
        png.unlink()
    else:
        png.write_bytes(png.read_bytes()[:20])
    register_coco_panoptic("own", **own)
    with pytest.raises(UserError, match=rf"a.png \(image 42\): {message}"):
        DatasetCatalog.get("own")
