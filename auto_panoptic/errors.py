"""What a user's mistake becomes: one line that says how to mend it, and exit code 2."""

from __future__ import annotations

import math
import numbers
import os
import sys
from collections.abc import Callable, Iterable


class UserError(ValueError):
    """A mistake in a config, a file or an argument.

    The message is one line: what is wrong, where, what is allowed, and the remedy. The command line tools
    print it without a traceback and exit with code 2.
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


def run_command(main: Callable[[], object], quiet: bool | None = None) -> None:
    """Run a command's ``main``; a UserError prints one line and exits with code 2, Ctrl-C with 130.

    Args:
        main: the command.
        quiet: print nothing, another process does; by default so in all but the first of torchrun's ranks.
    """
    if quiet is None:
        quiet = os.environ.get("LOCAL_RANK", "0") != "0"
    try:
        main()
    except UserError as error:
        print("" if quiet else f"error: {error}\n", end="", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("" if quiet else "interrupted; --resume continues\n", end="", file=sys.stderr)
        sys.exit(130)
