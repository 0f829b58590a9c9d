"""Start the processes of a run, which notice when one of them is stopped or lost.

Detectron2's launcher starts one per GPU; under torchrun this process is one of them.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import gc
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.distributed as dist
from detectron2.engine import default_argument_parser, launch
from detectron2.utils import comm
from torch.multiprocessing import ProcessExitedException

from .. import errors, systems  # noqa: F401  registers their parts: a started process builds no config
from ..data import setup_datasets
from ..errors import UserError, run_command, show_warnings
from ..read_config import import_modules
from ..signals import end_with_parent

# A collective waits so long for a process that lives: it may be scoring, or hang.
PATIENCE = datetime.timedelta(hours=2)
_TORCHRUN = "start the processes with torchrun, or unset WORLD_SIZE to run one"


def launch_parser(usage: str | None, resumed: str, config: str = "") -> argparse.ArgumentParser:
    """Detectron2's parser, whose help says what its options do here.

    Args:
        usage: shown at the end.
        resumed: what --resume continues.
        config: taken where --config-file is left out.
    """
    parser = default_argument_parser(usage)
    default = f" (default: {config})" if config else ", such as configs/quick/supernet.yaml"
    texts = {
        "config_file": f"a file, or the name of one of ours or of Detectron2's model zoo{default}",
        "resume": f"continue {resumed} in OUTPUT_DIR, or start it where there is nothing of it",
        "eval_only": "evaluate MODEL.WEIGHTS on DATASETS.TEST, train nothing",
        "num_gpus": "processes on this machine, one per GPU (default: 1)",
        "num_machines": "machines (default: 1)",
        "machine_rank": "number of this machine, from 0",
        "dist_url": "with --num-machines: tcp://HOST:PORT of machine 0",
        "opts": "KEY VALUE ... at the end: settings that replace those of the config, such as OUTPUT_DIR "
        "output/mine SOLVER.BASE_LR 0.01; 'make docs' lists all keys",
    }
    for action in parser._actions:
        action.help = texts.get(action.dest, action.help)
    parser.set_defaults(config_file=config)
    return parser


def processes(args) -> int:
    """How many processes the run of these arguments has: torchrun's, or one per GPU."""
    size = _of_launcher("WORLD_SIZE", 1)
    return size if size > 1 else max(args.num_gpus, 1) * args.num_machines


def launch_processes(main: Callable, args, cfg) -> None:
    """Call ``main(args, cfg)`` in every process of the run.

    Under torchrun this process is one rank, with gloo on CPU and nccl on GPUs. Otherwise Detectron2 starts
    ``--num-gpus`` processes on each of ``--num-machines`` machines, in which the data sets of ``cfg`` are
    registered; where one ends by :func:`run_command`, this process ends with its exit code.

    Raises:
        UserError: more GPUs asked for than there are, or variables of a launcher that make no sense.
    """
    if (size := _of_launcher("WORLD_SIZE", 1)) > 1:
        end_with_parent()
        try:
            with lost_ranks_told():
                _join_torchrun(cfg, size)
                show_warnings()
                with among_ranks(cfg.RANK_TIMEOUT):
                    main(args, cfg)
        finally:
            _leave_torchrun()
        return
    if args.num_gpus > 1 and torch.cuda.device_count() < args.num_gpus:
        raise UserError(
            f"--num-gpus {args.num_gpus}: this machine has {torch.cuda.device_count()} GPUs; on CPU: "
            f"torchrun --nproc-per-node 2 {os.path.basename(sys.argv[0])} ..."
        )
    show_warnings()
    several = args.num_gpus * args.num_machines > 1
    try:
        launch(
            partial(_started, main, os.getpid()) if several else main,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(args, cfg),
            timeout=PATIENCE,
        )
    except ProcessExitedException as error:
        if error.exit_code > 0:  # by sys.exit, and it has said why
            sys.exit(error.exit_code)
        raise UserError(f"{error}, perhaps for want of memory; --resume continues") from error
    except KeyboardInterrupt as error:
        number = getattr(error, "number", signal.SIGINT)
        if 128 + number in _stop(multiprocessing.active_children(), number):  # and it has said so
            sys.exit(128 + number)
        raise


def _stop(processes: list, number: int) -> list[int | None]:
    """Pass a signal on to processes that Detectron2 started, which may save; their exit codes."""
    for process in processes:
        os.kill(process.pid, number)
    deadline = time.monotonic() + 30
    try:
        for process in processes:
            process.join(max(deadline - time.monotonic(), 0))
    finally:
        for process in processes:
            process.kill()
    return [process.exitcode for process in processes]


def _started(main: Callable, parent: int, args, cfg) -> None:
    """In a process that Detectron2 started, which has inherited no registered data set."""
    end_with_parent(parent)

    def work() -> None:
        with lost_ranks_told(), among_ranks(cfg.RANK_TIMEOUT):
            _registered(main, args, cfg)

    run_command(work, alone=False)


def _registered(main: Callable, args, cfg) -> None:
    import_modules(cfg.IMPORTS)
    setup_datasets(cfg)
    main(args, cfg)


def _leave_torchrun() -> None:
    """Forget the groups, too: threads of one that lives until the interpreter ends may then abort it."""
    if dist.is_initialized():
        dist.destroy_process_group()
    for name, value in vars(comm).items():
        if isinstance(value, dist.ProcessGroup):
            setattr(comm, name, None)
        elif hasattr(value, "cache_clear"):
            value.cache_clear()
    gc.collect()


def _of_launcher(name: str, least: int, most: int = 10**6) -> int:
    """A variable of a launcher, by default the least that it may be."""
    text = os.environ.get(name, str(least))
    if not text.isdecimal() or not least <= int(text) <= most:
        problem = f"{name} is {text!r}; expected a whole number of at least {least}, at most {most}"
        raise UserError(f"{problem}: {_TORCHRUN}")
    return int(text)


def _join_torchrun(cfg, size: int) -> None:
    """Join the group that torchrun, or a scheduler with its variables, describes."""
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise UserError(f"WORLD_SIZE is {size}, but {' and '.join(missing)} not set: {_TORCHRUN}")
    # One process per machine where nothing is said, as Kubernetes and Slurm start them.
    _of_launcher("RANK", 0, size - 1)
    _of_launcher("MASTER_PORT", 0, 65535)
    local_size = _of_launcher("LOCAL_WORLD_SIZE", 1, size)
    local_rank = _of_launcher("LOCAL_RANK" if "LOCAL_RANK" in os.environ else "SLURM_LOCALID", 0, size - 1)
    on_gpu = cfg.MODEL.DEVICE.startswith("cuda")
    if on_gpu:
        torch.cuda.set_device(local_rank)
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=PATIENCE)
    if hasattr(comm, "create_local_process_group"):
        comm.create_local_process_group(local_size)
    else:  # Detectron2 0.6 has no function for it
        for machine in range(dist.get_world_size() // local_size):
            ranks = list(range(machine * local_size, (machine + 1) * local_size))
            group = dist.new_group(ranks)
            if dist.get_rank() in ranks:
                comm._LOCAL_PROCESS_GROUP = group


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
        self.seen, self.said_all, self.saying = "", False, threading.Lock()
        for work in (self._exchange, self._watch):
            threading.Thread(target=work, daemon=True).start()

    def say(self, sign: str) -> None:
        """Leave a sign for the process before this one; none after that of leaving."""
        with self.saying, contextlib.suppress(RuntimeError):  # the process that holds the store has ended
            if not self.said_all:
                self.store.set(f"sign/{self.rank}", sign)
                self.said_all = sign == "left"

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
