"""Training from Python in one call, as ``train_net.py`` does it from the command line."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.engine import default_argument_parser, default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from ..data import log_ids
from ..modeling import meta_model
from .checkpoint import check_resume
from .config import build_config
from .run_folder import check_unused, only_run
from .trainer import AutoPanopticTrainer, check_training
from .weights import check_weights


def train(config_file: str, options: Sequence = (), resume: bool = False) -> AutoPanopticTrainer:
    """Train the network of a config from MODEL.WEIGHTS, or from scratch, in this process.

    Data sets that were registered before may be named in the options. Writes to OUTPUT_DIR.

    Args:
        config_file: path of a YAML file.
        options: ``KEY, VALUE`` pairs that override it.
        resume: continue the run in OUTPUT_DIR, as ``--resume`` does; without it the folder must be unused.

    Returns:
        the trainer, with the trained ``model``, and ``last_results`` where it evaluated.

    Raises:
        UserError: a mistake in the config, the data or the weights; a used OUTPUT_DIR, or one in use.
    """
    options = [str(option) for option in options]
    cfg = build_config(config_file, options)
    check_training(cfg)
    if not resume:
        check_unused(cfg.OUTPUT_DIR)
    if not (resume and check_resume(cfg)) and cfg.MODEL.WEIGHTS:
        check_weights(cfg, cfg.MODEL.WEIGHTS, to_train=True)
    else:
        meta_model(cfg)
    with only_run(cfg.OUTPUT_DIR, fresh=not resume):
        default_setup(cfg, default_argument_parser().parse_args(["--config-file", config_file, *options]))
        setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="auto_panoptic")
        log_ids(cfg)
        trainer = AutoPanopticTrainer(cfg)
        trainer.resume_or_load(resume=resume)
        trainer.train()
    return trainer
