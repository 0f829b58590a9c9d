"""What of the log a person sees while a command runs; log.txt holds all of it.

The screen shows what this package says and every warning, each as a plain line above the progress bar.
"""

from __future__ import annotations

import contextlib
import logging
import re
import sys
from collections.abc import Iterator

from detectron2.utils.logger import setup_logger
from tqdm import tqdm

# ``extra`` of a message, where the rule above is not what a person needs.
LOG_ONLY, ON_SCREEN = {"screen": False}, {"screen": True}
_OURS = "auto_panoptic"
_LOGGERS = ("fvcore", "detectron2", _OURS)
_quiet = 0  # in :func:`only_warnings`
_ESCAPES = re.compile("\x1b\\[[0-9;]*m")


class Screen(logging.Handler):
    """Writes messages to stdout, above a progress bar if there is one."""

    def __init__(self):
        super().__init__(logging.INFO)
        self.addFilter(_for_people)
        self.stream = sys.stdout  # also while that is redirected

    def format(self, record: logging.LogRecord) -> str:
        """The message without time and place, and of an exception the last line: the log has the rest."""
        kind = "" if record.levelno < logging.WARNING else f"{record.levelname}: "
        error = record.exc_info[1] if record.exc_info else None
        what = f" ({type(error).__name__}: {error})" if error else ""
        return _ESCAPES.sub("", f"{kind}{record.getMessage()}{what}")

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(self.stream, "closed", False):
            self.stream = sys.stdout
        try:
            if getattr(tqdm, "_instances", None):
                tqdm.write(self.format(record), file=self.stream)
            else:
                print(self.format(record), file=self.stream)
            self.stream.flush()
        except Exception:
            self.handleError(record)


class _Plain(logging.Formatter):
    """Another formatter's text without colours."""

    def __init__(self, other: logging.Formatter):
        super().__init__()
        self.other = other

    def format(self, record: logging.LogRecord) -> str:
        return _ESCAPES.sub("", self.other.format(record))


@contextlib.contextmanager
def only_warnings() -> Iterator[None]:
    """Within the block, one of many equal pieces of work, messages other than warnings are for the log."""
    global _quiet
    _quiet += 1
    try:
        yield
    finally:
        _quiet -= 1


def _for_people(record: logging.LogRecord) -> bool:
    if _quiet and record.levelno < logging.WARNING:
        return False
    usual = record.levelno >= logging.WARNING or record.name.split(".")[0] == _OURS
    return getattr(record, "screen", usual)


def set_up_logs(folder: str, rank: int = 0, verbose: bool = False) -> None:
    """Detectron2's loggers with ``folder``/log.txt; the first process shows on the screen what people need.

    With ``verbose`` the screen shows all, as Detectron2's commands do. Handlers that a program has set up
    before stay as they are, and what they show is not shown twice.
    """
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.NOTSET if verbose else logging.ERROR)
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        before = list(logger.handlers)
        # The very calls of Detectron2's default_setup, which does not repeat them.
        options = {} if name == "detectron2" else {"name": name}
        setup_logger(folder, distributed_rank=rank, **options)
        new = [handler for handler in logger.handlers if handler not in before]
        for handler in new:
            if getattr(handler, "stream", None) is not sys.stdout:
                handler.setFormatter(_Plain(handler.formatter))
            elif not verbose:
                logger.removeHandler(handler)
        if rank == 0 and not verbose:
            show(logger)


def show(logger: logging.Logger) -> None:
    """Let a logger's messages for people reach the screen, unless a handler of it does so already."""
    streams = [getattr(handler, "stream", None) for handler in logger.handlers]
    if not any(stream in (sys.stdout, sys.stderr) for stream in streams if stream is not None):
        logger.addHandler(Screen())
