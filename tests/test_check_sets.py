"""The data checker on whole sets: damaged JSON files and folders, registered sets, interruptions."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from check_corpus import Corpus, flags, serious
from PIL import Image
from toy import PREFIX, ROOT, dataset_entries, write_config

from auto_panoptic.data.check import check_data_set, format_report, main, run_check
from auto_panoptic.data.check.sets import from_paths
from auto_panoptic.data.formats.instances_json import read_instances
from auto_panoptic.data.formats.panoptic_json import read_index
from auto_panoptic.errors import UserError

PHOTOS = Path(os.getenv("AUTO_PANOPTIC_PHOTOS", ROOT.parent / "shared" / "data"))


@pytest.fixture
def small(shapes, tmp_path):
    """Two whole images."""
    corpus = Corpus(tmp_path / "small", shapes, copies=1, images=2)
    corpus.write()
    return corpus


def test_clean_set(shapes, tmp_path, capsys):
    main(["--config-file", str(write_config(tmp_path / "toy.yaml", shapes)), "--processes", "1"])
    out = capsys.readouterr().out
    assert "ERROR" not in out and "WARNING" not in out
    for name, images in (("nas_train", 14), ("val", 4), ("nas_val", 6)):
        assert f"{PREFIX}_{name}: 0 errors, 0 warnings" in out and f"in {images} images" in out
    assert "all 3 sets: 0 errors, 0 warnings" in out


def same_name(corpus):
    corpus.panoptic["categories"].append({"id": 99, "name": "ball", "isthing": 1})
    corpus.write()


def move(key):
    return lambda corpus: Path(corpus.paths[key]).rename(corpus.folder / "elsewhere")


WHOLE = {  # the JSON files themselves: test_json_rules
    "JSON missing": (move("panoptic_json"), "panoptic_json", "json-missing"),
    "class name twice": (same_name, "panoptic_json", "duplicate-category-name"),
    "PNG folder missing": (move("panoptic_root"), "panoptic_root", "folder-missing"),
    "image folder missing": (move("image_root"), "image_root", "folder-missing"),
    "label folder missing": (move("sem_seg_root"), "sem_seg_root", "folder-missing"),
    "instances missing": (move("instances_json"), "instances_json", "json-missing"),
}


@pytest.mark.parametrize("name", WHOLE)
def test_damaged_set_is_named(small, name):
    apply, key, kind = WHOLE[name]
    apply(small)
    findings = serious(check_data_set(processes=1, **small.paths))
    assert [f for f in findings if f.kind == kind and f.file == small.paths[key]], findings
    assert key == "panoptic_json" or {f.kind for f in findings} == {kind}


def test_position_in_broken_json(small):
    path = Path(small.paths["panoptic_json"])
    path.write_text('{"images": [],\n "annotations": [}')
    (finding,) = check_data_set(processes=1, **small.paths)
    assert "line 2, column 18, character 32 of a file of 33 bytes" in finding.what


def test_any_json_value_anywhere_is_survived(small):
    """Values of other types at random places of both JSONs: never a traceback, and what the check finds wrong
    is refused by loading, no more and no less."""
    rng = random.Random(0)
    strange = [
        None,
        -1,
        0,
        1.5,
        float("nan"),
        "",
        "x",
        [],
        [[]],
        {},
        {"a": 1},
        10**30,
        True,
        "\n",
        [None] * 4,
    ]
    places = []

    def walk(node):
        for key in node if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], (dict, list)):
                walk(node[key])

    walk(small.panoptic)
    walk(small.instances)
    jsons = {small.paths["panoptic_json"], small.paths["instances_json"]}
    refused = 0
    for node, key in rng.sample(places, 100):
        before, node[key] = node[key], rng.choice(strange)
        findings = check_data_set(processes=1, **small.write())
        assert all(f.file and f.what and "\n" not in f.line() for f in findings)
        errors = {f.line() for f in findings if f.severity == "error" and f.file in jsons}
        message = None
        try:
            load(small.paths)
        except UserError as error:
            message = str(error)
            refused += 1
        assert (message in errors) if errors else message is None, (message, errors)
        node[key] = before
    assert refused > 30
    assert serious(check_data_set(processes=1, **small.write())) == []


def load(paths):
    """The JSON files as the loader reads them."""
    read_instances(paths["instances_json"], read_index(paths["panoptic_json"]))


def test_folder_of_classified_images(tmp_path, capsys):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.new("RGB", (20, 10 + i), (i, 0, 90)).save(tmp_path / name / f"{i}.jpg")
    main(["--image-folder", str(tmp_path), "--processes", "1"])
    assert "0 errors, 0 warnings, 0 notes in 6 images" in capsys.readouterr().out
    (tmp_path / "cat/1.jpg").write_bytes((tmp_path / "cat/1.jpg").read_bytes()[:150])
    (tmp_path / "dog/2.jpg").write_text("")
    (tmp_path / "dog/readme.txt").write_text("")
    (tmp_path / "empty").mkdir()
    found = {
        (f.kind, Path(f.file).relative_to(tmp_path).as_posix()) for f in check_data_set(image_folder=tmp_path)
    }
    assert found == {
        ("image-truncated", "cat/1.jpg"),
        ("image-unreadable", "dog/2.jpg"),
        ("other-file", "dog/readme.txt"),
        ("class-without-image", "empty"),
    }


def test_registered_sets_and_mistakes(shapes, tmp_path):
    missing = tmp_path / "no" / "found.json"
    for words, message in (
        (["shapes_panoptic_vall"], "did you mean shapes_panoptic_val"),
        ([], "nothing to check"),
        (["--panoptic-json", "x"], "lacks panoptic_root"),
        (["--image-folder", str(tmp_path), "--processes", "0"], "--processes 0"),
        (["--image-folder", str(tmp_path), "--json", str(missing)], "cannot be written"),
    ):
        with pytest.raises(UserError, match=message):
            main(words)
    with pytest.raises(UserError, match="unknown data set"):
        check_data_set("shapes_panoptic_vall")


def test_config_of_the_model_zoo(capsys, shapes):
    entry = dataset_entries(shapes)[1]
    arguments = ("--processes", "1", "--opts", "DATASETS.COCO_PANOPTIC", str([entry]))
    zoo = "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml"
    main([entry["name"], "--config-file", zoo, *arguments])
    assert f"{entry['name']}: 0 errors" in capsys.readouterr().out
    with pytest.raises(UserError, match="--config-file: no file 'nowhere.yaml'"):
        main([entry["name"], "--config-file", "nowhere.yaml", *arguments])


def test_classes_of_a_name_of_detectron2(shapes, forget_data_sets):
    """A set that is registered by others, for other classes than its JSON has."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    entry = dataset_entries(shapes)[2]
    maps = {"thing_dataset_id_to_contiguous_id": {i: i for i in (1, 2, 3, 5, 6, 7)}}
    stuff = {i: i for i in (101, 102, 103, 105, 106)}
    DatasetCatalog.register("theirs", list)
    MetadataCatalog.get("theirs").set(
        panoptic_json=entry["panoptic_json"],
        panoptic_root=entry["panoptic_root"],
        image_root=entry["image_root"],
        stuff_dataset_id_to_contiguous_id=stuff,
        **maps,
    )
    found = serious(check_data_set("theirs", processes=1))
    assert [(f.kind, f.what) for f in found] == [
        ("category-mismatch", "thing class 9 is none of data set theirs")
    ]


