"""What identifies a search: its policy, and the first line of its ledger."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence

import detectron2
import numpy
import PIL
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from .. import __version__
from ..data.content import contents
from ..data.register import find_source
from ..explore import POLICY_REGISTRY, Policy
from ..files import plain
from ..space import SearchSpace
from ..validate import defaults, flat
from .selection import ranking_metric

# What the scores follow from, in the config; so do keys that neither Detectron2 nor this package defines. Of
# the rest (paths, devices' loaders, schedules, other policies), nothing must be as it was.
MUST_MATCH = ("MODEL", "INPUT", "TEST", "DATASETS.TRAIN", "DATASETS.SEARCH")
MUST_MATCH += ("NAS.SPACE", "NAS.BN_RECALIBRATION", "NAS.ARCHITECTURE")


def search_policy(cfg, space: SearchSpace) -> Policy:
    """The policy NAS.POLICY with its settings in the config; UserError if it is unknown or they are wrong."""
    return POLICY_REGISTRY.of(cfg.NAS.POLICY).from_config(cfg, space)


def search_header(
    cfg,
    policy: Policy,
    weights: str,
    metrics: Sequence[str] = ("pq",),
    asked: Mapping[str, int] | None = None,
) -> dict:
    """First line of the ledger: everything that the candidates and their scores depend on.

    "config" holds the settings, of which :func:`comparable` says what must be the same in a resumed search.
    Of the data, DATASETS.SEARCH and, where statistics are recalibrated, DATASETS.TRAIN count: "data" is of
    their panoptic JSON files, "content" also of PNGs and photographs (:func:`.content`). The fitness
    among the metrics ("pq", "ap", "miou") is stated where it is not PQ, NAS.SCOREBOARD where not "exact".
    "asked" is what the command line said of the length of the search, which may be another when resumed.
    """
    recalibration = cfg.NAS.BN_RECALIBRATION
    training = cfg.DATASETS.TRAIN if recalibration.ENABLED else ()
    calibration = _data_digest(training)
    if recalibration.ENABLED and recalibration.MOMENTUM:
        calibration += " shuffled"  # ledgers of earlier versions had landscape images first
    kept = cfg.clone()
    kept.defrost()
    kept.OUTPUT_DIR = kept.MODEL.WEIGHTS = kept.NAS.POLICY = ""
    kept.NAS.SEED = 0
    POLICY_REGISTRY.add_config(kept.NAS, CfgNode, clear=True)  # prolonged, or stated apart
    header = {
        "space": policy.space.to_dict(),
        "seed": cfg.NAS.SEED,
        "policy": policy.name,
        "policy_settings": policy.settings,
        "config": yaml.safe_load(kept.dump()),
        "weights": weights_digest(weights),
        "data": {"search": _data_digest(cfg.DATASETS.SEARCH), "calibration": calibration},
        "content": contents(cfg, dict.fromkeys((*cfg.DATASETS.SEARCH, *training)), store=False),
        "metrics": sorted(metrics),
        "versions": {"auto_panoptic": __version__, "torch": torch.__version__},
        "libraries": {m.__name__: m.__version__ for m in (detectron2, numpy, PIL)},  # decode, resize, paste
    }
    stated = {
        "fitness": (ranking_metric(metrics), "PQ"),
        "scoreboard": (cfg.NAS.SCOREBOARD, "exact"),
        "asked": (dict(asked or {}), {}),
    }
    return header | {key: value for key, (value, default) in stated.items() if value != default}


def comparable(header: dict) -> dict:
    """A header without what was asked, and with no more of its config than what the scores follow from.

    A key that the header lacks, as it came later, counts with its default.
    """
    header = {key: value for key, value in header.items() if key != "asked"}
    if not isinstance(header.get("config"), dict):
        return header
    known = plain(defaults())
    sections = {key.partition(".")[0] for key in known}

    def matters(key: str) -> bool:
        if key in ("MODEL.WEIGHTS", "TEST.PICTURES"):  # the header has the weights' digest
            return False
        return key.partition(".")[0] not in sections or any(f"{key}.".startswith(f"{m}.") for m in MUST_MATCH)

    config = {key: value for key, value in (known | dict(flat(header["config"]))).items() if matters(key)}
    return {**header, "config": config}


def _data_digest(names: Iterable[str]) -> str:
    paths = []
    for name in names:
        source, metadata = find_source(name), MetadataCatalog.get(name)
        if source is not None and not os.path.exists(source.panoptic_json):
            source.check_files()  # draws the built-in set, or says what is missing
        path = source.panoptic_json if source else metadata.get("panoptic_json", metadata.get("json_file"))
        paths += [path] if path else []
    return _digest(paths)


def weights_digest(path: str) -> str:
    """What identifies a checkpoint's content; "" where ``path`` is."""
    return _digest([path]) if path else ""


def _digest(paths: list[str]) -> str:
    """First 16 hexadecimal digits of a SHA-256 over the files' contents, in order."""
    total = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()[:16]
