"""Mask head whose convolution layers are searched."""

from collections.abc import Sequence
from functools import partial

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_MASK_HEAD_REGISTRY
from detectron2.modeling.roi_heads.mask_head import BaseMaskRCNNHead
from fvcore.nn import weight_init
from torch import nn
from torch.nn import functional as F

from auto_panoptic.modeling.choice import Choices
from auto_panoptic.modeling.layers.head_ops import build_head_op
from auto_panoptic.space import OpSpec, domain


@ROI_MASK_HEAD_REGISTRY.register()
class SearchableMaskHead(BaseMaskRCNNHead):
    """Searched layers ``mask.0``, ... -> 2x2 deconvolution, ReLU -> 1x1 to one logit per class."""

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        ops: Sequence[OpSpec],
        choices: Choices | None = None,
        num_layers: int,
        conv_dim: int,
        num_classes: int,
        **kwargs,
    ):
        """
        Args:
            input_shape: channels of the pooled region features.
            ops, choices: operators of every searched layer, and which of them are built (default: all).
            num_layers, conv_dim: number of searched layers (paper: 4), and their output channels.
            num_classes: foreground classes, 1 for class-agnostic masks.
            kwargs: see :class:`BaseMaskRCNNHead`.
        """
        super().__init__(**kwargs)
        channels = [input_shape.channels] + [conv_dim] * num_layers
        builds = [partial(build_head_op, in_channels=c, out_channels=conv_dim) for c in channels[:-1]]
        self.blocks = (choices or Choices()).row("mask", ops, builds)
        self.deconv = nn.ConvTranspose2d(channels[-1], conv_dim, kernel_size=2, stride=2)
        self.predictor = nn.Conv2d(conv_dim, num_classes, kernel_size=1)
        for layer in (self.deconv, self.predictor):
            weight_init.c2_msra_fill(layer)  # Kaiming normal, fan out; bias 0

    @classmethod
    def from_config(cls, cfg, input_shape):
        head = cfg.MODEL.ROI_MASK_HEAD
        return {
            **super().from_config(cfg, input_shape),
            "input_shape": input_shape,
            "ops": domain(cfg.NAS.SPACE.HEAD_OPS, "head", "NAS.SPACE.HEAD_OPS"),
            "choices": Choices.from_config(cfg),
            "num_layers": head.NUM_CONV,
            "conv_dim": head.CONV_DIM,
            "num_classes": 1 if head.CLS_AGNOSTIC_MASK else cfg.MODEL.ROI_HEADS.NUM_CLASSES,
        }

    def layers(self, x: torch.Tensor) -> torch.Tensor:
        """(R, C, S, S) region features -> (R, num_classes, 2S, 2S) logits; R may be 0."""
        if torch.onnx.is_in_onnx_export():  # whose GroupNorm needs a region: one more, which is dropped
            x = torch.cat([x, x.new_zeros(1, *x.shape[1:])])
        for block in self.blocks:
            x = block(x)
        logits = self.predictor(F.relu(self.deconv(x)))
        return logits[:-1] if torch.onnx.is_in_onnx_export() else logits
