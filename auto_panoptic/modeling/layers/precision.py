"""Blocks that compute in the precision of their inputs."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch.amp import is_autocast_available


def no_autocast(device: str) -> AbstractContextManager:
    """Context without autocast on ``device``, a type such as "cuda"; some, such as "meta", have none."""
    return torch.autocast(device, enabled=False) if is_autocast_available(device) else nullcontext()
