"""The two branches: Detectron2's decoders and heads, with choice blocks for their convolutions.

Sites: ``decoder.i``, the semantic stages from coarse to fine, the convolution before the semantic predictor,
and the instance stages from coarse to fine; ``center.0`` and ``offset.0``, those before the other predictors.

Shape shorthand: N images, K classes, H x W the size of the finest feature, of stride COMMON_STRIDE.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from detectron2.projects.deeplab import DeepLabV3PlusHead
from torch import nn
from torch.nn import functional as F

from auto_panoptic.errors import UserError
from auto_panoptic.modeling.choice import Choices
from auto_panoptic.space import OpSpec, domain

from .ops import build_op, dense
from .upstream import INS_EMBED_BRANCHES_REGISTRY, PanopticDeepLabInsEmbedHead, PanopticDeepLabSemSegHead

__all__ = ["AutoPanopticDeepLabInsEmbedHead", "AutoPanopticDeepLabSemSegHead"]

CONCAT = "concat"  # the one feature of HRNet's own head
_SEMANTIC, _INSTANCE = "SEM_SEG_HEAD", "INS_EMBED_HEAD"
_WHAT_IS_NOT = {"aspp_dilations": (1, 1, 1), "aspp_dropout": 0.0}  # of the ASPP that HRNet's head has not


class WindowPool(nn.Module):
    """Means over windows of the size of a training crop, at most the whole map; stride 1.

    As in Detectron2's ASPP, where the size of a map must be a multiple of the window's.
    """

    def __init__(self, window: tuple[int, int]):
        super().__init__()
        self.window = window

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, C, H - h + 1, W - w + 1)."""
        if torch.jit.is_tracing():
            return self._traced(x)
        return F.avg_pool2d(x, [min(pair) for pair in zip(self.window, x.shape[-2:], strict=True)], stride=1)

    def _traced(self, x: torch.Tensor) -> torch.Tensor:
        """The same for maps of any size: ONNX knows windows of fixed size only, so a small map is padded."""
        sizes = [torch.as_tensor(size) for size in x.shape[-2:]]
        down, right = ((side - size).clamp(min=0) for side, size in zip(self.window, sizes, strict=True))
        inside = [size.clamp(max=side) for side, size in zip(self.window, sizes, strict=True)]
        means = F.avg_pool2d(F.pad(x, (0, right, 0, down)), self.window, stride=1)
        return means * (self.window[0] * self.window[1] / (inside[0] * inside[1]))


class WeightedCrossEntropy(nn.Module):
    """Cross-entropy times the weight of each pixel, a mean over the labelled pixels of the batch."""

    def __init__(self, ignore_value: int):
        super().__init__()
        self.ignore_value = ignore_value

    def forward(self, logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None = None):
        """Logits (N, K, H, W), labels and weights (N, H, W) -> scalar."""
        losses = F.cross_entropy(logits, labels, ignore_index=self.ignore_value, reduction="none")
        total = (losses if weights is None else losses * weights).sum()
        return total / (labels != self.ignore_value).sum().clamp(min=1)


# ------------------------------------------------------------------ from a config


def _levels(cfg: CfgNode, name: str, input_shape: Mapping[str, ShapeSpec]) -> list[str]:
    """The features that the branch ``name`` reads, from the finest to the one of its ASPP.

    Raises:
        UserError: the backbone lacks one, or they do not fit the branch.
    """
    node, key = cfg.MODEL[name], f"MODEL.{name}.IN_FEATURES"
    if missing := [feature for feature in node.IN_FEATURES if feature not in input_shape]:
        raise UserError(
            f"{key} has {missing[0]!r}, but MODEL.BACKBONE.NAME {cfg.MODEL.BACKBONE.NAME} gives "
            f"{', '.join(input_shape)}"
        )
    levels = [feature for feature in input_shape if feature in node.IN_FEATURES]
    levels.sort(key=lambda feature: input_shape[feature].stride)
    if levels != [CONCAT] and len(levels) < 2:
        raise UserError(f"{key} is {node.IN_FEATURES}; expected skips and the input of the ASPP, or {CONCAT}")
    if input_shape[levels[0]].stride != node.COMMON_STRIDE:
        raise UserError(
            f"MODEL.{name}.COMMON_STRIDE is {node.COMMON_STRIDE}; expected the stride of {levels[0]}, the "
            f"finest of {key}, which is {input_shape[levels[0]].stride}"
        )
    if levels != [CONCAT] and cfg.MODEL.PANOPTIC_DEEPLAB.DECODER == "deeplabv3plus":
        return [levels[0], levels[-1]]
    return levels


