"""Processes to be killed: forks and commands, each in a group of its own, none outliving this process."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm import tqdm

from auto_panoptic.training import run_command

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


def become_child() -> None:
    """SIGKILL for this process when the thread that started it ends (Linux); signals as in a terminal.

    A shell's background jobs ignore SIGINT, under nohup SIGHUP as well, and so would all that they start.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, usual)


class Process:
    """A process group that is led by ``pid``, a child of this process."""

    def __init__(self, pid: int):
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Exit code, -N after signal N, None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, seconds: float = 600.0) -> int | None:
        """Exit code; None if it still runs after ``seconds``."""
        end, pause = time.monotonic() + seconds, 0.0002
        while self.poll() is None and time.monotonic() < end:
            time.sleep(min(pause, max(0.0, end - time.monotonic())))
            pause = min(2 * pause, 0.02)
        return self.returncode

    def kill(self) -> bool:
        """SIGKILL to the whole group; whether the leader was still running."""
        running = self.poll() is None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.wait()
        return running and self.returncode == -signal.SIGKILL


def fork(function: Callable[[], object], log: Path | None) -> Process:
    """Run ``function`` in a forked process as a command does: exit code 2 and one line for a UserError.

    Its output is appended to ``log`` if given.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    pid = os.fork()
    if pid:
        with contextlib.suppress(PermissionError, ProcessLookupError):
            os.setpgid(pid, pid)
        return Process(pid)
    code = 1
    try:
        os.setpgid(0, 0)
        become_child()
        if os.getppid() != parent:
            os._exit(1)
        if log is not None:
            fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.dup2(fd, 1)
            os.dup2(fd, 2)
            sys.stdout = sys.stderr = open(fd, "w", buffering=1, closefd=False)
        tqdm.set_lock(threading.RLock())  # not its parent's, which it might hold when it is killed
        run_command(function)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(bool(end.code))
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(code)


def command(arguments: Sequence[str], log: Path, environment: dict[str, str]) -> Process:
    """Start a command with ``environment`` on top of this process's; its output is appended to ``log``."""
    with open(log, "ab") as stream:
        started = subprocess.Popen(
            list(arguments),
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            env={**os.environ, **environment},
            start_new_session=True,
            preexec_fn=become_child,
        )
    process = Process(started.pid)
    started.returncode = 0  # waited for here, not by subprocess
    return process


def error_line(log: Path) -> str:
    """The last line that a command wrote for its user, or the last line at all."""
    lines = log.read_text(errors="replace").splitlines() or [""]
    return next((line for line in reversed(lines) if line.startswith("error: ")), lines[-1])
