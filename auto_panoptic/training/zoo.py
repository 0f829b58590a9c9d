"""Weights of Detectron2's model zoo, downloaded from its authors and matched by its own code."""

from __future__ import annotations

import re

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode

from ..errors import UserError
from .class_layers import anew_remedy, starting_anew

CATALOGUE = "detectron2://"
_NAME = re.compile(rf"{CATALOGUE}\w[\w.+-]*(/\w[\w.+-]*)*", re.ASCII)  # no way out of its folder
_BACKBONE = "backbone.bottom_up."  # under an FPN, in Detectron2's models


class _Catalogue(DetectionCheckpointer):
    """Detectron2's checkpointer, which resolves the names of its catalogue and converts old formats."""

    def _load_model(self, checkpoint):
        self.incompatible = super()._load_model(checkpoint)
        return self.incompatible


def local_file(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise UserError(
            f"MODEL.WEIGHTS: {name!r} is no name of Detectron2's catalogue; expected one like "
            f"{CATALOGUE}ImageNetPretrained/MSRA/R-50.pkl"
        )
    try:
        return _Catalogue(torch.nn.Module()).path_manager.get_local_path(name)
    except Exception as error:  # whatever the download may raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"MODEL.WEIGHTS: {name!r} cannot be downloaded ({reason}); check the name and the network"
        ) from None


def load_from_catalogue(
    model: torch.nn.Module, name: str, to_train: bool, cfg: CfgNode | None = None
) -> None:
    """Load weights by Detectron2's matching of names.

    Args:
        name: in the catalogue.
        to_train: the backbone is enough.
        cfg: the config, where a training starts; its MODEL.WEIGHTS_CLASS_LAYERS counts.

    Raises:
        UserError: a weight is missing, or has another shape.
    """
    anew = starting_anew(cfg)
    initial = {key: value.clone() for key, value in model.state_dict().items() if key in anew}
    checkpointer = _Catalogue(model)
    checkpointer.load(local_file(name), checkpointables=[])
    model.load_state_dict(initial, strict=False)
    own = model.state_dict()
    backbone = _BACKBONE if any(key.startswith(_BACKBONE) for key in own) else "backbone."
    found = checkpointer.incompatible
    missing = [
        key
        for key in found.missing_keys
        if (key.startswith(backbone) or not to_train) and not key.endswith("num_batches_tracked")
    ]
    missing = [key for key in (*missing, *(key for key, *_ in found.incorrect_shapes)) if key not in anew]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(
            f"MODEL.WEIGHTS: {name!r} lacks {missing[0]!r}{more}; "
            + (
                anew_remedy(cfg, missing)
                or "it belongs to another network: give one that fits MODEL.BACKBONE and MODEL.RESNETS"
            )
        )
