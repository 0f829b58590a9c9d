"""Training from Python in one call, as ``train_net.py`` does it from the command line."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.engine import default_argument_parser, default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from ..data import log_ids
from ..modeling import meta_model
from .config import build_config
from .trainer import AutoPanopticTrainer, check_training
from .weights import check_weights


def train(config_file: str, options: Sequence = ()) -> AutoPanopticTrainer:
    """Train the network of a config from MODEL.WEIGHTS, or from scratch, in this process.

    Data sets that were registered before may be named in the options. Writes to OUTPUT_DIR.

    Args:
        config_file: path of a YAML file.
        options: ``KEY, VALUE`` pairs that override it.

    Returns:
        the trainer, with the trained ``model``, and ``last_results`` where it evaluated.

    Raises:
        UserError: a mistake in the config, the data or the weights.
    """
    options = [str(option) for option in options]
    cfg = build_config(config_file, options)
    check_training(cfg)
    if cfg.MODEL.WEIGHTS:
        check_weights(cfg, cfg.MODEL.WEIGHTS, to_train=True)
    else:
        meta_model(cfg)
    default_setup(cfg, default_argument_parser().parse_args(["--config-file", config_file, *options]))
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="auto_panoptic")
    log_ids(cfg)
    trainer = AutoPanopticTrainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    return trainer
