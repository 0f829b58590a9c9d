"""Derived files follow everything they are made of, and nothing else is written."""

import json
import os
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from data_util import CATEGORIES, agree, write_own
from detectron2.data import DatasetCatalog
from PIL import Image
from prepare_util import ade20k_annotations, data_root, write_ade20k  # noqa: F401  data_root is a fixture

from auto_panoptic.data import register_coco_panoptic
from auto_panoptic.data.derive import engine
from auto_panoptic.data.derive.engine import derive
from auto_panoptic.data.formats.panoptic_png import read_panoptic, write_panoptic
from auto_panoptic.data.register import find_source
from auto_panoptic.data.sets.ade20k import prepare_ade20k
from auto_panoptic.errors import UserError
from auto_panoptic.files import WriterLock


@pytest.fixture
def own(tmp_path, forget_data_sets):
    """A user's set, registered and loaded with both labels."""
    own = write_own(tmp_path)
    register_coco_panoptic("own", **own, show_ids=False)
    for name in ("own", "own_separated"):
        DatasetCatalog.get(name)
    return {key: Path(path) for key, path in own.items()}


def derived(own):
    """{name: (inode, time, content)} of the derived files."""
    (folder,) = (p for p in own["derived_root"].iterdir() if p.is_dir())
    files = [p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")]
    return {
        str(p.relative_to(folder)): (p.stat().st_ino, p.stat().st_mtime_ns, p.read_bytes()) for p in files
    }


def load():
    """Number of objects and set of labels of the first image, for both kinds of labels."""
    found = []
    for name in ("own", "own_separated"):
        record = DatasetCatalog.get(name)[0]
        labels = np.unique(np.array(Image.open(record["sem_seg_file_name"])))
        found.append((len(record["annotations"]), labels.tolist()))
    return found


def test_nothing_is_made_twice(own):
    before = derived(own)
    assert load() == [(2, [0, 1, 2, 3, 255]), (2, [0, 1, 2, 255])]
    assert derived(own) == before
    assert set(before) == {f"{f}/{p}.png" for f in ("semantic", "semantic_all") for p in ("sub/b", "a")} | {
        "instances.json"
    }


@pytest.mark.parametrize("age", [0, 10**9, -(10**9)])
def test_a_png_repaired_in_place_is_derived_anew(own, age):
    """Also where the repaired file is older, as one out of a backup; the other image is left alone."""
    path = own["panoptic_root"] / "sub/b.png"
    ids = read_panoptic(str(path))
    before, stamp = derived(own), path.stat().st_mtime + age
    write_panoptic(str(path), np.where(ids == 300, 513, ids))
    agree(own)
    os.utime(path, (stamp, stamp))
    assert load() == [(1, [0, 2, 3, 255]), (1, [0, 1, 2, 255])]
    after = derived(own)
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"semantic/sub/b.png", "semantic_all/sub/b.png", "instances.json"}


def test_the_json_corrected_is_derived_anew(own):
    content = json.loads(own["panoptic_json"].read_text())
    content["annotations"][0]["segments_info"].pop()  # the dogs
    own["panoptic_json"].write_text(json.dumps(content))
    agree(own)
    assert load() == [(1, [0, 2, 3, 255]), (1, [0, 1, 2, 255])]


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-20]),
        lambda path: cv2.imwrite(str(path), cv2.imread(str(path), 0) * 0),
        lambda path: cv2.imwrite(str(path), cv2.imread(str(path), 0).astype(np.uint16)),
    ],
    ids=["removed", "empty", "cut", "other labels", "other type"],
)
def test_damaged_derived_files_are_made_again(own, damage):
    before = derived(own)
    (folder,) = (p for p in own["derived_root"].iterdir() if p.is_dir())
    damage(folder / "semantic/a.png")
    load()
    assert {name: content for name, (_, _, content) in derived(own).items()} == {
        name: content for name, (_, _, content) in before.items()
    }


def test_one_process_makes_them_while_others_wait(own):
    task = find_source("own").derivation("all")
    lock = WriterLock(task.folder.parent / f".{task.folder.name}.lock", "", wait=True)
    (own["panoptic_root"] / "a.png").touch()
    done = []
    waiting = threading.Thread(target=lambda: done.append(derive(task)))
    waiting.start()
    time.sleep(0.3)
    assert not done
    lock.release()
    waiting.join(20)
    assert list(done[0].values()) == ["kept", "0 made, 2 kept"]