def test_registered_set(small, forget_data_sets):
    """By name: paths, replaced categories and the way from JSON entries to image files are the source's."""
    from auto_panoptic.data import register_coco_panoptic
    from auto_panoptic.data.register import register_source
    from auto_panoptic.data.source import PanopticSource

    categories = [c for c in small.panoptic["categories"] if c["id"] != 106]
    register_coco_panoptic("own", categories=categories, show_ids=False, **small.paths)
    found = serious(check_data_set("own", processes=1))
    assert {f.kind for f in found} == {"unknown-category", "semantic-values"}
    (small.folder / "images").rename(small.folder / "photos")
    source = PanopticSource("moved", **small.paths, locate=moved)
    register_source(source)
    assert {f.kind for f in check_data_set("moved", processes=1)} == {"folder-missing"}
    (small.folder / "images").mkdir()
    assert serious(check_data_set("moved", processes=1)) == []


def moved(image):
    return f"../photos/{image['file_name']}"


def test_part_that_is_not_made_yet(small, forget_data_sets):
    """The finding says what the source knows about making it."""
    from auto_panoptic.data.register import register_source
    from auto_panoptic.data.source import PanopticSource

    def prepare():
        raise UserError("run the script that makes it")

    paths = {**small.paths, "sem_seg_root": str(small.folder / "later")}
    categories = tuple(small.panoptic["categories"])
    register_source(PanopticSource("later", **paths, categories=categories, prepare=prepare))
    assert [f.kind for f in check_data_set("later", processes=1) if f.file == paths["sem_seg_root"]] == [
        "not-made-yet"
    ]
    Path(small.paths["panoptic_json"]).unlink()
    (finding,) = serious(check_data_set("later", processes=1))
    assert finding.kind == "json-missing" and "(run the script that makes it)" in finding.what