def _sites(levels: Sequence[str]) -> int:
    """How many sites the decoder has that reads these features."""
    return len(levels) - 1


def _branch(cfg: CfgNode, name: str, input_shape: Mapping[str, ShapeSpec], separable: bool) -> dict:
    """The arguments of Detectron2's ``DeepLabV3PlusHead``, and those of :class:`SearchableBranch`."""
    node, levels = cfg.MODEL[name], _levels(cfg, name, input_shape)
    shape = {feature: input_shape[feature] for feature in levels}
    stage = head = "sep_5x5" if separable else "conv_3x3_twice"
    aspp = _WHAT_IS_NOT
    if levels == [CONCAT]:
        projections, channels = [], [shape[CONCAT].channels]
    else:
        if cfg.MODEL.PANOPTIC_DEEPLAB.DECODER == "deeplabv3plus":
            projections = [cfg.MODEL.PANOPTIC_DEEPLAB.DEEPLABV3PLUS_CHANNELS[name == _INSTANCE]]
            stage = "sep_3x3_twice" if separable else stage
        else:
            projections = list(node.PROJECT_CHANNELS)
        if len(projections) != len(levels) - 1:
            raise UserError(
                f"MODEL.{name}.PROJECT_CHANNELS is {projections}; expected a number for each of "
                f"{', '.join(levels[:-1])}"
            )
        channels = [node.CONVS_DIM] * len(projections) + [node.ASPP_CHANNELS]
        aspp = {
            "aspp_dilations": node.ASPP_DILATIONS,
            "aspp_dropout": node.ASPP_DROPOUT,
            "pool_norm": cfg.MODEL.PANOPTIC_DEEPLAB.ASPP_POOL_NORM,
        }
        if cfg.INPUT.CROP.ENABLED:
            stride = shape[levels[-1]].stride
            aspp["window"] = tuple(-(-side // stride) for side in cfg.INPUT.CROP.SIZE)
    return {
        "input_shape": shape,
        "project_channels": projections,
        "decoder_channels": channels,
        "common_stride": node.COMMON_STRIDE,
        "norm": node.NORM,
        "use_depthwise_separable_conv": separable,
        "choices": Choices.from_config(cfg),
        "stage_ops": _ops(cfg, stage),
        "head_ops": _ops(cfg, head),
        **aspp,
    }


def _ops(cfg: CfgNode, published: str) -> tuple[OpSpec, ...]:
    """Those of NAS.SPACE.DEEPLAB_OPS; the published one comes first where it is not among them."""
    names = list(cfg.NAS.SPACE.DEEPLAB_OPS)
    names = names if published in names else [published, *names]
    return domain(names, "head", "NAS.SPACE.DEEPLAB_OPS")


# ------------------------------------------------------------------ the branches


class SearchableBranch(DeepLabV3PlusHead):
    """What both branches change in Detectron2's: stages that are choice blocks, or HRNet's own head.

    HRNet's head, of the one feature "concat", has a 1x1 convolution with norm and ReLU for ASPP and decoder.
    """

    def __init__(
        self,
        input_shape: Mapping[str, ShapeSpec],
        *,
        window: tuple[int, int] | None = None,
        pool_norm: bool = False,
        choices: Choices,
        stage_ops: Sequence[OpSpec],
        first_site: int = 0,
        **kwargs,
    ):
        """
        Args:
            input_shape, kwargs: those of Detectron2's head.
            window: size of the ASPP's pooling, that of a training crop; None pools whole maps.
            pool_norm: a norm for the bias of the ASPP's pooled branch.
            choices: which operators are built.
            stage_ops: operators of a decoder's stages.
            first_site: number of the first stage among the sites ``decoder.i``.
        """
        super().__init__(input_shape, train_size=None, **kwargs)
        norm = kwargs["norm"]
        coarse, *stages = self.in_features[::-1]
        if self.in_features == [CONCAT]:
            channels = input_shape[CONCAT].channels
            self.decoder[CONCAT]["project_conv"] = dense(channels, channels, 1, norm)
        else:
            pooled = self.decoder[coarse]["project_conv"].convs[-1]
            pooled[0] = WindowPool(window) if window else pooled[0]
            pooled[1] = (
                dense(pooled[1].in_channels, pooled[1].out_channels, 1, norm) if pool_norm else pooled[1]
            )
        below = kwargs["decoder_channels"][:0:-1]  # of what a stage takes from the coarser one
        for i, feature in enumerate(stages):
            stage = self.decoder[feature]
            skip, channels = stage["project_conv"].out_channels, kwargs["decoder_channels"][-2 - i]
            build = partial(build_op, in_channels=skip + below[i], out_channels=channels, norm=norm)
            stage["fuse_conv"] = choices(f"decoder.{first_site + i}", stage_ops, build)
        # As they run, so that sites come in the order of their numbers.
        self.decoder = nn.ModuleDict({name: self.decoder[name] for name in self.in_features[::-1]})


def _before_predictor(channels: int, head_channels: int, norm: str) -> Callable[[OpSpec], nn.Module]:
    """How to build the convolution between a decoder's last stage and a predictor."""
    return partial(build_op, in_channels=channels, out_channels=head_channels, norm=norm, between=channels)


@SEM_SEG_HEADS_REGISTRY.register()
class AutoPanopticDeepLabSemSegHead(PanopticDeepLabSemSegHead, SearchableBranch):
    """Detectron2's semantic branch with searched convolutions: logits of all classes, things first."""

    @configurable
    def __init__(
        self,
        input_shape: Mapping[str, ShapeSpec],
        *,
        head_channels: int,
        head_ops: Sequence[OpSpec],
        **kwargs,
    ):
        """
        Args:
            input_shape: features by name.
            head_channels: between the two last convolutions; HRNet's own head keeps those of its feature.
            head_ops: operators of the convolution before the predictor.
            kwargs: those of :class:`PanopticDeepLabSemSegHead` and :class:`SearchableBranch`.
        """
        concat = [*input_shape] == [CONCAT]
        channels = kwargs["decoder_channels"][0]
        super().__init__(input_shape, head_channels=channels if concat else head_channels, **kwargs)
        if concat:
            self.head = nn.Identity()
        else:
            build = _before_predictor(channels, head_channels, kwargs["norm"])
            self.head = kwargs["choices"](f"decoder.{_sites(self.in_features)}", head_ops, build)
        if kwargs["loss_type"] == "cross_entropy":  # Detectron2's takes no weights
            self.loss = WeightedCrossEntropy(self.ignore_value)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict:
        node = cfg.MODEL.SEM_SEG_HEAD
        branch = _branch(cfg, _SEMANTIC, input_shape, node.USE_DEPTHWISE_SEPARABLE_CONV)
        hard = node.LOSS_TYPE == "hard_pixel_mining"
        return branch | {
            "head_channels": 0 if [*branch["input_shape"]] == [CONCAT] else node.HEAD_CHANNELS,
            "num_classes": node.NUM_CLASSES,
            "loss_weight": node.LOSS_WEIGHT,
            "loss_type": node.LOSS_TYPE,
            "loss_top_k": node.LOSS_TOP_K if hard else 1.0,
            "ignore_value": node.IGNORE_VALUE,
        }


@INS_EMBED_BRANCHES_REGISTRY.register()
class AutoPanopticDeepLabInsEmbedHead(PanopticDeepLabInsEmbedHead, SearchableBranch):
    """Detectron2's instance branch with searched convolutions: heatmap of centres, offsets to them."""

    @configurable
    def __init__(
        self,
        input_shape: Mapping[str, ShapeSpec],
        *,
        head_channels: int,
        center_ops: Sequence[OpSpec],
        head_ops: Sequence[OpSpec],
        **kwargs,
    ):
        """
        Args:
            input_shape: features by name.
            head_channels: between the two last convolutions of centres and of offsets.
            center_ops: operators of the convolution before the centres' predictor.
            head_ops: operators of the one before the offsets'.
            kwargs: those of :class:`PanopticDeepLabInsEmbedHead` and :class:`SearchableBranch`.
        """
        super().__init__(input_shape, head_channels=head_channels, **kwargs)
        choices = kwargs["choices"]
        choices.check_row("decoder", kwargs["first_site"] + _sites(self.in_features))
        build = _before_predictor(kwargs["decoder_channels"][0], head_channels, kwargs["norm"])
        self.center_head = choices.row("center", center_ops, [build])[0]
        self.offset_head = choices.row("offset", head_ops, [build])[0]

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict:
        node, ours = cfg.MODEL.INS_EMBED_HEAD, cfg.MODEL.PANOPTIC_DEEPLAB
        semantic = _levels(cfg, _SEMANTIC, input_shape)
        return _branch(cfg, _INSTANCE, input_shape, ours.USE_DEPTHWISE_SEPARABLE_CONV) | {
            "first_site": 0 if semantic == [CONCAT] else _sites(semantic) + 1,
            "head_channels": node.HEAD_CHANNELS,
            "center_ops": _ops(cfg, "sep_5x5" if ours.CENTER_SEPARABLE else "conv_3x3_twice"),
            "center_loss_weight": node.CENTER_LOSS_WEIGHT,
            "offset_loss_weight": node.OFFSET_LOSS_WEIGHT,
        }
