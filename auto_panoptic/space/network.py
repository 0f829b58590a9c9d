"""The measures of a whole network that no architecture decides: channels, layers, classes, levels."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace

from ..errors import UserError
from .ops import ratio_op
from .space import ChoiceSite, SearchSpace
from .widths import WIDTHS, Width, width_from_config

BACKBONE_BUILDERS = ("build_shufflenet_fpn_backbone", "build_shufflenet_backbone")
RESNET_BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


@dataclass(frozen=True)
class ResNet:
    """Detectron2's ResNet without deformable or dilated stages; see MODEL.RESNETS."""

    depth: int = 50
    stem: int = 64
    res2: int = 256
    bottleneck: int = 64
    groups: int = 1
    stride_in_1x1: bool = True
    norm: str = "FrozenBN"
    freeze_at: int = 2

    @property
    def basic(self) -> bool:
        """Blocks of two 3x3 convolutions instead of bottlenecks."""
        return self.depth in (18, 34)

    @property
    def blocks(self) -> tuple[int, ...]:
        """Blocks per stage."""
        return RESNET_BLOCKS[self.depth]

    @property
    def channels(self) -> tuple[int, ...]:
        """Output channels of the stages C2..C5."""
        return tuple(self.res2 * 2**i for i in range(4))

    def norm_of(self, level: int) -> str:
        """Norm of the stem (1) or of a stage (2..5); freezing turns BatchNorm into FrozenBN."""
        return "FrozenBN" if level <= self.freeze_at and self.norm in ("BN", "SyncBN") else self.norm


@dataclass(frozen=True)
class Fpn:
    """Feature pyramid: ``channels`` per level, from the backbone's ``levels``; ``norm`` "" means biases."""

    channels: int = 256
    levels: tuple[int, ...] = (2, 3, 4, 5)
    norm: str = "GN"


@dataclass(frozen=True)
class Rpn:
    """Region proposals on ``levels``: 3x3 convolutions of ``conv_dims``, ``num_anchors`` per position."""

    levels: tuple[int, ...] = (2, 3, 4, 5, 6)
    conv_dims: tuple[int, ...] = (256,)
    num_anchors: int = 3


@dataclass(frozen=True)
class BoxHead:
    """Layers on ``pool`` x ``pool`` regions and the predictor of classes and boxes.

    ``num_conv`` 3x3 convolutions of ``conv_dim`` with ``conv_norm`` (Detectron2's head only), then ``num_fc``
    fully connected layers of ``fc_dim``, each with ``fc_norm`` ("GN" ours, "" Detectron2's).
    """

    num_fc: int = 2
    fc_dim: int = 1024
    pool: int = 7
    num_classes: int = 80
    class_agnostic: bool = False
    fc_norm: str = "GN"
    num_conv: int = 0
    conv_dim: int = 256
    conv_norm: str = ""


@dataclass(frozen=True)
class MaskHead:
    """``num_layers`` layers of ``dim`` channels on ``pool`` x ``pool`` regions.

    Searched, or (Detectron2's head) 3x3 convolutions with ``norm``.
    """

    num_layers: int = 4
    dim: int = 256
    pool: int = 14
    num_classes: int = 80
    searched: bool = True
    norm: str = ""


@dataclass(frozen=True)
class SemSegHead:
    """``num_layers`` searched layers of ``dim`` channels, shared by the FPN's ``levels``.

    Not searched, it is Detectron2's head: 3x3 convolutions with ``norm``, their number given by the level.
    """

    num_layers: int = 3
    dim: int = 128
    num_classes: int = 54
    levels: tuple[int, ...] = (2, 3, 4, 5)
    searched: bool = True
    norm: str = "GN"


@dataclass(frozen=True)
class Attention:
    """Inter-modular attention; see MODEL.CROSS_ATTENTION."""

    f2b_levels: tuple[int, ...] = (2, 3, 4, 5, 6)
    legacy_ratio: bool = False


@dataclass(frozen=True)
class Classifier:
    """ImageNet classifier: 1x1 convolution to ``dim`` channels, ``num_classes`` outputs."""

    dim: int = 1024
    num_classes: int = 1000


