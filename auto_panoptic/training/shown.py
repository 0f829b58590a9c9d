"""What a person sees of a training and its evaluations."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter, get_event_storage

from ..evaluation.tables import results_line, results_of
from ..progress import Progress, progress

logger = logging.getLogger(__name__)


class TrainingProgress(HookBase):
    """Iterations with the loss and the time left, and what an evaluation on the way found."""

    def __init__(self):
        self._progress, self._seen = None, {}

    def before_train(self) -> None:
        trainer = self.trainer
        self._progress = Progress("training", trainer.max_iter, "iterations", done=trainer.start_iter)

    def after_step(self) -> None:
        loss = sum(self.trainer._trainer.losses.values())
        self._progress.update(loss=f"{loss:.3g}")
        found = self.trainer.last_results
        if found and found is not self._seen:
            self._seen = found
            for name, results in results_of(self.trainer.cfg.DATASETS.TEST, found).items():
                done = f"{self.trainer.iter + 1:,}"
                logger.info("Iteration %s, %s: %s", done, name, results_line(results))

    def after_train(self) -> None:
        if self._progress is not None:
            self._progress.close()


class ShownLoader:
    """A data loader; the main process shows how much of it has been read."""

    def __init__(self, loader, title: str, units: str):
        self.loader, self.title, self.units = loader, title, units

    def __iter__(self) -> Iterator:
        return progress(self.loader, self.title, units=self.units, shown=comm.is_main_process())

    def __len__(self) -> int:
        return len(self.loader)

    def __getattr__(self, name: str):
        return getattr(self.loader, name)


class StepPrinter(CommonMetricPrinter):
    """Detectron2's line of each 20th iteration; none for a run that ended before its first."""

    def write(self) -> None:
        if "total_loss" in get_event_storage().histories():
            super().write()
