"""What runs beside the loop: fairness audit, precise BatchNorm statistics, metrics that outlive a resume."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import chain, islice, repeat

import numpy as np
import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, get_event_storage
from fvcore.nn.precise_bn import get_bn_modules, update_bn_stats

from ..errors import UserError
from ..explore import passes_per_iteration
from ..files import plain
from ..pictures.table import draw_counts
from ..signals import Interrupted
from ..space import SearchSpace


class PassCounter:
    """How often each operator of each site was active.

    Attributes:
        counts: (sites, most operators of a site) activations; cells beyond a site's operators stay 0.
        passes: passes counted.
        since: iteration at which counting began; None before the first.
    """

    def __init__(self, space: SearchSpace, sampling: str = "fair"):
        self.space, self.sampling = space, sampling
        self._sizes = np.array([len(site.ops) for site in space.sites], dtype=np.int64)
        width = int(self._sizes.max(initial=1))
        self.counts = np.zeros((len(space.sites), width), dtype=np.int64)
        self._offsets = np.arange(len(space.sites)) * width
        self._exists = np.arange(width) < self._sizes[:, None]
        self.passes = 0
        self.since: int | None = None

    def add(self, indices: Sequence[int] | np.ndarray) -> None:
        """Count one pass, (sites,) indices of the active operators, or several, (passes, sites)."""
        cells = np.atleast_2d(np.asarray(indices, dtype=np.int64)) + self._offsets
        self.counts += np.bincount(cells.ravel(), minlength=self.counts.size).reshape(self.counts.shape)
        self.passes += len(cells)

    def check(self, iterations: int) -> None:
        """Compare the counts after ``iterations`` of the run with those of strict fairness.

        Raises:
            RuntimeError: passes are missing or too many, or an operator was active more or less often than
                its share. Uniform sampling promises no equal shares.
        """
        per_iteration = passes_per_iteration(self.space, self.sampling)
        expected = (iterations - (self.since or 0)) * per_iteration
        if self.passes != expected:
            raise RuntimeError(
                f"fairness audit: {self.passes} passes ran by the end of iteration {iterations - 1}, "
                f"expected {expected}; the checkpoint does not belong to this point of the run"
            )
        if self.sampling != "fair":
            return
        wrong = np.argwhere((self.counts != expected // self._sizes[:, None]) & self._exists)
        if len(wrong):
            row, column = wrong[0]
            site = self.space.sites[row]
            raise RuntimeError(
                f"fairness audit: by the end of iteration {iterations - 1} the operator "
                f"{site.names[column]!r} of site {site.name!r} was active {self.counts[row, column]} times, "
                f"expected {expected // len(site.ops)} ({len(wrong)} operators differ)"
            )

    def summary(self) -> dict[str, float]:
        """Per group the least and the most activations of an operator, relative to the expected number."""
        result = {}
        if self.passes:
            ratios = self.counts * self._sizes[:, None] / self.passes
            groups = np.array([site.group for site in self.space.sites])
            for group in dict.fromkeys(groups.tolist()):
                own = ratios[groups == group][self._exists[groups == group]]
                result[f"fairness/{group}_least"] = float(own.min())
                result[f"fairness/{group}_most"] = float(own.max())
        return result

    def picture(self) -> torch.Tensor:
        """(3, H, W) uint8: a table of the activations, a row for each site."""
        rows = [
            (site.name, site.names, counts[: len(site.names)].tolist())
            for site, counts in zip(self.space.sites, self.counts, strict=True)
        ]
        return torch.from_numpy(draw_counts(rows).transpose(2, 0, 1).copy())

    def state_dict(self) -> dict:
        return {
            "space": self.space.fingerprint,
            "sampling": self.sampling,
            "counts": torch.from_numpy(self.counts.copy()),
            "passes": self.passes,
            "since": self.since,
        }

    def load_state_dict(self, state: dict) -> None:
        """Continue counting, anew after another sampling; UserError for counts of another search space."""
        if state["space"] != self.space.fingerprint:
            raise UserError(
                "the checkpoint was trained with another search space; resume with the config it was "
                "written by"
            )
        if state["sampling"] == self.sampling:
            self.counts = state["counts"].numpy().copy()
            self.passes, self.since = state["passes"], state["since"]


class FairnessAudit(HookBase):
    """Check the counts, which are part of the checkpoint, after every iteration.

    metrics.json gets ``passes`` in every iteration, the shares every ``period`` iterations and at the end;
    then TensorBoard also gets a table of all counts.
    """

    def __init__(self, counter: PassCounter, period: int):
        self.counter, self.period = counter, period
        self.state_dict, self.load_state_dict = counter.state_dict, counter.load_state_dict

    def before_train(self) -> None:
        if self.counter.since is None:
            self.counter.since = self.trainer.start_iter

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        self.counter.check(done)
        storage = get_event_storage()
        storage.put_scalar("passes", self.counter.passes, smoothing_hint=False)
        if done % self.period == 0 or done == self.trainer.max_iter:
            storage.put_scalars(**self.counter.summary(), smoothing_hint=False)
            has_choice = self.counter.space.cycle_length > 1
            if has_choice and comm.is_main_process():  # which alone writes pictures, and so forgets them
                storage.put_image("fairness/passes", self.counter.picture())


class Interruption(HookBase):
    """Leaves after the step in which a signal came to any process: all do, and save the same iteration.

    Attributes:
        done: the last iteration that everything before this hook has seen whole.
    """

    done = -1

    def after_step(self) -> None:
        self.done = self.trainer.iter
        if self.trainer._trainer.signal:
            raise Interrupted(self.trainer._trainer.signal)


class PreciseBN(HookBase):
    """Detectron2's hook, on the same first batches each time: a resumed run gets the same statistics.

    A fixed ``model`` in training mode sees the first ``num_iter`` batches of ``loader`` every ``period``
    iterations, and after the last; only then where that is 0.
    """

    def __init__(self, period: int, model: torch.nn.Module, loader, num_iter: int):
        self.period, self.model, self.loader, self.num_iter = period, model, loader, num_iter

    def before_train(self) -> None:
        """Try it on one batch and take it back: layers used twice in a pass must not fail a long training."""
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


class JSONLines:
    """The stream of Detectron2's JSONWriter; NaN, which no JSON has, is written as null."""

    def __init__(self, stream):
        self.stream = stream

    def write(self, line: str) -> None:
        self.stream.write(json.dumps(plain(json.loads(line))) + "\n")

    def __getattr__(self, name: str):
        return getattr(self.stream, name)


class RecentMetrics(HookBase):
    """Keeps the values of smoothed metrics, of which metrics.json has running medians, through a resume.

    Wall-clock times, which no run repeats, start anew.
    """

    WINDOW = 20

    def __init__(self):
        self._loaded: dict[str, list] = {}

    def state_dict(self) -> dict:
        storage = getattr(self.trainer, "storage", None)
        if storage is None:  # no step was taken yet
            return self._loaded
        smoothed = storage.smoothing_hints()
        return {
            name: [list(entry) for entry in history.values()[-self.WINDOW :]]
            for name, history in storage.histories().items()
            if smoothed.get(name) and not name.endswith("time")
        }

    def load_state_dict(self, state: dict) -> None:
        self._loaded = state

    def before_train(self) -> None:
        for name, entries in self._loaded.items():
            for value, iteration in entries:
                self.trainer.storage.histories()[name].update(value, iteration)
