"""ResNet-18 and 34 of any width, for baselines of a given cost."""

from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import BACKBONE_REGISTRY, FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, ResNet

from ...errors import UserError

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


@BACKBONE_REGISTRY.register()
def build_narrow_resnet_fpn_backbone(cfg, input_shape: ShapeSpec) -> Backbone:
    """Detectron2's ResNet-FPN of depth 18 or 34 with MODEL.RESNETS.RES2_OUT_CHANNELS free; its own has 64.

    With 64 it is ``build_resnet_fpn_backbone``, weights and names included.

    Raises:
        UserError: another depth.
    """
    settings = cfg.MODEL.RESNETS
    if settings.DEPTH not in BLOCKS:
        raise UserError(
            f"MODEL.RESNETS.DEPTH {settings.DEPTH}: this backbone is for {' and '.join(map(str, BLOCKS))}"
        )
    stem = BasicStem(input_shape.channels, settings.STEM_OUT_CHANNELS, settings.NORM)
    channels, stages = settings.STEM_OUT_CHANNELS, []
    for stage, blocks in enumerate(BLOCKS[settings.DEPTH]):
        width = settings.RES2_OUT_CHANNELS * 2**stage
        strides = [1 if stage == 0 else 2] + [1] * (blocks - 1)
        stages.append(
            ResNet.make_stage(
                BasicBlock,
                blocks,
                stride_per_block=strides,
                in_channels=channels,
                out_channels=width,
                norm=settings.NORM,
            )
        )
        channels = width
    bottom_up = ResNet(
        stem, stages, out_features=settings.OUT_FEATURES, freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT
    )
    return FPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