def test_cityscapes_tree(small):
    """Its JSON names no city folder, and gives the photographs a name they do not have."""
    for image in small.panoptic["images"]:
        stem = f"bonn_000000_{image['id']:06d}"
        (small.folder / "images/bonn").mkdir(exist_ok=True)
        target = small.folder / f"images/bonn/{stem}_leftImg8bit.png"
        Image.open(small.folder / "images" / image["file_name"]).save(target)
        image["file_name"] = f"{stem}_gtFine_leftImg8bit.png"
    paths = {k: v for k, v in small.write().items() if k != "instances_json"}
    assert serious(check_data_set(processes=1, **paths)) == []
    target.unlink()
    assert [f.kind for f in serious(check_data_set(processes=1, **paths))] == ["image-missing"]


def test_interruption_says_how_far(small, monkeypatch):
    from auto_panoptic.data.check import run

    original, calls = run.check_pair, []

    def stop(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(run, "check_pair", stop)
    report = run_check(from_paths("small", small.paths), 1, progress=False)
    assert report.interrupted and (report.done, report.total) == (1, 2)
    assert "interrupted after 1 of 2 images" in format_report(report)


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def test_killed_process_is_noticed(small, monkeypatch):
    from auto_panoptic.data.check import run

    monkeypatch.setattr(run, "check_pair", die)
    with pytest.raises(UserError, match="killed.*--processes 1"):
        run_check(from_paths("small", small.paths), 2, progress=False)


@pytest.mark.slow
def test_interrupted_command_ends_at_once(shapes, tmp_path):
    corpus = Corpus(tmp_path / "large", shapes, copies=40)
    command = [sys.executable, "-m", "auto_panoptic.data.check", *flags(corpus.write()), "--processes", "2"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, **pipes)
    children, start = Path(f"/proc/{process.pid}/task/{process.pid}/children"), time.monotonic()
    while len(workers := children.read_text().split()) < 2 and time.monotonic() - start < 180:
        time.sleep(0.01)
    time.sleep(0.2)
    for worker in workers:
        os.kill(int(worker), signal.SIGSTOP)  # however fast the machine is, some images are left
    os.killpg(process.pid, signal.SIGINT)  # as the terminal does: to all of its processes
    time.sleep(0.2)
    for worker in workers:
        os.kill(int(worker), signal.SIGCONT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    done = re.search(r"interrupted after (\d+) of 800 images", out)
    assert done and int(done[1]) < 800 and "Traceback" not in err


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="annotated photographs are not here")
@pytest.mark.parametrize(
    "name", ["coco133", "cityscapes19", "ade150", "voc20bg", "tinycoco80_train", "camvid11"]
)
def test_real_photographs_are_accused_of_nothing(name):
    folder = PHOTOS / name
    paths = {
        "panoptic_json": str(folder / "panoptic.json"),
        "panoptic_root": str(folder / "panoptic"),
        "image_root": str(folder / "images"),
    }
    found = check_data_set(processes=1, **paths)
    assert [f for f in found if f.severity == "error"] == []
    # ADE20K has two classes named "screen".
    assert [f.kind for f in found if f.severity == "warning"] == ["duplicate-category-name"] * (
        name == "ade150"
    )
