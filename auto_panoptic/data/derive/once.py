"""Making files once, whole, and in parallel: locks, atomic folders, deterministic worker pools."""

import contextlib
import ctypes
import fcntl
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from ...errors import UserError

PARTIAL = ".partial-"  # how the names of half-written files begin


def datasets_root() -> Path:
    """Detectron2's data set root: ``$DETECTRON2_DATASETS``, else ``datasets`` in the current folder."""
    return Path(os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets")))


@contextlib.contextmanager
def _locked(path: Path):
    """Hold an exclusive lock on ``path`` (released by the system if the process dies)."""
    with open(path, "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def build_once(
    target: Path,
    is_complete: Callable[[Path], bool],
    build: Callable[[Path], None],
    ours: Callable[[Path], bool],
) -> Path:
    """Make the folder ``target`` exactly once, also when several processes ask for it at the same time.

    ``build`` fills a temporary folder beside ``target``, which is then renamed: no process ever sees half a
    folder, and an interrupted build leaves nothing that counts. Later callers wait for the first one.

    Args:
        target: the folder to make.
        is_complete: whether a folder holds what is wanted; then nothing is built.
        build: fills the (empty) folder it is given.
        ours: whether an existing, incomplete ``target`` was made here and may be replaced.

    Returns:
        ``target``.

    Raises:
        UserError: ``target`` holds something else, or cannot be written.
    """
    target = Path(target)
    if is_complete(target):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target.parent / f".{target.name}.lock"):
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
    except OSError as error:
        raise UserError(
            f"cannot write {target}: {error}. Set DETECTRON2_DATASETS (or derived_root) to a writable folder "
            "with free space."
        ) from error
    return target


@contextlib.contextmanager
def replacing(path: Path):
    """Yield a temporary path beside ``path`` that takes its place at the end; no file is ever half there."""
    partial = path.with_name(f"{PARTIAL}{os.getpid()}-{path.name}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def filling(folder: Path):
    """Make ``folder`` and hold a lock on it while it is filled; what killed processes left half-written goes.

    Raises:
        UserError: the folder cannot be made or filled.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder.parent / f".{folder.name}.lock"):
            for stale in folder.rglob(f"{PARTIAL}*"):
                stale.unlink(missing_ok=True)
            yield
    except OSError as error:
        raise UserError(
            f"cannot write {folder}: {error}; give it a writable folder with free space"
        ) from error


def _quiet_worker():
    import cv2

    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which stops the workers
    if sys.platform == "linux":  # also when it is killed: 1 is PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def parallel_map(function: Callable, items: Iterable, processes: int | None = None, title: str = "") -> list:
    """``[function(x) for x in items]`` on several processes, in order, with a progress bar for long lists.

    Args:
        function: picklable; must not depend on any state that differs between processes.
        items: picklable arguments.
        processes: None takes the CPUs this process may use, at most 16.
        title: shown beside the progress bar.

    Raises:
        UserError: a worker died, mostly for want of memory; and what ``function`` raises.
    """
    from tqdm import tqdm

    items = list(items)
    if processes is None:
        processes = min(len(os.sched_getaffinity(0)), 16)
    # A daemonic process (a data loader's worker) may not have children of its own.
    serial = processes <= 1 or len(items) < 32 or multiprocessing.current_process().daemon
    progress = {"total": len(items), "desc": title, "mininterval": 1.0, "disable": len(items) < 256}
    if serial:
        return list(tqdm(map(function, items), **progress))
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(processes, mp_context=fork, initializer=_quiet_worker) as pool:
        try:
            return list(tqdm(pool.map(function, items, chunksize=8), **progress))
        except BrokenProcessPool:
            raise UserError(
                f"{title or 'parallel work'}: a worker process died, mostly for want of memory; use fewer "
                "processes and repeat"
            ) from None
