"""The processes of a run notice when one of them is stopped or lost, however long each works alone."""

from __future__ import annotations

import contextlib
import datetime
import os
import threading
from collections.abc import Callable, Iterator

import torch.distributed as dist
from detectron2.utils import comm

from .. import errors

# A collective waits so long for a process that lives: it may be scoring, or hang.
PATIENCE = datetime.timedelta(hours=2)


@contextlib.contextmanager
def among_ranks(limit: float) -> Iterator[None]:
    """What a process of a run does with the others, who may stop: they give each other signs of life.

    Where those of the next process cease for ``limit`` seconds of this one's own life, it ends with one line;
    the others follow, as they do when a process ends.
    """
    left = threading.Event()
    try:
        errors.shared_store = dist.distributed_c10d._get_default_store()  # outlives the groups
        ours = _Signs(errors.shared_store.clone(), limit, left)
        yield
        ours.say("left")
    finally:
        left.set()


@contextlib.contextmanager
def lost_ranks_told() -> Iterator[None]:
    """Turn what collectives say when another process has ended into RankLost."""
    try:
        yield
    except RuntimeError as error:
        text = errors.first_line(error)
        if isinstance(error, dist.DistError) or "gloo" in text:
            what = "another process of the run has ended, or does not answer"
            raise errors.RankLost(f"{what} ({text}); --resume continues") from error
        raise


def by_first(work: Callable[[], object]) -> None:
    """Let the first process do it; others wait half a minute: a launcher ends all when one has ended."""
    if comm.get_world_size() == 1:
        work()
        return
    store = dist.distributed_c10d._get_default_store()
    if comm.is_main_process():
        work()
        store.set("first/done", "")
    else:
        with contextlib.suppress(RuntimeError):
            store.wait(["first/done"], datetime.timedelta(seconds=25))


class _Signs:
    """Signs of life of this process and the next."""

    def __init__(self, store, limit: float, left: threading.Event):
        self.store, self.limit, self.left = store, limit, left
        self.rank, self.next = dist.get_rank(), (dist.get_rank() + 1) % dist.get_world_size()
        self.seen = ""
        for work in (self._exchange, self._watch):
            threading.Thread(target=work, daemon=True).start()

    def say(self, sign: str) -> None:
        """Leave a sign for the process before this one."""
        with contextlib.suppress(RuntimeError):  # the process that holds the store has ended
            self.store.set(f"sign/{self.rank}", sign)

    def _exchange(self) -> None:
        count = 0
        while not self.left.wait(min(5.0, self.limit / 4)):
            self.say(str(count := count + 1))
            with contextlib.suppress(RuntimeError):
                if self.store.check([f"sign/{self.next}"]):
                    self.seen = self.store.get(f"sign/{self.next}").decode()

    def _watch(self) -> None:
        """A thread of its own: where a stopped process holds the store, :meth:`_exchange` waits for ever."""
        silent, before, period = 0.0, "", self.limit / 20
        while not self.left.wait(period) and self.seen != "left":
            silent, before = (silent + period if self.seen == before else 0.0), self.seen
            if silent >= self.limit:
                errors.say_at_end(
                    f"error: process {self.next} of the run has given no sign of life for {self.limit:g} s "
                    "(RANK_TIMEOUT): it is stopped, or its machine is lost; --resume continues"
                )
                os._exit(2)
