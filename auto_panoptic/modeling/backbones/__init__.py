"""Backbones with searched blocks, and their registered builders."""

from .builders import build_shufflenet_backbone, build_shufflenet_fpn_backbone
from .shufflenet import ShuffleNetV2

__all__ = ["ShuffleNetV2", "build_shufflenet_backbone", "build_shufflenet_fpn_backbone"]
