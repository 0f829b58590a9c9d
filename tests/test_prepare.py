"""The preparation scripts: label maps by hand, interruption, damage, missing trees."""

import json
import multiprocessing
import os
import re
import signal
import sys
import time

import cv2
import numpy as np
import pytest
from prepare_util import (  # noqa: F401  data_root is a fixture
    COCO_LABELS,
    coco_ids,
    content,
    data_root,
    run,
    write_ade20k,
    write_cityscapes,
    write_coco,
)

from auto_panoptic.data.derive.engine import derive
from auto_panoptic.data.derive.pool import parallel_map
from auto_panoptic.data.formats import panoptic_png as coco_format
from auto_panoptic.data.sets.coco import coco_files, prepare_coco
from auto_panoptic.errors import UserError


def slowly():
    """Make every label map take 50 ms, in this process and those it starts."""
    quick = coco_format.semantic_labels

    def slow(*arguments):
        time.sleep(0.05)
        return quick(*arguments)

    coco_format.semantic_labels = slow


def start_slow_run(root, processes):
    """A process that makes COCO's label maps slowly, once it has made a few."""

    def main():
        os.setpgrp()  # as a shell starts a command
        slowly()
        sys.exit(run("prepare_coco_panoptic.py", "--splits", "val", "--processes", processes))

    process = multiprocessing.get_context("fork").Process(target=main)
    process.start()
    folder, end = root / "coco/panoptic_stuff_val2017", time.monotonic() + 30
    while len(list(folder.glob("0*.png"))) < 5 and time.monotonic() < end:
        time.sleep(0.01)
    return process, folder


# ------------------------------------------------------------------ COCO


def test_label_maps_of_coco(root):
    """Things 0; 92 becomes 1, 93 2, 200 53; pixels without a segment 255."""
    folder = write_coco(root, 3)
    assert prepare_coco(root, "val") == {str(folder): "3 made, 0 kept", "verified": "3 images"}
    for i in (1, 2, 3):
        labels = cv2.imread(str(folder / f"{i:012d}.png"), cv2.IMREAD_UNCHANGED)
        assert labels.dtype == np.uint8
        np.testing.assert_array_equal(labels, np.vectorize(COCO_LABELS.get)(coco_ids(i)))


def damage_truncate(path, source):
    path.write_bytes(path.read_bytes()[:-20])


def damage_empty(path, source):
    path.write_bytes(b"")


def damage_size(path, source):
    cv2.imwrite(str(path), cv2.imread(str(path), 0)[:-1])


def damage_value(path, source):
    labels = cv2.imread(str(path), 0)
    labels[3, 3] = 54
    cv2.imwrite(str(path), labels)


def damage_type(path, source):
    cv2.imwrite(str(path), cv2.imread(str(path), 0).astype(np.uint16))


def damage_remove(path, source):
    path.unlink()


@pytest.mark.parametrize(
    "damage",
    [
        damage_truncate,
        damage_empty,
        damage_size,
        damage_value,
        damage_type,
        damage_remove,
    ],
)
def test_a_repetition_makes_only_what_is_not_valid(root, damage):
    folder = write_coco(root, 4)
    files = coco_files(root, "val")
    derive(files)
    whole, stamps = content(folder), {p.name: p.stat().st_ino for p in folder.iterdir()}
    damage(folder / "000000000002.png", root / "coco/panoptic_val2017/000000000002.png")
    assert derive(files) == {folder: "1 made, 3 kept"}
    assert derive(files) == {folder: "kept"}  # nothing has changed since
    assert content(folder) == whole
    kept = {p.name for p in folder.iterdir() if p.stat().st_ino == stamps[p.name]}
    assert kept >= {"000000000001.png", "000000000003.png", "000000000004.png"}


def test_another_label_that_the_image_has_is_found(root, capfd):
    """Decodes, has the right size and only possible values: only making it again shows the difference."""
    folder = write_coco(root, 4)
    prepare_coco(root, "val")
    assert run("prepare_coco_panoptic.py", "--splits", "val", "--check") == 0
    assert "verified: 4 images" in capfd.readouterr().out
    path = folder / "000000000003.png"
    labels = cv2.imread(str(path), 0)
    labels[4, 4] = 53 if labels[4, 4] != 53 else 1
    cv2.imwrite(str(path), labels)
    before = content(folder)
    assert run("prepare_coco_panoptic.py", "--splits", "val", "--check") == 2
    assert f"1 of 4 are wrong: {path} is missing, damaged or differs from" in capfd.readouterr().err
    assert content(folder) == before


@pytest.mark.parametrize("damage", [damage_truncate, damage_value, damage_remove])
def test_the_check_names_damaged_files(root, capfd, damage):
    folder = write_coco(root, 4)
    prepare_coco(root, "val")
    damage(folder / "000000000002.png", None)
    assert run("prepare_coco_panoptic.py", "--splits", "val", "--check") == 2
    assert "1 of 4 are wrong" in (err := capfd.readouterr().err) and "000000000002.png" in err


