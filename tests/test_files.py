"""Files that a kill cannot tear, locks, JSON, and the two commonest refusals."""

import json
import os
import re

import pytest

from auto_panoptic import files
from auto_panoptic.errors import UserError, at_least, one_of


def test_written_whole_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"a": [1, 2]})
    files.write_json(path, [{"a": "ä"}])
    assert files.read_json(path) == [{"a": "ä"}] and path.read_text().count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert files.digest(path) == __import__("hashlib").sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch, call):
    path = tmp_path / "a.txt"
    files.write_text(path, "old")

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken, pytest.raises(UserError, match=r"a\.txt: cannot write: No space"):
        broken.setattr(os, call, full)
        files.write_text(path, "new")
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(KeyError), files.replacing(path) as partial:
        partial.write_text("half")
        assert partial.name.startswith(files.PARTIAL) and partial.parent == tmp_path
        raise KeyError
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("sync", [True, False])
def test_content_and_name_reach_the_disk_in_order(tmp_path, monkeypatch, sync):
    calls, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append("fsync"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda *a: (calls.append("replace"), replace(*a)))
    with files.replacing(tmp_path / "a", sync=sync) as partial:
        partial.write_text("x")
    assert calls == (["fsync", "replace", "fsync"] if sync else ["replace"])


def _fifo(path):
    os.mkfifo(path)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda p: None, "cannot read the table: there is no such file"),
        (lambda p: p.mkdir(), "cannot read the table: not a file"),
        (_fifo, "cannot read the table: not a file"),
        (lambda p: p.write_text("{"), "the table is not valid JSON: "),
        (lambda p: p.write_bytes(b"\xff\xfe{"), "the table is not valid JSON: "),
        (lambda p: p.write_text("[" * 100000), "the table is not valid JSON: "),
    ],
)
def test_unreadable_json_is_one_line_with_the_file(tmp_path, make, message):
    path = tmp_path / "t.json"
    make(path)
    with pytest.raises(UserError, match=f"^{re.escape(f'{path}: {message}')}") as caught:
        files.read_json(path, "table")
    assert "\n" not in str(caught.value)


def test_a_lock_names_its_holder_and_can_be_taken_over(tmp_path):
    path = tmp_path / ".lock"
    first = files.WriterLock(path, protects="the folder")
    with pytest.raises(UserError, match=rf"the folder is in use .*pid {os.getpid()}, started 20"):
        files.WriterLock(path, protects="the folder")
    first.release()
    assert json.loads(path.read_text())["pid"] == os.getpid()
    second = files.WriterLock(path, protects="the folder")
    assert second.held and not first.held
    second.release()


@pytest.mark.parametrize("make", ["symlink", "hard link", "dangling", "folder", "fifo"])
def test_a_lock_never_touches_what_merely_has_its_name(tmp_path, make):
    precious, path = tmp_path / "precious", tmp_path / ".lock"
    precious.write_text("precious")
    {
        "symlink": lambda: path.symlink_to(precious),
        "hard link": lambda: os.link(precious, path),
        "dangling": lambda: path.symlink_to(tmp_path / "absent"),
        "folder": path.mkdir,
        "fifo": lambda: os.mkfifo(path),
    }[make]()
    with pytest.raises(UserError, match="a link or no plain file"):
        files.WriterLock(path, protects="the folder")
    assert precious.read_text() == "precious" and not (tmp_path / "absent").exists()


def test_choices_and_minimums():
    assert one_of("K", "a", ["a", "b"]) == "a" and at_least("K", 0, 0) == 0 and at_least("K", 1, 0.5) == 1
    with pytest.raises(UserError, match="^K is 'c'; expected one of a, b$"):
        one_of("K", "c", ["a", "b"])
    for value, allowed in ((True, [1, 2]), (1.0, [1, 2]), ([], ["a"])):
        with pytest.raises(UserError, match="expected one of"):
            one_of("K", value, allowed)
    for value, minimum in ((-1, 0), (0.5, 0), (True, 0), ("1", 0), (float("nan"), 0.0), (float("inf"), 0.0)):
        with pytest.raises(UserError, match="^K is .*; expected a (whole )?number of at least 0"):
            at_least("K", value, minimum)
