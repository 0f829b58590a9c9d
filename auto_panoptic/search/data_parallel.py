"""One candidate at a time on all processes of a run, Detectron2's way: each takes a share of the images.

The main process leads: it alone has the ledger and says what is next; the others follow. All go in step, so
that what fails in one process fails in all of them, and none waits for another.

The batches are those of one process, dealt out whole, and all sums are added up in the order of one process:
at equal threads, scores on CPU are those of one process to the last bit.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from functools import partial

import torch
from detectron2.evaluation import DatasetEvaluators
from detectron2.utils import comm
from fvcore.nn.precise_bn import _PopulationVarianceEstimator, get_bn_modules
from tqdm import tqdm

from ..errors import UserError
from ..evaluation import panoptic_quality_of
from ..space import Architecture
from ..training import AutoPanopticTrainer, load_weights
from .bn_recalibration import recalibrated
from .evaluate import CandidateEvaluator, search_images
from .executors import outcome_of

logger = logging.getLogger(__name__)

_PREPARE, _EVALUATE, _END = "prepare", "evaluate", "end"


class StepFailed(Exception):
    """What all processes raise when one of them failed.

    Attributes:
        mistake: the message, if it was a :class:`UserError`.
    """

    def __init__(self, message: str, mistake: str | None = None):
        super().__init__(message)
        self.mistake = mistake


class ProcessLost(BaseException):
    """Another process is gone; not an Exception, as no candidate is to blame and none can follow."""


def exchange(value=None, error: Exception | None = None) -> list:
    """Give ``value`` to all processes and get theirs, in the order of ranks; all call it equally often.

    Raises:
        StepFailed: in all processes, if any gave an ``error``.
        ProcessLost: a process is gone.
    """
    mistake = str(error) if isinstance(error, UserError) else None
    facts = error and (f"{type(error).__name__}: {error}", mistake)
    try:
        parts = comm.all_gather((facts, value))
    except RuntimeError as cause:
        raise ProcessLost(str(cause).splitlines()[0]) from cause
    for rank, (failed, _) in enumerate(parts):
        if failed:
            raise StepFailed(f"process {rank}: {failed[0]}", failed[1])
    return [value for _, value in parts]


def _in_step(function: Callable, *args):
    """Call ``function``, which may :func:`exchange`, in all processes.

    Raises:
        StepFailed: in all of them, if it raised an exception in any.
    """
    try:
        result = function(*args)
        exchange()
        return result
    except StepFailed:
        raise
    except Exception as error:
        if not comm.is_main_process():
            logger.exception("process %d failed", comm.get_rank())
        exchange(error=error)
        raise


# ------------------------------------------------------------------ who says what is next


def lead(main: Callable[[], None]) -> None:
    """Run ``main`` in the main process, with one :class:`DataParallel` at most; the others end with it.

    Raises:
        UserError: another process is gone; and what ``main`` raises.
    """
    try:
        main()
    except ProcessLost as lost:
        raise UserError(f"another process of the run is gone ({lost}); --resume continues") from lost
    except Exception as error:
        exchange((_END, 2 if isinstance(error, UserError) else 1))
        raise
    exchange((_END, 0))


def follow(make_evaluator: Callable[[], Callable]) -> None:
    """Do in the other processes what the main process says.

    Args:
        make_evaluator: as of :class:`DataParallel`.

    Raises:
        SystemExit: the main process failed, with its exit code, or left without a word. It tells why.
    """
    evaluate = None
    try:
        while True:
            task, argument = exchange()[0]
            if task == _END:
                break
            try:
                if task == _PREPARE:
                    evaluate = _in_step(make_evaluator)
                else:
                    _in_step(evaluate, argument)
            except StepFailed:
                pass  # the main process records it
    except ProcessLost:
        argument = 130
    if argument:
        sys.exit(argument)


class DataParallel:
    """Evaluates one candidate after the other on all processes; in the main process, within :func:`lead`.

    Args:
        make_evaluator: called in every process; gives architecture -> (metrics, seconds per phase), of which
            the main process's counts. See :func:`share_evaluator`.

    Raises:
        UserError: of ``make_evaluator`` in any process.
    """

    def __init__(self, make_evaluator: Callable[[], Callable]):
        exchange((_PREPARE, None))
        try:
            self._evaluate = _in_step(make_evaluator)
        except StepFailed as failure:
            if failure.mistake is not None:
                raise UserError(failure.mistake) from failure
            raise

    def run(self, items: Iterable[tuple[Hashable, Architecture]]) -> Iterator[tuple[Hashable, dict]]:
        """See :class:`Executor`."""
        for key, architecture in items:
            exchange((_EVALUATE, architecture))
            yield key, outcome_of(partial(_in_step, self._evaluate), architecture)


# ------------------------------------------------------------------ a process's share of a candidate


class Share(list):
    """The batches of this process, of those that one process would make; true if there are any at all.

    Attributes:
        places: the batches' indices among all batches.
        total: number of all batches.
        order: "image_id" of all images, in the order of one process.
    """

    def __init__(self, batches: Iterable[list[dict]], places: Sequence[int], total: int, order: list):
        super().__init__(batches)
        self.places, self.total, self.order = places, total, order

    def __bool__(self):
        return self.total > 0


def read_share(dicts: list[dict], mapper, size: int, key: Callable[[dict], object], what: str) -> Share:
    """Decode a data set's share of this process; in all processes at once.

    Each decodes a run of images, tells their keys, and then decodes what its batches lack.

    Args: see :func:`auto_panoptic.search.evaluate.search_images`.
    """
    rank, world = comm.get_rank(), comm.get_world_size()
    run = range(rank * len(dicts) // world, (rank + 1) * len(dicts) // world)
    bar = tqdm(run, desc=what, unit="image", disable=None if rank == 0 else True, leave=False)
    samples = {i: mapper(dicts[i]) for i in bar}
    groups: dict[object, list[int]] = {}
    for i, value in enumerate(sum(exchange([key(sample) for sample in samples.values()]), [])):
        groups.setdefault(value, []).append(i)
    batches = [group[i : i + size] for group in groups.values() for i in range(0, len(group), size)]
    places = deal(batches, world)[rank]
    return Share(
        [[samples[i] if i in samples else mapper(dicts[i]) for i in batches[place]] for place in places],
        places,
        len(batches),
        [dicts[i].get("image_id") for batch in batches for i in batch],
    )


def deal(batches: list[list[int]], world: int) -> list[list[int]]:
    """Places of each process's batches: about equally many images, close to the run that it decodes."""
    shares: list[list[int]] = [[] for _ in range(world)]
    total, before = sum(map(len, batches)), 0
    for place in sorted(range(len(batches)), key=lambda place: batches[place][0]):
        count = len(batches[place])
        shares[(2 * before + count) * world // (2 * total)].append(place)
        before += count
    return [sorted(places) for places in shares]


def shared_average(model: torch.nn.Module, share: Share, _: int) -> None:
    """fvcore's ``update_bn_stats`` with the batches of all processes, in the order of one."""
    layers = get_bn_modules(model)
    momenta = [layer.momentum for layer in layers]
    sizes: dict[torch.nn.Module, int] = {}

    def note_size(layer, inputs):
        sizes[layer] = inputs[0].numel() // inputs[0].shape[1]

    hooks = [layer.register_forward_pre_hook(note_size) for layer in layers]
    for layer in layers:
        layer.momentum = 1.0  # the running statistics are the batch's
    own = []
    for place, batch in zip(share.places, share, strict=True):
        sizes.clear()
        model(batch)
        statistics = {
            i: (layer.running_mean.cpu().numpy().copy(), layer.running_var.cpu().numpy().copy(), sizes[layer])
            for i, layer in enumerate(layers)
            if layer in sizes
        }
        own.append((place, statistics))
    estimators = [_PopulationVarianceEstimator(layer.running_mean, layer.running_var) for layer in layers]
    for _, statistics in sorted(sum(exchange(own), []), key=lambda entry: entry[0]):
        for i, (mean, var, count) in statistics.items():
            device = layers[i].running_mean.device
            estimators[i].update(torch.from_numpy(mean).to(device), torch.from_numpy(var).to(device), count)
    for layer, estimator, momentum, hook in zip(layers, estimators, momenta, hooks, strict=True):
        layer.running_mean, layer.running_var = estimator.pop_mean, estimator.pop_var
        layer.momentum = momentum
        hook.remove()


class _InStepEvaluators(DatasetEvaluators):
    """Evaluators that gather in step; panoptic quality is added up in ``order``."""

    def __init__(self, evaluators: list, order: list):
        super().__init__(evaluators)
        self._order = order

    def evaluate(self) -> dict:
        exchange()  # all have their predictions
        results = {}
        for evaluator in self._evaluators:
            results |= evaluator.evaluate() or {}
            exchange()
        quality = panoptic_quality_of(self)
        if comm.is_main_process() and quality is not None:
            exact = quality.in_order(self._order).compute()
            panoptic = results["panoptic_seg"]
            panoptic.update({name: value for name, value in exact.items() if name in panoptic})
        return results


class ShareEvaluator(CandidateEvaluator):
    """:class:`CandidateEvaluator` whose images are dealt out to the processes of the run.

    With a moving average (NAS.BN_RECALIBRATION.MOMENTUM), every process recalibrates on all images.

    Returns, when called, metrics in the main process only.
    """

    def __init__(self, cfg, model: torch.nn.Module, metrics: Sequence[str]):
        super().__init__(cfg, model, metrics, search_images(cfg, read_share))
        self.data = [
            (share, _InStepEvaluators(evaluators._evaluators, share.order)) for share, evaluators in self.data
        ]

    def _statistics(self):
        if self.momentum or not self.calibration:
            return super()._statistics()
        return recalibrated(self.model, self.calibration, average=shared_average)

    def _metrics(self, evaluators: DatasetEvaluators):
        if comm.is_main_process():
            return super()._metrics(evaluators)
        evaluators.evaluate()
        return {}, None


def share_evaluator(cfg, weights: str, metrics: Sequence[str]) -> ShareEvaluator:
    """This process's part of the candidates of a supernet.

    Args:
        cfg: of the supernet. "SyncBN" becomes "BN": the processes exchange statistics once per candidate,
            not in each layer.
        weights: checkpoint of the supernet.
        metrics: of "pq", "ap", "miou".
    """
    cfg = cfg.clone()
    cfg.defrost()
    if cfg.MODEL.SHUFFLENET.NORM == "SyncBN":
        cfg.MODEL.SHUFFLENET.NORM = "BN"
    cfg.freeze()
    model = AutoPanopticTrainer.build_model(cfg)
    load_weights(model, weights)
    return ShareEvaluator(cfg, model, metrics)
