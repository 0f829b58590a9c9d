"""Smoothed metrics that go on after a resume."""

from __future__ import annotations

from detectron2.engine import HookBase


class RecentMetrics(HookBase):
    """Keeps the newest values of the smoothed metrics through a resume.

    metrics.json holds their medians over the last 20 iterations: with this hook a resumed run writes the
    numbers that an uninterrupted one does. Wall-clock times, which no run repeats, start anew.
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
