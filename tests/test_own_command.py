"""From a folder to a network in one command: the parts of the images, what is run, what is refused."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import pytest
from data_util import write_scenes
from toy import ROOT, run_script

from auto_panoptic import own_data
from auto_panoptic.errors import UserError, run_command
from auto_panoptic.read_config import read_config

IMAGES = 20


@pytest.fixture
def folder(tmp_path, monkeypatch, forget_data_sets):
    """A folder of twenty photographs, from where the command is called."""
    write_scenes(tmp_path / "my", ["objects"] * IMAGES)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def commands(monkeypatch):
    """What would be run; whether the search can start is looked at in a test of its own."""
    found = []
    monkeypatch.setattr(own_data, "run", found.append)
    monkeypatch.setattr(own_data, "check_search", lambda words: None)
    return found


def call(*arguments):
    argv, sys.argv = sys.argv, ["own_data", "--processes", "1", *map(str, arguments)]
    try:
        own_data.main()
    finally:
        sys.argv = argv


def ids(path):
    content = json.loads(Path(path).read_text())
    assert [a["image_id"] for a in content["annotations"]] == [i["id"] for i in content["images"]]
    return {image["id"] for image in content["images"]}


def test_the_parts_are_disjoint_and_the_retraining_has_two_of_them(folder, commands, capsys):
    call("my", "--output", "out", "--recipe", "cpu", "--max-macs", "3G", "--weights", "w.pth")
    train, search, val, everything = (
        ids(f"out/data/{part}.json") for part in ("train", "search", "val", "all")
    )
    assert (len(train), len(search), len(val)) == (14, 3, 3)  # 15 % of 20, then of 17
    assert train | search == everything and everything | val == ids("my/panoptic.json")
    assert not (train & search or everything & val)
    trained = "out/supernet/model_final.pth"
    assert commands == [
        ["train", "--config-file", "out/supernet.yaml", "MODEL.WEIGHTS", "w.pth"],
        ["search", "--config-file", "out/supernet.yaml", "--weights", trained]
        + ["--max-macs", "3G", "OUTPUT_DIR", "out"],
        ["train", "--config-file", "out/retrain.yaml", "MODEL.WEIGHTS", trained],
    ]
    supernet, retrain = (read_config(f"out/{stage}.yaml") for stage in ("supernet", "retrain"))
    for cfg, sets in ((supernet, ("train", "search", "val")), (retrain, ("all", "val"))):
        entries = {e["name"]: e["panoptic_json"] for e in cfg.DATASETS.COCO_PANOPTIC}
        assert entries == {f"own_{part}": str(folder / f"out/data/{part}.json") for part in sets}
        assert list(cfg.DATASETS.TEST) == ["own_val"]
    assert list(supernet.DATASETS.TRAIN) == ["own_train"] and list(retrain.DATASETS.TRAIN) == ["own_all"]
    assert list(supernet.DATASETS.SEARCH) == ["own_search"]
    assert (supernet.OUTPUT_DIR, retrain.OUTPUT_DIR) == ("out/supernet", "out/retrain")
    assert retrain.NAS.ARCHITECTURE == "out/search/architecture.json"
    recipe = read_config(str(ROOT / "configs/own/cpu_supernet.yaml"))
    assert supernet.INPUT == recipe.INPUT and supernet.SOLVER.BASE_LR == recipe.SOLVER.BASE_LR
    out = capsys.readouterr().out
    assert "images: 14 train, 3 val, 3 search" in out and "a network to use needs hundreds" in out
    assert "auto_panoptic demo --bundle out/retrain --input PHOTOS" in out


def test_a_set_of_its_own_to_evaluate_on_and_other_lengths(folder, commands):
    shutil.copytree(folder / "my", folder / "other")
    steps = ("--supernet-steps", 3, "--retrain-steps", 24000, "--search-images", 5)
    call("my", "--val", "other", "--output", "out", "--recipe", "gpu", *steps, "--opts", "SEED", "3")
    assert len(ids("out/data/train.json")) == 15 and not (folder / "out/data/val.json").exists()
    supernet, retrain = (read_config(f"out/{stage}.yaml") for stage in ("supernet", "retrain"))
    assert supernet.DATASETS.COCO_PANOPTIC[2]["panoptic_json"] == str(folder / "other/panoptic.json")
    assert retrain.DATASETS.COCO_PANOPTIC[0]["panoptic_json"] == str(folder / "my/panoptic.json")
    assert (supernet.SOLVER.MAX_ITER, list(supernet.SOLVER.STEPS), supernet.SOLVER.WARMUP_ITERS) == (
        3,
        [2],
        0,
    )
    assert (retrain.SOLVER.MAX_ITER, list(retrain.SOLVER.STEPS)) == (24000, [19400, 22400])
    assert all(command[-2:] == ["SEED", "3"] for command in commands[:1])
    assert all("SEED" in command for command in commands)


@pytest.mark.parametrize(
    ("recipe", "images", "part"),
    [
        ("cpu", 4, 0.25),
        ("cpu", 25, 0.25),
        ("cpu", 50, 0.5),
        ("cpu", 100, 1),
        ("cpu", 5000, 1),
        ("gpu", 100, 0.25),
        ("gpu", 600, 0.6),
        ("gpu", 1000, 1),
    ],
)
def test_few_images_are_trained_on_for_fewer_steps(recipe, images, part):
    assert own_data.length(recipe, images) == part


def test_the_schedule_follows_the_number_of_images(folder, commands, monkeypatch):
    """Of twenty images a quarter of the recipe's; of as many as it is meant for, the recipe itself."""
    call("my", "--output", "out", "--recipe", "cpu")
    lengths = {}
    for stage in own_data.STAGES:
        recipe = read_config(str(own_data.recipe_file("cpu", stage))).SOLVER
        solver = read_config(f"out/{stage}.yaml").SOLVER
        assert solver.MAX_ITER * 4 == recipe.MAX_ITER
        assert list(solver.STEPS) == [step // 4 for step in recipe.STEPS]
        assert solver.WARMUP_ITERS <= min(recipe.WARMUP_ITERS, solver.MAX_ITER // 5)
        lengths[stage] = recipe
    monkeypatch.setitem(own_data.WHOLE_LENGTH, "cpu", IMAGES)
    call("my", "--output", "whole", "--recipe", "cpu")
    assert all(read_config(f"whole/{stage}.yaml").SOLVER == lengths[stage] for stage in lengths)


def test_an_onnx_file_is_written_last(folder, commands, capsys):
    """Of the config that was trained, with the options it was trained with."""
    call("my", "--output", "out", "--recipe", "cpu", "--onnx", "--opts", "SEED", "3")
    trained = ["SEED", "3", "MODEL.WEIGHTS", "out/retrain/model_final.pth"]
    file = ["--output", "out/network.onnx"]
    assert commands[-1] == ["export", "--config-file", "out/retrain.yaml", *file, *trained]
    assert [command[0] for command in commands] == ["train", "search", "train", "export"]
    assert "onnx          out/network.onnx" in capsys.readouterr().out


def test_onnx_that_is_not_installed_is_found_before_the_training(folder, commands, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match="--onnx needs onnxruntime: pip install onnx onnxruntime"):
        call("my", "--output", "out", "--onnx")
    assert commands == [] and not (folder / "out").exists()


def test_resumed(folder, commands):
    options = ("my", "--output", "out", "--recipe", "cpu")
    call(*options)
    trained = folder / "out/supernet/model_final.pth"
    trained.parent.mkdir()
    trained.touch()
    with pytest.raises(UserError, match="continue that one with --resume"):
        call(*options)
    (folder / "out/search").mkdir()
    (folder / "out/search/ledger.jsonl").touch()
    del commands[:]
    call(*options, "--resume")
    assert [command[0] for command in commands] == ["search", "train"]
    assert all("--resume" in command for command in commands)
    with pytest.raises(UserError, match="--resume: out/supernet.yaml says otherwise"):
        call(*options, "--resume", "--supernet-steps", 3)
    with pytest.raises(UserError, match="another draw of images"):
        call(*options, "--resume", "--seed", 1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nothing",), "nothing is no folder"),
        (("my", "--panoptic-json", "x"), "not both"),
        ((), "name the folder of the set, or give --panoptic-json"),
        (("my", "--val-images", 19), "20 images are too few to set 19 for val and 1 for search aside"),
        (("my", "--search-images", 17), "too few to set 3 for val and 17 for search aside"),
        (("my", "--search-images", 0), "--search-images is 0; expected at least 1"),
        (("my", "--max-macs", "some"), "--max-macs is 'some'"),
    ],
)
def test_wrong_arguments(folder, commands, arguments, words):
    with pytest.raises(UserError, match=words):
        call("--output", "out", "--recipe", "cpu", *arguments)
    assert commands == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--max-macs", "1M"), "--max-macs"),
        (
            ("--opts", "NAS.MODELS_PER_CYCLE", "2", "NAS.POLICY", "path_priority"),
            "NAS.MODELS_PER_CYCLE is 2: expected a multiple of 4",
        ),
        (("--opts", "NAS.MODELS_PER_CYCLE", "2"), "a setting of the policy path_priority"),
        (("--opts", "NAS.MODELS", "2"), "unknown config key 'NAS.MODELS'"),
    ],
)
def test_a_search_that_cannot_start_is_not_found_after_the_training(folder, monkeypatch, arguments, words):
    commands = []
    monkeypatch.setattr(own_data, "run", commands.append)
    with pytest.raises(UserError, match=words):
        call("my", "--output", "out", "--recipe", "cpu", *arguments)
    assert commands == []


