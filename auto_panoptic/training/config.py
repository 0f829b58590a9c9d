"""From a command line to a checked config."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode

from ..data import setup_datasets
from ..modeling import Choices
from ..read_config import read_config


def build_config(config_file: str, opts: Sequence[str] = ()) -> CfgNode:
    """Read and check a config, register its data sets, choose the device. Writes nothing.

    Args:
        config_file, opts: as in :func:`~auto_panoptic.read_config.read_config`.

    Raises:
        UserError: a file, key or value that cannot be used, a missing data set, an unreadable architecture.
    """
    cfg = read_config(config_file, opts)
    device = cfg.MODEL.DEVICE
    if device.startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    setup_datasets(cfg)
    Choices.from_config(cfg)
    cfg.freeze()
    if device != cfg.MODEL.DEVICE and os.environ.get("RANK", "0") == "0":
        logging.getLogger(__name__).warning(
            "MODEL.DEVICE is %s, but torch sees no GPU: running on cpu", device
        )
    return cfg
