"""Linear classifier over all levels of a feature pyramid at once.

Shape shorthand: N images, C channels per level, K classes, H x W the size of the finest level.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

__all__ = ["LevelClassifier"]


class LevelClassifier(nn.Conv2d):
    """1x1 convolution over all levels together; each level's slice acts at the level's own resolution."""

    def __init__(self, channels: int, num_classes: int, align_corners: bool):
        super().__init__(channels, num_classes, kernel_size=1)
        self.align_corners = align_corners

    def forward(self, levels: Sequence[torch.Tensor], gates: Sequence[torch.Tensor] | None = None):
        """
        Args:
            levels: (N, C, h, w) features, the finest level first.
            gates: (N, C) attention gates a per level; features count (1 + a) times. None: no attention.

        Returns:
            (N, K, H, W) logits at the size of the finest level.
        """
        slices = self.weight.flatten(1).split([x.shape[1] for x in levels], dim=1)
        size, total = levels[0].shape[-2:], None
        for i, (x, weight) in enumerate(zip(levels, slices, strict=True)):
            n, _, h, w = x.shape
            if gates is None:
                logits = F.conv2d(x, weight[:, :, None, None])
            else:
                scaled = weight * (1 + gates[i])[:, None, :]  # (N, K, C)
                logits = torch.bmm(scaled, x.flatten(2)).view(n, -1, h, w)
            if (h, w) != tuple(size):
                logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=self.align_corners)
            total = logits if total is None else total + logits
        return total + self.bias[:, None, None]

    def macs(self, inputs: tuple, output: torch.Tensor) -> int:
        """Multiply-adds of one call: every feature meets the weights of all classes."""
        return self.out_channels * sum(x.numel() for x in inputs[0])
