"""What a user's mistake becomes: one line that says how to mend it, and exit code 2; 3 for a diverged run."""

from __future__ import annotations

import contextlib
import datetime
import errno
import importlib.util
import logging
import math
import numbers
import os
import re
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable

from . import signals

_FIRST = 3.0  # seconds that a process leaves to the one that failed first, to say why
# What torch says of memory that there is not, and of a data loader's process that the system has killed.
_MEMORY = re.compile("(out of|[Cc]an.?not allocate|can't allocate) memory|signal: Killed|exited unexpectedly")


class UserError(ValueError):
    """A mistake in a config, a file or an argument: one line with place and remedy, and exit code 2."""

    def __init__(self, *args):
        if args and str(args[0]).startswith("Caught UserError in DataLoader"):  # and its traceback, as text
            args = (str(args[0]).strip().rpartition("UserError: ")[2],)
        super().__init__(*args)

    def __str__(self) -> str:
        return "\\n".join(super().__str__().splitlines())  # names and values of files may have several


class Diverged(FloatingPointError):
    """NaN or infinity where numbers should be: one line with place and remedy, and exit code 3."""


NO_DETECTRON2 = "Detectron2 is not installed; python -m auto_panoptic install-detectron2 installs it"


def need_detectron2() -> None:
    """End the command with one line where there is no Detectron2: before it is imported."""
    if importlib.util.find_spec("detectron2") is None:
        print(f"error: {NO_DETECTRON2}", file=sys.stderr)
        sys.exit(2)


def one_of(key: str, value, allowed: Iterable):
    """``value``, if it is one of those allowed; else UserError says key, value and what is allowed."""
    allowed = list(allowed)
    if not any(value == choice and type(value) is type(choice) for choice in allowed):
        raise UserError(f"{key} is {value!r}; expected one of {', '.join(map(str, allowed))}")
    return value


def at_least(key: str, value, minimum):
    """``value``, if finite and at least ``minimum`` (and whole, if that is an int); else UserError."""
    whole = isinstance(minimum, int)
    good = isinstance(value, numbers.Integral if whole else numbers.Real) and not isinstance(value, bool)
    if not (good and minimum <= value < math.inf):
        raise UserError(f"{key} is {value!r}; expected a {'whole ' * whole}number of at least {minimum}")
    return value


def first_line(error: Exception) -> str:
    """What an error says, in one line; its kind where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.ELOOP)
_REFUSED += (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)


def disk_problem(error: BaseException | None, place: str = "the disk") -> str:
    """One line for what a disk refuses (at ``place``, where the error names no file); "" of other errors."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return f"{error.filename or place}: {error.strerror}; make room"
    if isinstance(error, OSError) and error.errno in _REFUSED and error.filename:
        return f"{error.filename}: {error.strerror}; make it writable, or name another place"
    return ""


class _Warnings(logging.Handler):
    """What libraries warn of, by ``warnings`` or by loggers that nobody has set up, until it may be shown."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.texts: list[str] = []
        self.before = warnings.showwarning, logging.lastResort
        warnings.showwarning, logging.lastResort = self.show, self

    def show(self, message, category, filename, lineno, file=None, line=None) -> None:
        self.texts.append(warnings.formatwarning(message, category, filename, lineno, line))

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage() + "\n")


_warnings: _Warnings | None = None


def hold_warnings() -> None:
    """Keep warnings off the screen until :func:`show_warnings`: they must not stand beside an error."""
    global _warnings
    _warnings = _warnings or _Warnings()


def show_warnings(drop: bool = False) -> None:
    """End :func:`hold_warnings`: print what was held, or ``drop`` it."""
    global _warnings
    held, _warnings = _warnings, None
    if held is not None:
        warnings.showwarning, logging.lastResort = held.before
        print("" if drop else "".join(held.texts), end="", file=sys.stderr)


class RankLost(UserError):
    """Another process of the run has ended."""


shared_store = None  # of the processes of a run, once they have met; those of torchrun have one before
_SAID = f"said/{os.environ.get('TORCHELASTIC_RESTART_COUNT')}"


def _store():
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return shared_store
    from torch.distributed import TCPStore

    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return TCPStore(host, port, is_master=False, timeout=datetime.timedelta(seconds=5))


def say_at_end(text: str) -> None:
    """Print why the run ends, unless another of its processes has."""
    try:
        first = (store := _store()) is None or store.add(_SAID, 1) == 1
    except RuntimeError:  # what held it has ended; Detectron2's launcher, which waits for it, has told so
        first = "WORLD_SIZE" in os.environ
    if first:
        print(text, file=sys.stderr, flush=True)
    if shared_store is not None:
        time.sleep(1)  # this process may hold it


def _others_say() -> bool:
    """Whether the process that failed first says why. It also ends first: its exit code is the run's."""
    said = False
    with contextlib.suppress(RuntimeError, KeyboardInterrupt):  # a launcher may end the others
        store, end = _store(), time.monotonic() + _FIRST
        while time.monotonic() < end:
            said = said or (store is not None and store.check([_SAID]))
            time.sleep(0.1)
    return said


def run_command(main: Callable[[], object], alone: bool | None = None) -> None:
    """Run a command's ``main``. Of all processes of a run, the first to fail says why, and only that one.

    Exit codes: 2 after a UserError, or an error of the machine (memory, disk), with one line; 3 after
    Diverged, likewise; 130 and 143 after Ctrl-C and SIGTERM; 1 after any other, with its traceback.
    Warnings that are held when it ends are shown, but for those before an error in one line. ``alone``: no
    other process works on the same; by default so without torchrun's variables.
    """
    if alone is None:
        alone = "RANK" not in os.environ
    try:
        with signals.raised():
            main()
    except KeyboardInterrupt as error:
        say_at_end(str(error) or "interrupted by SIGINT")
        sys.exit(128 + getattr(error, "number", signal.SIGINT))
    except Exception as error:
        line = one_line(error)
        if line is None and alone:
            raise
        if line is not None:
            show_warnings(drop=True)
        if not (isinstance(error, RankLost) and _others_say()):
            say_at_end(traceback.format_exc().rstrip() if line is None else f"error: {line}")
        sys.exit(1 if line is None else 3 if isinstance(error, Diverged) else 2)
    finally:
        show_warnings()


def one_line(error: Exception) -> str | None:
    """What to say of an error that is no fault of the program; None if it may be one."""
    lines = str(error).splitlines() or [""]
    if "Original Traceback (most recent call last):" in lines:  # of a data loader's process
        lines = [lines[-1].partition(": ")[2]]
    if isinstance(error, (UserError, Diverged)):
        return "\n".join(lines)
    kind, text = type(error).__name__, lines[0]
    if isinstance(error, MemoryError) or _MEMORY.search(text):
        return f"out of memory ({kind}: {text}): use fewer or smaller images, or fewer processes"
    if problem := disk_problem(error):
        return problem
    if isinstance(error, OSError) and text.startswith("[Errno"):
        frames = traceback.extract_tb(error.__traceback__)[-1:]
        places = [f" (in {os.path.basename(frame.filename)}, line {frame.lineno})" for frame in frames]
        return f"{kind} from the system: {text}{''.join(places)}"
    return None
