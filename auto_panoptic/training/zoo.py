"""Weights of Detectron2's model zoo; of their pickles nothing runs, unless the user trusts one."""

from __future__ import annotations

import logging
import os
import pickle
import re
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from detectron2.utils.file_io import PathManager

from ..errors import UserError, first_line
from .archive import CATALOGUE, bounded_memory, optional, read_checkpoint

_NAME = re.compile(rf"{CATALOGUE}\w[\w.+-]*(/\w[\w.+-]*)*", re.ASCII)  # no way out of its folder
_BACKBONE = "backbone.bottom_up."  # under an FPN, in Detectron2's models
_TRUSTED = "AUTO_PANOPTIC_TRUSTED_PICKLE"  # a variable: processes that a command starts have it, too


def trust_pickle(path: str) -> None:
    """Let this command read the pickle ``path`` as Python does (--trust-pickle); UserError if it is none."""
    if not path.endswith(".pkl"):
        raise UserError(f"--trust-pickle is for weights in a pickle, {path!r} is no .pkl: leave it out")
    os.environ[_TRUSTED] = path
    if os.environ.get("RANK", "0") == "0":
        logging.getLogger(__name__).warning("--trust-pickle: reading a pickle runs code in it: %s", path)


def is_of_zoo(path: str) -> bool:
    """Whether :func:`read_zoo` reads it: a name of the catalogue, or what --trust-pickle names."""
    return path.startswith(CATALOGUE) or (path == os.environ.get(_TRUSTED) and os.path.isfile(path))


def read_zoo(path: str, model: torch.nn.Module, mmap: bool = False) -> dict:
    """Weights of a file or of Detectron2's catalogue as :func:`.read_checkpoint` returns them.

    "__author__" says that they are of the zoo. UserError if they are missing or cannot be read.
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
    """The content of a pickle of Detectron2's zoo, or of Caffe2's, as a checkpoint; ValueError if it is none.

    That is {"model": {name: tensor}, "__author__": str, "matching_heuristics": whether to match names}.
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
    """The file of a name in the catalogue, downloaded unless it is there; UserError if that fails."""
    if not _NAME.fullmatch(name):
        like = f"expected one like {CATALOGUE}ImageNetPretrained/MSRA/R-50.pkl"
        raise UserError(f"MODEL.WEIGHTS: {name!r} is no name of Detectron2's catalogue; {like}")
    try:
        return PathManager.get_local_path(name)
    except Exception as error:  # whatever the download may raise
        problem = f"MODEL.WEIGHTS: {name!r} cannot be downloaded ({first_line(error)})"
        raise UserError(f"{problem}; check the name and the network") from None


def match_zoo(subject: str, data: dict, own: dict, to_train: bool) -> tuple[dict, dict]:
    """(Weights of the zoo, those of ``own`` that must be among them), under a model's names ``own``.

    To train, the backbone is enough. UserError if their names cannot be matched.
    """
    weights = data["model"]
    if data.get("matching_heuristics"):
        try:
            weights = align_and_update_state_dicts(own, dict(weights), data["__author__"] == "Caffe2")
        except Exception as error:  # of weights that its rules do not foresee
            raise UserError(f"{subject} does not match the network ({error!r:.200})") from None
    backbone = _BACKBONE if any(name.startswith(_BACKBONE) for name in own) else "backbone."
    needed = {k: v for k, v in own.items() if k in weights or k.startswith(backbone) or not to_train}
    fits = {k for k, v in needed.items() if k in weights and (weights[k].shape == v.shape or not optional(k))}
    return {k: weights[k] for k in needed if k in fits}, needed


# ------------------------------------------------------------------ pickles of numbers
# Of what a pickle may call, arrays, their types and ordered dicts have a stand-in here; all else is refused.


class _Type:
    """Stands in for ``numpy.dtype``."""

    def __init__(self, code: str, *_):
        if not re.fullmatch("[fiub][1248]", code):
            raise pickle.UnpicklingError(f"it holds values of type {code!r}")
        self.kind = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        self.kind = self.kind.newbyteorder(state[1])


class _Array:
    """Stands in for ``numpy.ndarray``."""

    def __setstate__(self, state: tuple) -> None:
        _, shape, kind, fortran, data = state
        self.values = _array(data, kind, shape, "F" if fortran else "C").values


def _array(data: bytes | str, kind: _Type, shape: tuple = (), order: str = "C") -> _Array:
    content = data.encode("latin1") if isinstance(data, str) else data
    values, made = np.frombuffer(content, kind.kind), _Array()
    made.values = values.astype(kind.kind.newbyteorder("=")).reshape(shape, order=order)
    return made


_STAND_INS = {
    "collections.OrderedDict": OrderedDict,
    "numpy.dtype": _Type,
    "numpy.ndarray": _Array,
    "numpy.core.multiarray._reconstruct": lambda *_: _Array(),
    "numpy.core.multiarray.scalar": lambda kind, data: _array(data, kind),
    "numpy.core.numeric._frombuffer": _array,
    "__builtin__.bytes": lambda: b"",
    "_codecs.encode": lambda text, *_: text.encode("latin1"),
}


class _Reader(pickle._Unpickler):  # the one in Python: a pickle cannot make it take memory it does not fill
    def find_class(self, module: str, name: str):
        known = _STAND_INS.get(f"{module.replace('numpy._core', 'numpy.core')}.{name}")
        if known is None:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which would run as code")
        return known


def read_numbers(path: str):
    """The content of a pickle, arrays as ``values`` of objects; may raise anything where it holds more."""
    with open(path, "rb") as stream:
        return _Reader(stream, encoding="latin1").load()
