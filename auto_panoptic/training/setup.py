"""From a command line to a checked config."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable

import torch
import yaml
from detectron2.config import CfgNode, get_cfg

from ..config import add_auto_panoptic_config, find_config
from ..data import setup_datasets
from ..errors import UserError
from ..space import configured_ops


def _keys(node: CfgNode, prefix: str = "") -> list[str]:
    found = []
    for key, value in node.items():
        found += [prefix + key] + (_keys(value, f"{prefix}{key}.") if isinstance(value, CfgNode) else [])
    return found


def _merge(cfg: CfgNode, source: str, merge: Callable[[], None]) -> None:
    """Run a yacs merge; its exceptions become one line naming the source and the nearest key."""
    try:
        merge()
    except (KeyError, ValueError, AssertionError, TypeError, yaml.YAMLError) as error:
        message = " ".join(str(error.args[0] if error.args else error).split())
        unknown = re.search(r"Non-existent (?:config )?key: (\S+)", message)
        if unknown is None:
            raise UserError(f"{source}: {message}") from None
        key = unknown[1]
        near = difflib.get_close_matches(key, _keys(cfg), n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "auto_panoptic/config.py lists the keys"
        raise UserError(f"{source}: unknown config key {key!r}; {hint}") from None


def _check_merging(cfg: CfgNode) -> None:
    """Detectron2's own model would merge its own way, whatever METHOD says."""
    method = cfg.MODEL.PANOPTIC_FPN.COMBINE.METHOD
    if cfg.MODEL.META_ARCHITECTURE == "PanopticFPN" and method != "detectron2":
        raise UserError(
            f"MODEL.PANOPTIC_FPN.COMBINE.METHOD is {method!r}, but PanopticFPN merges in Detectron2's way; "
            "add MODEL.META_ARCHITECTURE AutoPanopticFPN MODEL.CROSS_ATTENTION.ENABLED False, the same "
            "network with every merging"
        )


def build_config(config_file: str, opts: list[str]) -> CfgNode:
    """Read and check a config, register its data sets, choose the device. Writes nothing.

    Args:
        config_file: path of a YAML file, or the name of a config of Detectron2's model zoo, such as
            ``COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml``.
        opts: ``KEY VALUE`` pairs that override it.

    Raises:
        UserError: unknown key, wrong type, missing file or data set, unreadable architecture.
    """
    cfg = get_cfg()
    add_auto_panoptic_config(cfg)
    if not config_file:
        raise UserError(
            "--config-file is missing; give one of configs/*.yaml, for example configs/quick/supernet.yaml"
        )
    path = find_config(config_file)
    _merge(cfg, config_file, lambda: cfg.merge_from_file(path))
    flags = [opt for opt in opts if str(opt).startswith("--")]  # argparse gives the rest of the line to opts
    if flags:
        raise UserError(f"{flags[0]} stands after KEY VALUE pairs: options come before them")
    _merge(cfg, "command line", lambda: cfg.merge_from_list(opts))
    _check_merging(cfg)
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    setup_datasets(cfg)
    configured_ops(cfg)
    cfg.freeze()
    return cfg
