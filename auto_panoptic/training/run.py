"""One training run, for the command line and for Python: everything is checked first, then it trains."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_setup
from detectron2.utils import comm

from .. import signals
from ..data import check_ground_truth, log_ids, setup_datasets
from ..files import disk_errors, read_bytes, write_bytes, write_json, write_text
from ..modeling import Choices, check_size, choice_blocks, meta_model
from ..read_config import find_config, given_config, read_config
from ..screen import set_up_logs
from .checkpoint import RECORD, check_resume, checkpoint_sizes, run_settings
from .run_folder import check_room, check_unused, only_run, traces
from .trainer import AutoPanopticTrainer, check_supernet, check_training
from .unread import check_unread
from .weights import check_class_layers, check_weights

logger = logging.getLogger(__name__)


def build_config(config: str | CfgNode, opts: Sequence[str] = ()) -> CfgNode:
    """The config of a file, or of an object; then register its data sets and choose the device.

    Writes nothing. See :func:`.read_config` and :func:`.given_config`.

    Raises:
        UserError: a file, key or value that cannot be used, a missing data set, an unreadable architecture.
    """
    cfg = (given_config if isinstance(config, CfgNode) else read_config)(config, opts)
    device = cfg.MODEL.DEVICE
    if device.startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    setup_datasets(cfg)
    Choices.from_config(cfg)
    cfg.freeze()
    if device != cfg.MODEL.DEVICE and os.environ.get("RANK", "0") == "0":
        logger.warning("MODEL.DEVICE is %s, but torch sees no GPU: running on cpu", device)
    return cfg


def check_run(cfg, *, resume: bool = False, processes: int = 1, trainer=AutoPanopticTrainer):
    """Find everything that can be wrong with a training, before anything is written.

    With ``resume`` the run may go on in OUTPUT_DIR, which else must be unused. Returns the config for that
    number of processes (SOLVER.REFERENCE_WORLD_SIZE).

    Raises:
        UserError: a mistake in the config, the data or the weights; a used OUTPUT_DIR.
    """
    check_training(cfg)
    cfg = trainer.auto_scale_workers(cfg, processes)
    model = meta_model(cfg)
    check_size(model, 16 if cfg.SOLVER.OPTIMIZER == "ADAM" else 12)  # weights, gradients, moments
    if any(len(block.candidates) > 1 for block in choice_blocks(model).values()):
        check_supernet(cfg)
    check_room(cfg.OUTPUT_DIR, *checkpoint_sizes(cfg, model))
    if not resume:
        check_unused(cfg.OUTPUT_DIR)
    elif check_resume(cfg):
        return cfg  # MODEL.WEIGHTS was where the run began
    check_class_layers(cfg, cfg.MODEL.WEIGHTS, to_train=True)
    if cfg.MODEL.WEIGHTS:
        check_weights(cfg, cfg.MODEL.WEIGHTS, to_train=True, model=model)
    return cfg


@contextlib.contextmanager
def started(args, cfg) -> Iterator[None]:
    """A run in OUTPUT_DIR: the folder is its own, logs and config are written, seeds are set.

    ``args`` are Detectron2's: ``config_file``, ``resume``, ``eval_only`` and others to log; with ``verbose``
    the screen shows all that the log has.
    """
    training = not args.eval_only
    remedy = "run the command again" + " with --resume" * training
    with (
        only_run(cfg.OUTPUT_DIR, fresh=training and not args.resume),
        disk_errors(cfg.OUTPUT_DIR, remedy),
        _recorded(args, cfg) if training and comm.is_main_process() else contextlib.nullcontext(),
    ):
        _set_up(args, cfg)
        yield


def _set_up(args, cfg) -> None:
    """Detectron2's setup; an evaluation leaves the config.yaml of a training as it is."""
    config, first = os.path.join(cfg.OUTPUT_DIR, "config.yaml"), comm.is_main_process()
    record = os.path.join(cfg.OUTPUT_DIR, RECORD)
    trained = first and args.eval_only and os.path.isfile(record)
    kept = read_bytes(config) if trained and os.path.isfile(config) else b""
    if first:
        write_text(config, cfg.dump())  # whole or not at all: Detectron2 does it again, in place
    set_up_logs(cfg.OUTPUT_DIR, comm.get_rank(), getattr(args, "verbose", False))
    default_setup(cfg, args)
    logger.info("The log of all that happens: %s", os.path.join(cfg.OUTPUT_DIR, "log.txt"))
    if kept:
        write_bytes(config, kept)
    log_ids(cfg)
    check_ground_truth(cfg)


@contextlib.contextmanager
def _recorded(args, cfg) -> Iterator[None]:
    """Leave a record from the beginning on; a run that comes to nothing takes it away."""
    record = os.path.join(cfg.OUTPUT_DIR, RECORD)
    if not (args.resume and traces(cfg.OUTPUT_DIR)):
        write_json(record, {"settings": run_settings(cfg)})
    try:
        yield
    finally:
        if not traces(cfg.OUTPUT_DIR):
            Path(record).unlink(missing_ok=True)


def train_in(args, cfg, trainer=AutoPanopticTrainer) -> AutoPanopticTrainer:
    """Train in this process of a run that :func:`check_run` has checked; returns the trainer."""
    with signals.resumable(), started(args, cfg):
        made = trainer(cfg)
        made.resume_or_load(resume=args.resume)
        made.train()
    return made


def train(
    config: str | os.PathLike | CfgNode,
    options: Sequence = (),
    resume: bool = False,
    trainer=AutoPanopticTrainer,
    verbose: bool = False,
) -> AutoPanopticTrainer:
    """Train the network of a config in this process; the trainer has ``model`` and ``last_results``.

    Args:
        config: path of a YAML file, or a config; ``options`` are ``KEY, VALUE`` pairs that override it.
        resume: continue the run in OUTPUT_DIR, as ``--resume`` does; without it the folder must be unused.
        trainer: the class that trains; one of your own may override Detectron2's hook points.
        verbose: show all that the log has, as ``--verbose`` does.

    Raises:
        UserError: a mistake in the config, the data or the weights; a used OUTPUT_DIR, or one in use.
    """
    config = config if isinstance(config, CfgNode) else str(config)
    options = [str(option) for option in options]
    cfg = check_run(build_config(config, options), resume=resume, trainer=trainer)
    check_unread(cfg, config, options, trainer)
    path = "" if isinstance(config, CfgNode) else find_config(config)
    args = SimpleNamespace(config_file=path, resume=resume, eval_only=False, opts=options, verbose=verbose)
    return train_in(args, cfg, trainer)
