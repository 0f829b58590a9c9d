"""Making folders of files: each is whole or not there, and one process makes it while others wait."""

import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from ...errors import UserError
from ...files import PARTIAL, WriterLock

logger = logging.getLogger(__name__)


def datasets_root() -> Path:
    """Detectron2's data set root: ``$DETECTRON2_DATASETS``, else ``datasets`` in the current folder."""
    return Path(os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets")))


@contextlib.contextmanager
def _locked(folder: Path):
    """Hold the lock on ``folder``, a file beside it; raises UserError where that cannot be written."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        path = folder.parent / f".{folder.name}.lock"
        try:
            lock = WriterLock(path, str(folder), "DETECTRON2_DATASETS")
        except UserError as busy:
            logger.info("Waiting: %s", busy)
            lock = WriterLock(path, str(folder), wait=True)
        try:
            yield
        finally:
            lock.release()
    except OSError as error:
        raise UserError(
            f"cannot write {folder}: {error}. Set DETECTRON2_DATASETS (or derived_root) to a writable folder "
            "with free space."
        ) from error


@contextlib.contextmanager
def filling(folder: Path):
    """Make ``folder`` and hold its lock while files are added; what killed processes left half-written goes.

    Raises:
        UserError: the folder cannot be made or filled.
    """
    with _locked(folder):
        folder.mkdir(exist_ok=True)
        for stale in folder.rglob(f"{PARTIAL}*"):
            stale.unlink(missing_ok=True)
        yield


def build_once(
    target: Path,
    is_complete: Callable[[Path], bool],
    build: Callable[[Path], None],
    ours: Callable[[Path], bool],
) -> Path:
    """Make the folder ``target`` exactly once, also when several processes ask for it at the same time.

    ``build`` fills a temporary folder beside ``target``, which is then renamed: no process ever sees half a
    folder. Nothing is built where ``is_complete``; what is incomplete is replaced if it is ``ours``.

    Raises:
        UserError: ``target`` holds something else, or cannot be written.
    """
    target = Path(target)
    if is_complete(target):
        return target
    with _locked(target):
        if is_complete(target):
            return target
        if target.exists() and not ours(target) and any(target.iterdir()):
            raise UserError(
                f"{target} exists but was not made by auto_panoptic; it is left untouched. "
                "Move it away, or set DETECTRON2_DATASETS to another folder."
            )
        prefix = f".{target.name}.tmp-"
        for stale in target.parent.glob(prefix + "*"):  # of killed processes: we hold the lock
            shutil.rmtree(stale, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
        try:
            content = folder / "new"
            content.mkdir()
            build(content)
            if target.exists():
                os.replace(target, folder / "old")
            os.replace(content, target)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return target
