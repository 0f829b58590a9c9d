"""Files that a kill cannot tear, one writer per folder, JSON and digests."""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import hashlib
import json
import logging
import math
import os
import socket
import stat
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path

from .errors import UserError, disk_problem

PARTIAL = ".partial-"  # how the names of half-written files begin
BUNDLE = "bundle.pth"  # of a network with all that it needs to predict, in OUTPUT_DIR and in search/
_PACKAGE = Path(__file__).resolve().parent
# What holds configs/ and the commands: a folder of the installed package, or the checkout.
HOME = _PACKAGE / "shipped" if (_PACKAGE / "shipped").is_dir() else _PACKAGE.parent


def sync_folder(folder: str | os.PathLike) -> None:
    """Bring the names in ``folder`` (new files, renames) to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def replacing(path: str | os.PathLike, sync: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that takes its place at the end, but not after a failure.

    Without ``sync``, for files that can be made again, it does not wait until all is on the disk.
    """
    path = Path(path)
    partial = path.with_name(f"{PARTIAL}{os.getpid()}-{path.name}")
    partial.unlink(missing_ok=True)  # it may be a link
    try:
        yield partial
        if sync:
            sync_folder(partial)  # opens and syncs a file just so
        os.replace(partial, path)
        if sync:
            sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    """Write a file whole or not at all; UserError if it cannot be written."""
    try:
        with replacing(path) as partial:
            partial.write_bytes(content)
    except OSError as error:
        problem = f"{path}: cannot write: {error.strerror or error}"
        raise UserError(f"{problem}; make room, or name another place") from error


def write_text(path: str | os.PathLike, content: str) -> None:
    """:func:`write_bytes` of a text in UTF-8."""
    write_bytes(path, content.encode())


def plain(value):
    """``value`` as JSON gives it back, None for NaN and infinity; TypeError if JSON has no such type."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, str | bool | int) or value is None:
        return value
    if hasattr(value, "tolist"):  # numpy arrays and scalars
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    raise TypeError(f"{value!r} of type {type(value).__name__} cannot be written as JSON")


def write_json(path: str | os.PathLike, content) -> None:
    """:func:`write_bytes` of :func:`plain` JSON; a list in one line, a mapping with a line for each key."""
    write_text(path, json.dumps(plain(content), indent=None if isinstance(content, list) else 1) + "\n")


def read_bytes(path: str | os.PathLike) -> bytes:
    """The content of a plain file, or of one that a link points to; else OSError: a FIFO might never end."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not a file", str(path))
    with open(handle, "rb") as stream:
        return stream.read()


def read_json(path: str | os.PathLike, what: str = "JSON file", **options):
    """The content of a JSON file, which is a ``what``; ``options`` of ``json.loads``; UserError if none."""
    try:
        return json.loads(read_bytes(path), **options)
    except OSError as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else error.strerror or error
        raise UserError(f"{path}: cannot read the {what}: {reason}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: the {what} is not valid JSON: {error}") from error


def digest(path: str | os.PathLike) -> str:
    """The sha256 of a file's content, in hexadecimal."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def open_own(path: str | os.PathLike) -> int:
    """Open a file of ours to be changed in place, made if there is none; UserError for links and the like."""
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        handle = os.open(path, flags, 0o644)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise
    else:
        found = os.fstat(handle)
        if stat.S_ISREG(found.st_mode) and found.st_nlink <= 1:
            return handle
        os.close(handle)
    raise UserError(f"{path}: is written to, but is a link or no plain file: move it, or put a copy there")


def append(handle: int, data: bytes, path: str | os.PathLike | None = None) -> None:
    """Append to the open file ``path``, until it is on the disk; after an OSError the file is as before."""
    start = os.fstat(handle).st_size
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(handle, rest) :]
        os.fsync(handle)
    except OSError as error:
        os.ftruncate(handle, start)
        error.filename = path
        raise


def append_to(path: str | os.PathLike, data: bytes) -> None:
    """:func:`append` to a file of ours, made if there is none."""
    handle = open_own(path)
    try:
        append(handle, data, path)
    finally:
        os.close(handle)


def end_last_line(handle: int, ending: bytes = b"") -> None:
    """End a last line that was cut short, so that none is glued to it; remove it if it lacks ``ending``."""
    size = os.fstat(handle).st_size
    start = max(size - (1 << 24), 0)
    line = os.pread(handle, size - start, start).rpartition(b"\n")[2]
    if not line.endswith(ending):
        os.ftruncate(handle, size - len(line))
    elif line:
        append(handle, b"\n")


@contextlib.contextmanager
def disk_errors(folder: str | os.PathLike, remedy: str) -> Iterator[None]:
    """A :func:`disk_problem` in ``folder`` becomes a UserError, also of a log or TensorBoard's thread."""
    shown = logging.Handler.handleError, threading.excepthook

    def log_failed(handler, record) -> None:
        if not disk_problem(sys.exc_info()[1], folder):
            return shown[0](handler, record)
        with open(os.devnull, "wb") as nowhere:  # what its buffer holds would fail again when it is closed
            os.dup2(nowhere.fileno(), handler.stream.fileno())
        raise sys.exc_info()[1]

    logging.Handler.handleError = log_failed
    # What ends TensorBoard's thread is raised again where it is written to next.
    threading.excepthook = lambda args: None if disk_problem(args.exc_value, folder) else shown[1](args)
    try:
        yield
    except OSError as error:
        if not (line := disk_problem(error, folder)):
            raise
        raise UserError(f"{line}, then {remedy}; files written before are intact") from error
    finally:
        logging.Handler.handleError, threading.excepthook = shown


class WriterLock:
    """An exclusive ``flock`` on a file beside the one it protects.

    The lock file names its holder (host, pid, start). It is never removed: a file left behind by a dead
    process is unlocked, because the kernel releases the lock of a dead process, and is simply taken over.
    """

    def __init__(
        self, path: str | os.PathLike, protects: str, option: str = "OUTPUT_DIR", wait: bool = False
    ):
        """Take the lock, or with ``wait`` wait for it; ``option`` names another place than it ``protects``.

        Raises:
            UserError: another process holds it, who is named; or the name belongs to something else.
        """
        self.path = Path(path)
        self._fd = open_own(self.path)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as e:
            if e.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                self.release()
                raise
            problem = f"{protects} is in use by another process ({_describe(self._fd)})"
            self.release()
            raise UserError(f"{problem}: wait for it or stop it, or choose another {option}") from e
        start = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        owner = {"host": socket.gethostname(), "pid": os.getpid(), "start": start}
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{json.dumps(owner)}\n".encode(), 0)
        _held.add(self)

    @property
    def held(self) -> bool:
        """Whether this process holds the lock."""
        return self._fd is not None

    def release(self) -> None:
        """Give the lock up; doing so twice is harmless."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def _describe(fd: int) -> str:
    # The holder writes its name just after it got the lock, so a loser may be a moment too early.
    for _ in range(20):
        try:
            owner = json.loads(os.pread(fd, 4096, 0))
            return f"host {owner['host']}, pid {owner['pid']}, started {owner['start']}"
        except (ValueError, KeyError, TypeError):
            time.sleep(0.01)
    return "it has not left its name"


# A forked child shares its parent's lock. Were it to outlive the parent (a data-loading worker, say), the
# lock would stay taken; so children let go of it.
_held: weakref.WeakSet[WriterLock] = weakref.WeakSet()
os.register_at_fork(after_in_child=lambda: [lock.release() for lock in list(_held)])