@dataclass(frozen=True)
class Network:
    """A network; a part that is None is absent. Defaults: the paper's network for COCO.

    The backbone is searched and of ``width``, or a ``resnet``. All parts but the classifier need the FPN;
    attention lies between the levels of ``rpn`` and ``sem_seg``.
    """

    width: Width = WIDTHS["1.3G"]
    resnet: ResNet | None = None
    fpn: Fpn | None = field(default_factory=Fpn)
    rpn: Rpn | None = field(default_factory=Rpn)
    box: BoxHead | None = field(default_factory=BoxHead)
    mask: MaskHead | None = field(default_factory=MaskHead)
    sem_seg: SemSegHead | None = field(default_factory=SemSegHead)
    attention: Attention | None = field(default_factory=Attention)
    classifier: Classifier | None = None

    @classmethod
    def backbone(cls, width: str | Width = "1.3G", classifier: bool = False) -> Network:
        """The backbone alone, with or without the ImageNet classifier."""
        width = WIDTHS[width] if isinstance(width, str) else width
        tail = Classifier(width.classifier) if classifier else None
        return cls(width, None, None, None, None, None, None, None, tail)

    @classmethod
    def from_config(cls, cfg) -> Network:
        """The network that ``cfg`` describes.

        Raises:
            UserError: a part of it is not one of ours, so that its cost is not known here.
        """
        model = cfg.MODEL
        meta = model.META_ARCHITECTURE
        _check(model, "META_ARCHITECTURE", "AutoPanopticFPN", "PanopticFPN", "BackboneClassifier")
        width = width_from_config(cfg)
        if meta == "BackboneClassifier":
            _check(model, "BACKBONE.NAME", *BACKBONE_BUILDERS)
            dim = model.CLASSIFIER.CONV_DIM or width.classifier
            return replace(cls.backbone(width), classifier=Classifier(dim, model.CLASSIFIER.NUM_CLASSES))
        _check(model, "BACKBONE.NAME", "build_shufflenet_fpn_backbone", "build_resnet_fpn_backbone")
        _check(model, "PROPOSAL_GENERATOR.NAME", "RPN", "BatchTopkRPN")
        _check(model, "RPN.HEAD_NAME", "StandardRPNHead")
        _check(model, "ROI_HEADS.NAME", "StandardROIHeads")
        _check(model, "ROI_BOX_HEAD.NAME", "GroupNormBoxHead", "FastRCNNConvFCHead")
        _check(model, "SEM_SEG_HEAD.NAME", "SearchableSemSegFPNHead", "SemSegFPNHead")
        if model.MASK_ON:
            _check(model, "ROI_MASK_HEAD.NAME", "SearchableMaskHead", "MaskRCNNConvUpsampleHead")
        attention = None
        if meta == "AutoPanopticFPN" and model.CROSS_ATTENTION.ENABLED:
            attention = Attention(
                _levels(model.CROSS_ATTENTION.F2B_LEVELS), model.CROSS_ATTENTION.LEGACY_RATIO
            )
        channels = model.FPN.OUT_CHANNELS
        return cls(
            width=width,
            resnet=_resnet(model) if model.BACKBONE.NAME == "build_resnet_fpn_backbone" else None,
            fpn=Fpn(channels, _levels(model.FPN.IN_FEATURES), model.FPN.NORM),
            rpn=Rpn(
                _levels(model.RPN.IN_FEATURES),
                tuple(channels if dim == -1 else dim for dim in model.RPN.CONV_DIMS),
                len(model.ANCHOR_GENERATOR.SIZES[0]) * len(model.ANCHOR_GENERATOR.ASPECT_RATIOS[0]),
            ),
            box=_box_head(model),
            mask=_mask_head(model) if model.MASK_ON else None,
            sem_seg=SemSegHead(
                model.SEM_SEG_HEAD.NUM_LAYERS,
                model.SEM_SEG_HEAD.CONVS_DIM,
                model.SEM_SEG_HEAD.NUM_CLASSES,
                _levels(model.SEM_SEG_HEAD.IN_FEATURES),
                model.SEM_SEG_HEAD.NAME == "SearchableSemSegFPNHead",
                model.SEM_SEG_HEAD.NORM,
            ),
            attention=attention,
        )

    @property
    def backbone_channels(self) -> tuple[int, ...]:
        """Channels of the backbone's outputs C2..C5."""
        return self.width.channels if self.resnet is None else self.resnet.channels

    def site_names(self) -> list[str]:
        """The sites of this network, in order."""
        counts = {
            "backbone": self.width.num_layers if self.resnet is None else 0,
            "mask": self.mask.num_layers if self.mask and self.mask.searched else 0,
            "sem_seg": self.sem_seg.num_layers if self.sem_seg and self.sem_seg.searched else 0,
            "attention.f2b": len(self.sem_seg.levels) if self.attention else 0,
            "attention.b2f": len(self.rpn.levels) if self.attention else 0,
        }
        return [f"{prefix}.{i}" for prefix, count in counts.items() for i in range(count)]

    def check_space(self, space: SearchSpace) -> None:
        """Raise a UserError unless ``space`` has exactly the sites of this network."""
        ours = SearchSpace(tuple(ChoiceSite(name, (ratio_op(1),)) for name in self.site_names()))
        theirs = SearchSpace(tuple(ChoiceSite(site.name, (ratio_op(1),)) for site in space.sites))
        if ours != theirs:
            raise UserError(
                "the search space is not that of the network whose cost is asked (first: the network's, "
                f"second: the space's): {ours.difference(theirs)}; make both from one config"
            )


