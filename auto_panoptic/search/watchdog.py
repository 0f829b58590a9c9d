"""Ends what a process started, when that process ends, however it ends.

Ray's agents outlive a driver that was killed by a minute. :class:`Watchdog` marks the environment of whatever
is started while it is entered; a small process of its own waits until the driver closes its pipe, which the
kernel does for a killed one, and kills all that carry the mark. Linux only; elsewhere it does nothing.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

MARK = "AUTO_PANOPTIC_WATCHDOG"
_PATIENCE = 10.0  # seconds in which processes that are starting up may still appear


class Watchdog:
    """Context manager: processes started within it end with this one, or at :meth:`close`."""

    def __init__(self):
        self._token = f"{MARK}={os.getpid()}-{os.urandom(8).hex()}"
        self._process = None
        if sys.platform.startswith("linux"):
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", __file__, self._token],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C in the terminal is not for it
            )

    def __enter__(self) -> Watchdog:
        os.environ[MARK] = self._token.partition("=")[2]
        return self

    def __exit__(self, *_) -> None:
        os.environ.pop(MARK, None)

    def remove(self, folder: str) -> None:
        """Have a folder removed in the end; at most one."""
        if self._process:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write(os.fsencode(folder))
                self._process.stdin.flush()

    def close(self) -> None:
        """End the processes now; returns when they have ended."""
        if self._process:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
            self._process.wait()
            self._process = None


def marked(token: str) -> list[int]:
    """Ids of the processes with ``token`` in their environment, but for this one."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            if token.encode() in path.read_bytes() and int(path.parent.name) != os.getpid():
                found.append(int(path.parent.name))
    return found


def watch(token: str) -> None:
    """Wait for the end of the input, then kill everything with ``token``, and remove the folder named."""
    folder = os.fsdecode(sys.stdin.buffer.read())
    deadline = time.monotonic() + _PATIENCE
    while (processes := marked(token)) and time.monotonic() < deadline:
        for process in processes:
            with contextlib.suppress(OSError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.05)
    if folder:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    watch(sys.argv[1])
