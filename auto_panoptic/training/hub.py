"""Classifiers that timm publishes: files of numbers, which cannot run code."""

from __future__ import annotations

import logging
import re

import torch

from ..errors import UserError, first_line
from .archive import read_checkpoint

HUB = "timm://"
_FILE = "model.safetensors"  # of every model of timm's hub
_NAME = re.compile(rf"{HUB}([a-z]\w*\.\w+)", re.ASCII)  # network and training


def is_of_hub(path: str) -> bool:
    """Whether ``path`` is a name of timm's hub, such as timm://hrnet_w48.ms_in1k."""
    return path.startswith(HUB)


def read_hub(path: str, model: torch.nn.Module, mmap: bool = False) -> dict:
    """Weights of timm's hub as :func:`.read_checkpoint` returns them, downloaded unless they are there.

    Raises:
        UserError: the hub has no such name, the download fails, or timm is missing.
    """
    try:
        from huggingface_hub import hf_hub_download
        from timm.models import get_pretrained_cfg
    except ImportError:
        raise UserError(
            f"MODEL.WEIGHTS: {path!r} needs timm: pip install timm, or install this package with its extra "
            "'deeplab'"
        ) from None
    try:
        match = _NAME.fullmatch(path)
        known = get_pretrained_cfg(match[1], allow_unregistered=False).hf_hub_id if match else None
    except RuntimeError:  # timm does not know it
        known = None
    if not known:
        raise UserError(
            f"MODEL.WEIGHTS: {path!r} is no name of timm's hub; expected one like {HUB}hrnet_w48.ms_in1k"
        )
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # the error below tells
    try:
        file = hf_hub_download(known, _FILE)
    except Exception as error:  # whatever the download may raise
        problem = f"MODEL.WEIGHTS: {path!r} cannot be downloaded ({first_line(error)})"
        raise UserError(f"{problem}; check the network, or download {_FILE} and give its path") from None
    return read_checkpoint(file, model=model, mmap=mmap)
