"""Inter-modular attention between the foreground (FPN) and the background (semantic) features, paper Eq. 1.

Shape shorthand: N images; F2..F6 FPN outputs with C_F channels; S2..S5 subnet outputs with C_S channels.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache, partial

import torch
from detectron2.config import configurable
from torch import nn
from torch.nn import functional as F

from auto_panoptic.modeling.choice import Choices
from auto_panoptic.modeling.layers.precision import no_autocast
from auto_panoptic.modeling.layers.setting import SettingInWeights
from auto_panoptic.space import OpSpec, ratio_op


@lru_cache(maxsize=4096)
def _column_means(source: int, target: int, align_corners: bool) -> torch.Tensor:
    """Mean over the rows of the (target x source) matrix of 1-D linear interpolation, (source,) float64."""
    basis = torch.eye(source, dtype=torch.float64)[None]
    return F.interpolate(basis, size=target, mode="linear", align_corners=align_corners)[0].mean(dim=1)


def upsampled_mean(x: torch.Tensor, size: Sequence[int], align_corners: bool = True) -> torch.Tensor:
    """Mean over all pixels of ``x`` resized bilinearly to ``size``, computed without resizing.

    Bilinear interpolation is separable and linear: the mean is a weighted mean of the source pixels, and
    the weights are the outer product of the column means of the two 1-D interpolation matrices.

    Args:
        x: (N, C, h, w).
        size: (H, W) of the resized map.
        align_corners: as in ``torch.nn.functional.interpolate``.

    Returns:
        (N, C), in float32 if ``x`` is in 16 bits: the weights of a large map are too small for those.
    """
    if x.dtype in (torch.float16, torch.bfloat16):
        x = x.float()
    if torch.jit.is_tracing():  # for images of any size
        return F.interpolate(x, size=size, mode="bilinear", align_corners=align_corners).mean(dim=(2, 3))
    h, w = x.shape[-2:]
    if (h, w) == tuple(size):
        return x.mean(dim=(2, 3))
    with torch.no_grad():
        rows = _column_means(h, int(size[0]), align_corners)
        columns = _column_means(w, int(size[1]), align_corners)
        weights = torch.outer(rows, columns).flatten().to(x)
    with no_autocast(x.device.type):
        return torch.matmul(x.flatten(2), weights)


class AttentionGate(nn.Module):
    """Channel gate a = 1 - sigmoid(W1 ReLU(W2 z)), in (0, 1); the hidden layer has out_dim // ratio units.

    ReLU inside and 1 - sigmoid outside is the squeeze-and-excitation convention of the reference code; the
    paper's text names them the other way round. ValueError, if the ratio ("r" in the paper) leaves no unit.
    """

    def __init__(self, in_dim: int, out_dim: int, ratio: int):
        super().__init__()
        if not 1 <= ratio <= out_dim:
            raise ValueError(
                f"reduction ratio {ratio} leaves no hidden unit for {out_dim} channels; use 1 to {out_dim}"
            )
        self.reduce = nn.Linear(in_dim, out_dim // ratio)
        self.expand = nn.Linear(out_dim // ratio, out_dim)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """(N, in_dim) -> (N, out_dim) gates."""
        return 1 - torch.sigmoid(self.expand(F.relu(self.reduce(z))))


class CrossAttention(SettingInWeights, nn.Module):
    """Both directions of the attention; every layer is a choice of reduction ratios.

    ``f2b`` (sites ``attention.f2b.i``): all FPN levels, resized to the finest, averaged -> one gate vector
    for each semantic level. ``b2f`` (sites ``attention.b2f.i``): all semantic levels averaged likewise ->
    one gate vector for each FPN level. The layers of one direction share the average z.
    """

    setting_name = "f2b levels"

    @configurable
    def __init__(
        self,
        *,
        ops: Sequence[OpSpec],
        choices: Choices | None = None,
        foreground_channels: Mapping[str, int],
        background_channels: Mapping[str, int],
        f2b_levels: Sequence[str],
        align_corners: bool = True,
        legacy_ratio: bool = False,
    ):
        """
        Args:
            ops: operators of every layer, of kind "se".
            choices: which of them are built; by default all.
            foreground_channels: FPN level -> channels of the levels that b2f scales (F2..F6), fine to coarse.
            background_channels: semantic level -> channels of the levels that f2b scales (S2..S5), fine to
                coarse; the first sets the size to which all are resized.
            f2b_levels: FPN levels that f2b averages (paper: all five; reference code: p3..p6).
            align_corners: bilinear convention of the resizing (reference code: True).
            legacy_ratio: divide by the last digit of the ratio, 6 for "r16", as the reference code does.

        Raises:
            ValueError: an f2b level that is not among the foreground levels; a ratio that cannot be used.
        """
        super().__init__()
        unknown = [name for name in f2b_levels if name not in foreground_channels]
        if unknown or not f2b_levels:
            raise ValueError(
                f"the levels that f2b reads are {list(f2b_levels)}; name at least one of "
                f"{list(foreground_channels)}"
            )
        self.foreground_levels = list(foreground_channels)
        self.background_levels = list(background_channels)
        self.f2b_levels = list(f2b_levels)
        self.align_corners = align_corners
        self.legacy_ratio = legacy_ratio
        f2b_dim = sum(foreground_channels[name] for name in self.f2b_levels)
        b2f_dim = sum(background_channels.values())
        row = (choices or Choices()).row
        self.f2b = row(
            "attention.f2b", ops, [partial(self._gate, f2b_dim, d) for d in background_channels.values()]
        )
        self.b2f = row(
            "attention.b2f", ops, [partial(self._gate, b2f_dim, d) for d in foreground_channels.values()]
        )

    def _gate(self, in_dim: int, out_dim: int, spec: OpSpec) -> AttentionGate:
        ratio = spec.ratio % 10 if self.legacy_ratio else spec.ratio
        if ratio == 0:
            raise ValueError(f"reduction ratio {spec.ratio}: nothing can be divided by its last digit")
        return AttentionGate(in_dim, out_dim, ratio)

    @classmethod
    def from_config(cls, cfg, foreground_channels, background_channels):
        """Arguments besides cfg as in :meth:`__init__`."""
        return {
            "ops": [ratio_op(ratio) for ratio in cfg.MODEL.CROSS_ATTENTION.RATIOS],
            "choices": Choices.from_config(cfg),
            "foreground_channels": foreground_channels,
            "background_channels": background_channels,
            "f2b_levels": cfg.MODEL.CROSS_ATTENTION.F2B_LEVELS,
            "align_corners": cfg.MODEL.SEM_SEG_HEAD.ALIGN_CORNERS,
            "legacy_ratio": cfg.MODEL.CROSS_ATTENTION.LEGACY_RATIO,
        }

    def setting(self) -> list[int]:
        return [self.foreground_levels.index(name) for name in self.f2b_levels]

    def foreground_to_background(self, features: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Raw FPN features (N, C_F, h, w) per level -> {semantic level: (N, C_S) gates}."""
        size = features[self.background_levels[0]].shape[-2:]
        z = self._average([features[name] for name in self.f2b_levels], size)
        return {name: layer(z) for name, layer in zip(self.background_levels, self.f2b, strict=True)}

    def background_to_foreground(self, features: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Raw subnet features (N, C_S, h, w) per level -> {FPN level: (N, C_F) gates}."""
        size = features[self.background_levels[0]].shape[-2:]
        z = self._average([features[name] for name in self.background_levels], size)
        return {name: layer(z) for name, layer in zip(self.foreground_levels, self.b2f, strict=True)}

    def _average(self, features: Sequence[torch.Tensor], size) -> torch.Tensor:
        return torch.cat([upsampled_mean(x, size, self.align_corners) for x in features], dim=1)

    @staticmethod
    def apply_gates(
        features: Mapping[str, torch.Tensor], gates: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """X' = (1 + a) X per image and channel; levels without gates pass unchanged."""
        return {
            name: x * (1 + gates[name])[:, :, None, None] if name in gates else x
            for name, x in features.items()
        }
