"""Statistics of a path's own BatchNorm layers, recomputed before the path is scored.

The model's own inference runs on the images, as far as its last active BatchNorm: where only the backbone has
BatchNorm, only the backbone runs. By default all images count alike, whatever came before and however they
are split into batches of one size; or, as in the reference code, the last batches count most.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import nn

from ..errors import Diverged
from ..progress import progress
from .choice import choice_blocks
from .finite import finite_problem

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def active_batch_norms(model: nn.Module) -> list[nn.Module]:
    """BatchNorm layers with running statistics, outside choice blocks or on the active path."""
    inactive = {
        module
        for block in choice_blocks(model).values()
        for name, candidate in block.candidates.items()
        if name != block.active
        for module in candidate.modules()
    }
    layers = (m for m in model.modules() if isinstance(m, BATCH_NORMS) and m.track_running_stats)
    return [layer for layer in layers if layer not in inactive]


@contextlib.contextmanager
def calibrated(
    model: nn.Module, batches: Sequence[list[dict]], momentum: float = 0.0, title: str = ""
) -> Iterator[None]:
    """Within the block the active path's BatchNorm statistics are those of ``batches``, then the old ones.

    Args:
        model: a meta-architecture; left in eval mode.
        batches: Detectron2 samples, the images of one batch in each list; taken in this order.
        momentum: 0 pools all values that reach a layer; otherwise the weight of the newest batch in a moving
            average that starts at mean 0 and variance 1 (reference code: 0.1).
        title: of its progress on the screen; "" shows none.

    Raises:
        ValueError: no batch.
        RuntimeError: the statistics did not move.
        Diverged: the new statistics are NaN or infinite.
    """
    if not batches:
        raise ValueError("BatchNorm calibration needs at least one batch")
    layers = active_batch_norms(model)
    saved = [(layer, layer.momentum, dict(layer.named_buffers())) for layer in layers]
    model.eval()
    try:
        with torch.no_grad():
            calls = _calls(model, layers, batches[0][:1]) if layers else []
            for layer, _, buffers in saved:
                for name, buffer in buffers.items():  # the model's own stay out of it
                    setattr(layer, name, buffer.clone())
            if calls:
                shown = progress(batches, title, units="batches", shown=bool(title))
                _run(model, shown, calls, momentum)
        if layers and all(torch.equal(m.running_var, buffers["running_var"]) for m, _, buffers in saved):
            raise RuntimeError("BatchNorm calibration did not change any statistics")
        names = {module: name for name, module in model.named_modules()}
        if problem := finite_problem(
            {f"{names[m]}.{key}": value for m in layers for key, value in m.named_buffers()}
        ):
            raise Diverged(f"BatchNorm calibration: {problem}; the weights are those of a run that diverged")
        model.eval()
        yield
    finally:
        model.eval()
        for layer, old, buffers in saved:
            layer.momentum = old
            for name, buffer in buffers.items():
                setattr(layer, name, buffer)


def _calls(model: nn.Module, layers: list[nn.Module], image: list[dict]) -> list[tuple[nn.Module, int]]:
    """(layer, length of its input) of every call of a layer in the inference of one image, in order."""
    calls = []
    with contextlib.ExitStack() as hooks:
        for layer in layers:
            handle = layer.register_forward_pre_hook(lambda layer, x: calls.append((layer, len(x[0]))))
            hooks.callback(handle.remove)
        model(image)
    return calls


class _Enough(Exception):
    """The last BatchNorm of a forward pass has run."""


class _Pool:
    """Mean and variance of all values that reach a layer whose running statistics are of its last call."""

    def __init__(self, layer: nn.Module):
        self.layer, self.count = layer, 0
        self.mean, self.squares = torch.zeros_like(layer.running_mean), torch.zeros_like(layer.running_var)

    def add(self, x: torch.Tensor) -> None:
        """Take in the statistics of the call with input ``x``, (N, C, ...)."""
        n, mean = x.numel() // x.shape[1], self.layer.running_mean
        self.count += n
        squares = mean.square() + self.layer.running_var * ((n - 1) / n)  # running_var is the unbiased one
        self.mean += (mean - self.mean) * (n / self.count)
        self.squares += (squares - self.squares) * (n / self.count)

    def finish(self) -> None:
        self.layer.running_mean, self.layer.running_var = self.mean, self.squares - self.mean.square()


def _run(
    model: nn.Module, batches: Iterable[list[dict]], calls: list[tuple[nn.Module, int]], momentum: float
):
    """New running statistics for the layers of ``calls``; a pass stops after those that one image needed."""
    pools = {layer: _Pool(layer) for layer, _ in calls}
    seen, images = [], 0

    def after(layer: nn.Module, inputs: tuple, _):
        if not momentum:
            pools[layer].add(inputs[0])
        seen.append((layer, len(inputs[0])))
        if len(seen) == len(calls) and seen == [(m, images * length) for m, length in calls]:
            raise _Enough

    with contextlib.ExitStack() as hooks:
        for layer in pools:
            layer.train()
            layer.reset_running_stats()
            layer.momentum = momentum or 1.0
            hooks.callback(layer.register_forward_hook(after).remove)
        for batch in batches:
            images = len(batch)
            seen.clear()
            with contextlib.suppress(_Enough):
                model(batch)
    if not momentum:
        for pool in pools.values():
            pool.finish()
