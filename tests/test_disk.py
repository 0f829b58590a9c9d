"""A disk that is full, read-only or odd: one line, exit code 2, and what was there is as before."""

import errno
import json
import logging
import os
import threading
from types import SimpleNamespace

import pytest
from detectron2.engine.defaults import default_writers
from detectron2.utils.events import EventStorage
from test_checkpoint import file_limit
from toy import TOY_NET, _own_logging, error_line, make_config

from auto_panoptic import files
from auto_panoptic.errors import UserError, disk_problem, run_command
from auto_panoptic.search.executors.in_process import outcome_of
from auto_panoptic.training import run_folder
from auto_panoptic.training.checkpoint import checkpoint_sizes
from auto_panoptic.training.run import started
from auto_panoptic.training.run_folder import check_room, only_run

FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("error, line", [
    (FULL, "error: the disk: No space left on device; make room"),
    (OSError(errno.EDQUOT, "Disk quota exceeded", "a.txt"), "error: a.txt: Disk quota exceeded; make room"),
    (PermissionError(errno.EACCES, "Permission denied", "a"), "error: a: Permission denied; make it w"),
    (OSError(errno.EROFS, "Read-only file system", "a"), "error: a: Read-only file system; make it w"),
])  # fmt: skip
def test_a_disk_problem_ends_a_command_with_one_line(capfd, error, line):
    def main():
        raise error

    with pytest.raises(SystemExit) as end:
        run_command(main)
    assert end.value.code == 2 and error_line(capfd).startswith(line)


@pytest.mark.parametrize("error", [
    FileNotFoundError(errno.ENOENT, "No such file or directory", "a"),
    PermissionError(errno.EACCES, "Permission denied"),  # of a socket, say
    ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"),
    KeyError("a bug"),
])  # fmt: skip
def test_other_errors_are_no_problem_of_the_disk(error):
    def main():
        raise error

    with pytest.raises(type(error)), files.disk_errors("o", "go on"):
        main()
    assert disk_problem(error) == ""


def test_a_full_disk_is_no_failed_candidate():
    def evaluate(architecture):
        raise FULL

    with pytest.raises(OSError, match="No space"):
        outcome_of(evaluate, SimpleNamespace(indices=list))


# ------------------------------------------------------------------ what Detectron2 writes


def full(folder, shapes, size, work, eval_only=True):
    """Run ``work`` in a run whose files hold ``size`` bytes; returns the line."""
    cfg = make_config(folder, shapes, *TOY_NET)
    args = SimpleNamespace(config_file="", resume=False, eval_only=eval_only, opts=[])
    with _own_logging(), file_limit(size), pytest.raises(UserError) as error, started(args, cfg):
        work(cfg)
    return str(error.value)


def test_a_log_that_the_disk_does_not_take(tmp_path, shapes, capfd):
    """Python's logging prints a traceback for each line, and goes on."""

    def work(cfg):
        for _ in range(10**4):
            logging.getLogger("detectron2").info("x" * 99)

    text = full(tmp_path, shapes, 20000, work)
    assert text.startswith(f"{tmp_path}/output")
    assert text.endswith(
        ": File too large; make room, then run the command again; files written before are intact"
    )
    assert "Traceback" not in capfd.readouterr().err
    assert (tmp_path / "output/log.txt").stat().st_size <= 20000


def test_metrics_and_events_that_the_disk_does_not_take(tmp_path, shapes, capfd):
    hook = threading.excepthook

    def write(cfg):
        with EventStorage() as storage:
            writers = default_writers(cfg.OUTPUT_DIR, 10**6)[1:]
            try:
                for storage.iter in range(5000):
                    storage.put_scalars(**{f"loss_{i}": float(i) for i in range(20)})
                    for writer in writers:
                        writer.write()
            finally:
                for writer in writers:
                    writer.close()

    text = full(tmp_path, shapes, 60000, write, eval_only=False)
    assert text.endswith(
        "make room, then run the command again with --resume; files written before are intact"
    )
    assert threading.excepthook is hook
    assert "Traceback" not in capfd.readouterr().err
    with only_run(str(tmp_path / "output")):  # there is room again
        lines = (tmp_path / "output/metrics.json").read_text().splitlines()
    assert all(isinstance(json.loads(line), dict) for line in lines)


def test_a_config_that_the_disk_does_not_take_is_as_before(tmp_path, shapes):
    (tmp_path / "output").mkdir()
    (tmp_path / "output/config.yaml").write_text("precious: 1\n")
    assert "config.yaml: cannot write: File too large" in full(tmp_path, shapes, 500, lambda cfg: None)
    assert (tmp_path / "output/config.yaml").read_text() == "precious: 1\n"


