"""What a user's mistake becomes: one line that says how to mend it, and exit code 2; 3 for a diverged run."""

from __future__ import annotations

import errno
import logging
import math
import numbers
import os
import sys
import warnings
from collections.abc import Callable, Iterable


class UserError(ValueError):
    """A mistake in a config, a file or an argument.

    The message is one line: what is wrong, where, what is allowed, and the remedy. The command line tools
    print it without a traceback and exit with code 2.
    """


class Diverged(FloatingPointError):
    """NaN or infinity where numbers should be: training has diverged, or did so before.

    The message is one line: what is not finite, where, and the remedy. The command line tools print it
    without a traceback and exit with code 3.
    """


def one_of(key: str, value, allowed: Iterable):
    """``value``, if it is one of those allowed.

    Raises:
        UserError: it is not; the message names the key, the value and what is allowed.
    """
    allowed = list(allowed)
    if not any(value == choice and type(value) is type(choice) for choice in allowed):
        raise UserError(f"{key} is {value!r}; expected one of {', '.join(map(str, allowed))}")
    return value


def at_least(key: str, value, minimum):
    """``value``, if it is a finite number of at least ``minimum``; whole, if ``minimum`` is an int.

    Raises:
        UserError: it is not.
    """
    whole = isinstance(minimum, int)
    good = isinstance(value, numbers.Integral if whole else numbers.Real) and not isinstance(value, bool)
    if not (good and minimum <= value < math.inf):
        kind = "a whole number" if whole else "a number"
        raise UserError(f"{key} is {value!r}; expected {kind} of at least {minimum}")
    return value


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.ELOOP)
_REFUSED += (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR)


def disk_problem(error: BaseException | None, place: str = "the disk") -> str:
    """One line for what a disk refuses (full, read-only, failing); "" for an error of another kind.

    ``place`` is named where the error names no file.
    """
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


def run_command(main: Callable[[], object], quiet: bool | None = None) -> None:
    """Run a command's ``main``; one line for a UserError, exit code 2, or Diverged, 3; Ctrl-C gives 130.

    A :func:`disk_problem` is as a UserError. Warnings that are held when it ends are shown, but for those
    before such a line.

    Args:
        main: the command.
        quiet: print nothing, another process does; by default so in all but the first of torchrun's ranks.
    """
    if quiet is None:
        quiet = os.environ.get("LOCAL_RANK", "0") != "0"
    try:
        main()
    except (UserError, Diverged, OSError) as error:
        line = disk_problem(error) if isinstance(error, OSError) else str(error)
        if not line:
            raise
        show_warnings(drop=True)
        print("" if quiet else f"error: {line}\n", end="", file=sys.stderr)
        sys.exit(3 if isinstance(error, Diverged) else 2)
    except KeyboardInterrupt:
        print("" if quiet else "interrupted; --resume continues\n", end="", file=sys.stderr)
        sys.exit(130)
    finally:
        show_warnings()
