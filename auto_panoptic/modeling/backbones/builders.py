"""Registered backbone builders: ShuffleNetV2 alone, and with Detectron2's FPN."""

from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool

from auto_panoptic.modeling.backbones.widths import width_from_config
from auto_panoptic.modeling.choice import Choices
from auto_panoptic.space import domain

from .shufflenet import ShuffleNetV2


def norm_name(cfg, name: str) -> str:
    """The norm ``name``, except that "SyncBN" becomes "BN" on a CPU or meta device.

    PyTorch has no synchronised BatchNorm there; the weights fit both.
    """
    alone = str(cfg.MODEL.DEVICE).startswith(("cpu", "meta"))
    return "BN" if alone and name == "SyncBN" else name


@BACKBONE_REGISTRY.register()
def build_shufflenet_backbone(cfg, input_shape: ShapeSpec) -> ShuffleNetV2:
    """The bare ShuffleNetV2: a supernet, or the fixed network of ``NAS.ARCHITECTURE``.

    ``MODEL.BACKBONE.FREEZE_AT`` freezes the first stages. Detectron2's default 2 is meant for pre-trained
    weights; our configs state 0.
    """
    width = width_from_config(cfg)
    return ShuffleNetV2(
        stem_channels=width.stem,
        stage_channels=width.channels,
        stage_repeats=width.repeats,
        choices=Choices.from_config(cfg),
        ops=domain(cfg.NAS.SPACE.BACKBONE_OPS, "backbone", "NAS.SPACE.BACKBONE_OPS"),
        norm=norm_name(cfg, cfg.MODEL.SHUFFLENET.NORM),
        norm_momentum=cfg.MODEL.SHUFFLENET.NORM_MOMENTUM,
        shuffle_method=cfg.MODEL.SHUFFLENET.SHUFFLE_METHOD,
        in_channels=input_shape.channels,
    ).freeze(cfg.MODEL.BACKBONE.FREEZE_AT)


@BACKBONE_REGISTRY.register()
def build_shufflenet_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """ShuffleNetV2 with Detectron2's FPN on res2..res5 and P6 as a stride-2 subsample of P5.

    With ``MODEL.FPN.NORM: GN`` the lateral and output convolutions have no bias and GroupNorm(32), as in
    the reference code.
    """
    return FPN(
        bottom_up=build_shufflenet_backbone(cfg, input_shape),
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
