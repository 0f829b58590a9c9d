"""From a command line to a checked config."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode

from ..data import setup_datasets
from ..errors import UserError
from ..modeling import Choices
from ..read_config import read_config


def _check_merging(cfg: CfgNode) -> None:
    """Detectron2's own model would merge its own way, whatever METHOD says."""
    method = cfg.MODEL.PANOPTIC_FPN.COMBINE.METHOD
    if cfg.MODEL.META_ARCHITECTURE == "PanopticFPN" and method != "detectron2":
        raise UserError(
            f"MODEL.PANOPTIC_FPN.COMBINE.METHOD is {method!r}, but PanopticFPN merges in Detectron2's way; "
            "add MODEL.META_ARCHITECTURE AutoPanopticFPN MODEL.CROSS_ATTENTION.ENABLED False, the same "
            "network with every merging"
        )


def build_config(config_file: str, opts: Sequence[str] = ()) -> CfgNode:
    """Read and check a config, register its data sets, choose the device. Writes nothing.

    Args:
        config_file, opts: as in :func:`~auto_panoptic.read_config.read_config`.

    Raises:
        UserError: a file, key or value that cannot be used, a missing data set, an unreadable architecture.
    """
    cfg = read_config(config_file, opts)
    _check_merging(cfg)
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    setup_datasets(cfg)
    Choices.from_config(cfg)
    cfg.freeze()
    return cfg
