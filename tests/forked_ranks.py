"""Ranks as torchrun starts them, as forks of this process: they need not import anything again."""

import multiprocessing
import os
import socket
import sys
from pathlib import Path


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def on_ranks(world: int, function, folder: Path, timeout: float = 120.0) -> list[int]:
    """Call ``function(rank)`` in ``world`` processes with the environment of torchrun; their exit codes.

    What a process prints goes to ``folder``/<rank>.log.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()

    def run(rank):
        sys.stdout.flush()
        sys.stderr.flush()
        log = os.open(folder / f"{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        os.environ |= {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        function(rank)

    processes = [multiprocessing.get_context("fork").Process(target=run, args=(r,)) for r in range(world)]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(timeout)
        return [process.exitcode for process in processes]
    finally:
        for process in processes:
            process.kill()