def test_a_broken_set_is_not_trained_on(folder, commands, capsys):
    (folder / "my/images/003.png").unlink()
    with pytest.raises(UserError, match="my: 1 error, listed above"):
        call("my", "--output", "out")
    assert "image-missing" in capsys.readouterr().out and not (folder / "out").exists() and commands == []


def test_a_command_that_fails_says_how_to_go_on(capfd):
    with pytest.raises(SystemExit) as end:
        run_command(lambda: own_data.run(["train", "--config-file", "none.yaml"]))
    assert end.value.code == 2
    captured = capfd.readouterr()
    assert captured.out == "\n$ python -m auto_panoptic train --config-file none.yaml\n"
    why, last = captured.err.splitlines()
    assert "none.yaml" in why
    assert last == "error: the command above ended with exit code 2; --resume goes on from there"


@pytest.mark.slow
def test_from_a_folder_to_a_picture(folder, capfd):
    """All of it, with the least of everything."""
    least = "NAS.POSTERIOR.ROUNDS 1 NAS.BN_RECALIBRATION.NUM_IMAGES 4 INPUT.MIN_SIZE_TEST 64".split()
    least += ["INPUT.MIN_SIZE_TRAIN", "(64,)", "MODEL.SHUFFLENET.STAGE_REPEATS", "[1, 1, 1, 1]"]
    least += ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"]  # it finds something before it has learned
    steps = ("--supernet-steps", 1, "--retrain-steps", 2)
    onnx = ["--onnx"] * all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime"))
    call("my", "--output", "out", "--recipe", "cpu", *steps, *onnx, "--opts", *least)
    out = capfd.readouterr().out
    assert (folder / "out/network.onnx").is_file() == bool(onnx)
    assert "own_val" in out and "network       out/retrain/bundle.pth" in out
    assert (folder / "out/search/report.html").is_file()
    metrics = [json.loads(line) for line in (folder / "out/retrain/metrics.json").read_text().splitlines()]
    assert any("panoptic_seg/PQ" in line for line in metrics)
    run_script("demo", "--bundle", "out/retrain", "--input", "my/images", "--output", "drawn")
    assert len(list((folder / "drawn").glob("*.png"))) == IMAGES
