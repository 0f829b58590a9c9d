"""A bundle: one file with all that a network needs to predict, without its data sets, runs and configs.

It is a checkpoint without the state of a run, so MODEL.WEIGHTS takes it, too. Reading it runs no code.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Mapping

import detectron2
import torch
from detectron2.config import CfgNode

from .. import __version__
from ..data.classes import config_classes
from ..data.labels import CLASSES
from ..errors import UserError
from ..files import plain, write_bytes
from ..modeling import choice_blocks
from ..space import Architecture, as_text, resolve_architecture_path
from .weights import model_meta

FORMAT = 1


def write_bundle(path: str | os.PathLike, cfg: CfgNode, model: torch.nn.Module, provenance: Mapping) -> bool:
    """Write a fixed ``model`` of ``cfg`` as a bundle, whole or not at all; False where it finds no segments.

    It holds what checkpoints say of a model ("model", "space", "meta", "classes", "versions"), and "bundle":
    "format"; "config", YAML without files, folders and data sets, with NAS.ARCHITECTURE as text; and
    "provenance": that given, with the names of the data sets and the seed.

    Raises:
        UserError: the file cannot be written.
    """
    classes = config_classes(cfg)
    if classes is None or classes["labels"] == CLASSES:
        return False
    data = {key.lower(): list(cfg.DATASETS[key]) for key in ("TRAIN", "TEST")}
    own = {"auto_panoptic": __version__, "torch": torch.__version__, "detectron2": detectron2.__version__}
    content = {
        "model": {name: value.detach().cpu() for name, value in model.state_dict().items()},
        "space": {site: list(block.candidates) for site, block in choice_blocks(model).items()},
        "meta": model_meta(model),
        "classes": classes,
        "versions": {name: str(version) for name, version in own.items()},
        "bundle": {
            "format": FORMAT,
            "config": portable(cfg, model).dump(),
            "provenance": plain({**provenance, "data": data, "seed": cfg.SEED}),
        },
    }
    stream = io.BytesIO()
    torch.save(content, stream)
    write_bytes(path, stream.getvalue())
    return True


def portable(cfg: CfgNode, model: torch.nn.Module) -> CfgNode:
    """The config of the fixed ``model`` without files, folders and data sets."""
    cfg = cfg.clone()
    cfg.defrost()
    names = {site: block.active for site, block in choice_blocks(model).items()}
    cfg.NAS.ARCHITECTURE = as_text(names) if names else ""
    cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR = "", "./output"
    for key in ("TRAIN", "TEST", "SEARCH", "PROPOSAL_FILES_TRAIN", "PROPOSAL_FILES_TEST"):
        cfg.DATASETS[key] = ()
    cfg.DATASETS.COCO_PANOPTIC, cfg.DATASETS.IMAGE_FOLDERS = [], []
    cfg.TEST.EXPECTED_RESULTS = []
    return cfg


def training_provenance(cfg: CfgNode, iterations: int, results: Mapping, start: str) -> dict:
    """How a training made a network; ``start`` is what :func:`.run_settings` says of MODEL.WEIGHTS."""
    path = sha256 = None
    with contextlib.suppress(ValueError, TypeError):  # written by hand
        path, sha256 = json.loads(start)
    found = {"made_by": "training", "iterations": iterations, "results": without_classes(results)}
    found["started_from"] = {"file": os.path.basename(path), "sha256": sha256} if path else None
    if cfg.NAS.ARCHITECTURE:
        with contextlib.suppress(UserError):  # it may be gone by now
            path = resolve_architecture_path(cfg.NAS.ARCHITECTURE)
            found["architecture"] = Architecture.load(path).provenance
    return found


def without_classes(results: Mapping) -> dict:
    """Results of an evaluation, {task: {metric: value}}, without the values of single classes."""
    return {
        key: without_classes(value) if isinstance(value, Mapping) else value
        for key, value in results.items()
        if isinstance(value, Mapping) or "-" not in key
    }
