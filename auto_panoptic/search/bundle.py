"""The network that a search has found, before it is trained: the weights of its path as a bundle."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from detectron2.config import CfgNode

from ..errors import Diverged
from ..files import BUNDLE, digest
from ..space import as_text
from ..training.bundle import write_bundle
from ..training.trainer import AutoPanopticTrainer
from ..training.weights import load_weights
from .candidate import path_statistics
from .selection import SearchResult


def write_path_bundle(cfg: CfgNode, weights: str, result: SearchResult) -> Path | None:
    """Write bundle.pth beside the selected architecture; its path, or None where there can be none.

    It holds the weights of the path in the supernet ``weights``, with BatchNorm statistics recalibrated as in
    the search. It is for looking at what the path finds, for export and for measurements; as it is not
    trained alone, its quality is that of the search's scores.
    """
    fixed = cfg.clone()
    fixed.defrost()
    fixed.NAS.ARCHITECTURE = as_text(result.architecture.names())
    fixed.freeze()
    provenance = {
        "made_by": "search",
        "note": "the selected path with the supernet's weights, not trained alone",
        "started_from": {"file": os.path.basename(weights), "sha256": digest(weights)},
        "architecture": result.architecture.provenance,
    }
    path = result.directory / BUNDLE
    try:
        return path if bundle_weights(path, fixed, weights, provenance) else None
    except Diverged as error:
        logging.getLogger(__name__).warning("no %s was written: %s", path, error)
        return None


def bundle_weights(path: str | os.PathLike, cfg: CfgNode, weights: str, provenance: dict) -> bool:
    """:func:`.write_bundle` of the fixed network of ``cfg`` with ``weights``, which may be a supernet's."""
    model = AutoPanopticTrainer.build_model(cfg)
    space = load_weights(model, weights, cfg=cfg)
    with path_statistics(cfg, model, space):
        return write_bundle(path, cfg, model, provenance)
