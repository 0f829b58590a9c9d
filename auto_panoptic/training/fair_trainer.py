"""One iteration is one fair cycle: K passes over K mini-batches, K single-path models, one optimizer step.

A fixed model is the case K = 1: every site has one operator, so the cycle holds one architecture.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import numpy as np
import torch
from detectron2.engine import HookBase, TrainerBase
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage

from ..errors import UserError
from ..explore import fair_cycle, pass_counts
from ..modeling import apply_architecture, choice_blocks
from ..space import Architecture, ChoiceSite, SearchSpace
from ..space import op as find_op

GRADIENT_MODES = ("mean", "sum")


def check_gradients(mode: str) -> None:
    """Raise UserError unless ``mode`` is one of GRADIENT_MODES."""
    if mode not in GRADIENT_MODES:
        raise UserError(f"NAS.GRADIENTS is {mode!r}; expected one of {list(GRADIENT_MODES)}")


def model_space(model: torch.nn.Module) -> SearchSpace:
    """The search space a model spans: its choice blocks and the operators they hold."""
    return SearchSpace(
        tuple(
            ChoiceSite(site, tuple(find_op(name) for name in block.candidates))
            for site, block in choice_blocks(model).items()
        )
    )


class FairCycleTrainer(TrainerBase):
    """The inner loop: what Detectron2's SimpleTrainer does, with a whole fair cycle in each step.

    Args:
        model: maps a batch to a dict of losses.
        make_loader: called with the number of batches to skip; returns the data loader.
        gradients: "mean" divides each parameter's accumulated gradient by the number of passes of the
            cycle that used it (so every path steps as if trained alone), "sum" leaves the sum.
        seed: of the random choices inside the model (sampled proposals), a function of (seed, iteration).

    Attributes:
        cycle: the architectures of the coming step; :class:`FairSamplingHook` sets it.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        make_loader: Callable[[int], Iterable],
        optimizer: torch.optim.Optimizer,
        gradients: str = "mean",
        seed: int = 0,
    ):
        super().__init__()
        check_gradients(gradients)
        model.train()
        self.model = model
        self.optimizer = optimizer
        self.make_loader = make_loader
        self.gradients = gradients
        self.seed = seed
        self.space = model_space(model)
        self.cycle: list[Architecture] = []
        self._batches = None
        self._next_batch = -1

    def batch(self, number: int):
        """The ``number``-th batch of the run; consecutive numbers are cheap, others reopen the loader."""
        if self._batches is None or number != self._next_batch:
            self._batches = iter(self.make_loader(number))
        self._next_batch = number + 1
        return next(self._batches)

    def run_step(self) -> None:
        """Zero, K forward/backward passes, scale the gradients, one optimizer step."""
        assert self.model.training, "model was changed to eval mode during training"
        if len(self.cycle) != self.space.cycle_length:
            raise RuntimeError("no fair cycle was sampled for this step: register FairSamplingHook")
        torch.manual_seed(
            int(np.random.SeedSequence([self.seed, self.iter, comm.get_rank()]).generate_state(1)[0])
        )
        self.optimizer.zero_grad()
        totals: dict[str, float] = {}
        data_time = 0.0
        for row, architecture in enumerate(self.cycle):
            start = time.perf_counter()
            batch = self.batch(self.iter * len(self.cycle) + row)
            data_time += time.perf_counter() - start
            apply_architecture(self.model, architecture)
            losses = self.model(batch)
            sum(losses.values()).backward()
            for name, value in losses.items():
                totals[name] = totals.get(name, 0.0) + value.detach() / len(self.cycle)
        self._reduce_gradients()
        self._reduce_statistics()
        self._scale_gradients()
        self._write_metrics(totals, data_time)
        self.optimizer.step()

    def _write_metrics(self, losses: dict[str, torch.Tensor], data_time: float) -> None:
        """Log the losses averaged over passes and processes; stop every process if they are not finite."""
        gathered = comm.all_gather(
            {name: float(value) for name, value in losses.items()} | {"data_time": data_time}
        )
        means = {name: float(np.mean([metrics[name] for metrics in gathered])) for name in losses}
        total = sum(means.values())
        if not np.isfinite(total):
            raise FloatingPointError(f"loss became infinite or NaN at iteration {self.iter}: {means}")
        if comm.is_main_process():
            storage = get_event_storage()
            storage.put_scalar("data_time", max(metrics["data_time"] for metrics in gathered))
            storage.put_scalars(total_loss=total, **means)

    def _reduce_gradients(self) -> None:
        """Average the accumulated gradients over the processes, once per cycle.

        Every process runs the same paths, so the same parameters hold gradients everywhere. Averaging here
        instead of inside DistributedDataParallel also covers parameters used only in early passes.
        """
        if comm.get_world_size() == 1:
            return
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        flat = torch.cat([p.grad.flatten() for p in parameters])  # one message instead of one per parameter
        torch.distributed.all_reduce(flat)
        flat /= comm.get_world_size()
        for parameter, mean in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            parameter.grad.copy_(mean.view_as(parameter))

    def _reduce_statistics(self) -> None:
        """Average the running statistics of BatchNorm over the processes, so that all hold the same model."""
        if comm.get_world_size() == 1:
            return
        layers = [m for m in self.model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
        buffers = [b for layer in layers for b in (layer.running_mean, layer.running_var) if b is not None]
        if buffers:
            flat = torch.cat(buffers)
            torch.distributed.all_reduce(flat)
            flat /= comm.get_world_size()
            for buffer, mean in zip(buffers, flat.split([b.numel() for b in buffers]), strict=True):
                buffer.copy_(mean)

    def _scale_gradients(self) -> None:
        if self.gradients == "sum" or len(self.cycle) == 1:
            return
        counts = pass_counts(self.cycle)
        divisors = {id(p): len(self.cycle) for p in self.model.parameters()}
        for site, block in choice_blocks(self.model).items():
            for name, candidate in block.candidates.items():
                divisors.update((id(p), counts[site].get(name, 0)) for p in candidate.parameters())
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                parameter.grad /= max(divisors[id(parameter)], 1)


class FairSamplingHook(HookBase):
    """Strict fairness: before each step, draw the cycle that uses every operator of every site equally.

    The draw is a pure function of (space, seed, iteration), so all processes agree without communication
    and a resumed run continues with the very cycle that comes next.
    """

    def __init__(self, inner: FairCycleTrainer, seed: int):
        self.inner, self.seed = inner, seed

    def before_step(self) -> None:
        self.inner.cycle = fair_cycle(self.inner.space, self.seed, self.trainer.iter)

    def after_step(self) -> None:
        get_event_storage().put_scalar(
            "passes", len(self.inner.cycle) * (self.trainer.iter + 1), smoothing_hint=False
        )
