"""One run per folder: who writes to an OUTPUT_DIR now, and whether a run has written there before."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import resource
import shutil
from collections.abc import Iterator

from detectron2.utils import comm

from ..errors import UserError
from ..files import WriterLock, end_last_line, open_own
from .checkpoint import POINTER, RECORD

LOCK = "run.lock"
# What Detectron2 writes in place: lines, and results of its evaluators.
_IN_PLACE = re.compile(r"(metrics\.json|config\.yaml|log\.txt(?:\.rank\d+)?)|inference/.*\.(?:json|pth)")
_CHECKPOINT = re.compile(r"model_(final|interrupted|\d+)\.pth")
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)  # what file systems without locks say


def traces(folder: str) -> list[str]:
    """What a training run has left in ``folder``: checkpoints, or losses in metrics.json."""
    found = sorted(filter(_CHECKPOINT.fullmatch, os.listdir(folder) if os.path.isdir(folder) else ()))
    metrics = os.path.join(folder, "metrics.json")
    if not found and os.path.isfile(metrics):
        with open(metrics, "rb") as stream:
            found = ["metrics.json"] if any(b'"total_loss"' in line for line in stream) else []
    return found


def check_unused(folder: str) -> None:
    """Raise UserError if a training run, and no mere evaluation, has written to ``folder``."""
    found = traces(folder) or [RECORD] * os.path.lexists(os.path.join(folder, RECORD))
    if found:
        remedy = "continue that one with --resume (resume=True in Python), or choose another OUTPUT_DIR"
        raise UserError(f"OUTPUT_DIR {folder!r} holds {found[-1]} of an earlier run: {remedy}")


def check_room(folder: str, size: int = 0, number: int = 1) -> None:
    """Raise UserError unless OUTPUT_DIR can be written and holds ``size`` bytes, warn of ``number`` times."""
    there = os.path.abspath(folder)
    while not os.path.lexists(there):
        there = os.path.dirname(there)
    if not (os.path.isdir(there) and os.access(there, os.W_OK | os.X_OK)):
        problem = f"OUTPUT_DIR {folder!r} cannot be written"
        raise UserError(f"{problem}: {there} is no folder, or read-only; choose another")
    free, limit = shutil.disk_usage(there).free, resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if size > free or size > limit >= 0:
        problem = f"a checkpoint takes about {size:,} bytes, {free:,} are free (ulimit -f: {limit})"
        raise UserError(f"OUTPUT_DIR {folder!r}: {problem}; make room, or choose another OUTPUT_DIR")
    if size * number > free:
        logging.getLogger(__name__).warning(
            "%s: %d checkpoints of about %s bytes, %s are free: make room, or set SOLVER.CHECKPOINTS_KEPT 1",
            folder, number, f"{size:,}", f"{free:,}",
        )  # fmt: skip


@contextlib.contextmanager
def only_run(folder: str, fresh: bool = False, alone: bool = False) -> Iterator[None]:
    """Be the only run that writes to ``folder``, made if necessary; every process of the run enters.

    With ``fresh`` nothing of an earlier run may be there; with ``alone`` no other process of this one enters.

    Raises:
        UserError: in every process, if another run writes there, the folder was used, or cannot be written.
    """
    lock, problem = None, ""
    if alone or comm.is_main_process():
        try:
            os.makedirs(folder, exist_ok=True)
            try:
                lock = WriterLock(os.path.join(folder, LOCK), protects=f"OUTPUT_DIR {folder!r}")
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                logging.getLogger(__name__).warning("%s: no lock against a second run: %s", folder, error)
            if fresh:
                check_unused(folder)  # again: another run may just have ended
            _mend(folder)
        except UserError as error:
            problem = str(error)
        except OSError as error:
            problem = f"OUTPUT_DIR {folder!r} cannot be written: {error.strerror}; choose another"
    try:
        if problem := problem if alone else comm.all_gather(problem)[0]:
            raise UserError(problem)
        yield
    finally:
        if lock:
            lock.release()


def _mend(folder: str) -> None:
    """End the lines that a kill has cut; refuse what only has the name of a file of the run."""
    results = os.path.join(folder, "inference")
    inner = [f"inference/{name}" for name in (os.listdir(results) if os.path.isdir(results) else ())]
    for name in os.listdir(folder) + inner:
        path = os.path.join(folder, name)
        if match := _IN_PLACE.fullmatch(name):
            handle = open_own(path)
            if match[1]:
                end_last_line(handle, b"}" if name == "metrics.json" else b"")
            os.close(handle)
        elif (_CHECKPOINT.fullmatch(name) or name in (POINTER, RECORD)) and not os.path.isfile(path):
            raise UserError(f"{path}: is no plain file, but a run writes it: move it away")
