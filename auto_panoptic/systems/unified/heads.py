"""The feature decoders: semantic head and affinity head.

Shape shorthand: N images, K classes, D affinity channels, H x W the size of the finest level (stride 4).
"""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import nn
from torch.nn import functional as F

from auto_panoptic.errors import one_of
from auto_panoptic.modeling.choice import Choices
from auto_panoptic.modeling.layers.head_ops import build_head_op
from auto_panoptic.modeling.layers.level_classifier import LevelClassifier
from auto_panoptic.space import OpSpec, domain

from .lovasz import lovasz_softmax

__all__ = ["AffinityHead", "FeatureDecoder", "UnifiedSemSegHead"]


class FeatureDecoder(nn.Module):
    """Searched layers ``SITE.0``, ... on every level with the same weights, then a 1x1 convolution over all.

    The supplement's semantic submodule, after UPSNet: there each layer is a deformable 3x3 convolution with
    GroupNorm and ReLU. The levels are resized to the finest one bilinearly.
    """

    def __init__(
        self,
        input_shape: Mapping[str, ShapeSpec],
        *,
        site: str,
        ops: Sequence[OpSpec],
        choices: Choices | None = None,
        dims: Sequence[int],
        out_channels: int,
        common_stride: int = 4,
        modulated: bool = True,
    ):
        """
        Args:
            input_shape: level name -> channels and stride; all levels have the same channels.
            site: what the names of the searched sites begin with.
            ops: operators of every searched layer.
            choices: which of them are built; by default all.
            dims: output channels of each layer.
            out_channels: those of the 1x1 convolution.
            common_stride: stride of the finest level.
            modulated: whether deformable operators are v2.

        Raises:
            ValueError: levels that the shared layers cannot serve.
        """
        super().__init__()
        levels = sorted(input_shape.items(), key=lambda item: item[1].stride)
        if not levels or levels[0][1].stride != common_stride:
            found = f"{levels[0][0]!r} of stride {levels[0][1].stride}" if levels else "none"
            raise ValueError(f"the finest level of a decoder is {found}; expected stride {common_stride}")
        if len({shape.channels for _, shape in levels}) > 1:
            raise ValueError("the levels of a decoder must have equal channels: the same layers serve all")
        self.in_features = [name for name, _ in levels]
        self.common_stride = common_stride
        channels = [levels[0][1].channels, *dims]
        builds = [
            partial(build_head_op, in_channels=ci, out_channels=co, modulated=modulated)
            for ci, co in zip(channels, dims, strict=False)
        ]
        self.blocks = (choices or Choices()).row(site, ops, builds)
        self.predictor = LevelClassifier(channels[-1] * len(levels), out_channels, align_corners=False)

    @classmethod
    def from_config(cls, cfg, input_shape: Mapping[str, ShapeSpec]):
        head, node = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.UNIFIED
        return {
            "input_shape": {name: shape for name, shape in input_shape.items() if name in head.IN_FEATURES},
            "ops": domain(cfg.NAS.SPACE.HEAD_OPS, "head", "NAS.SPACE.HEAD_OPS"),
            "choices": Choices.from_config(cfg),
            "dims": node.DECODER_DIMS,
            "common_stride": head.COMMON_STRIDE,
            "modulated": node.DEFORM_MODULATED,
        }

    def decode(self, features: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Features of the levels -> (N, out_channels, H, W)."""
        outputs = []
        for name in self.in_features:
            x = features[name]
            for block in self.blocks:
                x = block(x)
            outputs.append(x)
        return self.predictor(outputs)


@SEM_SEG_HEADS_REGISTRY.register()
class UnifiedSemSegHead(FeatureDecoder):
    """Semantic submodule: sites ``sem_seg.i``, logits of all classes, things 0..T-1 first, then stuff."""

    @configurable
    def __init__(
        self,
        input_shape: Mapping[str, ShapeSpec],
        *,
        num_classes: int,
        loss: str = "cross_entropy",
        loss_weight: float = 1.0,
        ignore_value: int = 255,
        **kwargs,
    ):
        """
        Args:
            input_shape, kwargs: see :class:`FeatureDecoder`.
            num_classes: things and stuff.
            loss: "cross_entropy" or "lovasz_softmax".
            loss_weight: factor of the loss.
            ignore_value: label of void pixels.

        Raises:
            UserError: unknown ``loss``.
        """
        super().__init__(input_shape, site="sem_seg", out_channels=num_classes, **kwargs)
        self.loss = one_of("MODEL.UNIFIED.LOSS.SEMANTIC", loss, ("cross_entropy", "lovasz_softmax"))
        self.loss_weight = loss_weight
        self.ignore_value = ignore_value

    @classmethod
    def from_config(cls, cfg, input_shape: Mapping[str, ShapeSpec]):
        head = cfg.MODEL.SEM_SEG_HEAD
        return {
            **super().from_config(cfg, input_shape),
            "num_classes": head.NUM_CLASSES,
            "loss": cfg.MODEL.UNIFIED.LOSS.SEMANTIC,
            "loss_weight": head.LOSS_WEIGHT,
            "ignore_value": head.IGNORE_VALUE,
        }

    def forward(self, features: Mapping[str, torch.Tensor], targets: torch.Tensor | None = None):
        """The interface of Detectron2's semantic heads; :meth:`decode` gives the logits of stride 4.

        Returns:
            In training (None, {"loss_sem_seg": scalar}); in inference ((N, K, 4H, 4W) logits, {}).
        """
        logits = self.decode(features)
        if self.training:
            return None, self.losses(logits, targets)
        return self.upsample(logits), {}

    def upsample(self, logits: torch.Tensor) -> torch.Tensor:
        """(N, K, H, W) -> (N, K, common_stride * H, common_stride * W), the size of the padded input."""
        return F.interpolate(
            logits.float(), scale_factor=self.common_stride, mode="bilinear", align_corners=False
        )

    def losses(self, logits: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
        """Cross-entropy, a mean over the batch's pixels, or Lovasz-Softmax over all of them together.

        Void pixels do not count. Without any other the loss is 0 and still attached to the graph.

        Args:
            logits: (N, K, H, W) from :meth:`decode`.
            targets: (N, 4H, 4W) labels.
        """
        logits = self.upsample(logits)
        if self.loss == "lovasz_softmax":
            pixels = logits.softmax(dim=1).movedim(1, -1).flatten(0, -2)
            loss = lovasz_softmax(pixels, targets.flatten(), ignore=self.ignore_value)
        else:
            count = (targets != self.ignore_value).sum().clamp(min=1)
            loss = F.cross_entropy(logits, targets, reduction="sum", ignore_index=self.ignore_value) / count
        return {"loss_sem_seg": loss * self.loss_weight}


class AffinityHead(FeatureDecoder):
    """Features Q of the dense instance affinity: a second decoder, sites ``affinity.i``, weights of its own.

    That it has the architecture of the semantic decoder is a re-interpretation.
    """

    @configurable
    def __init__(self, input_shape: Mapping[str, ShapeSpec], *, dim: int, stride: int, **kwargs):
        """
        Args:
            input_shape, kwargs: see :class:`FeatureDecoder`.
            dim: channels D of Q.
            stride: of Q, a multiple of the finest level's; the features are averaged.
        """
        super().__init__(input_shape, site="affinity", out_channels=dim, **kwargs)
        self.pooling = stride // self.common_stride

    @classmethod
    def from_config(cls, cfg, input_shape: Mapping[str, ShapeSpec]):
        node = cfg.MODEL.UNIFIED.AFFINITY
        return {**super().from_config(cfg, input_shape), "dim": node.DIM, "stride": node.STRIDE}

    def forward(self, features: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Features of the levels -> Q, (N, D, H * 4 / stride, W * 4 / stride)."""
        x = self.decode(features)
        return F.avg_pool2d(x, self.pooling) if self.pooling > 1 else x
