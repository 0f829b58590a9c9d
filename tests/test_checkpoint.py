"""A kill leaves the old or the new checkpoint, and only an intact one is continued from."""

import contextlib
import logging
import os
import random
import resource
from types import SimpleNamespace

import pytest
import torch
from toy import error_line, own_messages

from auto_panoptic.errors import UserError
from auto_panoptic.training import AtomicCheckpointer, checkpoint, run_command
from auto_panoptic.training.archive import damage
from auto_panoptic.training.checkpoint import newest_intact


def numbered(folder, number, **options):
    """A checkpointer of a model whose weight is ``number``."""
    model = torch.nn.Linear(1, 1)
    torch.nn.init.constant_(model.weight, number)
    return AtomicCheckpointer(model, str(folder), **options)


@pytest.fixture
def three(tmp_path):
    """A folder with the checkpoints of iterations 1, 2, 3; the file of iteration i holds the weight i."""
    for iteration in (1, 2, 3):
        numbered(tmp_path, iteration).save(f"model_{iteration:07d}", iteration=iteration)
    return tmp_path


def resumed(folder):
    """Weight of the model after a resume; None if there is nothing to resume."""
    checkpointer = numbered(folder, -1)
    return checkpointer.model.weight.item() if checkpointer.resume() else None


NEWEST, SECOND = "model_0000003.pth", "model_0000002.pth"


# ------------------------------------------------------------------ damage


def cut(share):
    return lambda content: content[: int(share * len(content))]


def flip(position, bit):
    def change(content):
        content = bytearray(content)
        content[int(position * len(content))] ^= 1 << bit
        return bytes(content)

    return change


