"""Checkpoints of a run: a kill cannot tear them, and only an intact one is continued from.

Each is an archive with checksums, which show damage; ``last_checkpoint`` names the one to continue from.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
import shutil
from pathlib import Path

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.utils import comm

from .. import __version__
from ..data.classes import check_classes, config_classes
from ..errors import Diverged, UserError
from ..files import PARTIAL, digest, read_bytes, read_json, replacing
from ..modeling import choice_blocks
from ..modeling.finite import finite_problem, learned, tensors_in
from ..screen import ON_SCREEN
from ..validate import flat
from .archive import damage, load, odd_content, read_checkpoint, swollen
from .weights import model_meta, select_weights

_PERIODIC = re.compile(r"model_(\d+)\.pth")
POINTER = "last_checkpoint"
INTERRUPTED = "model_interrupted"  # saved after a signal; in the way of nothing: the next save removes it
STARTED_FROM = "MODEL.WEIGHTS"
RECORD = "run.json"  # what a training run writes first
logger = logging.getLogger(__name__)

# A continued run keeps the settings of these groups and keys ...
MUST_MATCH = (
    *("SEED", "MODEL.", "INPUT.", "SOLVER.", "DATALOADER.", "DATASETS.TRAIN", "TEST.PRECISE_BN."),
    *("NAS.SEED", "NAS.SAMPLING", "NAS.GRADIENTS", "NAS.REFERENCE_BIAS_LR", "NAS.SPACE."),
)
# ... but for those that name a place, save, or act in inference only. The architecture, which
# NAS.ARCHITECTURE names by a path, is compared operator by operator.
MAY_CHANGE = re.compile(
    r"MODEL\.(DEVICE | WEIGHTS.* | .*\.COMBINE\..*) | SOLVER\.CHECKPOINT.* | DATALOADER\.NUM_WORKERS"
    r"| .*_TEST | .*\.TEST_[^.]*",
    re.VERBOSE,
)


def training_settings(cfg: CfgNode) -> dict[str, str]:
    """{full key: value as JSON} of the settings that a run must keep."""
    found = {key: json.dumps(value, default=str) for key, value in sorted(flat(cfg))}
    found = {k: v for k, v in found.items() if k.startswith(MUST_MATCH) and not MAY_CHANGE.fullmatch(k)}
    if found.get("SOLVER.LR_SCHEDULER_NAME") == '"WarmupMultiStepLR"':
        found.pop("SOLVER.MAX_ITER", None)  # only the end of the run depends on it: it may be moved
    return found


def run_settings(cfg: CfgNode) -> dict[str, str]:
    """:func:`training_settings`, and what the run begins from: [MODEL.WEIGHTS, the digest of a file]."""
    path = cfg.MODEL.WEIGHTS
    start = [path, digest(path)[:16] if os.path.isfile(path) else None]
    return training_settings(cfg) | {STARTED_FROM: json.dumps(start)}


def check_settings(content: dict, now: dict[str, str], path: str) -> None:
    """Raise UserError if a setting that both know has changed; ``content`` is that of the file ``path``.

    The weights that the run began from may be gone, but not be another's.
    """
    before = content.get("settings") if isinstance(content, dict) else None
    before = before if isinstance(before, dict) else {}
    changed = [key for key in sorted(now) if before.get(key, now[key]) != now[key]]
    if STARTED_FROM in changed:
        new, new_digest = json.loads(now[STARTED_FROM])
        try:
            old, old_digest = json.loads(before[STARTED_FROM])
        except (ValueError, TypeError):
            old = old_digest = ""  # by hand
        own = os.path.realpath(os.path.dirname(new)) == os.path.realpath(os.path.dirname(path))
        if own or not new_digest or old_digest == new_digest or (old and not old_digest):
            changed.remove(STARTED_FROM)
            if new not in ("", old):
                logger.warning("%s began from %r: MODEL.WEIGHTS %r is not read", path, old, new)
    if changed:
        shown = ", ".join(f"{key} was {before[key]}, is {now[key]}" for key in changed[:4])
        more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
        raise UserError(
            f"--resume: settings have changed since {path!r}: {shown}{more}; restore them, or start a new "
            "run in another OUTPUT_DIR" + " with MODEL.WEIGHTS set to that file" * path.endswith(".pth")
        )


class AtomicCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, torn by no kill.

    A save goes to the disk in this order: content under another name; ``last_checkpoint``; the final name.
    The settings of ``cfg`` are saved, and must be the same on :meth:`resume`. The newest ``keep`` files
    ``model_<iteration>.pth`` are kept; 0 keeps all. The rest are Detectron2's arguments.
    """

    def __init__(self, model, save_dir="", *, save_to_disk=None, cfg=None, keep=0, **checkpointables):
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self.settings = run_settings(cfg) if cfg is not None else {}
        self.classes = config_classes(cfg) if cfg is not None else None
        self.keep = keep

    def save(self, name: str, **kwargs) -> None:
        """Save model and checkpointables as ``<name>.pth``.

        Raises:
            UserError: the disk does not take it. Earlier checkpoints are as before.
            Diverged: weights or optimizer hold NaN or infinity; nothing was written.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        data = {key: obj.state_dict() for key, obj in self.checkpointables.items()}
        if problem := finite_problem(learned(self.model) | dict(tensors_in(data))):
            raise Diverged(f"{problem}: no checkpoint {name}.pth was written")
        data = {"model": self.model.state_dict(), **data}
        data.update(
            kwargs,
            space={site: list(block.candidates) for site, block in choice_blocks(self.model).items()},
            meta=model_meta(self.model),
            settings=self.settings,
            classes=self.classes,
            versions=_versions(),
        )
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info("Saving checkpoint to %s", path)
        os.makedirs(self.save_dir, exist_ok=True)
        for leftover in Path(self.save_dir).glob(f"{PARTIAL}*"):  # of a killed save
            leftover.unlink()
        try:
            with replacing(path) as partial:
                _write(data, partial)
                self.tag_last_checkpoint(os.path.basename(path))
        except OSError as error:
            size = sum(tensor.nbytes for _, tensor in tensors_in(data))
            raise UserError(
                f"cannot write the checkpoint {path!r} of about {size:,} bytes: {error.strerror or error} "
                f"({shutil.disk_usage(self.save_dir).free:,} bytes are free); earlier checkpoints are "
                "intact: make room, then continue with --resume"
            ) from error
        self._remove_old(_iteration(data))
        if name != INTERRUPTED:
            Path(self.save_dir, f"{INTERRUPTED}.pth").unlink(missing_ok=True)

    def _remove_old(self, iteration: float) -> None:
        """Remove old periodic files; later ones than what was just saved are of a run that was left."""
        files = {file: int(m[1]) for file in os.listdir(self.save_dir) if (m := _PERIODIC.fullmatch(file))}
        old = sorted((number, file) for file, number in files.items() if number <= iteration)
        for _, file in old[: -self.keep] if self.keep else ():
            Path(self.save_dir, file).unlink(missing_ok=True)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        with replacing(os.path.join(self.save_dir, POINTER)) as partial:
            partial.write_text(last_filename_basename)

    def has_checkpoint(self) -> bool:
        return bool(self.get_checkpoint_file())

    def _load_file(self, filename: str) -> dict:
        return read_checkpoint(filename)  # where Detectron2 would unpickle

    def get_checkpoint_file(self) -> str:
        """Path of the checkpoint to continue from, or ""."""
        return newest_intact(self.save_dir)[0]

    def resume(self) -> bool:
        """Load model and checkpointables from the newest intact checkpoint; the first process chooses it.

        Returns:
            False if no run has left a checkpoint in ``save_dir``.

        Raises:
            UserError: none of the checkpoints is usable, or the run had other settings.
        """
        choice = newest_intact(self.save_dir) if comm.is_main_process() else None
        path, problems = comm.all_gather(choice)[0]
        if not _usable(self.save_dir, path, problems):
            return False
        if not all(comm.all_gather(os.path.isfile(path))):
            raise UserError(f"--resume: not every process can read {path!r}; put OUTPUT_DIR on a shared disk")
        if problems:
            self.logger.warning("Not used: %s. Continuing from %s instead", "; ".join(problems), path)
        data = read_checkpoint(path, "--resume", tested=True)
        check_settings(data, self.settings, path)
        if start := data.get("settings", {}).get(STARTED_FROM):
            self.settings[STARTED_FROM] = start
        if data.get("versions") != _versions():
            text = "%s was written by %s, now running %s: the run goes on, but perhaps not bit for bit"
            self.logger.warning(text, path, data.get("versions"), _versions())
        selected = select_weights(self.model, data, path, key="--resume", classes=self.classes)
        self.model.load_state_dict(selected, strict=False)
        try:
            for key, obj in self.checkpointables.items():
                obj.load_state_dict(data[key])
        except UserError:
            raise
        except Exception as error:  # of many kinds: optimizer, hooks and loader each read their part
            what = f"holds no state of a run ({type(error).__name__}: {error})"
            raise UserError(f"--resume: {path!r} {what}; remove it to go on from an earlier one") from error
        self.logger.info("Continuing from %s (iteration %s)", path, _iteration(data), extra=ON_SCREEN)
        return True


def check_resume(cfg) -> bool:
    """Whether --resume finds a checkpoint in OUTPUT_DIR; UserError if none is usable, or settings differ."""
    path = _usable(cfg.OUTPUT_DIR, *newest_intact(cfg.OUTPUT_DIR))
    record = os.path.join(cfg.OUTPUT_DIR, RECORD)  # of a run that was killed before its first checkpoint
    before = {}
    with contextlib.suppress(UserError):
        before = _peek(path) if path else read_json(record)
    check_settings(before, run_settings(cfg), path or record)
    if path:
        check_classes(f"--resume: {path!r}", before.get("classes"), config_classes(cfg))
    return bool(path)


def checkpoint_sizes(cfg: CfgNode, model: torch.nn.Module) -> tuple[int, int]:
    """About how many bytes a checkpoint takes, with the momentum, and how many a run holds at a time."""
    moments = 2 if cfg.SOLVER.OPTIMIZER == "ADAM" else bool(cfg.SOLVER.MOMENTUM)
    momentum = [p for p in model.parameters() if p.requires_grad] * moments
    tensors = [*model.parameters(), *model.buffers(), *momentum]
    kept = cfg.SOLVER.MAX_ITER // cfg.SOLVER.CHECKPOINT_PERIOD
    kept = min(kept, cfg.SOLVER.CHECKPOINTS_KEPT + 1) if cfg.SOLVER.CHECKPOINTS_KEPT else kept
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors), kept + 1


def _usable(folder: str, path: str, problems: list[str]) -> str:
    if problems and not path:
        problem = f"{folder!r} holds no usable checkpoint ({'; '.join(problems)})"
        raise UserError(f"--resume: {problem}; start anew in another OUTPUT_DIR")
    return path


def newest_intact(folder: str) -> tuple[str, list[str]]:
    """The checkpoint to continue from: the one that ``last_checkpoint`` names, else the newest intact one.

    Returns:
        (path, or "" if there is none; one "<file> <reason>" for each newer file that is not used)
    """
    names = os.listdir(folder) if os.path.isdir(folder) else ()
    files = [name for name in names if name.endswith(".pth") and not name.startswith(".")]
    pointer = _pointer(folder)
    content = {file: _peek(os.path.join(folder, file)) for file in files}
    age = {file: _iteration(content[file], file) for file in files}
    problems = [f"{pointer} is missing"] if files and pointer not in ("", *files) else []
    if problems and not re.fullmatch(r"[\w.-]+\.pth", pointer):
        problems = [f"{POINTER} names {pointer[:80]!r}, no checkpoint of this folder"]
    for file in sorted(files, key=lambda file: (file == pointer, age[file], file), reverse=True):
        path = os.path.join(folder, file)
        problem = damage(path) or ("" if content[file] else "cannot be read") or odd_content(content[file])
        problem = problem or finite_problem(content[file]["model"])
        if not problem and _iteration(content[file]) >= 0:
            if file == pointer:
                later = sorted(other for other in files if age[file] < age[other] < math.inf)
                problems += [f"{other} is newer than what {POINTER} names" for other in later]
            return path, problems
        if problem or file.startswith("model"):  # else the weights that a run begins from may lie here
            problems.append(f"{file} {problem or 'holds only weights'}")
    return "", problems


def iterations_done(folder: str) -> tuple[str, int]:
    """The checkpoint that --resume continues from, and how many iterations it has seen; ("", 0) for none."""
    path = newest_intact(folder)[0]
    return path, _iteration(_peek(path)) + 1 if path else 0


def _pointer(folder: str) -> str:
    """What ``last_checkpoint`` names, a file of ``folder`` without it; "" if there is none."""
    try:
        content = read_bytes(os.path.join(folder, POINTER)).decode(errors="replace")
    except OSError:
        return ""
    content = content.replace("\0", "?").strip()
    here = os.path.realpath(os.path.dirname(content)) == os.path.realpath(folder)
    return os.path.basename(content) if here else content


def _peek(path: str) -> dict:
    """A checkpoint without reading its tensors; empty if it is none."""
    try:
        data = {} if swollen(path) else load(path, mmap=True)
    except Exception:  # whatever a damaged archive makes of torch's reader; :func:`damage` tells
        return {}
    return data if isinstance(data, dict) else {}


def _iteration(data: dict, file: str = "") -> float:
    """Last iteration that a checkpoint has seen: -1 in mere weights, infinity if it cannot be read."""
    if match := _PERIODIC.fullmatch(file):
        return int(match[1])
    trainer = data.get("trainer")
    iteration = data.get("iteration", trainer.get("iteration", -1) if isinstance(trainer, dict) else -1)
    return iteration if data and isinstance(iteration, int) else math.inf


def _versions() -> dict[str, str]:
    return {"auto_panoptic": __version__, "torch": str(torch.__version__)}


class _Stream:
    """Passes bytes on, and keeps the error that stopped them, which torch.save would replace."""

    def __init__(self, stream):
        self.stream, self.error = stream, None

    def write(self, data) -> int:
        try:
            return self.stream.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.stream.flush()


def _write(data: dict, path: str | Path) -> None:
    with open(path, "wb") as file:
        stream = _Stream(file)
        try:
            torch.save(data, stream)
        except RuntimeError as error:
            raise stream.error or error from None
