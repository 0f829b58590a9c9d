"""train_net.py --resume: where it starts, continues or refuses, before anything is written."""

import pytest
import torch
from test_resume import SCHEDULE
from toy import TOY_NET, error_line, run_script, write_config

from auto_panoptic.errors import UserError
from auto_panoptic.training.checkpoint import check_settings, newest_intact


@pytest.fixture
def command(tmp_path, shapes, monkeypatch):
    """Function that runs train_net on the toy network."""
    monkeypatch.chdir(tmp_path)
    path = write_config(tmp_path / "toy.yaml", shapes)
    options = (*map(str, TOY_NET), *map(str, SCHEDULE), "SOLVER.CHECKPOINT_PERIOD", "1")
    return lambda *more: run_script("train_net", "--config-file", path, *more[:1], *options, *more[1:])


def refused(capfd, folder, run):
    """Like every mistake: one line, exit code 2, nothing written."""
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    capfd.readouterr()
    with pytest.raises(SystemExit) as end:
        run()
    line = error_line(capfd)
    assert end.value.code == 2
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    return line


def test_weights_to_begin_from_may_lie_in_the_folder(tmp_path):
    torch.save({"model": {"weight": torch.ones(2)}}, tmp_path / "pretrained.pth")
    assert newest_intact(tmp_path) == ("", [])
    torch.save({"model": {"weight": torch.ones(2)}}, tmp_path / "model_final.pth")
    assert newest_intact(tmp_path) == ("", ["model_final.pth holds only weights"])


@pytest.mark.parametrize("start", ["x", 5, None, "[1]", '{"a": 1}'])
def test_a_start_that_was_edited_is_another(start):
    record = {"settings": {"MODEL.WEIGHTS": start}}
    with pytest.raises(UserError, match="settings have changed since 'o/run.json': MODEL.WEIGHTS was"):
        check_settings(record, {"MODEL.WEIGHTS": '["w.pth", "1a"]'}, "o/run.json")


@pytest.mark.parametrize("exists", [False, True])
def test_resuming_where_nothing_is_starts(tmp_path, command, exists):
    """So that a cluster script may always pass --resume."""
    if exists:
        (tmp_path / "output").mkdir()
    command("--resume")
    assert "Nothing to resume yet in " in (tmp_path / "output/log.txt").read_text()
    assert newest_intact(tmp_path / "output")[0].endswith("model_final.pth")


def test_resuming_continues_where_it_was(tmp_path, command):
    """Also when the weights of the start are gone."""
    command("--resume", "SOLVER.MAX_ITER", "4")
    command("--resume", "MODEL.WEIGHTS", "gone.pth")
    log = (tmp_path / "output/log.txt").read_text()
    assert f"Continuing from {tmp_path}/output/model_final.pth (iteration 3)" in log
    assert "Starting training from iteration 4" in log


def test_resuming_where_nothing_usable_is_fails(capfd, tmp_path, command):
    (tmp_path / "output").mkdir()
    for name in ("model_final.pth", "last_checkpoint"):
        (tmp_path / "output" / name).write_text("something")
    line = refused(capfd, tmp_path, lambda: command("--resume"))
    assert line == (
        f"error: --resume: '{tmp_path}/output' holds no usable checkpoint (last_checkpoint names "
        "'something', no checkpoint of this folder; model_final.pth is damaged (File is not a zip "
        "file)); start anew in another OUTPUT_DIR"
    )


def test_the_command_checks_before_it_writes(capfd, tmp_path, command):
    command("--resume", "SOLVER.MAX_ITER", "2")
    line = refused(capfd, tmp_path, lambda: command("--resume", "SOLVER.BASE_LR", "0.5"))
    assert "settings have changed since " in line and "SOLVER.BASE_LR was 0.01, is 0.5; restore" in line
    for path in (tmp_path / "output").glob("*.pth"):
        path.write_bytes(path.read_bytes()[:-1])
    line = refused(capfd, tmp_path, lambda: command("--resume"))
    assert "holds no usable checkpoint (model_final.pth is damaged (" in line


def test_a_damaged_checkpoint_is_reported_once(tmp_path, command):
    command("--resume", "SOLVER.MAX_ITER", "2")
    (tmp_path / "output/model_final.pth").write_bytes(b"")
    before = len((tmp_path / "output/log.txt").read_text())
    command("--resume")
    log = (tmp_path / "output/log.txt").read_text()[before:]
    assert log.count("model_final.pth is damaged (0 bytes)") == log.count("Not used: ") == 1
    assert "Starting training from iteration 2" in log
