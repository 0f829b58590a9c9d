"""Statistics of a path's own BatchNorm layers, recomputed before the path is scored.

In a panoptic model only the backbone has BatchNorm, so only the backbone runs. The average is fvcore's
population estimate, independent of earlier statistics and of how the images are split into batches of one
size; or the reference code's moving average, in which the last batches count most.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from fvcore.nn.precise_bn import BN_MODULE_TYPES, update_bn_stats

from ..modeling import choice_blocks
from ..systems.classifier import BackboneClassifier


class _NormalizedBackbone(torch.nn.Module):
    """Bottom-up backbone that takes Detectron2's list of samples."""

    def __init__(self, model):
        super().__init__()
        self.model = [model]  # not a submodule: train()/eval() must not reach the heads
        self.bottom_up = model.backbone.bottom_up

    def forward(self, batch):
        return self.bottom_up(self.model[0].preprocess_image(batch).tensor)


def active_batch_norms(bottom_up: torch.nn.Module) -> list[torch.nn.Module]:
    """BatchNorm layers outside choice blocks or on the active path."""
    inactive = {
        id(module)
        for block in choice_blocks(bottom_up).values()
        for name, candidate in block.candidates.items()
        if name != block.active
        for module in candidate.modules()
    }
    return [m for m in bottom_up.modules() if isinstance(m, BN_MODULE_TYPES) and id(m) not in inactive]


def _moving_average(runner, layers, batches, momentum: float) -> None:
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = momentum
    for batch in batches:
        runner(batch)


@contextlib.contextmanager
def recalibrated(
    model: torch.nn.Module,
    batches: Sequence[list[dict]],
    momentum: float = 0.0,
    average: Callable | None = None,
) -> Iterator[None]:
    """Within the block the active path's BatchNorm statistics are those of ``batches``, then the old ones.

    Args:
        model: a meta-architecture with ``backbone.bottom_up`` and ``preprocess_image``, or a
            :class:`BackboneClassifier`; left in eval mode.
        batches: Detectron2 samples, the images of one batch in each list.
        momentum: 0 averages over all batches; otherwise the weight of the newest batch in a moving average
            that starts at mean 0 and variance 1 (reference code: 0.1).
        average: called with (model, batches, number of batches) where momentum is 0; by default
            fvcore's ``update_bn_stats``.

    Raises:
        RuntimeError: the statistics did not move, i.e. recalibration had no effect.
    """
    if not batches:
        raise ValueError("BatchNorm recalibration needs at least one batch")
    runner = model if isinstance(model, BackboneClassifier) else _NormalizedBackbone(model)
    layers = active_batch_norms(runner)
    saved = [
        (layer, layer.momentum, set(layer._forward_pre_hooks), dict(layer.named_buffers()))
        for layer in layers
    ]
    model.eval()
    try:
        for layer, _, _, buffers in saved:
            layer.train()
            for name, buffer in buffers.items():  # the model's own stay out of it
                setattr(layer, name, buffer.clone())
        with torch.no_grad():
            if momentum:
                _moving_average(runner, layers, batches, momentum)
            else:
                (average or update_bn_stats)(runner, batches, len(batches))
        if layers and all(
            torch.equal(layer.running_var, buffers["running_var"]) for layer, _, _, buffers in saved
        ):
            raise RuntimeError("BatchNorm recalibration did not change any statistics")
        model.eval()
        yield
    finally:
        model.eval()
        for layer, momentum, hooks, buffers in saved:
            layer.momentum = momentum
            for added in set(layer._forward_pre_hooks) - hooks:  # left behind if a forward pass failed
                del layer._forward_pre_hooks[added]
            for name, buffer in buffers.items():
                setattr(layer, name, buffer)