# ------------------------------------------------------------------ before long work


def test_room_for_a_checkpoint_is_asked_for_first(tmp_path, shapes, monkeypatch, caplog):
    cfg = make_config(tmp_path, shapes, "SOLVER.MAX_ITER", 100, "SOLVER.CHECKPOINT_PERIOD", 10)
    from auto_panoptic.modeling import meta_model

    size, number = checkpoint_sizes(cfg, meta_model(cfg))
    assert 4e6 < size < 5e6 and number == 1 + min(10, cfg.SOLVER.CHECKPOINTS_KEPT + 1)
    folder = str(tmp_path / "new/output")
    caplog.clear()
    check_room(folder, size, number)
    assert not caplog.text and not list(tmp_path.glob("new"))
    with (
        file_limit(size - 1),
        pytest.raises(UserError, match=f"a checkpoint takes about {size:,} bytes, .* free"),
    ):
        check_room(folder, size, number)
    usage = SimpleNamespace(free=size)
    monkeypatch.setattr(run_folder.shutil, "disk_usage", lambda path: usage)
    check_room(folder, size, number)
    assert f"{number} checkpoints of about {size:,} bytes, {size:,} are free" in caplog.text
    usage.free -= 1
    with pytest.raises(UserError, match="make room, or choose another OUTPUT_DIR"):
        check_room(folder, size, number)


def test_a_folder_that_cannot_be_written_is_found_first(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file is no folder, or read-only; choose another"):
        check_room(str(tmp_path / "file/o"))
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # a root of tests may write everywhere
    with pytest.raises(UserError, match="OUTPUT_DIR '.*/a/b' cannot be written: "):
        check_room(str(tmp_path / "a/b"))


# ------------------------------------------------------------------ lines and names


@pytest.mark.parametrize("name, before, after", [
    ("metrics.json", b'{"a": 1}\n{"iteration": 1, "total_lo', b'{"a": 1}\n'),
    ("metrics.json", b'{"iteration": 1, "total_lo', b""),
    ("metrics.json", b'{"a": 1}\n{"a": 2}', b'{"a": 1}\n{"a": 2}\n'),
    ("metrics.json", b'{"a": 1}\n' + b"\0" * 100, b'{"a": 1}\n'),  # after a power cut
    ("metrics.json", b"", b""),
    ("log.txt", b"one\nhalf", b"one\nhalf\n"),
    ("log.txt.rank1", b"one\n", b"one\n"),
    ("notes.txt", b"half", b"half"),
])  # fmt: skip
def test_half_lines_are_ended_before_others_follow(tmp_path, name, before, after):
    (tmp_path / name).write_bytes(before)
    with only_run(str(tmp_path)):
        assert (tmp_path / name).read_bytes() == after


def test_a_line_that_does_not_fit_leaves_no_half(tmp_path):
    path = tmp_path / "metrics.json"
    files.append_to(path, b"one\n")
    with file_limit(10), pytest.raises(OSError, match="File too large"):
        files.append_to(path, b"another line\n")
    assert path.read_bytes() == b"one\n"


MADE = {
    "fifo": lambda path, precious: os.mkfifo(path),
    "folder": lambda path, precious: path.mkdir(),
    "endless": lambda path, precious: path.symlink_to("/dev/zero"),
    "dangling": lambda path, precious: path.symlink_to(path.parent / "absent"),
    "link": lambda path, precious: path.symlink_to(precious),
    "hard link": lambda path, precious: path.hardlink_to(precious),
}


@pytest.mark.parametrize("kind", MADE)
@pytest.mark.parametrize(
    "name",
    ["metrics.json", "log.txt", "config.yaml", "inference/a.pth", "model_0000003.pth", "last_checkpoint"],
)
def test_what_only_has_the_name_of_our_file_is_refused(tmp_path, name, kind):
    """Files that are replaced may be links: the link is replaced, not what it names."""
    (tmp_path / "precious").write_text("precious")
    folder = tmp_path / "output"
    (folder / "inference").mkdir(parents=True)
    MADE[kind](folder / name, tmp_path / "precious")
    if "link" in kind and name in ("model_0000003.pth", "last_checkpoint"):
        with only_run(str(folder)):
            return
    with pytest.raises(UserError, match=f"{name}: is .*no plain file.*: move it"), only_run(str(folder)):
        pass
    assert (tmp_path / "precious").read_text() == "precious" and not (folder / "absent").exists()


@pytest.mark.parametrize("kind", ["fifo", "folder", "endless"])
def test_nothing_that_never_ends_is_read(tmp_path, kind):
    MADE[kind](tmp_path / "odd", None)
    with pytest.raises(OSError, match="not a file"):
        files.read_bytes(tmp_path / "odd")
