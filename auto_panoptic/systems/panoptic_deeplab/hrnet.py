"""HRNet and the variants of the supplement's section 1, on timm's HRNet, whose weights they take by name.

- HRNet: four branches of strides 4, 8, 16, 32, which exchange their maps after every module.
- HRNet+ (1.2) keeps the classification head up to its last convolution.
- HRNet-Wider+ (1.3) has Xception modules for basic ones, and 64, 256, 384, 384 channels.
- HRNet+ Atrous (1.4) keeps the fourth branch at stride 16, with dilation 2.

Shape shorthand: N images of H x W pixels; branch i of C_i channels has stride 4 * 2^i.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from torch import nn
from torch.nn import functional as F

from .encoder import Encoder, import_timm, synchronised

WIDTHS = {18: (18, 36, 72, 144), 32: (32, 64, 128, 256), 48: (48, 96, 192, 384), "wider": (64, 256, 384, 384)}
RAISED = (128, 256, 512, 1024)  # channels that the classification head raises the branches to
HEAD = 2048  # its output channels
NAMES = ("res2", "res3", "res4", "res5")
_TRUNK = (
    *("conv1", "bn1", "act1", "conv2", "bn2", "act2", "layer1"),
    *("transition1", "stage2", "transition2", "stage3", "transition3", "stage4"),
)
_HEAD = ("incre_modules.", "downsamp_modules.", "final_layer.")


class HRNet(Encoder):
    """timm's HRNet as a Detectron2 backbone; names of weights are timm's, and those of the original files.

    Images whose sides are no multiples of 32 are possible: maps are resized to that which they are added to.
    """

    def __init__(
        self,
        *,
        channels: Sequence[int] = WIDTHS[48],
        head: str = "none",
        atrous_last: bool = False,
        fuse_upsample: str = "nearest",
        raised_skips: bool = False,
        final_layer: bool = True,
        xception: bool = False,
        separable_fuse: bool = False,
        bottleneck: int = 64,
        blocks: int = 4,
        modules: Sequence[int] = (1, 4, 3),
        raised: Sequence[int] = RAISED,
        in_channels: int = 3,
    ):
        """
        Args:
            channels: C of the four branches.
            head: "none" gives the branches as res2..res5; "concat" one map "concat" of stride 4, all branches
                resized and concatenated (supplement, Figure 1); "classification" res2..res4 and, as res5, the
                last map of the classification head.
            atrous_last: the fourth branch keeps stride 16: of every chain that creates 1/32 the last 3x3
                convolution loses its stride, and the 3x3 convolutions of the branch have dilation 2. The
                bottleneck that raises its channels belongs to the head and has none.
            fuse_upsample: "nearest" (HRNet for classification), or "bilinear" with aligned corners.
            raised_skips: res2..res4 are the branches after the bottlenecks of the classification head.
            final_layer: the classification head ends with its 1x1 convolution to 2048 channels; else res5 are
                the 1024 channels before.
            xception: Xception modules in the branches of stages 2 to 4.
            separable_fuse: 3x3 convolutions between branches are depthwise separable.
            bottleneck: channels of the bottlenecks of stage 1; its output has four times as many.
            blocks: residual modules per branch, and bottlenecks of stage 1.
            modules: exchanges in the stages 2, 3 and 4.
            raised: what the classification head raises the branches to, multiples of 4.
            in_channels: of the image.
        """
        super().__init__()
        network = _network(channels, bottleneck, blocks, modules, in_channels)
        for name in _TRUNK:
            self.add_module(name, getattr(network, name))
        for transition, stage in self._stages():
            for module in stage:
                _leave_resizing(module)
                if xception:
                    widths = channels[: len(module.branches)]
                    module.branches = nn.ModuleList(_xception(c, blocks) for c in widths)
                if separable_fuse:
                    _make_separable(module.fuse_layers)
            if separable_fuse:
                _make_separable(transition)
        self.head, self.fuse_upsample, self.raised_skips = head, fuse_upsample, raised_skips
        strides = (4, 8, 16, 16 if atrous_last else 32)
        outputs = dict(zip(NAMES, zip(channels, strides, strict=True), strict=True))
        held = ()
        if head == "concat":
            outputs = {"concat": (sum(channels), 4)}
        elif head == "classification":
            self._add_head(channels, raised, final_layer)
            held = _HEAD if final_layer else _HEAD[:2]
            if raised_skips:
                outputs = dict(zip(NAMES, zip(raised, strides, strict=True), strict=True))
            outputs["res5"] = (HEAD if final_layer else raised[-1], strides[-1])
        self.set_outputs(outputs)
        if atrous_last:
            self._keep_last_stride()
        self.classifier_layers = ("classifier.", *(name for name in _HEAD if name not in held))
        self.settings = {
            "MODEL.HRNET.ATROUS_LAST": atrous_last,
            "MODEL.HRNET.FUSE_UPSAMPLE": fuse_upsample,
        }

    @property
    def size_divisibility(self) -> int:
        """Images are padded to it, so that each map is twice as large as the next."""
        return 32

    def _stages(self) -> list[tuple[nn.ModuleList, nn.Sequential]]:
        """(what makes the branches, the modules that exchange between them) of the stages 2 to 4."""
        stages = [(self.transition1, self.stage2), (self.transition2, self.stage3)]
        return [*stages, (self.transition3, self.stage4)]

    def _add_head(self, channels: Sequence[int], raised: Sequence[int], final_layer: bool) -> None:
        """A bottleneck per branch, strided convolutions from each to the next, and a 1x1 convolution."""
        self.incre_modules = nn.ModuleList(_raise(*pair) for pair in zip(channels, raised, strict=True))
        pairs = zip(raised, raised[1:], strict=False)
        self.downsamp_modules = nn.ModuleList(_conv(ci, co, 3, stride=2) for ci, co in pairs)
        heads = [self.incre_modules, self.downsamp_modules]
        if final_layer:
            self.final_layer = _conv(raised[-1], HEAD, 1)
            heads.append(self.final_layer)
        for layer in (layer for head in heads for layer in head.modules()):
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def _keep_last_stride(self) -> None:
        chains = [self.transition3[3]]
        chains += [chain for module in self.stage4 for chain in module.fuse_layers[3][:3]]
        if self.head == "classification":
            chains.append(self.downsamp_modules[2])
        for chain in chains:
            strided = [c for c in chain.modules() if isinstance(c, nn.Conv2d) and c.stride == (2, 2)]
            strided[-1].stride = (1, 1)
        for layer in (layer for module in self.stage4 for layer in module.branches[3].modules()):
            if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3):
                layer.dilation = layer.padding = (2, 2)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """(N, 3, H, W) -> {"res2": (N, C2, H/4, W/4), ...}, or {"concat": (N, C, H/4, W/4)}."""
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.act2(self.bn2(self.conv2(x)))
        maps = [self.layer1(x)]
        for transition, stage in self._stages():
            maps = [layer(maps[min(i, len(maps) - 1)]) for i, layer in enumerate(transition)]
            for module in stage:
                maps = self._exchange(module, maps)
        if self.head == "none":
            return dict(zip(NAMES, maps, strict=True))
        if self.head == "concat":
            size = maps[0].shape[-2:]
            resized = [F.interpolate(x, size, mode="bilinear", align_corners=False) for x in maps[1:]]
            return {"concat": torch.cat([maps[0], *resized], dim=1)}
        raised = [layer(x) for layer, x in zip(self.incre_modules, maps, strict=True)]
        y = raised[0]
        for down, x in zip(self.downsamp_modules, raised[1:], strict=True):
            y = x + down(y)
        y = self.final_layer(y) if hasattr(self, "final_layer") else y
        return dict(zip(NAMES, [*(raised if self.raised_skips else maps)[:3], y], strict=True))

    def _exchange(self, module: nn.Module, maps: list[torch.Tensor]) -> list[torch.Tensor]:
        """One module: each branch by itself, then each gets the sum of all."""
        maps = [branch(x) for branch, x in zip(module.branches, maps, strict=True)]
        fused = []
        for row, own in zip(module.fuse_layers, maps, strict=True):
            total, *others = (self._resized(f(x), own) for f, x in zip(row, maps, strict=True))
            for x in others:
                total = total + x
            fused.append(module.fuse_act(total))
        return fused

    def _resized(self, x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        size = like.shape[-2:]
        if x.shape[-2:] == size:
            return x
        corners = True if self.fuse_upsample == "bilinear" else None
        return F.interpolate(x, size, mode=self.fuse_upsample, align_corners=corners)


def _network(channels, bottleneck: int, blocks: int, modules, in_channels: int) -> nn.Module:
    """timm's HRNet without its classification head."""
    from timm.models.hrnet import HighResolutionNet

    def stage(kind: str, count: int, widths: Sequence[int]) -> dict:
        return {
            "num_modules": count,
            "num_branches": len(widths),
            "block_type": kind,
            "num_blocks": (blocks,) * len(widths),
            "num_channels": tuple(widths),
            "fuse_method": "SUM",
        }

    layout = {"stem_width": 64, "stage1": stage("BOTTLENECK", 1, [bottleneck])}
    for i, count in enumerate(modules):
        layout[f"stage{i + 2}"] = stage("BASIC", count, channels[: i + 2])
    return HighResolutionNet(layout, in_chans=in_channels, head="")


