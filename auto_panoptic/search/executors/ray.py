"""Candidates in parallel: Ray actors evaluate, the driver hands out work and collects.

Each worker holds one supernet. Its weights and the decoded images travel once per node, through Ray's object
store, where all workers of the node read them in place.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import signal
import socket
import time
import warnings
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch.utils._pytree import tree_map_only

from ...data import setup_datasets
from ...errors import UserError, at_least, first_line
from ...read_config import import_modules
from ...space import Architecture
from ...training import AutoPanopticTrainer, load_weights
from ..candidate import CandidateEvaluator, SearchImages, search_images
from .in_process import failure, outcome_of

logger = logging.getLogger(__name__)

# How often a candidate may cost its worker, and a worker may die before it is ready.
ATTEMPTS = 3
# Seconds without a single worker, none starting up successfully, after which the run ends.
START_TIMEOUT = 300.0
# Settings of the driver's environment that decide what a worker reads.
_INHERITED = ("DETECTRON2_DATASETS",)


def import_ray():
    """Ray, which is optional; raises UserError where it is missing."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise UserError(
            f"--workers needs Ray ({error}); pip install 'ray>=2.40', or leave --workers out"
        ) from error
    return ray


def cpu_share(cpus: Iterable[float], workers: int) -> float:
    """Largest equal share of CPUs per worker such that ``workers`` fit on nodes with ``cpus`` each.

    Whole CPUs where possible, else 1/2, 1/3, ... of one.
    """
    cpus = [count for count in cpus if count >= 1]
    shares = itertools.chain(range(int(max(cpus)), 0, -1), (1 / k for k in itertools.count(2)))
    return next(share for share in shares if sum(int(c / share + 1e-6) for c in cpus) >= workers)


class _Worker:
    """Runs in a process of its own, maybe on another machine."""

    def load(self, make_evaluator, shared, threads: int, directory: str) -> str:
        """Prepare; the host's name, for messages."""
        torch.set_num_threads(threads)
        if os.path.isdir(directory):  # relative paths of the config
            os.chdir(directory)
        self._evaluate = make_evaluator(shared)
        return socket.gethostname()

    def evaluate(self, architecture: Architecture) -> dict:
        return outcome_of(self._evaluate, architecture)

    def ask(self, method: str, architecture: Architecture):
        return getattr(self._evaluate, method)(architecture)


@dataclass(eq=False)
class _Slot:
    """Place of one worker, which is replaced when it dies."""

    actor: object = None
    ready: bool = False
    failures: int = 0  # deaths before it was ready, in a row


