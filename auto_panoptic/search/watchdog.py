"""Ends what a process started, when that process ends, however it ends.

Ray's agents outlive a driver that was killed by a minute. :class:`Watchdog` marks the environment of whatever
is started while it is entered; a small process of its own waits until the driver closes its pipe, which the
kernel does for a killed one, and kills all that carry the mark. Linux only; elsewhere it does nothing.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

MARK = "AUTO_PANOPTIC_WATCHDOG"
_PERIOD = 0.25  # seconds between two looks while all is well
_PATIENCE = 10.0  # seconds in which processes that are starting up may still appear
_QUIET_ROUNDS = 6  # looks, 0.05 seconds apart, that find nothing before it is over


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


def marked(token: str) -> set[tuple[int, str]]:
    """(id, start time) of the processes with ``token`` in their environment, but for this one."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            if token.encode() in (folder / "environ").read_bytes() and int(folder.name) != os.getpid():
                found.add((int(folder.name), _started(folder)))
    return found


def _started(folder: Path) -> str | None:
    """When a process started, which with its id tells it from a later one; None if it has ended."""
    fields = (folder / "stat").read_text().rpartition(")")[2].split()
    return None if fields[0] == "Z" else fields[19]


def _kill(process: tuple[int, str]) -> bool:
    """Whether it was still there."""
    with contextlib.suppress(OSError):
        if _started(Path(f"/proc/{process[0]}")) == process[1]:
            os.kill(process[0], signal.SIGKILL)
            return True
    return False


def watch(token: str) -> None:
    """Wait for the end of the input, then kill everything with ``token``, and remove the folder named.

    Ray's agents write their titles over their environment, so the marked ones are noted while all is well.
    """
    known, folder = set(), b""
    while True:
        ready, _, _ = select.select([sys.stdin], [], [], _PERIOD)
        known |= marked(token)
        if ready and not (part := os.read(sys.stdin.fileno(), 4096)):
            break
        folder += part if ready else b""
    deadline = time.monotonic() + _PATIENCE
    rounds = _QUIET_ROUNDS
    while rounds and time.monotonic() < deadline:
        known |= marked(token)
        known = {process for process in known if _kill(process)}
        rounds = _QUIET_ROUNDS if known else rounds - 1
        time.sleep(0.05)
    if folder:
        shutil.rmtree(os.fsdecode(folder), ignore_errors=True)


if __name__ == "__main__":
    watch(sys.argv[1])
