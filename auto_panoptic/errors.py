"""What a user's mistake becomes: one line that says how to mend it, and exit code 2."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable


class UserError(ValueError):
    """A mistake in a config, a file or an argument.

    The message is one line: what is wrong, where, what is allowed, and the remedy. The command line tools
    print it without a traceback and exit with code 2.
    """


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
