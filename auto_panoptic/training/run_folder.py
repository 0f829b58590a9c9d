"""One run per folder: who writes to an OUTPUT_DIR now, and whether a run has written there before."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
from collections.abc import Iterator

from detectron2.utils import comm

from ..errors import UserError
from ..files import WriterLock

LOCK = "run.lock"
_CHECKPOINT = re.compile(r"model_(final|\d+)\.pth")
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)  # what file systems without locks say


def check_unused(folder: str) -> None:
    """Raise UserError if ``folder`` holds results of a training run, which a new one would overwrite.

    These are checkpoints, and losses in metrics.json. Results of an evaluation, logs and files of others are
    not.
    """
    found = sorted(filter(_CHECKPOINT.fullmatch, os.listdir(folder) if os.path.isdir(folder) else ()))
    metrics = os.path.join(folder, "metrics.json")
    if not found and os.path.isfile(metrics):
        with open(metrics, "rb") as stream:
            found = ["metrics.json"] if any(b'"total_loss"' in line for line in stream) else []
    if found:
        raise UserError(
            f"OUTPUT_DIR {folder!r} holds {found[-1]} of an earlier run: continue that one with --resume "
            "(resume=True in Python), or choose another OUTPUT_DIR"
        )


@contextlib.contextmanager
def only_run(folder: str, fresh: bool = False) -> Iterator[None]:
    """Be the only run that writes to ``folder``; every process of the run enters it.

    Args:
        folder: OUTPUT_DIR; made if necessary.
        fresh: a run starts from the beginning: nothing of an earlier one may be there.

    Raises:
        UserError: in every process, if another run writes there, the folder was used, or cannot be written.
    """
    lock, problem = None, ""
    if comm.is_main_process():
        try:
            os.makedirs(folder, exist_ok=True)
            lock = WriterLock(os.path.join(folder, LOCK), protects=f"OUTPUT_DIR {folder!r}")
            if fresh:
                check_unused(folder)  # again: another run may just have ended
        except UserError as error:
            problem = str(error)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                logging.getLogger(__name__).warning("%s: no lock against a second run: %s", folder, error)
            else:
                problem = f"OUTPUT_DIR {folder!r} cannot be written: {error.strerror}"
    try:
        if problem := comm.all_gather(problem)[0]:
            raise UserError(problem)
        yield
    finally:
        if lock:
            lock.release()