def _leave_resizing(module: nn.Module) -> None:
    """Take timm's upsampling by fixed factors out of the paths between branches."""
    for path in (path for row in module.fuse_layers for path in row):
        if isinstance(path, nn.Sequential) and isinstance(path[-1], nn.Upsample):
            path[-1] = nn.Identity()


def _xception(channels: int, blocks: int) -> nn.Sequential:
    """Xception modules: three times ReLU, depthwise 3x3, BN, 1x1, BN, and the identity (ours)."""
    from timm.models.xception_aligned import XceptionModule

    return nn.Sequential(
        *(XceptionModule(channels, channels, norm_layer=nn.BatchNorm2d) for _ in range(blocks))
    )


def _make_separable(module: nn.Module) -> None:
    """Replace dense 3x3 convolutions by a depthwise one, which has the stride, and a 1x1 one."""
    for name, layer in list(module.named_children()):
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3):
            ci, co = layer.in_channels, layer.out_channels
            depthwise = nn.Conv2d(ci, ci, 3, layer.stride, 1, groups=ci, bias=False)
            setattr(module, name, nn.Sequential(depthwise, nn.Conv2d(ci, co, 1, bias=False)))
        else:
            _make_separable(layer)


def _raise(ci: int, co: int) -> nn.Sequential:
    from timm.models.resnet import Bottleneck

    shortcut = nn.Sequential(nn.Conv2d(ci, co, 1, bias=False), nn.BatchNorm2d(co))
    return nn.Sequential(Bottleneck(ci, co // 4, downsample=shortcut))


def _conv(ci: int, co: int, kernel: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(ci, co, kernel, stride, kernel // 2)
    return nn.Sequential(conv, nn.BatchNorm2d(co), nn.ReLU(inplace=True))


@BACKBONE_REGISTRY.register()
def build_hrnet_backbone(cfg, input_shape: ShapeSpec) -> HRNet:
    """The HRNet that MODEL.HRNET describes; UserError without timm."""
    node = cfg.MODEL.HRNET
    import_timm("MODEL.BACKBONE.NAME", cfg.MODEL.BACKBONE.NAME)
    width = 48 if node.WIDTH is None else node.WIDTH
    options = {"head": node.HEAD, "atrous_last": node.ATROUS_LAST, "fuse_upsample": node.FUSE_UPSAMPLE}
    if width == "custom":
        options |= {"channels": node.CHANNELS, "bottleneck": node.BOTTLENECK, "blocks": node.BLOCKS}
        options |= {"modules": node.MODULES, "raised": node.RAISED, "xception": node.BLOCK == "xception"}
    else:
        options |= {"channels": WIDTHS[width], "xception": width == "wider"}
    if options["xception"]:
        options["separable_fuse"] = node.SEPARABLE_FUSE
    if node.HEAD == "classification":
        options |= {"raised_skips": node.SKIPS == "raised", "final_layer": node.ASPP_INPUT == HEAD}
    return synchronised(HRNet(**options, in_channels=input_shape.channels), node.NORM, cfg)
