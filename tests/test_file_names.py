"""Names in a JSON, links and names of data sets: nothing leads a write out of the folder of derived files."""

import json
import os
import shutil
from pathlib import Path

import pytest
from data_util import write_own
from detectron2.data import DatasetCatalog
from prepare_util import data_root, run, write_coco  # noqa: F401  data_root is a fixture

from auto_panoptic.data import register_coco_panoptic, register_image_folder
from auto_panoptic.data.check import check_data_set
from auto_panoptic.data.formats.names import below, name_problem
from auto_panoptic.errors import UserError

BAD = {
    "absolute": "{folder}/panoptic/a.png",
    "absolute, twice a slash": "//{folder}/panoptic/a.png",
    "leads out": "../panoptic/a.png",
    "leads out in the middle": "sub/../../panoptic/a.png",
    "far out": "../../../../../../../../{folder}/panoptic/a.png",
    "out and in": "x/../a.png",
    "a folder": "sub/",
    "a dot": ".",
    "empty": "",
    "zero byte": "a\0.png",
    "null": None,
    "a list": ["a.png"],
    "a number": 3,
}


def contents(folder):
    """{path: bytes} of every file, links and locks left out."""
    return {
        p: p.read_bytes()
        for p in Path(folder).rglob("*")
        if p.is_file() and not p.is_symlink() and not p.name.endswith(".lock")
    }


@pytest.mark.parametrize("key", ["images", "annotations"])
@pytest.mark.parametrize("name", BAD)
def test_names_that_leave_their_folder_are_refused(tmp_path, key, name, forget_data_sets):
    """By loading and by the check, with file and entry, and no file of the user is touched."""
    own = write_own(tmp_path)
    path = Path(own["panoptic_json"])
    wrong = json.loads(path.read_text())
    value = BAD[name]
    value = (
        value.format(folder=str(tmp_path).lstrip("/") if "out" in name else tmp_path)
        if type(value) is str
        else value
    )
    wrong[key][1]["file_name"] = value
    path.write_text(json.dumps(wrong))
    before = contents(tmp_path)
    register_coco_panoptic("own", **own)
    with pytest.raises(UserError) as error:
        DatasetCatalog.get("own")
    where = f"{key}[1] has file_name {value!r}"
    assert str(path) in str(error.value) and where in str(error.value)
    assert contents(tmp_path) == before
    paths = {k: v for k, v in own.items() if k != "derived_root"}
    (found,) = [f for f in check_data_set(processes=1, **paths) if f.kind == "file-name"]
    assert found.severity == "error" and found.file == str(path) and where in found.what


@pytest.mark.parametrize("name", ["absolute", "leads out"])
def test_preparation_refuses_them_too(root, name, capfd):
    write_coco(root, 2)
    path = root / "coco/annotations/panoptic_val2017.json"
    content = json.loads(path.read_text())
    png = content["annotations"][0]["file_name"]
    folder = root / "coco/panoptic_val2017" if name == "absolute" else Path("../panoptic_val2017")
    content["annotations"][0]["file_name"] = str(folder / png)
    path.write_text(json.dumps(content))
    before = contents(root)
    assert run("prepare_coco_panoptic.py", "--splits", "val", "--processes", 1) == 2
    err = capfd.readouterr().err
    assert err.count("\n") == 1 and f"{path} (image 1): annotations[0] has file_name" in err
    assert contents(root) == before


def test_equal_names_but_for_the_ending_would_share_a_label_map(tmp_path, forget_data_sets):
    own = write_own(tmp_path)
    path = Path(own["panoptic_json"])
    content = json.loads(path.read_text())
    content["annotations"][1]["file_name"] = "./sub//b.PNG"
    path.write_text(json.dumps(content))
    register_coco_panoptic("own", **own)
    with pytest.raises(UserError, match="PNG ./sub//b.PNG belongs to images 41 and 42"):
        DatasetCatalog.get("own")
    paths = {k: v for k, v in own.items() if k != "derived_root"}
    assert "duplicate-png-file" in {f.kind for f in check_data_set(processes=1, **paths)}


def test_links_among_derived_files_lead_no_write_out(root, capfd):
    """A link to the folder of the annotations, and a linked file, made by the user or by an archive."""
    folder = write_coco(root, 2)
    source = root / "coco/panoptic_val2017"
    folder.symlink_to(source, target_is_directory=True)
    before = contents(root)
    assert run("prepare_coco_panoptic.py", "--splits", "val", "--processes", 1) == 2
    assert f"{folder} is a link into {source}" in capfd.readouterr().err
    assert contents(root) == before
    folder.unlink()
    folder.mkdir()
    (folder / "000000000001.png").symlink_to(source / "000000000001.png")
    assert run("prepare_coco_panoptic.py", "--splits", "val", "--processes", 1) == 0
    assert {p: c for p, c in contents(root).items() if folder not in p.parents} == before
    assert not (folder / "000000000001.png").is_symlink()
    made, own = folder / "000000000002.png", root / "own.png"
    made.rename(own)
    made.symlink_to(own)  # says the same
    assert run("prepare_coco_panoptic.py", "--splits", "val", "--processes", 1) == 0
    assert not made.is_symlink() and made.read_bytes() == own.read_bytes()


def test_a_link_below_the_derived_folder_is_refused(tmp_path):
    victim, derived = tmp_path / "victim", tmp_path / "derived"
    victim.mkdir(), derived.mkdir()
    (derived / "sub").symlink_to(victim)
    with pytest.raises(UserError, match="sub/x.png leads out of .*derived, to .*victim"):
        below(derived, "sub/x.png", tmp_path / "sources")
    (tmp_path / "disk").mkdir()
    (tmp_path / "linked").symlink_to(tmp_path / "disk")  # derived files on another disk are fine
    assert below(tmp_path / "linked", "a/x.png", tmp_path / "sources").parent.is_dir()
    assert (tmp_path / "disk/a").is_dir()


@pytest.mark.parametrize("name", ["../own", "/tmp/own", "a/../../own", "", "a/", "a\0b"])
def test_names_of_data_sets_name_folders(tmp_path, name, forget_data_sets):
    for register, arguments in (
        (register_coco_panoptic, write_own(tmp_path)),
        (register_image_folder, {"root": tmp_path}),
    ):
        with pytest.raises(UserError, match="data set name .*; choose another name"):
            register(name, **arguments)
    assert name not in DatasetCatalog.list()


def test_ordinary_names_stay_allowed(tmp_path, forget_data_sets):
    assert not any(
        map(name_problem, ["a.png", "sub/b.png", "..a.png", "a..b/c.png", "ä ö/1.png", "a\\b.png", "~/x.png"])
    )
    own = write_own(tmp_path)
    outside = shutil.move(tmp_path / "images/a.png", tmp_path / "a.png")
    os.symlink(outside, tmp_path / "images/a.png")  # images on another disk: they are only read
    register_coco_panoptic("team/own", **own)
    assert len(DatasetCatalog.get("team/own")) == 2