def test_a_link_in_place_of_the_lock_is_refused(own):
    task = find_source("own").derivation("all")
    lock = task.folder.parent / f".{task.folder.name}.lock"
    lock.unlink()
    lock.symlink_to(own["panoptic_json"])
    (own["panoptic_root"] / "a.png").touch()
    before = own["panoptic_json"].read_bytes()
    with pytest.raises(UserError, match="is a link or no plain file"):
        derive(task)
    assert own["panoptic_json"].read_bytes() == before


def test_read_only_files_that_say_the_same_are_used(own, monkeypatch):
    """A copy of sources and derived files has other times."""
    for path in own["panoptic_root"].rglob("*.png"):
        path.touch()
    before = derived(own)
    monkeypatch.setattr(engine.os, "access", lambda *_: False)
    assert load()[1] == (2, [0, 1, 2, 255]) and derived(own) == before
    (folder,) = (p for p in own["derived_root"].iterdir() if p.is_dir())
    (folder / "semantic/a.png").write_bytes(b"")
    with pytest.raises(UserError, match="1 of 2 are wrong: .*a.png is missing, damaged .* Make .* writable"):
        DatasetCatalog.get("own_separated")


def test_given_categories_are_followed_too(tmp_path, forget_data_sets):
    own = write_own(tmp_path, categories=CATEGORIES[:2])
    content = json.loads(Path(own["panoptic_json"]).read_text())
    for annotation in content["annotations"]:
        annotation["segments_info"] = [s for s in annotation["segments_info"] if s["category_id"] in (2, 4)]
    Path(own["panoptic_json"]).write_text(json.dumps(content))
    agree(own)
    register_coco_panoptic("own", **own, categories=CATEGORIES, show_ids=False)
    copy = find_source("own").derivation("all").panoptic_copy
    DatasetCatalog.get("own")
    assert json.loads(copy.read_text())["categories"] == CATEGORIES
    content["annotations"].pop()
    Path(own["panoptic_json"]).write_text(json.dumps(content))
    assert len(DatasetCatalog.get("own")) == len(json.loads(copy.read_text())["annotations"]) == 1


# ------------------------------------------------------------------ from a release


def repair(folder):
    """Other pixels in the second image of the release: its bed becomes wall."""
    semantic, instances = ade20k_annotations(2)
    semantic[semantic == 8], instances[instances[..., 0] == 1] = 1, 0
    cv2.imwrite(str(folder / "annotations/validation/ADE_val_00000002.png"), semantic)
    cv2.imwrite(
        str(folder / "annotations_instance/validation/ADE_val_00000002.png"), instances[..., ::-1].copy()
    )


def test_a_repaired_release_is_converted_anew(root, capfd):
    folder = write_ade20k(root, 3)
    prepare_ade20k(root, "val")
    assert "imread" not in capfd.readouterr().err  # OpenCV complains of files that are not there
    repair(folder)
    pngs = folder / "ade20k_panoptic_val"
    before = {p.name: p.stat().st_ino for p in pngs.glob("*.png")}
    report = prepare_ade20k(root, "val")
    made = {p.name for p in pngs.glob("*.png") if p.stat().st_ino != before[p.name]}
    assert made == {"ADE_val_00000002.png"}
    assert report[str(folder / "ade20k_panoptic_val.json")] == "made"
    assert report[str(folder / "ade20k_instance_val.json")] == "made"
    assert report[str(root / "derived/ade20k_stuff_val")] == "1 made, 2 kept"
    assert prepare_ade20k(root, "val")[str(folder / "ade20k_panoptic_val.json")] == "kept"


def test_files_of_others_are_never_replaced(root):
    """A panoptic JSON and an instances JSON that another script has made."""
    folder = write_ade20k(root, 2)
    prepare_ade20k(root, "val")
    for name in ("ade20k_panoptic_val.json", "ade20k_instance_val.json"):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**content, "info": "theirs"}))
    repair(folder)
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")}
    report = prepare_ade20k(root, "val")
    assert {p: p.read_bytes() for p in before} == before
    assert report[str(folder / "ade20k_instance_val.json")] == "kept"