def test_a_wrong_writer_is_noticed(root, monkeypatch):
    """What is verified is what lies on the disk."""
    write_coco(root, 2)
    write = coco_format.write_image
    monkeypatch.setattr(coco_format, "write_image", lambda path, image: write(path, image // 2))
    with pytest.raises(UserError, match="000000000001.png was written but reads back differently"):
        prepare_coco(root, "val")


def test_damaged_sources_are_named(root):
    write_coco(root, 2)
    path = root / "coco/panoptic_val2017/000000000002.png"
    ids = coco_ids(2)
    coco_format.write_panoptic(path, ids[:-1])
    with pytest.raises(
        UserError, match="000000000002.png .image 2.: the PNG has 10 x 11 pixels, the JSON says 10 x 12"
    ):
        prepare_coco(root, "val")
    ids[0, 0] = 99
    coco_format.write_panoptic(path, ids)
    with pytest.raises(
        UserError, match="000000000002.png .image 2.: id 99 has 1 pixels, but no entry in the JSON"
    ):
        prepare_coco(root, "val")


# ------------------------------------------------------------------ interruption


@pytest.mark.parametrize("processes", [1, 2])
def test_killed_in_the_middle_and_repeated(root, tmp_path_factory, processes):
    """Workers die with their parent; the repetition keeps what was made; the bytes are those of one run."""
    write_coco(root, 60)
    process, folder = start_slow_run(root, processes)
    process.kill()
    process.join()
    time.sleep(0.1)
    (folder / ".partial-1-000000000060.png").write_bytes(b"half")
    made = {p.name: p.stat().st_ino for p in folder.glob("0*.png")}
    time.sleep(0.3)  # orphans would go on
    assert 5 <= len(made) < 60 and len(list(folder.glob("0*.png"))) == len(made)
    (done,) = derive(coco_files(root, "val"), processes).values()
    new, kept = re.fullmatch(r"(\d+) made, (\d+) kept", done).groups()
    assert int(kept) >= len(made) - 1 and int(new) + int(kept) == 60
    other = tmp_path_factory.mktemp("undisturbed")
    undisturbed = write_coco(other, 60)
    derive(coco_files(other, "val"), 1)
    assert content(folder) == content(undisturbed) and len(content(folder)) == 60


@pytest.mark.parametrize("processes", [1, 2])
def test_ctrl_c_ends_it_in_order(root, capfd, processes):
    write_coco(root, 60)
    process, folder = start_slow_run(root, processes)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: workers get it too
    process.join(20)
    assert process.exitcode == 130
    assert not list(folder.glob(".partial*")) and len(list(folder.glob("0*.png"))) < 60
    err = capfd.readouterr().err
    assert "interrupted; the same command goes on from here" in err and "Traceback" not in err


def _die(item):
    if item == 40:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def test_a_dead_worker_is_no_endless_wait():
    with pytest.raises(UserError, match="some work: a worker process was killed"):
        parallel_map(_die, range(60), 2, title="some work")


# ------------------------------------------------------------------ the command line


@pytest.mark.parametrize(
    "script, path, remedy",
    [
        ("prepare_coco_panoptic.py", "coco/annotations/panoptic_train2017.json", "panoptic_train2017.zip"),
        ("prepare_ade20k.py", "ADEChallengeData2016/images/training", "unpack ADEChallengeData2016.zip"),
        ("prepare_cityscapes.py", "cityscapes/gtFine/train", "unpack gtFine_trainvaltest.zip"),
    ],
)
def test_missing_trees_are_named(root, capfd, script, path, remedy):
    assert run(script) == 2
    err = capfd.readouterr().err
    assert err.count("\n") == 1
    assert str(root / path) in err and remedy in err and "--root" in err and "--splits" in err
    assert run(script, "--root", root / "nowhere") == 2
    assert "nowhere is no folder" in capfd.readouterr().err
    assert run(script, "--check") == 2
    err = capfd.readouterr().err
    assert err.count("\n") == 1 and "nothing to verify; repeat the command without --check" in err
    assert list(root.iterdir()) == []
    assert run(script, "--help") == 0
    help_text = capfd.readouterr().out
    assert all(option in help_text for option in ("--root", "--splits", "--processes", "--check"))


def test_the_root_may_be_given(tmp_path, monkeypatch, capfd):
    """--root decides over the environment, for all that the three scripts write."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "elsewhere"))
    root = tmp_path / "given"
    write_coco(root, 2), write_ade20k(root, 2), write_cityscapes(root, 1)
    for script in ("prepare_coco_panoptic.py", "prepare_ade20k.py", "prepare_cityscapes.py"):
        assert run(script, "--root", root, "--splits", "val", "--processes", 1) == 0, capfd.readouterr().err
        assert "val: verified: 2 images" in capfd.readouterr().out
    assert not (tmp_path / "elsewhere").exists()
    for made in ("derived/ade20k_stuff_val", "derived/cityscapes_val/semantic"):
        assert list((root / made).glob("**/*.png"))
    json.loads((root / "ADEChallengeData2016/ade20k_instance_val.json").read_text())
