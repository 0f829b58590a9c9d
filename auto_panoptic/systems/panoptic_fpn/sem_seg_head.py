"""Semantic head: one searched subnet shared by the FPN levels, and a linear classifier over all of them.

Shape shorthand: N images, C channels per level, K classes, H x W the size of the finest level (stride 4).
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead
from torch import nn
from torch.nn import functional as F

from auto_panoptic.modeling.choice import Choices
from auto_panoptic.modeling.layers.head_ops import build_head_op
from auto_panoptic.modeling.layers.level_classifier import LevelClassifier
from auto_panoptic.space import OpSpec, domain


def _losses_without_labels(
    head, predictions, targets, losses: Callable[..., dict] = SemSegFPNHead.losses
) -> dict[str, torch.Tensor]:
    """Those of Detectron2's head, but 0 where no pixel has a label: its mean over none would be NaN."""
    if (targets == head.ignore_value).all():
        return {"loss_sem_seg": predictions.float().sum() * 0}  # every parameter still gets a gradient
    return losses(head, predictions, targets)


SemSegFPNHead.losses = _losses_without_labels


@SEM_SEG_HEADS_REGISTRY.register()
class SearchableSemSegFPNHead(nn.Module):
    """Searched layers ``sem_seg.0``, ... on every level with the same weights, then a 1x1 classifier.

    In the paper's order each level is upsampled to stride 4, scaled by its attention factor, concatenated
    with the others and classified. Upsampling, scaling and a 1x1 convolution are linear and act on
    different axes, so the classifier's slice for a level is applied at the level's own resolution and only
    its K logits are upsampled and summed: the same function with a fraction of the work.
    """

    @configurable
    def __init__(
        self,
        input_shape: Mapping[str, ShapeSpec],
        *,
        ops: Sequence[OpSpec],
        choices: Choices | None = None,
        num_layers: int,
        conv_dim: int,
        num_classes: int,
        common_stride: int = 4,
        loss_weight: float = 1.0,
        ignore_value: int = 255,
        align_corners: bool = True,
    ):
        """
        Args:
            input_shape: level name -> channels and stride; all levels have the same channels.
            ops, choices: operators of every searched layer, and which of them are built (default: all).
            num_layers, conv_dim: number of searched layers, and their output channels (paper: 3 and 128).
            num_classes: classes including class 0 = "thing".
            common_stride: stride of the finest level, to which the logits are upsampled first.
            loss_weight: factor of the loss (paper: 0.3).
            ignore_value: label of void pixels.
            align_corners: bilinear convention of both upsampling steps (reference code: True).

        Raises:
            ValueError: levels that the shared subnet cannot serve.
        """
        super().__init__()
        levels = sorted(input_shape.items(), key=lambda item: item[1].stride)
        if not levels:
            raise ValueError("the semantic head needs at least one level")
        if levels[0][1].stride != common_stride:
            raise ValueError(
                f"the finest level of the semantic head, {levels[0][0]!r}, has stride {levels[0][1].stride}; "
                f"its common stride is {common_stride}, they must be equal"
            )
        if len({shape.channels for _, shape in levels}) > 1:
            raise ValueError(
                "the levels of the semantic head must have equal channels: one subnet serves all"
            )
        self.in_features = [name for name, _ in levels]
        self.conv_dim = conv_dim
        self.common_stride = common_stride
        self.loss_weight = loss_weight
        self.ignore_value = ignore_value
        self.align_corners = align_corners

        channels = [levels[0][1].channels] + [conv_dim] * num_layers
        builds = [partial(build_head_op, in_channels=c, out_channels=conv_dim) for c in channels[:-1]]
        self.blocks = (choices or Choices()).row("sem_seg", ops, builds)
        self.predictor = LevelClassifier(channels[-1] * len(levels), num_classes, align_corners)

    @classmethod
    def from_config(cls, cfg, input_shape: Mapping[str, ShapeSpec]):
        head = cfg.MODEL.SEM_SEG_HEAD
        return {
            "input_shape": {name: shape for name, shape in input_shape.items() if name in head.IN_FEATURES},
            "ops": domain(cfg.NAS.SPACE.HEAD_OPS, "head", "NAS.SPACE.HEAD_OPS"),
            "choices": Choices.from_config(cfg),
            "num_layers": head.NUM_LAYERS,
            "conv_dim": head.CONVS_DIM,
            "num_classes": head.NUM_CLASSES,
            "common_stride": head.COMMON_STRIDE,
            "loss_weight": head.LOSS_WEIGHT,
            "ignore_value": head.IGNORE_VALUE,
            "align_corners": head.ALIGN_CORNERS,
        }

    def forward(self, features: Mapping[str, torch.Tensor], targets: torch.Tensor | None = None):
        """The head without attention, with the interface of Detectron2's semantic heads.

        Returns:
            In training (None, {"loss_sem_seg": scalar}); in inference ((N, K, 4H, 4W) logits, {}).
        """
        return self.predict(self.subnet(features), targets=targets)

    def subnet(self, features: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """FPN features -> {level: (N, conv_dim, h, w)} at each level's own resolution."""
        outputs = {}
        for name in self.in_features:
            x = features[name]
            for block in self.blocks:
                x = block(x)
            outputs[name] = x
        return outputs

    def predict(
        self,
        subnet_features: Mapping[str, torch.Tensor],
        gates: Mapping[str, torch.Tensor] | None = None,
        targets: torch.Tensor | None = None,
    ):
        """Classify the subnet's features.

        Args:
            subnet_features: result of :meth:`subnet`.
            gates: level -> (N, conv_dim) attention gates a; features count (1 + a) times. None: no attention.
            targets: (N, 4H, 4W) labels, needed in training.

        Returns:
            As :meth:`forward`.
        """
        levels = [subnet_features[name] for name in self.in_features]
        factors = None if gates is None else [gates[name] for name in self.in_features]
        logits = self.upsample(self.predictor(levels, factors))
        if self.training:
            return None, self.losses(logits, targets)
        return logits, {}

    def upsample(self, logits: torch.Tensor) -> torch.Tensor:
        """(N, K, H, W) -> (N, K, common_stride * H, common_stride * W), the size of the padded input."""
        return F.interpolate(
            logits.float(), scale_factor=self.common_stride, mode="bilinear", align_corners=self.align_corners
        )

    def losses(self, logits: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
        """Cross-entropy summed over the batch's non-void pixels, divided by their number.

        Without such a pixel the loss is 0 and still attached to the graph.

        Args:
            logits: (N, K, 4H, 4W).
            targets: (N, 4H, 4W) labels.
        """
        count = (targets != self.ignore_value).sum().clamp(min=1)
        loss = F.cross_entropy(logits, targets, reduction="sum", ignore_index=self.ignore_value) / count
        return {"loss_sem_seg": loss * self.loss_weight}
