"""Start the processes of a run: Detectron2's launcher for GPUs, torchrun's ranks where it started us."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.distributed as dist
from detectron2.engine import launch
from detectron2.utils import comm
from torch.multiprocessing import ProcessExitedException

from .. import systems  # noqa: F401  registers their parts: a started process builds no config
from ..data import setup_datasets
from ..errors import UserError, run_command, show_warnings
from ..read_config import import_modules
from ..signals import end_with_parent
from .ranks import PATIENCE, among_ranks, lost_ranks_told


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
            f"--num-gpus {args.num_gpus}: this machine has {torch.cuda.device_count()} GPUs; on CPU start "
            f"processes with torchrun --nproc-per-node 2 {os.path.basename(sys.argv[0])} ..."
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
        raise UserError(
            f"{name} is {text!r}; expected a whole number of at least {least}, at most {most}: start the "
            "processes with torchrun, or unset WORLD_SIZE to run one"
        )
    return int(text)


def _join_torchrun(cfg, size: int) -> None:
    """Join the group that torchrun, or a scheduler with its variables, describes."""
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise UserError(
            f"WORLD_SIZE is {size}, but {' and '.join(missing)} not set: start the processes with torchrun, "
            "or unset WORLD_SIZE to run one"
        )
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
