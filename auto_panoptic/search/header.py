"""What identifies a search: where its ledger lies, its policy, and the first line of the ledger.

Imports torch and Detectron2 only where it needs them, so that the command line answers at once.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from .. import __version__
from ..explore import POLICIES, Policy, make_policy
from ..space import SearchSpace

# Header keys whose change may be accepted. With another space, seed or policy the candidates are others.
ACCEPTABLE = ("config", "data", "libraries", "metrics", "versions", "weights")

# policy -> config keys of its cycles and of the models in each.
CYCLE_KEYS = {
    "path_priority": ("NAS.CYCLES", "NAS.MODELS_PER_CYCLE"),
    "random": ("NAS.RANDOM.CYCLES", "NAS.RANDOM.MODELS_PER_CYCLE"),
    "evolution": ("NAS.EVOLUTION.GENERATIONS", "NAS.EVOLUTION.POPULATION"),
}
assert CYCLE_KEYS.keys() == POLICIES.keys()


def ledger_path(cfg) -> Path:
    """OUTPUT_DIR/search/ledger.jsonl; scoreboard.json and architecture.json lie beside it."""
    return Path(cfg.OUTPUT_DIR) / "search" / "ledger.jsonl"


def search_policy(cfg, space: SearchSpace) -> Policy:
    """The policy NAS.POLICY with its settings in the config.

    Raises:
        UserError: unknown policy, or a setting out of range.
    """
    nodes = {"random": cfg.NAS.RANDOM, "evolution": cfg.NAS.EVOLUTION}
    settings = {key.lower(): value for key, value in nodes.get(cfg.NAS.POLICY, {}).items()}
    settings = settings or {"cycles": cfg.NAS.CYCLES, "models_per_cycle": cfg.NAS.MODELS_PER_CYCLE}
    return make_policy(cfg.NAS.POLICY, space, cfg.NAS.SEED, settings)


def search_header(cfg, space: SearchSpace, weights: str, metrics: Iterable[str] = ("pq",)) -> dict:
    """First line of the ledger: everything that the candidates and their scores depend on.

    "config" holds all settings of the model, its input, recalibration and evaluation. Of the data, the
    panoptic JSON files of DATASETS.SEARCH and, where statistics are recalibrated, of DATASETS.TRAIN are
    read; not the images.
    """
    import detectron2
    import numpy
    import PIL
    import torch
    import yaml
    from detectron2.config import CfgNode

    policy = search_policy(cfg, space)
    settings = cfg.NAS.BN_RECALIBRATION
    calibration = _data_digest(cfg.DATASETS.TRAIN if settings.ENABLED else ())
    if settings.ENABLED and settings.MOMENTUM:
        calibration += " shuffled"  # ledgers of earlier versions had landscape images first
    relevant = cfg.clone()
    relevant.defrost()
    relevant.OUTPUT_DIR = relevant.MODEL.WEIGHTS = relevant.NAS.POLICY = ""
    relevant.NAS.SEED = relevant.NAS.CYCLES = relevant.NAS.MODELS_PER_CYCLE = 0  # prolonged, or stated apart
    relevant.NAS.RANDOM, relevant.NAS.EVOLUTION = CfgNode(), CfgNode()
    return {
        "space": space.to_dict(),
        "seed": cfg.NAS.SEED,
        "policy": policy.name,
        "policy_settings": policy.settings,
        "config": yaml.safe_load(relevant.dump()),
        "weights": _digest([weights]),
        "data": {
            "search": _data_digest(cfg.DATASETS.SEARCH),
            "calibration": calibration,
        },
        "metrics": sorted(metrics),
        "versions": {"auto_panoptic": __version__, "torch": torch.__version__},
        "libraries": {m.__name__: m.__version__ for m in (detectron2, numpy, PIL)},  # decode, resize, paste
    }


def _data_digest(names: Iterable[str]) -> str:
    from detectron2.data import MetadataCatalog

    from ..data.register import find_source

    paths = []
    for name in names:
        source, metadata = find_source(name), MetadataCatalog.get(name)
        if source is not None and not os.path.exists(source.panoptic_json):
            source.check_files()  # draws the built-in set, or says what is missing
        path = source.panoptic_json if source else metadata.get("panoptic_json", metadata.get("json_file"))
        paths += [path] if path else []
    return _digest(paths)


def _digest(paths: list[str]) -> str:
    """First 16 hexadecimal digits of a SHA-256 over the files' contents, in order."""
    total = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()[:16]
