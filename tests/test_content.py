"""What a run has seen of its data: the same for a copy, another where a label or a photograph changes."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from data_util import write_own
from PIL import Image
from test_class_numbers import edit, with_instances

from auto_panoptic.data import register_coco_panoptic, register_image_folder
from auto_panoptic.data.content import STORE, content, content_difference
from auto_panoptic.data.register import find_source

pytestmark = pytest.mark.usefixtures("forget_data_sets")


def set_of(folder, **given):
    """A registered set of two JPEG photographs, one with an orientation; its arguments."""
    own = with_instances(folder)
    exif = Image.Exif()
    exif[274] = 1
    path = folder / "images/sub/b.jpg"
    Image.open(path).save(path, exif=exif)
    return own


def registered(own, name="own", **changes):
    register_coco_panoptic(name, **{**own, **changes}, show_ids=False)
    return content(name)


def turn(folder):
    """Another orientation, in as many bytes."""
    path = folder / "images/sub/b.jpg"
    size = path.stat().st_size
    exif = Image.Exif()
    exif[274] = 3
    Image.open(path).save(path, exif=exif, quality=75)
    assert path.stat().st_size == size


def repaint(folder):
    png = folder / "panoptic/sub/b.png"
    Image.fromarray(np.asarray(Image.open(png))[::-1]).save(png)


def segment(key, value):
    def change(found):
        found["annotations"][0]["segments_info"][0][key] = value

    return lambda folder: edit(folder / "panoptic.json", change)


CHANGES = {
    "a segment's class": (segment("category_id", 7), "labels"),
    "a crowd": (segment("iscrowd", 1), "labels"),
    "a kind": (lambda f: edit(f / "panoptic.json", lambda c: c["categories"][0].update(isthing=0)), "labels"),
    "a pixel's segment": (repaint, "PNGs"),
    "instances": (lambda f: edit(f / "instances.json", lambda c: c["annotations"].pop()), "instances JSON"),
    "orientation": (turn, "photos"),
    "another photograph": (lambda f: shutil.copy(f / "images/a.png", f / "images/sub/b.jpg"), "photos"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_counts_and_is_named(tmp_path, change):
    own = set_of(tmp_path)
    before = registered(own)
    assert set(before) == {"labels", "PNGs", "photos", "label maps", "instances JSON"}
    CHANGES[change][0](tmp_path)
    now = registered(own)
    assert {key for key in now if now[key] != before[key]} == {CHANGES[change][1]}
    assert content_difference({"own": before}, {"own": now}) == f"{CHANGES[change][1]} of own"


def test_a_copy_a_touch_and_another_layout_of_the_json_change_nothing(tmp_path):
    own = set_of(tmp_path / "a")
    before = registered(own)
    shutil.copytree(tmp_path / "a", tmp_path / "b", copy_function=shutil.copyfile)
    moved = {key: path.replace(str(tmp_path / "a"), str(tmp_path / "b")) for key, path in own.items()}
    path = Path(moved["panoptic_json"])
    found = json.loads(path.read_text())
    found["images"].reverse()
    path.write_text(json.dumps(found | {"info": "copied"}, indent=2))
    assert registered(moved, "moved") == before
    for file in tmp_path.rglob("*.*"):
        os.utime(file)
    assert content("own") == before == content("own_separated")


def test_files_are_read_once(tmp_path, monkeypatch):
    own = set_of(tmp_path)
    before = registered(own)
    monkeypatch.setattr("auto_panoptic.data.content._read", None)
    assert content("own") == before
    (find_source("own").derived / STORE).write_text("[]")
    with pytest.raises(TypeError):
        content("own")


def test_derived_files_and_sets_of_others(tmp_path):
    own = write_own(tmp_path)
    found = registered(own)
    assert (found["instances JSON"], content_difference({"own": found}, {"own": {}})) == ("", "")
    for name in ("a/1.jpg", "b/2.jpg"):
        (tmp_path / "folders" / name).parent.mkdir(parents=True)
        (tmp_path / "folders" / name).touch()
    register_image_folder("folders", str(tmp_path / "folders"))
    before = content("folders")
    (tmp_path / "folders/b/3.jpg").touch()
    register_image_folder("more", str(tmp_path / "folders"))
    assert set(before) == {"images"} and content("more") != before
    assert content("coco_2017_val_panoptic") == {}  # not there
