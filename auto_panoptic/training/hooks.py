"""Fairness, checked: activations of every operator, counted from the passes that ran."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from detectron2.engine import HookBase
from detectron2.utils.events import get_event_storage

from ..errors import UserError
from ..explore import passes_per_iteration
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
        """At the end of a cycle: compare the counts with those of strict fairness.

        Args:
            iterations: iterations done since the start of the run.

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

    def state_dict(self) -> dict:
        return {
            "space": self.space.fingerprint,
            "sampling": self.sampling,
            "counts": torch.from_numpy(self.counts.copy()),
            "passes": self.passes,
            "since": self.since,
        }

    def load_state_dict(self, state: dict) -> None:
        """Continue counting; after another sampling, counting begins anew.

        Raises:
            UserError: the counts belong to another search space.
        """
        if state["space"] != self.space.fingerprint:
            raise UserError(
                "the checkpoint was trained with another search space; resume with the config it was "
                "written by"
            )
        if state["sampling"] == self.sampling:
            self.counts = state["counts"].numpy().copy()
            self.passes, self.since = state["passes"], state["since"]


class FairnessAudit(HookBase):
    """Check the counts after every iteration and write them to metrics.json now and then.

    ``passes`` is written in every iteration, the shares every ``period`` iterations and at the end. The
    counts are part of the checkpoint, so they go on after a resume.
    """

    def __init__(self, counter: PassCounter, period: int):
        self.counter, self.period = counter, period

    def before_train(self) -> None:
        if self.counter.since is None:
            self.counter.since = self.trainer.start_iter

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        self.counter.check(done)
        storage = get_event_storage()
        storage.put_scalar("passes", self.counter.passes, smoothing_hint=False)
        if done % self.period == 0 or done == self.trainer.max_iter:
            for name, value in self.counter.summary().items():
                storage.put_scalar(name, value, smoothing_hint=False)

    def state_dict(self) -> dict:
        return self.counter.state_dict()

    def load_state_dict(self, state: dict) -> None:
        self.counter.load_state_dict(state)
