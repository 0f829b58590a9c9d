"""A function of many items on several processes, in order."""

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from ...errors import UserError


def quiet_worker():
    """Make a worker process use one thread, leave Ctrl-C to its parent, and end with it."""
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
    with ProcessPoolExecutor(processes, mp_context=fork, initializer=quiet_worker) as pool:
        try:
            return list(tqdm(pool.map(function, items, chunksize=8), **progress))
        except BrokenProcessPool:
            raise UserError(
                f"{title or 'parallel work'}: a worker process died, mostly for want of memory; use fewer "
                "processes and repeat"
            ) from None
