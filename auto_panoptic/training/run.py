"""One training run, for the command line and for Python: everything is checked first, then it trains."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from types import SimpleNamespace

from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from ..data import log_ids
from ..modeling import choice_blocks, meta_model
from ..read_config import find_config
from .checkpoint import check_resume
from .class_layers import check_class_layers
from .config import build_config
from .run_folder import check_unused, only_run
from .trainer import AutoPanopticTrainer, check_supernet, check_training
from .unread import check_unread
from .weights import check_weights


def check_run(cfg, *, resume: bool = False, processes: int = 1, trainer=AutoPanopticTrainer):
    """Find everything that can be wrong with a training, before anything is written.

    Args:
        cfg: a config of :func:`build_config`.
        resume: the run may go on in OUTPUT_DIR; else that must be unused.
        processes: how many the run has.
        trainer: its class.

    Returns:
        the config for that number of processes (SOLVER.REFERENCE_WORLD_SIZE).

    Raises:
        UserError: a mistake in the config, the data or the weights; a used OUTPUT_DIR.
    """
    check_training(cfg)
    cfg = trainer.auto_scale_workers(cfg, processes)
    model = meta_model(cfg)
    if any(len(block.candidates) > 1 for block in choice_blocks(model).values()):
        check_supernet(cfg)
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

    Args:
        args: Detectron2's arguments ``config_file``, ``resume``, ``eval_only`` and others to log.
    """
    with only_run(cfg.OUTPUT_DIR, fresh=not (args.eval_only or args.resume)):
        default_setup(cfg, args)
        setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="auto_panoptic")
        log_ids(cfg)
        yield


def train_in(args, cfg, trainer=AutoPanopticTrainer) -> AutoPanopticTrainer:
    """Train in this process of a run that :func:`check_run` has checked; returns the trainer."""
    with started(args, cfg):
        made = trainer(cfg)
        made.resume_or_load(resume=args.resume)
        made.train()
    return made


def train(
    config_file: str, options: Sequence = (), resume: bool = False, trainer=AutoPanopticTrainer
) -> AutoPanopticTrainer:
    """Train the network of a config from MODEL.WEIGHTS, or from scratch, in this process.

    Data sets that were registered before may be named in the options. Writes to OUTPUT_DIR.

    Args:
        config_file: path of a YAML file.
        options: ``KEY, VALUE`` pairs that override it.
        resume: continue the run in OUTPUT_DIR, as ``--resume`` does; without it the folder must be unused.
        trainer: the class that trains; one of your own may override Detectron2's hook points.

    Returns:
        the trainer, with the trained ``model``, and ``last_results`` where it evaluated.

    Raises:
        UserError: a mistake in the config, the data or the weights; a used OUTPUT_DIR, or one in use.
    """
    config_file, options = str(config_file), [str(option) for option in options]
    cfg = check_run(build_config(config_file, options), resume=resume, trainer=trainer)
    check_unread(cfg, config_file, options)
    args = SimpleNamespace(config_file=find_config(config_file), resume=resume, eval_only=False, opts=options)
    return train_in(args, cfg, trainer)
