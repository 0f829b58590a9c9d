"""A function of many items on several processes."""

import collections
import concurrent.futures
import ctypes
import functools
import itertools
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator

from ...errors import UserError
from ...progress import progress

_CHUNK = 8  # items per message to a process


def quiet_worker():
    """Make a worker process use one thread, leave Ctrl-C to its parent, and end with it."""
    import cv2

    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which stops the workers
    if sys.platform == "linux":  # also when it is killed: 1 is PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _run_chunk(function: Callable, chunk: list) -> list:
    return [function(item) for item in chunk]


def stream(function: Callable, items: Iterable, processes: int | None = None, title: str = "") -> Iterator:
    """``map(function, items)`` on several processes, with few items in flight.

    Args:
        function: picklable; must not depend on any state that differs between processes.
        items: picklable arguments; taken only as fast as they are worked on.
        processes: None takes the CPUs this process may use, at most 16; 1 works here.
        title: of the work, for the error.

    Raises:
        UserError: a process was killed, as the system does when memory runs out; and what ``function``
            raises.
    """
    if processes is None:
        usable = getattr(os, "sched_getaffinity", None)  # macOS has none
        processes = min(len(usable(0)) if usable else os.cpu_count() or 1, 16)
    # A daemonic process (a data loader's worker) may not have children of its own.
    if processes <= 1 or multiprocessing.current_process().daemon:
        yield from map(function, items)
        return
    items = iter(items)
    chunks = iter(lambda: list(itertools.islice(items, _CHUNK)), [])
    context = multiprocessing.get_context("fork")
    pool = concurrent.futures.ProcessPoolExecutor(processes, context, quiet_worker)
    work = functools.partial(_run_chunk, function)
    try:
        pending = collections.deque(pool.submit(work, c) for c in itertools.islice(chunks, 4 * processes))
        while pending:
            yield from pending.popleft().result()
            pending.extend(pool.submit(work, chunk) for chunk in itertools.islice(chunks, 1))
    except concurrent.futures.process.BrokenProcessPool:
        raise UserError(
            f"{title or 'parallel work'}: a worker process was killed, as happens when memory runs out; use "
            "fewer processes, such as --processes 1, and repeat"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)  # waits for the items in work


def parallel_map(function: Callable, items: Iterable, processes: int | None = None, title: str = "") -> list:
    """``[function(x) for x in items]`` by :func:`stream`, with the progress of long lists."""
    items = list(items)
    results = stream(function, items, 1 if len(items) < 32 else processes, title)
    return list(progress(results, title, len(items), shown=len(items) >= 256))
