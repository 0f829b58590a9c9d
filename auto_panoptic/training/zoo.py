"""Weights of Detectron2's model zoo: where they come from; their names are matched by its own code."""

from __future__ import annotations

import logging
import os
import pickle
import re
from pathlib import Path

import numpy as np
import torch
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager

from ..errors import UserError, first_line
from ..modeling.finite import finite_problem
from .archive import CATALOGUE, bounded_memory, optional, read_checkpoint
from .class_layers import anew_remedy, starting_anew
from .pickles import read_numbers

_NAME = re.compile(rf"{CATALOGUE}\w[\w.+-]*(/\w[\w.+-]*)*", re.ASCII)  # no way out of its folder
_BACKBONE = "backbone.bottom_up."  # under an FPN, in Detectron2's models
_TRUSTED = "AUTO_PANOPTIC_TRUSTED_PICKLE"  # a variable: processes that a command starts have it, too


def trust_pickle(path: str) -> None:
    """Let this command read the pickle ``path`` as Python does, for ``--trust-pickle``.

    Raises:
        UserError: it is none.
    """
    if not path.endswith(".pkl"):
        raise UserError(f"--trust-pickle is for weights in a pickle, {path!r} is no .pkl: leave it out")
    os.environ[_TRUSTED] = path
    if os.environ.get("RANK", "0") == "0":
        logging.getLogger(__name__).warning("--trust-pickle: reading a pickle runs code in it: %s", path)


def is_of_zoo(path: str) -> bool:
    """Whether :func:`read_zoo` reads it: a name of the catalogue, or what --trust-pickle names."""
    return path.startswith(CATALOGUE) or (path == os.environ.get(_TRUSTED) and os.path.isfile(path))


def read_zoo(path: str, model: torch.nn.Module, mmap: bool = False) -> dict:
    """Weights as :func:`.read_checkpoint` returns them; that they are of the zoo, "__author__" says.

    Args:
        path: a file, or a name of Detectron2's catalogue, whose pickles are read without running code.
        model: the network that they are for.
        mmap: leave the tensors of a checkpoint on the disk until they are looked at.

    Raises:
        UserError: it is missing or cannot be read.
    """
    trusted = os.environ.get(_TRUSTED) == path
    file = local_file(path) if path.startswith(CATALOGUE) else path
    if not file.endswith(".pkl"):
        return {"__author__": CATALOGUE, **read_checkpoint(file, mmap=mmap, model=model)}
    try:
        if trusted:
            return zoo_content(pickle.loads(Path(file).read_bytes(), encoding="latin1"))
        with bounded_memory(file):
            return zoo_content(read_numbers(file))
    except Exception as error:  # what a pickle is not, or what the code in it raises
        raise UserError(
            f"MODEL.WEIGHTS: {path!r} cannot be read ({first_line(error)})"
            + ("" if trusted else "; if you trust it, add --trust-pickle: reading a pickle runs code in it")
        ) from None


def zoo_content(content) -> dict:
    """The content of a pickle of Detectron2's zoo, or of Caffe2's, as a checkpoint.

    Returns:
        {"model": {name: tensor}, "__author__": str, "matching_heuristics": whether names are to be matched}

    Raises:
        ValueError: it holds no weights.
    """
    content = content if isinstance(content, dict) else {}
    known = "model" in content and "__author__" in content
    weights = content["model"] if known else content.get("blobs", content)
    arrays = {name: getattr(value, "values", value) for name, value in weights.items()}
    tensors = {
        name: torch.as_tensor(np.array(value))
        for name, value in arrays.items()
        if isinstance(value, np.ndarray | torch.Tensor) and (known or not name.endswith("_momentum"))
    }
    if not tensors:
        raise ValueError("it holds no weights")
    return {
        "model": tensors,
        "__author__": str(content["__author__"]) if known else "Caffe2",
        "matching_heuristics": bool(content.get("matching_heuristics")) or not known,
    }


def local_file(name: str) -> str:
    """The file of a name in the catalogue, which is downloaded unless it is there.

    Raises:
        UserError: it is no such name, or cannot be downloaded.
    """
    if not _NAME.fullmatch(name):
        raise UserError(
            f"MODEL.WEIGHTS: {name!r} is no name of Detectron2's catalogue; expected one like "
            f"{CATALOGUE}ImageNetPretrained/MSRA/R-50.pkl"
        )
    try:
        return PathManager.get_local_path(name)
    except Exception as error:  # whatever the download may raise
        raise UserError(
            f"MODEL.WEIGHTS: {name!r} cannot be downloaded ({first_line(error)}); check the name and the "
            "network"
        ) from None


def select_zoo_weights(
    model: torch.nn.Module, data: dict, path: str, *, to_train: bool = False, cfg: CfgNode | None = None
) -> dict[str, torch.Tensor]:
    """Select from weights of the zoo what ``model`` needs; what is more in them does not matter.

    Args:
        model: may be on the meta device.
        data: as :func:`read_zoo` returns it.
        path: named in errors.
        to_train: the backbone is enough.
        cfg: the config, where a training starts; its MODEL.WEIGHTS_CLASS_LAYERS counts.

    Raises:
        UserError: a weight is missing, has another shape, or holds NaN or infinity.
    """
    own, anew, weights = model.state_dict(), set(starting_anew(cfg)), data["model"]
    if data.get("matching_heuristics"):
        try:
            weights = align_and_update_state_dicts(own, dict(weights), data["__author__"] == "Caffe2")
        except Exception as error:  # of weights that its rules do not foresee
            raise UserError(f"MODEL.WEIGHTS: {path!r} does not match the network ({error!r:.200})") from None
    backbone = _BACKBONE if any(name.startswith(_BACKBONE) for name in own) else "backbone."
    missing = [
        name
        for name in own
        if not (optional(name) or name in anew)
        and (name in weights or name.startswith(backbone) or not to_train)
        and (name not in weights or weights[name].shape != own[name].shape)
    ]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        remedy = "it belongs to another network: give one that fits MODEL.BACKBONE and MODEL.RESNETS"
        remedy = anew_remedy(cfg, missing) or remedy
        raise UserError(f"MODEL.WEIGHTS: {path!r} lacks {missing[0]!r}{more}; {remedy}")
    usable = weights.keys() - anew
    selected = {k: weights[k] for k in own if k in usable and own[k].shape == weights[k].shape}
    if problem := finite_problem({k: v.to(own[k].dtype) for k, v in selected.items()}):
        raise UserError(f"MODEL.WEIGHTS: {path!r}: {problem}; give others")
    return selected