class RayExecutor:
    """Evaluates candidates on ``workers`` Ray actors.

    A worker that dies is replaced, and its candidate goes to the next free worker, three attempts in all;
    then it counts as failed. An exception within a candidate is a result, as in one process.

    Args:
        make_evaluator: called once per worker with what ``share`` returned; gives architecture -> (metrics,
            seconds per phase). Must be picklable.
        share: called once, in this process, when Ray runs. NumPy arrays in its result are not copied.
        workers: number of workers; each takes a GPU if ``gpus``, else an equal share of the CPUs.
        address: "auto" or "host:port" of a running cluster; None starts Ray on this machine.
        gpus: whether the workers run on GPUs.

    Raises:
        UserError: Ray is missing, no cluster answers, or it is too small.
    """

    def __init__(
        self,
        make_evaluator: Callable[[object], Callable],
        share: Callable[[], object],
        workers: int,
        address: str | None = None,
        gpus: bool = False,
    ):
        at_least("--workers", workers, 1)
        self._ray = import_ray()
        self._ours = not self._ray.is_initialized()
        self._slots: list[_Slot] = []
        self._make_evaluator = make_evaluator
        if self._ours:
            self._connect(address)
        try:
            self._plan(workers, gpus)
            self._shared = self._ray.put(share())
            self._slots = [_Slot() for _ in range(workers)]
        except BaseException:
            self.close()
            raise

    @property
    def ready(self) -> int:
        """Number of workers that wait for candidates or evaluate them."""
        return sum(slot.ready for slot in self._slots)

    def _connect(self, address: str | None) -> None:
        if address not in (None, "auto"):
            _check_address(address)
        handler = signal.getsignal(signal.SIGTERM)
        try:
            self._ray.init(
                address=address or "local",
                log_to_driver=False,
                logging_level=logging.ERROR,
                **({} if address else {"include_dashboard": False}),
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            where = f"--ray-address {address}" if address else "Ray cannot start on this machine"
            self.close()
            raise UserError(f"{where}: {first_line(error)}; 'ray start --head' starts a cluster") from error
        finally:
            if signal.getsignal(signal.SIGTERM) is not handler:  # Ray's exits with another code
                signal.signal(signal.SIGTERM, handler)

    def _plan(self, workers: int, gpus: bool) -> None:
        """Resources and threads of a worker."""
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        cpus = [node.get("CPU", 0) for node in nodes]
        found = int(sum(node.get("GPU", 0) for node in nodes))
        self.gpus = gpus and found > 0
        if self.gpus and workers > found:
            raise UserError(f"--workers is {workers}, the cluster has {found} GPUs; use at most {found}")
        if max(cpus, default=0) < 1:
            raise UserError("--ray-address: no node of the cluster has a CPU; start one with 'ray start'")
        share = cpu_share(cpus, workers)
        self.threads = max(1, int(share))
        variables = {"OMP_NUM_THREADS": str(self.threads), "OMP_WAIT_POLICY": "passive"}
        variables |= {name: os.environ[name] for name in _INHERITED if name in os.environ}
        self._options = {
            "num_cpus": 0 if self.gpus else share,
            "num_gpus": 1 if self.gpus else 0,
            "max_restarts": 0,
            "max_task_retries": 0,
            "runtime_env": {"env_vars": variables},
        }
        logger.info(
            "%d workers with %s%d threads on %d nodes",
            workers, "a GPU and " if self.gpus else "", self.threads, len(nodes),
        )  # fmt: skip

    def run(self, items: Iterable[tuple[Hashable, Architecture]]) -> Iterator[tuple[Hashable, dict]]:
        """Evaluate; yields (key, outcome) in the order in which the candidates finish.

        Raises:
            UserError: no worker is left, and none can be started.
        """
        waiting = deque((key, architecture, 1) for key, architecture in items)
        pending = {}  # reference of a call -> (slot, its item; None while the worker loads)
        deadline = time.monotonic() + START_TIMEOUT
        try:
            while waiting or any(item for _, item in pending.values()):
                self._hand_out(waiting, pending)
                done, _ = self._ray.wait(list(pending), num_returns=1, timeout=1.0)
                for reference in done:
                    slot, item = pending.pop(reference)
                    yield from self._collect(reference, slot, item, waiting)
                if self.ready:
                    deadline = time.monotonic() + START_TIMEOUT
                elif time.monotonic() > deadline:
                    raise UserError(
                        f"--workers: no worker started within {START_TIMEOUT:.0f} seconds; 'ray status' "
                        "shows what the cluster has free, and --resume continues"
                    )
        finally:
            for slot, _ in pending.values():  # nobody waits for them any more
                self._stop(slot)

    def ask(self, method: str, architecture: Architecture):
        """See :class:`Executor`; of a worker that is ready, which none is before :meth:`run`."""
        slot = next((slot for slot in self._slots if slot.ready), None)
        return slot and self._ray.get(slot.actor.ask.remote(method, architecture))

    def _hand_out(self, waiting: deque, pending: dict) -> None:
        """Give every free worker a candidate, and start those that are missing."""
        busy = [slot for slot, _ in pending.values()]
        for slot in self._slots:
            if slot in busy or slot.failures >= ATTEMPTS or not waiting:
                continue
            if slot.actor is None:
                slot.actor = self._ray.remote(_Worker).options(**self._options).remote()
                arguments = (self._make_evaluator, self._shared, self.threads, os.getcwd())
                pending[slot.actor.load.remote(*arguments)] = slot, None
            else:
                item = waiting.popleft()
                pending[slot.actor.evaluate.remote(item[1])] = slot, item

    def _collect(self, reference, slot: _Slot, item, waiting: deque) -> Iterator[tuple[Hashable, dict]]:
        """Take one answer; a candidate that has no result yet goes back to the front."""
        if item is None:
            self._started(reference, slot)
            return
        key, architecture, attempt = item
        errors = self._ray.exceptions
        try:
            outcome = self._ray.get(reference)
        except errors.RayTaskError as error:  # of a worker that lives
            if isinstance(error.cause, UserError):
                raise error.cause from error
            outcome = failure(_reason(error))
        except errors.RayError as error:
            self._stop(slot)
            reason = _reason(error)
            logger.warning("a worker died (%s), attempt %d of %d: %s", reason, attempt, ATTEMPTS, key)
            if attempt < ATTEMPTS:
                waiting.appendleft((key, architecture, attempt + 1))
                return
            outcome = failure(f"worker died {ATTEMPTS} times: {reason}")
        if outcome["status"] == "failed":
            logger.error("candidate failed: %s: %s", architecture.indices(), outcome["error"])
        yield key, outcome

    def _started(self, reference, slot: _Slot) -> None:
        """Take the answer of a worker that starts; where the last one cannot, the run ends."""
        try:
            logger.info("a worker is ready on %s", self._ray.get(reference))
            slot.ready, slot.failures = True, 0
        except self._ray.exceptions.RayError as error:
            self._stop(slot)
            is_alive = isinstance(error, self._ray.exceptions.RayTaskError)  # and would fail again
            slot.failures = ATTEMPTS if is_alive else slot.failures + 1
            logger.warning("a worker could not start: %s", _reason(error))
            if all(slot.failures >= ATTEMPTS for slot in self._slots):
                if isinstance(getattr(error, "cause", None), UserError):
                    raise error.cause from error
                raise UserError(
                    f"--workers: no worker could start; the last one: {_reason(error)}"
                ) from error

    def _stop(self, slot: _Slot) -> None:
        if slot.actor is not None:
            with contextlib.suppress(Exception):  # it is dead already
                self._ray.kill(slot.actor)
        slot.actor, slot.ready = None, False

    def close(self) -> None:
        """Stop the workers, and Ray if it was started here."""
        for slot in self._slots:
            self._stop(slot)
        self._slots, self._shared = [], None
        if self._ours:
            self._ray.shutdown()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def _reason(error: Exception) -> str:
    """Type and first line of what happened in a worker."""
    cause = getattr(error, "cause", None)
    error = cause if isinstance(cause, Exception) else error
    return f"{type(error).__name__}: {first_line(error)}"


def _check_address(address: str) -> None:
    """Ray itself would try for a minute."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"--ray-address {address}: expected auto or host:port, e.g. 10.0.0.1:6379")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise UserError(
            f"--ray-address {address}: nothing answers ({error}); start a cluster with 'ray start --head'"
        ) from error


class RayWorkers(RayExecutor):
    """:class:`CandidateEvaluator` on ``workers`` Ray actors.

    The nodes of a cluster need the package and, under the same path, the annotations of DATASETS.SEARCH;
    images and weights are sent to them. With equal threads, scores on CPU are those of one process to the
    last bit. On "cuda", or where this machine has no GPU, the cluster's GPUs are used.
    """

    def __init__(self, cfg, weights: str, metrics: Iterable[str], workers: int, address: str | None = None):
        gpus = cfg.MODEL.DEVICE.startswith("cuda") or not torch.cuda.is_available()
        make = partial(_candidate_evaluator, cfg, tuple(metrics))
        super().__init__(make, partial(_shared_data, cfg, weights), workers, address, gpus)


def _shared_data(cfg, weights: str) -> dict:
    """What all workers read: state of the supernet, and the images."""
    images = search_images(cfg)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    model = AutoPanopticTrainer.build_model(cfg)
    load_weights(model, weights, cfg=cfg)
    shared = {"state": dict(model.state_dict()), "images": list(images)}
    return tree_map_only(torch.Tensor, torch.Tensor.numpy, shared)  # arrays, which Ray does not copy


def _candidate_evaluator(cfg, metrics: tuple[str, ...], shared: dict) -> CandidateEvaluator:
    """Within a worker, on the device that Ray gave it."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cuda" if import_ray().get_gpu_ids() else "cpu"
    import_modules(cfg.IMPORTS)
    setup_datasets(cfg)
    cfg.freeze()
    model = AutoPanopticTrainer.build_model(cfg)
    model.load_state_dict(_tensors(shared["state"]))
    return CandidateEvaluator(cfg, model, metrics, SearchImages(*_tensors(shared["images"])))


def _tensors(tree):
    """Read-only memory of the node's object store, as tensors."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writ")
        return tree_map_only(np.ndarray, torch.from_numpy, tree)
