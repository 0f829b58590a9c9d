"""Files that a kill cannot tear, and the record of the checkpoints in a folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import BinaryIO

# One line per checkpoint of the folder, oldest first.
MANIFEST = "checkpoints.jsonl"


@dataclass(frozen=True)
class Record:
    """What a checkpoint file must be.

    Attributes:
        file: its name in the folder.
        sha256, size: of its content; size in bytes.
        iteration: the last iteration it has seen, or None for weights outside a training run.
        config: hash of the settings it was trained with (:func:`.settings.settings_hash`), or "".
    """

    file: str
    sha256: str
    size: int
    iteration: int | None = None
    config: str = ""


class HashingWriter:
    """Passes bytes on to ``stream`` and keeps their sha256, their number, and the error that stopped them."""

    def __init__(self, stream: BinaryIO):
        self.stream, self.size, self.error = stream, 0, None
        self._hash = hashlib.sha256()

    def write(self, data) -> int:
        try:
            self.stream.write(data)
        except OSError as error:  # torch.save would replace it by a message about its archive
            self.error = error
            raise
        self._hash.update(data)
        self.size += memoryview(data).nbytes
        return memoryview(data).nbytes

    def flush(self) -> None:
        self.stream.flush()

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()


def partial_path(path: str) -> str:
    """Where the content of ``path`` is collected; always the same, so that a repetition overwrites it."""
    return f"{path}.partial"


def write_partial(path: str, write: Callable[[BinaryIO], object]) -> None:
    """Bring what ``write`` puts into a stream to the disk, under the partial name of ``path``."""
    try:
        with open(partial_path(path), "wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(partial_path(path))
        raise


def replace_file(path: str, content: bytes) -> None:
    """Write a small file so that it is the old or the new one at any time."""
    write_partial(path, lambda stream: stream.write(content))
    os.replace(partial_path(path), path)


def sync_folder(folder: str) -> None:
    """Bring the renames in ``folder`` to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_manifest(folder: str, records: Iterable[Record]) -> None:
    """Replace the manifest of ``folder``."""
    lines = "".join(json.dumps(asdict(record)) + "\n" for record in records)
    replace_file(os.path.join(folder, MANIFEST), lines.encode())


def read_manifest(folder: str) -> list[Record]:
    """The records of ``folder``, oldest first; lines that are none are left out."""
    try:
        with open(os.path.join(folder, MANIFEST), "rb") as stream:
            lines = stream.read().split(b"\n")
    except FileNotFoundError:
        return []
    records = []
    for line in lines:
        with contextlib.suppress(ValueError, TypeError):
            record = Record(**json.loads(line))
            if isinstance(record.file, str) and os.path.basename(record.file) == record.file != "":
                records.append(record)
    return records


def file_sha256(path: str) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def newest_intact(folder: str) -> tuple[Record | None, list[str]]:
    """The newest checkpoint of ``folder`` with the recorded content, and what is wrong with newer ones.

    A file may have two records: its next content is recorded before it takes the name.

    Returns:
        (record or None, one "<file> <reason>" for each newer file)
    """
    records: dict[str, list[Record]] = {}
    for record in reversed(read_manifest(folder)):
        records.setdefault(record.file, []).append(record)
    problems = []
    for file, candidates in records.items():
        path = os.path.join(folder, file)
        if not os.path.isfile(path):
            unfinished = os.path.exists(partial_path(path))
            problems.append(f"{file} was not finished" if unfinished else f"{file} is missing")
            continue
        size = os.path.getsize(path)
        fitting = [record for record in candidates if record.size == size]
        if not fitting:
            problems.append(f"{file} has {size} bytes instead of {candidates[0].size}")
            continue
        digest = file_sha256(path)
        for record in fitting:
            if record.sha256 == digest:
                return record, problems
        problems.append(f"{file} does not have the recorded sha256")
    return None, problems


def has_checkpoint(folder: str) -> bool:
    """Whether ``folder`` holds a file of its manifest, damaged or not."""
    return any(os.path.isfile(os.path.join(folder, record.file)) for record in read_manifest(folder))
