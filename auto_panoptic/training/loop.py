"""One iteration is one fair cycle: K passes over K mini-batches, K single-path models, one optimizer step.

A fixed model, a model without choice blocks, and uniform sampling are the case K = 1.
"""

from __future__ import annotations

import json
import logging
import math
import re
import time
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import torch
from detectron2.engine import TrainerBase
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage

from .. import signals
from ..errors import Diverged, UserError
from ..explore import sampled_paths
from ..modeling import apply_architecture, choice_blocks
from ..modeling.finite import finite_problem, images_of, learned, total_norm
from ..space import Architecture
from ..validate import RULES
from .gradients import average, average_over_passes, average_over_processes, model_space
from .hooks import PassCounter
from .precision import Precision

MOST_SKIPPED = 32  # steps in a row: the loss scale has then fallen from 65536 to 2 ** -16
# What layers say that meet NaN or infinity before the losses are known.
_NOT_FINITE = re.compile(r"\b(nan|inf|infinite)\b", re.IGNORECASE)


class FairCycleTrainer(TrainerBase):
    """The inner loop: what Detectron2's SimpleTrainer does, with a whole fair cycle in each step.

    Args:
        model: maps a batch to a dict of losses.
        data_loader: gives batches. One with ``starting_at(number)``, as :func:`build_train_loader` makes, is
            resumed exactly; any other begins anew, and is read again where it ends.
        gradients: "mean" as :func:`average_over_passes`; "sum" leaves the sum; so does "lr_scale", whose
            optimizer divides the learning rates instead (:func:`build_optimizer`).
        seed: of the random choices inside the model (sampled proposals), a function of (seed, iteration).
        sampling: "fair" or "uniform", with ``path_seed``, see :func:`sampled_paths`.
        precision: number format of the passes; float32 by default.

    Attributes:
        cycle: the architectures of the latest step.
        counter: activations of every operator, counted after each pass that ran.
        skipped_steps: optimizer steps left out because float16 gradients overflowed.
        losses: of the latest step, averaged over passes and processes.
        signal: number of one that came to any process by the end of the latest step; 0 if none did.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        data_loader: Iterable,
        optimizer: torch.optim.Optimizer,
        gradients: str = "mean",
        seed: int = 0,
        sampling: str = "fair",
        path_seed: int = 0,
        precision: Precision | None = None,
    ):
        super().__init__()
        RULES["NAS.GRADIENTS"].check("NAS.GRADIENTS", gradients)
        RULES["NAS.SAMPLING"].check("NAS.SAMPLING", sampling)
        model.train()
        self.model = model
        self.optimizer = optimizer
        self.data_loader = data_loader
        self.gradients = gradients
        self.seed = seed
        self.space = model_space(model)
        self.sampling = sampling
        self.path_seed = path_seed
        self.precision = precision or Precision()
        self.scaler = self.precision.scaler()
        self.counter = PassCounter(self.space, sampling)
        self.skipped_steps = self._skipped_in_a_row = self.signal = 0
        self.cycle: list[Architecture] = []
        self.losses: dict[str, float] = {}
        self._norms = [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
        self._blocks = [
            (block, {name: index for index, name in enumerate(block.candidates)})
            for block in choice_blocks(model).values()
        ]
        self._batches: Iterator = iter(())
        self._next_batch = -1

    def batch(self, number: int):
        """The ``number``-th batch of the run; consecutive numbers are cheap, others reopen the loader.

        Raises:
            UserError: the loader gives no batch.
        """
        if number != self._next_batch:
            self._batches = self._open(number)
        self._next_batch = number + 1
        for _ in range(2):
            try:
                return next(self._batches)
            except StopIteration:
                self._batches = iter(self.data_loader)
        raise UserError(f"the training data loader, a {type(self.data_loader).__name__}, gives no batch")

    def close(self) -> None:
        """End the data loader's processes."""
        self._batches, self._next_batch = iter(()), -1

    def _open(self, number: int) -> Iterator:
        if hasattr(self.data_loader, "starting_at"):
            return self.data_loader.starting_at(number)
        if number:
            logging.getLogger(__name__).warning(
                "%s cannot skip the %d batches that the run has seen: it begins anew",
                type(self.data_loader).__name__,
                number,
            )
        return iter(self.data_loader)

    def draw(self, iteration: int) -> list[Architecture]:
        """The paths of a step, a function of (space, seed, iteration): the same in all processes."""
        return sampled_paths(self.space, self.path_seed, iteration, self.sampling)

    def run_step(self) -> None:
        """Draw the paths, zero, K passes forward and backward, average or leave the gradients, step once.

        All passes share one loss scale, which ``GradScaler.step`` takes away after the averaging over the
        processes: so every process sees the same overflow and skips the same step.

        Raises:
            Diverged: in every process, if losses, gradients, weights or statistics of one are not finite.
        """
        assert self.model.training, "model was changed to eval mode during training"
        self.cycle = self.draw(self.iter)
        torch.manual_seed(
            int(np.random.SeedSequence([self.seed, self.iter, comm.get_rank()]).generate_state(1)[0])
        )
        self.optimizer.zero_grad()
        passes: list[tuple[dict[str, torch.Tensor], str]] = []  # losses and images
        data_time = 0.0
        for row, architecture in enumerate(self.cycle):
            start = time.perf_counter()
            batch = self.batch(self.iter * len(self.cycle) + row)
            data_time += time.perf_counter() - start
            try:
                passes.append((self._pass(architecture, batch), images_of(batch)))
            except (FloatingPointError, AssertionError, RuntimeError) as error:
                if not _NOT_FINITE.search(str(error)):
                    raise
                passes.append(({str(error): torch.tensor(math.nan)}, images_of(batch)))
                break  # to where the other processes wait
            self.counter.add([index[block.active] for block, index in self._blocks])
        average_over_processes(self.model)
        average(self._statistics())  # so that all processes hold the same model
        self._write_metrics(passes, data_time)
        if self.gradients == "mean":
            average_over_passes(self.model, self.cycle)
        self._step()
        self._check_weights("; ".join(images for _, images in passes))

    def _pass(self, architecture: Architecture, batch) -> dict[str, torch.Tensor]:
        """Forward and backward on one path; returns the losses."""
        apply_architecture(self.model, architecture)
        with self.precision.autocast():
            losses = self.model(batch)
        halves = (torch.float16, torch.bfloat16)
        losses = {name: value.float() if value.dtype in halves else value for name, value in losses.items()}
        self.scaler.scale(sum(losses.values())).backward()
        return {name: value.detach() for name, value in losses.items()}

    def _step(self) -> None:
        """Step; if float16 gradients overflowed, count a skipped step instead and lower the loss scale."""
        before = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.scaler.is_enabled():
            skipped = self.scaler.get_scale() < before
            self.skipped_steps += skipped
            self._skipped_in_a_row = skipped * (self._skipped_in_a_row + 1)
            if self._skipped_in_a_row >= MOST_SKIPPED:
                raise self._diverged(f"float16 gradients overflowed in {MOST_SKIPPED} steps in a row")
            if comm.is_main_process():
                get_event_storage().put_scalar("skipped_steps", self.skipped_steps, smoothing_hint=False)
                get_event_storage().put_scalar("loss_scale", self.scaler.get_scale(), smoothing_hint=False)

    def _check_weights(self, images: str) -> None:
        """Stop, as all processes do, if what the step changed is not finite, or too large to be squared."""
        tensors = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        if not math.isfinite(total_norm([*tensors, *self._statistics()])):
            values = learned(self.model)
            gradients = {f"the gradient of {k}": v.grad for k, v in values.items() if v.grad is not None}
            problem = finite_problem(gradients) or finite_problem(values) or "weights are beyond float32"
            raise self._diverged(f"{problem} after the step on images {images}")

    def _diverged(self, what: str) -> Diverged:
        known = f"; losses of the latest step: {_text(self.losses)}" if self.losses else ""
        return Diverged(f"training diverged at iteration {self.iter}: {what}{known}")

    def _write_metrics(self, passes: list[tuple[dict[str, torch.Tensor], str]], data_time: float) -> None:
        """Log the losses averaged over passes and processes; stop every process if they are not finite."""
        totals: dict[str, float] = {}
        for losses, _ in passes:
            for name, value in losses.items():
                totals[name] = totals.get(name, 0.0) + value / len(self.cycle)
        own = {name: float(value) for name, value in totals.items()}
        gathered = comm.all_gather((own, data_time, signals.pending()))
        self.signal = max(number for *_, number in gathered)
        if not math.isfinite(sum(sum(losses.values()) for losses, *_ in gathered)):
            accounts = filter(None, comm.all_gather(self._account(passes)))
            raise self._diverged(f"{next(accounts, 'the loss overflows')}; no step was taken")
        self.losses = {name: float(np.mean([losses[name] for losses, *_ in gathered])) for name in totals}
        if comm.is_main_process():
            storage = get_event_storage()
            storage.put_scalar("data_time", max(seconds for _, seconds, _ in gathered))
            storage.put_scalars(total_loss=sum(self.losses.values()), **self.losses)

    def _account(self, passes: list[tuple[dict[str, torch.Tensor], str]]) -> str:
        """Which pass of this process had a loss that is not finite; "" if none."""
        for row, (losses, images) in enumerate(passes):
            values = {name: float(value) for name, value in losses.items()}
            if not math.isfinite(sum(values.values())):
                rank = f" of process {comm.get_rank()}" if comm.get_world_size() > 1 else ""
                path = f" (path {json.dumps(self.cycle[row].indices())})" if len(self.cycle) > 1 else ""
                place = f"in pass {row + 1} of {len(self.cycle)}{rank}{path} on images {images}"
                return f"losses {_text(values)} {place}"
        return ""

    def _statistics(self) -> list[torch.Tensor]:
        """The running statistics of BatchNorm."""
        return [b for layer in self._norms for b in (layer.running_mean, layer.running_var) if b is not None]

    def state_dict(self) -> dict:
        """What continues the run besides model, hooks and iteration."""
        state = {"optimizer": self.optimizer.state_dict(), "seed": self.seed}
        if self.scaler.is_enabled():
            state.update(grad_scaler=self.scaler.state_dict(), skipped_steps=self.skipped_steps)
        return state

    def load_state_dict(self, state: dict) -> None:
        """Inverse of :meth:`state_dict`; a run that was float32 before starts with a new loss scale."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.seed = state["seed"]
        if self.scaler.is_enabled() and "grad_scaler" in state:
            self.scaler.load_state_dict(state["grad_scaler"])
            self.skipped_steps = state["skipped_steps"]


def _text(losses: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
