"""Checkpoint files: what is in them, without running any of it."""

from __future__ import annotations

import os
import pickle
import zipfile

import torch

from ..errors import UserError
from .zoo import CATALOGUE


def damage(path: str) -> str:
    """What is wrong with the archive ``path``, such as "has 0 bytes"; "" if its checksums hold.

    A flipped bit that no checksum covers changes no weight: it is padding, or torch cannot read the file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entry = archive.testzip()
    except Exception as error:  # a damaged directory leads zipfile to errors of many kinds
        size = os.path.getsize(path)
        return f"is damaged ({str(error).splitlines()[0] if size and str(error) else f'{size} bytes'})"
    return f"is damaged (the checksum of {entry} does not hold)" if entry else ""


def read_checkpoint(
    path: str, key: str = "MODEL.WEIGHTS", *, tested: bool = False, mmap: bool = False
) -> dict:
    """Read a checkpoint without running any code in it.

    Args:
        path: the file.
        key: the setting that named it, for errors.
        tested: :func:`damage` found nothing.
        mmap: leave the tensors on the disk until they are looked at.

    Returns:
        a dict with "model": {name: tensor}, and whatever else the file holds.

    Raises:
        UserError: the file is missing, damaged, a pickle, or no checkpoint.
    """
    if path.endswith(".pkl"):
        raise UserError(
            f"{key}: {path!r} is a pickle, and reading one runs code in it; for Detectron2's own models give "
            f"the name in its catalogue ({CATALOGUE}ImageNetPretrained/MSRA/R-50.pkl), else a .pth file"
        )
    if "://" in path:
        raise UserError(f"{key}: {path!r} is no file; download it and give its path")
    if not os.path.isfile(path):
        raise UserError(
            f"{key}: no file {path!r}; give the path of a checkpoint (a training run writes "
            "OUTPUT_DIR/model_final.pth)"
        )
    if not tested and zipfile.is_zipfile(path) and (problem := damage(path)):
        raise UserError(f"{key}: {path!r} {problem}; give an intact copy")
    try:
        data = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, RuntimeError, EOFError, zipfile.BadZipFile, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{key}: {path!r} cannot be read as a checkpoint ({reason})") from None
    weights = data.get("model", data) if isinstance(data, dict) else None
    if not weights or not all(isinstance(v, torch.Tensor) for v in weights.values()):
        raise UserError(f"{key}: {path!r} holds no model weights; expected a dict of tensors under 'model'")
    return data if "model" in data else {"model": data}
