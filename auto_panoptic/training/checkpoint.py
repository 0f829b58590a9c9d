"""Checkpoints of a run: written so that a kill cannot tear them, resumed only if they are intact."""

from __future__ import annotations

import contextlib
import os
import re
import shutil

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import HookBase
from detectron2.utils import comm

from .. import __version__
from ..errors import UserError
from ..modeling import choice_blocks
from .manifest import (
    MANIFEST,
    HashingWriter,
    Record,
    newest_intact,
    partial_path,
    read_manifest,
    replace_file,
    sync_folder,
    write_manifest,
    write_partial,
)
from .settings import check_same_settings, settings_hash, training_settings
from .weights import model_meta, read_checkpoint, select_weights

_PERIODIC = re.compile(r"model_\d+\.pth")


class AtomicCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer with a manifest: a file counts only if it is what was recorded about it.

    A save goes to the disk in this order: content under a partial name; its record in the manifest; the
    final name; ``last_checkpoint``. Wherever it is cut, the manifest describes the old or the new file.

    Args:
        model, save_dir, save_to_disk, checkpointables: Detectron2's.
        cfg: the run's config; its settings are saved, and must be the same on :meth:`resume`.
        keep: number of newest ``model_<iteration>.pth`` to keep; 0 keeps all.
    """

    def __init__(self, model, save_dir="", *, save_to_disk=None, cfg=None, keep=0, **checkpointables):
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self.settings = training_settings(cfg) if cfg is not None else {}
        self.keep = keep
        self._records: list[Record] = []  # of this run; other files of the folder count until it has one

    def save(self, name: str, **kwargs) -> None:
        """Save model and checkpointables as ``<name>.pth``.

        Raises:
            UserError: the disk does not take it. Earlier checkpoints are as before.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict()}
        data.update({key: obj.state_dict() for key, obj in self.checkpointables.items()})
        data.update(
            kwargs,
            space={site: list(block.candidates) for site, block in choice_blocks(self.model).items()},
            meta=model_meta(self.model),
            settings=self.settings,
            versions=_versions(),
        )
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info("Saving checkpoint to %s", path)
        os.makedirs(self.save_dir, exist_ok=True)
        try:
            self._replace(path, data)
        except OSError as error:
            raise UserError(
                f"cannot write the checkpoint {path!r} of {_serialized_size(data)} bytes: "
                f"{error.strerror or error} ({shutil.disk_usage(self.save_dir).free} bytes are free); "
                "earlier checkpoints are intact: make room, then continue with --resume"
            ) from error

    def _replace(self, path: str, data: dict) -> None:
        written = []

        def write(stream):
            writer = HashingWriter(stream)
            try:
                torch.save(data, writer)
            except RuntimeError as error:
                raise writer.error or error from None
            written.append(writer)

        file = os.path.basename(path)
        write_partial(path, write)
        iteration = data.get("iteration", data.get("trainer", {}).get("iteration"))
        record = Record(file, written[0].sha256, written[0].size, iteration, settings_hash(self.settings))
        write_manifest(self.save_dir, [*(self._records or read_manifest(self.save_dir)), record])
        os.replace(partial_path(path), path)
        self._records = [r for r in self._records if r.file != file] + [record]
        self.tag_last_checkpoint(file)
        sync_folder(self.save_dir)
        self._remove_old()

    def _remove_old(self) -> None:
        periodic = [record for record in self._records if _PERIODIC.fullmatch(record.file)]
        for record in periodic[: -self.keep] if self.keep else ():
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(self.save_dir, record.file))
            self._records.remove(record)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        replace_file(os.path.join(self.save_dir, "last_checkpoint"), last_filename_basename.encode())

    def has_checkpoint(self) -> bool:
        return newest_intact(self.save_dir)[0] is not None

    def get_checkpoint_file(self) -> str:
        """Path of the newest intact checkpoint, or ""."""
        record, _ = newest_intact(self.save_dir)
        return os.path.join(self.save_dir, record.file) if record else ""

    def resume(self) -> bool:
        """Load model and checkpointables from the newest intact checkpoint; the first process chooses it.

        Returns:
            False if no run has left anything in ``save_dir``.

        Raises:
            UserError: nothing usable in a folder that a run has written to, or the run had other settings.
        """
        choice = _choose(self.save_dir) if comm.is_main_process() else None
        record, problems, used = comm.all_gather(choice)[0]
        if record is None:
            if used:
                raise UserError(_nothing_usable(self.save_dir, problems))
            return False
        path = os.path.join(self.save_dir, record.file)
        if not all(comm.all_gather(os.path.isfile(path))):
            raise UserError(f"--resume: not every process can read {path!r}; put OUTPUT_DIR on a shared disk")
        if problems:
            self.logger.warning("Not used: %s. Continuing from %s instead", "; ".join(problems), path)
        data = read_checkpoint(path, "--resume")
        check_same_settings(data.get("settings", {}), self.settings, path)
        if data["versions"] != _versions():
            self.logger.warning(
                "%s was written by %s, now running %s: the run goes on, but perhaps not bit for bit",
                path, data["versions"], _versions(),
            )  # fmt: skip
        self.model.load_state_dict(select_weights(self.model, data, path, key="--resume"), strict=False)
        for key, obj in self.checkpointables.items():
            obj.load_state_dict(data[key])
        records = read_manifest(self.save_dir)
        self._records = records[: records.index(record) + 1]
        self.logger.info("Continuing from %s (iteration %s)", path, record.iteration)
        return True


def check_resume(cfg) -> None:
    """Raise UserError unless --resume can continue in OUTPUT_DIR, or start there for want of checkpoints."""
    folder = cfg.OUTPUT_DIR
    record, problems, used = _choose(folder)
    if record is None:
        if used:
            raise UserError(_nothing_usable(folder, problems))
        return
    settings = training_settings(cfg)
    if record.config != settings_hash(settings):
        path = os.path.join(folder, record.file)
        check_same_settings(read_checkpoint(path, "--resume").get("settings", {}), settings, path)


def _choose(folder: str) -> tuple[Record | None, list[str], bool]:
    """The checkpoint to continue from, what is wrong with newer ones, and whether there ever was one.

    A run that was stopped before its first checkpoint has left its log, its config and perhaps losses.
    """
    used = os.path.isdir(folder) and any(file.endswith(".pth") for file in os.listdir(folder))
    record, problems = newest_intact(folder)
    return record, problems, used or bool(problems)


def _versions() -> dict[str, str]:
    return {"auto_panoptic": __version__, "torch": str(torch.__version__)}


def _nothing_usable(folder: str, problems: list[str]) -> str:
    return (
        f"--resume: {folder!r} holds no usable checkpoint "
        f"({'; '.join(problems) or f'none is recorded in {MANIFEST}'}); start anew in another OUTPUT_DIR"
    )


def _serialized_size(data: dict) -> int:
    with open(os.devnull, "wb") as nowhere:
        writer = HashingWriter(nowhere)
        torch.save(data, writer)
    return writer.size


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
