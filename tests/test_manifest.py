"""A checkpoint counts only if it is what its record says; a kill anywhere leaves the old or the new one."""

import contextlib
import json
import logging
import os
import random
import resource

import pytest
import torch

from auto_panoptic.errors import UserError
from auto_panoptic.training import AtomicCheckpointer, checkpoint, has_checkpoint, manifest, run_command
from auto_panoptic.training.manifest import HashingWriter, Record, newest_intact, read_manifest


def numbered(folder, number, **options):
    """A checkpointer of a model whose weight is ``number``."""
    model = torch.nn.Linear(1, 1)
    torch.nn.init.constant_(model.weight, number)
    return AtomicCheckpointer(model, str(folder), **options)


@pytest.fixture
def three(tmp_path):
    """A folder with the checkpoints of iterations 1, 2, 3; the file of iteration i holds the weight i."""
    checkpointer = numbered(tmp_path, 0)
    for iteration in (1, 2, 3):
        torch.nn.init.constant_(checkpointer.model.weight, iteration)
        checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
    return tmp_path


def resumed(folder):
    """Weight of the model after a resume; None if there is nothing to resume."""
    checkpointer = numbered(folder, -1)
    return checkpointer.model.weight.item() if checkpointer.resume() else None


NEWEST = "model_0000003.pth"


# ------------------------------------------------------------------ the record


def test_a_record_says_what_the_file_is(three):
    for iteration, record in enumerate(read_manifest(three), start=1):
        content = (three / record.file).read_bytes()
        assert record.file == f"model_{iteration:07d}.pth" and record.iteration == iteration
        assert record.size == len(content)
        assert record.sha256 == manifest.file_sha256(three / record.file)
    assert resumed(three) == 3


def test_the_hash_is_taken_while_writing(tmp_path):
    with open(tmp_path / "file", "wb") as stream:
        writer = HashingWriter(stream)
        torch.save({"a": torch.rand(1000)}, writer)
    assert writer.sha256 == manifest.file_sha256(tmp_path / "file")
    assert writer.size == (tmp_path / "file").stat().st_size


@pytest.mark.parametrize(
    "line", [b"", b"no json", b"[1]", b"{}", b'{"file": 1, "sha256": "", "size": 0}', b"\xff\xfe"]
)
def test_lines_of_the_manifest_that_are_no_records_are_left_out(three, line):
    path = three / "checkpoints.jsonl"
    path.write_bytes(line + b"\n" + path.read_bytes() + line)
    assert [record.iteration for record in read_manifest(three)] == [1, 2, 3]


def test_a_record_cannot_point_out_of_the_folder(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "other.pth").write_bytes(b"x")
    digest = manifest.file_sha256(tmp_path / "other.pth")
    manifest.write_manifest(tmp_path / "run", [Record("../other.pth", digest, 1)])
    assert newest_intact(tmp_path / "run") == (None, [])


# ------------------------------------------------------------------ damage


def damages():
    """(name, function of the newest file's path, reason) for every way to damage it."""
    generator = random.Random(0)

    def truncate(share):
        def change(path):
            content = path.read_bytes()
            path.write_bytes(content[: int(share * len(content))])

        return change

    def flip(position, bit):
        def change(path):
            content = bytearray(path.read_bytes())
            content[int(position * len(content))] ^= 1 << bit
            path.write_bytes(content)

        return change

    yield "deleted", lambda path: path.unlink(), "is missing"
    for step in range(20):
        yield f"cut at {step}/20", truncate(step / 20), "bytes instead of"
    yield "longer", lambda path: path.write_bytes(path.read_bytes() + b"\0"), "bytes instead of"
    for number in range(100):
        flipped = flip(generator.random(), generator.randrange(8))
        yield f"flip {number}", flipped, "does not have the recorded sha256"


def test_every_damage_of_the_newest_is_found_and_the_previous_one_is_used(three, caplog):
    good, count = (three / NEWEST).read_bytes(), 0
    for name, change, reason in damages():
        change(three / NEWEST)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert resumed(three) == 2, name
        (warning,) = caplog.records  # said once
        text = warning.getMessage()
        assert text.startswith(f"Not used: {NEWEST} ") and reason in text, (name, text)
        assert text.endswith(f"Continuing from {three / 'model_0000002.pth'} instead")
        (three / NEWEST).write_bytes(good)
        count += 1
    assert count == 122
    caplog.clear()
    assert resumed(three) == 3 and not caplog.records


def test_several_damaged_ones_are_named_in_one_line(three, caplog):
    (three / NEWEST).unlink()
    (three / "model_0000002.pth").write_bytes(b"")
    assert resumed(three) == 1
    assert f"Not used: {NEWEST} is missing; model_0000002.pth has 0 bytes instead of " in caplog.text


@pytest.mark.parametrize("content", [None, b"", b"nowhere.pth", b"../model.pth", b"\xff"])
def test_the_pointer_does_not_matter(three, content):
    pointer = three / "last_checkpoint"
    pointer.unlink() if content is None else pointer.write_bytes(content)
    assert resumed(three) == 3
    assert numbered(three, 0).get_checkpoint_file() == str(three / NEWEST)


def test_nothing_usable_fails_and_says_why(three):
    for file in three.glob("*.pth"):
        file.write_bytes(b"")
    with pytest.raises(UserError) as error:
        resumed(three)
    text = str(error.value)
    assert text.startswith(f"--resume: '{three}' holds no usable checkpoint (")
    assert f"({NEWEST} has 0 bytes instead of " in text
    assert "model_0000001.pth has 0 bytes" in text and text.endswith("; start anew in another OUTPUT_DIR")
    assert "\n" not in text and has_checkpoint(three)


