"""TEST.PRECISE_BN: running statistics as the average over many batches, before each evaluation."""

from __future__ import annotations

from itertools import chain, islice, repeat

import torch
from detectron2.engine import HookBase
from detectron2.utils.events import EventStorage
from fvcore.nn.precise_bn import get_bn_modules, update_bn_stats

from ..errors import UserError


class PreciseBN(HookBase):
    """Detectron2's hook, on the same first batches each time: a resumed run gets the same statistics.

    Args:
        period: iterations between two updates; 0 updates after the last only.
        model: a fixed network in training mode.
        loader: its batches.
        num_iter: how many of them to use.
    """

    def __init__(self, period: int, model: torch.nn.Module, loader, num_iter: int):
        self.period, self.model, self.loader, self.num_iter = period, model, loader, num_iter

    def before_train(self) -> None:
        """Try it on one batch and take it back: what fails must not do so after a long training.

        Raises:
            UserError: layers are used more than once in a pass, which the average cannot tell apart.
        """
        buffers = [(b, b.clone()) for layer in get_bn_modules(self.model) for b in layer.buffers()]
        try:
            self._update(1)
        except AssertionError as error:
            raise UserError(f"TEST.PRECISE_BN.ENABLED does not work with this model: {error}") from None
        finally:
            for buffer, value in buffers:
                buffer.copy_(value)

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done == self.trainer.max_iter or (self.period > 0 and done % self.period == 0):
            self._update(self.num_iter)

    def _update(self, count: int) -> None:
        with EventStorage():  # what the passes log is no metric of the training
            batches = chain.from_iterable(repeat(self.loader))  # a short loader is read again
            update_bn_stats(self.model, islice(batches, count), count)
