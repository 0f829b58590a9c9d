"""What the pages show on the drawn scenes is run, command by command; only sizes and iterations are ours."""

import re
import sys

import pytest
import yaml
from test_docs import program, shell_commands
from toy import PREFIX, ROOT, dataset_entries, run_script

TINY = {
    "SOLVER": {"MAX_ITER": 1, "STEPS": [], "WARMUP_ITERS": 0, "CHECKPOINT_PERIOD": 1000},
    "NAS": {"CYCLES": 1, "BN_RECALIBRATION": {"NUM_IMAGES": 4, "BATCH_SIZE": 2}},
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
    lines = [line for line in shell_commands(page("index.md")) if line[0] != "make"]
    assert len(lines) == 4
    run_all(lines)
    assert (folder / "output/quickstart/supernet/search/report.html").is_file()
    assert (folder / "output/quickstart/retrain/inference").is_dir()


@pytest.mark.slow
def test_an_operator_of_ones_own(folder):
    text = page("operators.md")
    for language, name in (("python", "my_ops.py"), ("yaml", "my_ops.yaml")):
        (block,) = re.findall(rf"```{language}\n(.*?)```", text, re.S)
        assert f"`{name}`" in text
        (folder / name).write_text(block)
    try:
        run_all(shell_commands(text))
    finally:
        sys.modules.pop("my_ops", None)
    assert "pool_3x3" in (folder / "output/my_ops/search/scoreboard.json").read_text()
