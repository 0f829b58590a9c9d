"""One writer per folder: an advisory lock that the kernel releases when its holder dies."""

from __future__ import annotations

import datetime
import errno
import fcntl
import json
import os
import socket
import time
import weakref
from pathlib import Path

from ..errors import UserError


class WriterLock:
    """An exclusive ``flock`` on a file beside the one it protects.

    The lock file names its holder (host, pid, start). It is never removed: a file left behind by a dead
    process is unlocked and simply taken over.
    """

    def __init__(self, path: str | os.PathLike, protects: str):
        """Take the lock.

        Args:
            path: the lock file, created if necessary.
            protects: what the lock protects, for the message.

        Raises:
            UserError: another process holds it; the message names the process.
        """
        self.path = Path(path)
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            if e.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            owner = _describe(self._fd)
            self.release()
            raise UserError(
                f"{protects} is in use by another process ({owner}): wait for it or stop it, "
                "or choose another OUTPUT_DIR"
            ) from e
        owner = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "start": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        }
        text = (json.dumps(owner) + "\n").encode()
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, text, 0)
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
