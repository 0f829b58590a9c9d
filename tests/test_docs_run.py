"""What the pages show on the drawn scenes is run, command by command; only sizes and iterations are ours."""

import re
import runpy
import shutil
import sys

import cv2
import pytest
import torch
import yaml
from test_docs import program, shell_commands
from toy import PREFIX, ROOT, dataset_entries, run_script

from auto_panoptic import bundle

TINY = {
    "SOLVER": {"MAX_ITER": 1, "STEPS": [], "WARMUP_ITERS": 0, "CHECKPOINT_PERIOD": 1000},
    "NAS": {"POLICY": "path_priority", "CYCLES": 1, "BN_RECALIBRATION": {"NUM_IMAGES": 4, "BATCH_SIZE": 2}},
    "DATALOADER": {"NUM_WORKERS": 0},
}
SPLITS = {"TRAIN": "nas_train", "TEST": "val", "SEARCH": "nas_val"}


@pytest.fixture
def folder(tmp_path, shapes, monkeypatch, forget_data_sets):
    """Where a user would be: the quick configs are there, shrunk, and read the tiny data set."""
    data = {key: [f"{PREFIX}_{split}"] for key, split in SPLITS.items()}
    (tmp_path / "configs/quick").mkdir(parents=True)
    for path in (ROOT / "configs/quick").glob("*.yaml"):
        short = {"_BASE_": str(path), "DATASETS": {"COCO_PANOPTIC": dataset_entries(shapes), **data}, **TINY}
        if not path.name.startswith("Base"):
            (tmp_path / "configs/quick" / path.name).write_text(yaml.safe_dump(short))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def run_all(lines):
    """Run commands of train_net.py and search_net.py, one process each, in this one."""
    for command in lines:
        _, (script, *arguments) = program(command)
        run_script(script.removesuffix(".py"), *arguments)


def page(name):
    return (ROOT / "docs" / name).read_text()


@pytest.mark.slow
def test_the_quickstart_by_hand(folder):
    lines = [line for line in shell_commands(page("index.md")) if line[0] != "make" and "demo.py" not in line]
    assert len(lines) == 4
    run_all(lines)
    assert (folder / "output/quickstart/supernet/search/report.html").is_file()
    assert (folder / "output/quickstart/retrain/inference").is_dir()


@pytest.mark.slow
def test_an_operator_of_ones_own(folder):
    text = page("operators.md")
    for language, name in (("python", "my_ops.py"), ("yaml", "my_ops.yaml")):
        (block,) = re.findall(rf"^```{language}\n(.*?)^```", text, re.S | re.M)  # no part of a list
        assert f"`{name}`" in text
        (folder / name).write_text(block)
    try:
        run_all(shell_commands(text))
    finally:
        sys.modules.pop("my_ops", None)
    assert "pool_3x3" in (folder / "output/my_ops/search/scoreboard.json").read_text()


# ------------------------------------------------------------------ pages about what a quickstart leaves

# Not here: another machine, a camera, a server, COCO, two processes, and the commands' other name.
ELSEWHERE = re.compile(r"^(pip|tensorboard|torchrun)|--webcam|coco|-m auto_panoptic ")
PAGES = {"index.md": 1, "predict.md": 5, "report.md": 5, "export.md": 3, "evaluation.md": 2, "training.md": 2}


def run_any(command):
    """Run a command of any kind, in this process."""
    _, words = program(command)
    if words[0] in ("train_net.py", "search_net.py", "demo.py"):
        return run_script(words[0].removesuffix(".py"), *words[1:])
    module = words[0] == "-m"
    argv, sys.argv = sys.argv, words[1:] if module else words
    try:
        if module:
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(str(ROOT / words[0]), run_name="__main__")
    finally:
        sys.argv = argv


@pytest.fixture
def after_quickstart(folder, shapes):
    """What a quickstart has written, and files of the names in the pages."""
    output, config = folder / "output/quickstart", "configs/quick/supernet.yaml"
    run_script("train_net", "--config-file", config)
    weights = output / "supernet/model_final.pth"
    run_script("search_net", "--config-file", config, "--weights", weights, "OUTPUT_DIR", output)
    found = output / "search/architecture.json"
    retrain = ("--config-file", "configs/quick/retrain.yaml", "NAS.ARCHITECTURE", found)
    run_script("train_net", *retrain, "MODEL.WEIGHTS", weights)
    final = output / "retrain/model_final.pth"
    data = torch.load(final, weights_only=True)  # of one step: let it find something
    for name, value in data["model"].items():
        if "box_predictor.cls_score" in name:
            value *= 20
            value[-1] = -3
    torch.save(data, final)
    make = ["--output", output / "retrain/bundle.pth", "NAS.ARCHITECTURE", found, "MODEL.WEIGHTS", final]
    bundle.main(["--config-file", "configs/quick/retrain.yaml", *map(str, make)])
    for path in (found, output / "retrain/model_final.pth", output / "retrain/bundle.pth"):
        shutil.copy(path, folder)
    shutil.copytree(output / "search", folder / "output/other/search")
    shutil.copytree(output / "retrain", folder / "output/retrained")
    photos = sorted((shapes / "val").iterdir())[:2]
    for place in ("photos", "datasets/shapes/val"):
        (folder / place).mkdir(parents=True)
        for photo in photos:
            shutil.copy(photo, folder / place)
    for name in ("a.jpg", "b.jpg", "photo.jpg"):
        shutil.copy(photos[0], folder / name)
    frame = cv2.imread(str(photos[0]))
    film = cv2.VideoWriter("film.mp4", cv2.VideoWriter_fourcc(*"mp4v"), 5, frame.shape[1::-1])
    for _ in range(2):
        film.write(frame)
    film.release()
    return folder


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of exports, and of modules that run twice
def test_what_one_does_with_the_results(after_quickstart):
    for name, count in PAGES.items():
        lines = [c for c in shell_commands(page(name)) if not ELSEWHERE.search(" ".join(c))]
        lines = [c for c in lines if "train_net.py" not in c or "--resume" in c]
        lines = [c for c in lines if "demo.py" in c] if name == "index.md" else lines
        assert len(lines) == count, (name, lines)
        for command in lines:
            try:
                run_any(command)
            except SystemExit as end:
                assert not end.code, command
        if name == "index.md":
            shutil.rmtree("datasets")  # two photos; now drawn by the command that wants all of them
    made = ("drawn/film.mp4", "drawn/a.jpg", "drawn/panoptic_demo.json", "annotations.png", "network.onnx")
    for name in (*made, "network.pt", "output/quickstart/search/report.html"):
        assert (after_quickstart / name).stat().st_size > 0