def _resnet(model) -> ResNet:
    node = model.RESNETS
    if node.RES5_DILATION != 1 or any(node.DEFORM_ON_PER_STAGE):
        raise UserError(
            "MODEL.RESNETS has RES5_DILATION or DEFORM_ON_PER_STAGE: multiply-adds and parameters are known "
            "for ResNets without; leave both at their defaults, or do without the costs"
        )
    return ResNet(
        node.DEPTH,
        node.STEM_OUT_CHANNELS,
        node.RES2_OUT_CHANNELS,
        node.NUM_GROUPS * node.WIDTH_PER_GROUP,
        node.NUM_GROUPS,
        node.STRIDE_IN_1X1,
        node.NORM,
        model.BACKBONE.FREEZE_AT,
    )


def _box_head(model) -> BoxHead:
    node, classes = model.ROI_BOX_HEAD, model.ROI_HEADS.NUM_CLASSES
    head = BoxHead(node.NUM_FC, node.FC_DIM, node.POOLER_RESOLUTION, classes, node.CLS_AGNOSTIC_BBOX_REG)
    if node.NAME == "GroupNormBoxHead":
        return head
    return replace(head, fc_norm="", num_conv=node.NUM_CONV, conv_dim=node.CONV_DIM, conv_norm=node.NORM)


def _mask_head(model) -> MaskHead:
    node = model.ROI_MASK_HEAD
    classes = 1 if node.CLS_AGNOSTIC_MASK else model.ROI_HEADS.NUM_CLASSES
    searched = node.NAME == "SearchableMaskHead"
    return MaskHead(node.NUM_CONV, node.CONV_DIM, node.POOLER_RESOLUTION, classes, searched, node.NORM)


def _levels(names) -> tuple[int, ...]:
    """Levels of feature names: ("p2", "p3") or ("res2", "res3") -> (2, 3)."""
    levels = []
    for name in names:
        digits = name.removeprefix("res").removeprefix("p")
        if not (digits.isascii() and digits.isdigit()):
            raise UserError(f"feature {name!r}: expected names such as p2 (FPN) or res2 (backbone)")
        levels.append(int(digits))
    return tuple(levels)


def _check(model, key: str, *known: str) -> None:
    """Raise a UserError unless MODEL.``key`` is one of ``known``."""
    name = functools.reduce(getattr, key.split("."), model)
    if name not in known:
        raise UserError(
            f"MODEL.{key} is {name!r}: multiply-adds and parameters are known for {', '.join(known)}; "
            "use one of these, or do without the costs"
        )
