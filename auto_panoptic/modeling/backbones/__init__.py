"""Backbones with searched blocks; importing this package registers their builders."""

from . import builders  # noqa: F401
from .shufflenet import ShuffleNetV2

__all__ = ["ShuffleNetV2"]
