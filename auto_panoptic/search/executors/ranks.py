"""One candidate per rank of torchrun or ``--num-gpus``: every rank scores whole candidates.

The main rank runs the search and alone has the ledger. It deals the candidates out in rounds, one to each
rank, and takes the outcomes in their order: ledger and result do not depend on the number of ranks.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence

import torch
import torch.distributed as dist
from detectron2.layers import NaiveSyncBatchNorm
from detectron2.utils import comm

from ...errors import UserError
from ...space import Architecture
from ..candidate import CandidateEvaluator, load_evaluator
from .in_process import Evaluate, outcome_of


class Ranks:
    """Evaluates one candidate per rank at a time; for the main rank, within :func:`leading`.

    Args:
        make_evaluate: gives what evaluates an architecture; called here and in each rank that follows.

    Raises:
        UserError: that of ``make_evaluate`` in any rank.
    """

    def __init__(self, make_evaluate: Callable[[], Evaluate]):
        self._make_evaluate = functools.cache(make_evaluate)
        self._round([])

    def run(self, items: Iterable[tuple[Hashable, Architecture]]) -> Iterator[tuple[Hashable, dict]]:
        """See :class:`Executor`; in the order of the items."""
        items, size = list(items), comm.get_world_size()
        for start in range(0, len(items), size):
            dealt = items[start : start + size]
            outcomes = self._round([architecture for _, architecture in dealt])
            yield from zip((key for key, _ in dealt), outcomes, strict=True)

    def ask(self, method: str, architecture: Architecture):
        """See :class:`Executor`; of the main rank, while the others wait."""
        return getattr(self._make_evaluate(), method)(architecture)

    def _round(self, architectures: list[Architecture]) -> list[dict]:
        comm.all_gather(architectures)
        outcomes = _play(self._make_evaluate, architectures)
        for rank, outcome in enumerate(outcomes):
            if isinstance(outcome, UserError):
                raise UserError(f"rank {rank}: {outcome}" if rank else str(outcome))
        return outcomes[: len(architectures)]


@contextlib.contextmanager
def leading() -> Iterator[None]:
    """In the main rank: the others leave :func:`follow` at the end of the block, an exception included."""
    try:
        yield
    except Exception:
        with contextlib.suppress(RuntimeError):  # they have ended
            comm.all_gather(None)
        raise
    comm.all_gather(None)


def follow(make_evaluate: Callable[[], Evaluate]) -> None:
    """In the other ranks: evaluate what :class:`Ranks` of the main rank deals out, until its end."""
    make_evaluate = functools.cache(make_evaluate)
    while (architectures := comm.all_gather(None)[0]) is not None:
        _play(make_evaluate, architectures)


def _play(make_evaluate: Callable[[], Evaluate], architectures: list[Architecture]) -> list:
    """Evaluate this rank's architecture, if there is one; what came of it in all ranks."""
    outcome = None
    try:
        evaluate = make_evaluate()
        for architecture in architectures[comm.get_rank() :][:1]:
            outcome = outcome_of(evaluate, architecture)
    except UserError as error:
        outcome = error
    return comm.all_gather(outcome)


def rank_evaluator(cfg, weights: str, metrics: Sequence[str]) -> CandidateEvaluator:
    """:func:`load_evaluator` with statistics of this rank alone; UserError if a layer can only share them."""
    evaluate = load_evaluator(cfg, weights, metrics)
    own, _ = dist.new_subgroups(group_size=1)
    for name, module in evaluate.model.named_modules():
        if isinstance(module, NaiveSyncBatchNorm):
            raise UserError(f"{name} is a naiveSyncBN, which mixes the candidates of all ranks: use SyncBN")
        if isinstance(module, torch.nn.SyncBatchNorm):
            module.process_group = own
    return evaluate
