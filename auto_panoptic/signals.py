"""How a process is told to end: by SIGINT, SIGTERM, SIGHUP, or by the death of what started it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PARENT = "AUTO_PANOPTIC_PARENT"  # pid of a command that does not want to be outlived
_TORCHRUN = "TORCHELASTIC_RUN_ID"  # which its processes have
_ECHO = 5.0  # seconds in which a launcher may repeat a signal that the terminal has sent to all
_commands = 0  # in :func:`raised`
_first = 0.0  # when the first signal came
_pending: list[int] | None = None  # in :func:`deferred`: the signal that came


class Interrupted(KeyboardInterrupt):
    """A signal that ends what Ctrl-C ends.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int, message: str = ""):
        super().__init__(message or f"interrupted by {signal.Signals(number).name}")
        self.number = number


@contextlib.contextmanager
def _handled(act: Callable[[int], None]) -> Iterator[dict]:
    """Handle the signals by ``act``; those that are ignored, or that somebody handles, stay as they are."""

    def handler(number, _frame):
        act(number)

    handler.ours, before = True, {}
    if threading.current_thread() is threading.main_thread():
        found = {number: signal.getsignal(number) for number in _SIGNALS}
        usual = (signal.SIG_DFL, signal.default_int_handler)
        before = {n: old for n, old in found.items() if old in usual or hasattr(old, "ours")}
    try:
        for number in before:
            signal.signal(number, handler)
        yield before
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """In a command: the first signal raises :class:`Interrupted`, a second ends the process at once.

    Nothing on the disk needs the time in between: what is written there is whole at any moment.
    """
    global _commands, _first

    def act(number: int) -> None:
        if _first and not _is_echo():
            os._exit(128 + number)
        if not _first:
            _note()
            raise Interrupted(number)

    with _handled(act):
        _commands, _first = _commands + 1, 0.0
        try:
            yield
        finally:
            _commands -= 1


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Only note the first signal, for :func:`pending`; a second acts as it would have outside."""
    global _pending, _first
    _pending, _first = [], _first if _commands else 0.0

    def act(number: int) -> None:
        if not _pending:
            _pending.append(number)
            _note()
        elif not _is_echo():
            signal.signal(number, before[number])
            signal.raise_signal(number)

    try:
        with _handled(act) as before:
            yield
    finally:
        _pending = None


def pending() -> int:
    """The number of the signal that came within :func:`deferred`; 0 if none did."""
    return _pending[0] if _pending else 0


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    """Within :func:`deferred`, around work that leaves nothing half done: a signal raises Interrupted."""

    def act(number: int) -> None:
        if not _is_echo():
            _pending.append(number)
            _note()
            raise Interrupted(number)

    with _handled(act) if _pending is not None else contextlib.nullcontext():
        if _pending:
            raise Interrupted(pending())
        yield


def leave(error: KeyboardInterrupt, message: str):
    """End as a signal asks, saying why: a command by an exception, other programs as the signal ends them."""
    number = getattr(error, "number", signal.SIGINT)
    if not _commands and number != signal.SIGINT:
        print(message, file=sys.stderr, flush=True)
        signal.raise_signal(number)
    raise Interrupted(number, message) from None


@contextlib.contextmanager
def resumable() -> Iterator[None]:
    """Say of a signal that ends this work how to go on."""
    try:
        yield
    except KeyboardInterrupt as error:
        if "--resume" not in (text := str(error) or "interrupted"):
            error.args = (f"{text}; --resume continues",)
        raise


def _note() -> None:
    global _first
    _first = time.monotonic()


def _is_echo() -> bool:
    return bool({_PARENT, _TORCHRUN} & os.environ.keys()) and time.monotonic() < _first + _ECHO


def bound(**environment: str) -> dict:
    """Arguments of ``subprocess.Popen`` for a child that ends with this process, which tells it of Ctrl-C."""
    environment = {**os.environ, **environment, _PARENT: str(os.getpid())}
    return {"env": environment, "start_new_session": True, "preexec_fn": die_with_parent}


def die_with_parent() -> None:
    """Let the system kill this process, stopped or not, when its parent has ended; on Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def end_with_parent(parent: int = 0) -> None:
    """End within two seconds of a launcher that started this process, however it ended. A shell is none.

    torchrun and :func:`bound` are recognised; ``parent`` is the pid of another.
    """
    if parent:
        os.environ[_PARENT] = str(parent)
    command = int(os.environ.get(_PARENT, 0))
    parent = os.getppid() if _TORCHRUN in os.environ else command

    def watch() -> None:
        while os.getppid() == parent and (not command or _lives(command)):
            time.sleep(1)
        os._exit(128 + signal.SIGKILL)

    if parent:
        die_with_parent()
        threading.Thread(target=watch, daemon=True).start()


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError)
    return True


def _leave_signals_to_parent() -> None:
    """In forked children, which work for this process: it ends them.

    Signals to a whole group or job come to them, too, but a training still needs its data loader's processes.
    """
    global _pending
    needed, _pending = _pending is not None, None
    for number in _SIGNALS:
        if hasattr(signal.getsignal(number), "ours"):
            signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)
    if needed and hasattr(signal, "sigwaitinfo"):
        die_with_parent()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_until_told, daemon=True).start()


def _until_told() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


os.register_at_fork(after_in_child=_leave_signals_to_parent)