def stale_zip(content):
    """The end of an archive whose entries are gone."""
    return b"\0" * (len(content) // 2) + content[len(content) // 2 :]


generator = random.Random(0)
DAMAGES = {
    "deleted": (None, "is missing"),
    **{f"cut at {step}/20": (cut(step / 20), "is damaged (") for step in range(20)},
    "first half lost": (stale_zip, "is damaged ("),
    "text": (lambda content: b"no checkpoint", "is damaged ("),
    "grown": (lambda content: content + b"\0", ""),
    **{f"flip {i}": (flip(generator.random(), generator.randrange(8)), "") for i in range(100)},
}


def test_every_damage_of_the_newest_is_found_and_the_previous_one_is_used(three, caplog):
    """A flip in padding changes nothing; then the newest is used, else it is named, once."""
    good, found = (three / NEWEST).read_bytes(), 0
    for name, (change, reason) in DAMAGES.items():
        (three / NEWEST).unlink() if change is None else (three / NEWEST).write_bytes(change(good))
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            weight = resumed(three)
        assert weight == 2 or (weight == 3 and not reason and not own_messages(caplog)), name
        if weight == 2:
            (text,) = own_messages(caplog)
            assert text.startswith(f"Not used: {NEWEST} {reason}"), (name, text)
            assert text.endswith(f"Continuing from {three / SECOND} instead")
            found += 1
        (three / NEWEST).write_bytes(good)
    assert found > 80
    assert resumed(three) == 3


def test_a_flipped_weight_is_always_found(tmp_path):
    """Bytes of the weights themselves, as MODEL.WEIGHTS and by --resume."""
    model = torch.nn.Linear(30, 30)
    AtomicCheckpointer(model, str(tmp_path)).save("model_0000001", iteration=1)
    path = tmp_path / "model_0000001.pth"
    good = path.read_bytes()
    start = good.index(model.weight.detach().numpy().tobytes())
    for place in range(start, start + 3600, 150):
        path.write_bytes(flip(place / len(good), 2)(good))
        assert "the checksum of model_0000001/data/" in damage(str(path)) or "checksum of" in damage(
            str(path)
        )
        with pytest.raises(UserError, match=r"MODEL.WEIGHTS: .* is damaged \(.*\); give an intact copy"):
            checkpoint.read_checkpoint(str(path))


def test_several_damaged_ones_are_named_in_one_line(three, caplog):
    (three / NEWEST).unlink()
    (three / SECOND).write_bytes(b"")
    assert resumed(three) == 1
    assert f"Not used: {NEWEST} is missing; {SECOND} is damaged (0 bytes). Continuing" in caplog.text


def test_nothing_usable_fails_and_says_why(three):
    for file in three.glob("*.pth"):
        file.write_bytes(b"")
    with pytest.raises(UserError) as error:
        resumed(three)
    text = str(error.value)
    assert text.startswith(f"--resume: '{three}' holds no usable checkpoint ({NEWEST} is damaged (0 bytes); ")
    assert "model_0000001.pth is damaged (0 bytes)" in text and "\n" not in text
    assert text.endswith("; start anew in another OUTPUT_DIR")


def test_weights_are_no_start(tmp_path):
    numbered(tmp_path, 1).save("model")
    with pytest.raises(
        UserError, match="holds no usable checkpoint .model.pth holds only weights.; start anew"
    ):
        resumed(tmp_path)


def test_a_folder_without_checkpoints_is_a_start(tmp_path):
    assert resumed(tmp_path / "absent") is None
    for name in ("log.txt", "config.yaml", "metrics.json", "last_checkpoint", ".partial-7-model.pth"):
        (tmp_path / name).write_text("of the run that starts, or of one that was stopped early")
    assert resumed(tmp_path) is None


# ------------------------------------------------------------------ which one


@pytest.mark.parametrize("content", [None, b"", b"../model.pth", b"\xff", f"{NEWEST}\n".encode()])
def test_without_a_pointer_the_newest_counts(three, content):
    pointer = three / "last_checkpoint"
    pointer.unlink() if content is None else pointer.write_bytes(content)
    os.utime(three / "model_0000001.pth")  # whatever the clock says
    assert resumed(three) == 3
    assert numbered(three, 0).get_checkpoint_file() == str(three / NEWEST)


def test_a_pointer_set_by_hand_is_followed_and_told(three, caplog):
    (three / "last_checkpoint").write_text("model_0000001.pth")
    assert resumed(three) == 1
    assert f"Not used: {SECOND} is newer than what last_checkpoint names; {NEWEST} is newer " in caplog.text
    numbered(three, 5, keep=1).save(SECOND[:-4], iteration=2)  # the run goes on from there
    assert resumed(three) == 5
    assert sorted(path.name for path in three.glob("*.pth")) == [SECOND, NEWEST]


def test_a_rescued_file_alone_is_continued(three, tmp_path_factory):
    folder = tmp_path_factory.mktemp("other")
    (three / SECOND).rename(folder / "rescued.pth")
    assert resumed(folder) == 2


def test_weights_beside_the_checkpoints_are_no_checkpoint(three):
    torch.save({"model": torch.nn.Linear(1, 1).state_dict()}, three / "start.pth")
    (three / "last_checkpoint").unlink()
    assert resumed(three) == 3


def test_a_folder_of_an_earlier_version_is_continued(three):
    """It has a manifest, and names half-written files otherwise."""
    (three / "checkpoints.jsonl").write_text('{"file": "model_0000003.pth", "sha256": "?", "size": 1}\n')
    (three / "model_0000004.pth.partial").write_bytes(b"half")
    assert resumed(three) == 3


# ------------------------------------------------------------------ kills

KILLED, DONE = 9, 0


def killed_at(boundary, action):
    """Run ``action`` in a child process that dies at its ``boundary``-th write, sync, rename or removal.

    Returns the child's exit code.
    """
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        passed = 0

        def dying(function):
            def call(*args, **kwargs):
                nonlocal passed
                if passed == boundary:
                    os._exit(KILLED)
                passed += 1
                return function(*args, **kwargs)

            return call

        def half(data, file):  # what a kill in the middle of a write leaves
            def write(data):
                if passed == boundary:
                    file.write(bytes(data)[: len(bytes(data)) // 2])
                    file.flush()
                return whole(data)

            whole = dying(file.write)
            save(data, SimpleNamespace(write=write, flush=file.flush))

        for name in ("fsync", "replace", "unlink"):
            setattr(os, name, dying(getattr(os, name)))
        save, torch.save = torch.save, half
        action()
        os._exit(DONE)
    except BaseException:
        os._exit(1)


def first_save(folder):
    return lambda: numbered(folder, 1).save("model_0000001", iteration=1)


def next_save(folder):
    def action():
        checkpointer = numbered(folder, -1, keep=2)
        checkpointer.resume()
        torch.nn.init.constant_(checkpointer.model.weight, 4)
        checkpointer.save("model_0000004", iteration=4)

    return action


def same_name(folder):
    def action():
        checkpointer = numbered(folder, -1)
        checkpointer.resume()
        torch.nn.init.constant_(checkpointer.model.weight, 4)
        checkpointer.save(NEWEST[:-4], iteration=4)

    return action


@pytest.mark.parametrize("make, before", [(first_save, None), (next_save, 3.0), (same_name, 3.0)])
def test_a_kill_at_every_boundary_leaves_the_old_or_the_new(three, tmp_path_factory, make, before):
    files = {} if before is None else {path.name: path.read_bytes() for path in three.iterdir()}
    after = 1.0 if before is None else 4.0
    seen = []
    for boundary in range(200):
        folder = tmp_path_factory.mktemp("kill")
        for name, content in files.items():
            (folder / name).write_bytes(content)
        code = killed_at(boundary, make(folder))
        seen.append(resumed(folder))
        assert seen[-1] in (before, after), (boundary, seen[-1])
        # Whatever it left, the next save counts, and nothing partial stays behind.
        numbered(folder, after).save("model_0000004", iteration=4)
        assert resumed(folder) == after and not list(folder.glob(".*"))
        if code == DONE:
            break
        assert code == KILLED
    assert boundary > 10
    # The old one until the rename, the new one from then on.
    switch = seen.index(after)
    assert seen == [before] * switch + [after] * (len(seen) - switch)
    assert 5 < switch < len(seen) - 1


# ------------------------------------------------------------------ how many stay


def saved(folder, keep):
    checkpointer = numbered(folder, 0, keep=keep)
    for iteration in range(5):
        checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
        checkpointer.save("model_best", iteration=iteration)
    checkpointer.save("model_final", iteration=4)
    return sorted(path.stem for path in folder.glob("*.pth"))


def test_only_the_newest_periodic_checkpoints_stay(tmp_path):
    expected = ["model_0000003", "model_0000004", "model_best", "model_final"]
    assert saved(tmp_path, keep=2) == expected


def test_zero_keeps_all(tmp_path):
    assert saved(tmp_path, keep=0) == [f"model_{i:07d}" for i in range(5)] + ["model_best", "model_final"]


# ------------------------------------------------------------------ a full disk


@contextlib.contextmanager
def file_limit(size):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, share):
    model = torch.nn.Linear(64, 64)
    checkpointer = AtomicCheckpointer(model, str(tmp_path))
    checkpointer.save("model_0000001", iteration=1)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    size = len(before["model_0000001.pth"])
    for name in ("model_0000002", "model_0000001"):
        with file_limit(int(share * size)), pytest.raises(UserError) as error:
            checkpointer.save(name, iteration=1)
        text = str(error.value)
        assert f"cannot write the checkpoint '{tmp_path}/{name}.pth' of about 16,640 bytes: File" in text
        assert "earlier checkpoints are intact" in text and "continue with --resume" in text
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    checkpointer.save("model_0000002", iteration=2)  # there is room again
    assert newest_intact(tmp_path) == (str(tmp_path / "model_0000002.pth"), [])


def test_a_full_disk_ends_the_command(three, capfd):
    with file_limit(500), pytest.raises(SystemExit) as end:
        run_command(lambda: numbered(three, 4).save("model_0000004", iteration=4))
    assert end.value.code == 2
    assert error_line(capfd).startswith(f"error: cannot write the checkpoint '{three}/model_0000004.pth' of ")
    assert resumed(three) == 3 and not list(three.glob(".*"))


def test_an_error_of_the_serializer_is_no_full_disk(tmp_path):
    class Foreign:
        def state_dict(self):
            return lambda: None

    checkpointer = AtomicCheckpointer(torch.nn.Linear(1, 1), str(tmp_path), other=Foreign())
    with pytest.raises(Exception, match="lambda|pickle") as error:
        checkpointer.save("model")
    assert not isinstance(error.value, UserError)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_made(tmp_path):
    numbered(tmp_path / "new/run", 5).save("model_final", iteration=1)
    assert resumed(tmp_path / "new/run") == 5


def test_another_version_is_told(three, caplog, monkeypatch):
    monkeypatch.setattr(checkpoint, "__version__", "9.9")
    assert resumed(three) == 3
    (warning,) = own_messages(caplog)
    assert "was written by {'auto_panoptic': '" in warning
    assert "now running {'auto_panoptic': '9.9', " in warning


# ------------------------------------------------------------------ the order of a save


class Interrupted(BaseException):
    pass


@pytest.mark.parametrize("error", [RuntimeError("broken"), Interrupted()])
def test_a_save_that_fails_half_way_leaves_the_old_file(tmp_path, monkeypatch, error):
    checkpointer = numbered(tmp_path, 1)
    checkpointer.save("model")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert sorted(before) == ["last_checkpoint", "model.pth"]

    def half(data, stream):
        stream.write(b"half a file")
        raise error

    monkeypatch.setattr(torch, "save", half)
    for name in ("model", "model_0000001"):
        with pytest.raises(type(error)):
            checkpointer.save(name)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_name_appears_only_after_the_content_is_on_disk(tmp_path, monkeypatch):
    """The pointer with its folder, then the content, its name and the folder."""
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append("fsync"), fsync(fd))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append(os.path.basename(b)), replace(a, b))[1])
    AtomicCheckpointer(torch.nn.Linear(2, 2), str(tmp_path)).save("model")
    assert calls == ["fsync", "last_checkpoint", "fsync", "fsync", "model.pth", "fsync"]


def test_processes_other_than_the_first_write_nothing(tmp_path):
    AtomicCheckpointer(torch.nn.Linear(2, 2), str(tmp_path), save_to_disk=False).save("model")
    assert os.listdir(tmp_path) == []