def test_weights_without_a_record_are_no_start(tmp_path):
    (tmp_path / "model.pth").write_bytes(b"x")
    with pytest.raises(UserError, match="no usable checkpoint .none is recorded in checkpoints.jsonl."):
        resumed(tmp_path)
    assert not has_checkpoint(tmp_path)


def test_a_folder_without_results_is_a_start(tmp_path):
    assert resumed(tmp_path / "absent") is None
    for name in ("log.txt", "config.yaml", "metrics.json"):
        (tmp_path / name).write_text("of the run that starts, or of one that was stopped early")
    assert resumed(tmp_path) is None


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

        def cut(writer, data):  # what a kill in the middle of a write leaves
            if passed == boundary:
                writer.stream.write(bytes(data)[: len(bytes(data)) // 2])
                writer.stream.flush()
            return write(writer, data)

        for name in ("fsync", "replace", "unlink"):
            setattr(os, name, dying(getattr(os, name)))
        write = dying(HashingWriter.write)
        HashingWriter.write = cut
        action()
        os._exit(DONE)
    except BaseException:
        os._exit(1)


def left(folder):
    """Weight of the model after a resume; None where it starts anew or says that it cannot resume."""
    try:
        return resumed(folder)
    except UserError as error:
        assert "was not finished" in str(error)
        return None


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


def other_run(folder):
    return lambda: numbered(folder, 4).save(NEWEST[:-4], iteration=4)


@pytest.mark.parametrize(
    "make, before", [(first_save, None), (next_save, 3.0), (same_name, 3.0), (other_run, 3.0)]
)
def test_a_kill_at_every_boundary_leaves_the_old_or_the_new(three, tmp_path_factory, make, before):
    files = {} if before is None else {path.name: path.read_bytes() for path in three.iterdir()}
    after = 1.0 if before is None else 4.0
    seen = []
    for boundary in range(200):
        folder = tmp_path_factory.mktemp("kill")
        for name, content in files.items():
            (folder / name).write_bytes(content)
        code = killed_at(boundary, make(folder))
        seen.append(left(folder))
        assert seen[-1] in (before, after), (boundary, seen[-1])
        # Whatever it left, the next save counts, and nothing partial stays behind.
        numbered(folder, after).save("model_0000004", iteration=4)
        assert resumed(folder) == after
        if code == DONE:
            break
        assert code == KILLED
    assert boundary > 10
    # The old one until the rename, the new one from then on.
    switch = seen.index(after)
    assert seen == [before] * switch + [after] * (len(seen) - switch)
    assert 5 < switch < len(seen) - 1


def test_files_of_an_earlier_run_count_until_the_new_run_has_its_own(three):
    """A run started anew in a used folder: killed before its second save, nothing is lost."""
    fresh = numbered(three, 7)
    fresh.save("model_0000000", iteration=0)
    assert [r.file for r in read_manifest(three)][-1] == "model_0000000.pth"
    assert len(read_manifest(three)) == 4 and resumed(three) == 7
    fresh.save("model_0000001", iteration=1)
    assert [r.iteration for r in read_manifest(three)] == [0, 1]


def test_after_a_resume_the_damaged_ones_are_forgotten(three):
    (three / NEWEST).write_bytes(b"")
    checkpointer = numbered(three, -1)
    checkpointer.resume()
    checkpointer.save("model_0000009", iteration=9)
    assert [record.iteration for record in read_manifest(three)] == [1, 2, 9]


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
    assert sorted(record.file[:-4] for record in read_manifest(tmp_path)) == expected


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
        assert text.startswith(f"cannot write the checkpoint '{tmp_path / name}.pth' of {size} bytes: File")
        assert "earlier checkpoints are intact" in text and "continue with --resume" in text
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    checkpointer.save("model_0000002", iteration=2)  # there is room again
    assert newest_intact(tmp_path)[0].iteration == 2


def test_a_full_disk_ends_the_command(three, capfd):
    with file_limit(500), pytest.raises(SystemExit) as end:
        run_command(lambda: numbered(three, 4).save("model_0000004", iteration=4))
    assert end.value.code == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"error: cannot write the checkpoint '{three / 'model_0000004.pth'}' of ")
    assert resumed(three) == 3
    assert not list(three.glob("*.partial"))


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
    numbered(tmp_path / "new/run", 5).save("model_final")
    assert resumed(tmp_path / "new/run") == 5


def test_another_version_is_told(three, caplog, monkeypatch):
    monkeypatch.setattr(checkpoint, "__version__", "9.9")
    assert resumed(three) == 3
    (warning,) = caplog.records
    assert "was written by {'auto_panoptic': '" in warning.getMessage()
    assert "now running {'auto_panoptic': '9.9', " in warning.getMessage()


def test_the_manifest_is_plain_json(three):
    first = json.loads((three / "checkpoints.jsonl").read_text().splitlines()[0])
    assert sorted(first) == ["config", "file", "iteration", "sha256", "size"]


def test_the_needed_bytes_are_exact(tmp_path):
    data = {"a": torch.rand(333), "b": [1, "x"]}
    torch.save(data, tmp_path / "file")
    with open(tmp_path / "named", "wb") as stream:
        torch.save(data, stream)
    assert checkpoint._serialized_size(data) == (tmp_path / "named").stat().st_size
