"""ShuffleNetV2 / Xception blocks and the backbone made of them.

Shape shorthand: N images, C channels, H x W spatial size; ``ci``/``co`` a block's input and output channels.
Channel arithmetic, widths and initialisation follow the reference code and Single-Path-One-Shot (SPOS).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby

import torch
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import Backbone
from torch import nn
from torch.nn import functional as F

from auto_panoptic.modeling.backbones.widths import width_name
from auto_panoptic.modeling.choice import Choices
from auto_panoptic.modeling.layers.setting import SettingInWeights
from auto_panoptic.space import OpSpec

Norm = Callable[[int], nn.Module]


def make_norm(name: str, momentum: float = 0.1) -> Norm:
    """A function from a channel number to a BatchNorm layer (eps 1e-5), ``name`` "BN" or "SyncBN".

    ``momentum`` is the weight of the newest batch in the running statistics (reference code: 0.1 for a
    supernet, 0.01 for a retrained model).
    """
    layer = {"BN": nn.BatchNorm2d, "SyncBN": nn.SyncBatchNorm}[name]
    return lambda channels: layer(channels, eps=1e-5, momentum=momentum)


def shuffle_split(x: torch.Tensor, method: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Shuffle channels and split them in two halves.

    Args:
        x: (N, C, H, W).
        method: 1 interleaves the two halves of the channels and splits contiguously (reference code);
            2 takes even and odd channels (SPOS). Weights trained with one do not fit the other.

    Returns:
        (pass-through, main), each (N, C/2, H, W). For C = 8 the channels are [0, 4, 1, 5] and [2, 6, 3, 7]
        with method 1, [0, 2, 4, 6] and [1, 3, 5, 7] with method 2.
    """
    if method == 2:
        return x[:, 0::2], x[:, 1::2]
    if torch.onnx.is_in_onnx_export():  # which has no channel_shuffle
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w).chunk(2, dim=1)
    return F.channel_shuffle(x, 2).chunk(2, dim=1)  # channels-last stays channels-last


def _conv_norm(
    ci: int, co: int, kernel: int, norm: Norm, *, stride: int = 1, groups: int = 1, relu: bool
) -> list[nn.Module]:
    layers = [nn.Conv2d(ci, co, kernel, stride, kernel // 2, groups=groups, bias=False), norm(co)]
    return [*layers, nn.ReLU(inplace=True)] if relu else layers


def _shuffle_branch(ci: int, mid: int, co: int, kernel: int, stride: int, norm: Norm) -> nn.Sequential:
    """1x1, BN, ReLU; depthwise k x k, BN; 1x1, BN, ReLU."""
    return nn.Sequential(
        *_conv_norm(ci, mid, 1, norm, relu=True),
        *_conv_norm(mid, mid, kernel, norm, stride=stride, groups=mid, relu=False),
        *_conv_norm(mid, co, 1, norm, relu=True),
    )


def _xception_branch(ci: int, mid: int, co: int, kernel: int, stride: int, norm: Norm) -> nn.Sequential:
    """Three times: depthwise k x k, BN, 1x1, BN, ReLU. The stride is in the first depthwise convolution."""
    layers = []
    for i, (a, b) in enumerate([(ci, mid), (mid, mid), (mid, co)]):
        layers += _conv_norm(a, a, kernel, norm, stride=stride if i == 0 else 1, groups=a, relu=False)
        layers += _conv_norm(a, b, 1, norm, relu=True)
    return nn.Sequential(*layers)


def _identity(ci: int, mid: int, co: int, kernel: int, stride: int, norm: Norm) -> nn.Module:
    """Nothing; of a block of stride 1 only the shuffle is left."""
    if stride != 1:
        raise ValueError("a block of stride 2 cannot be skipped; name the others' sites in NAS.SPACE.SITES")
    return nn.Identity()


# What an operator of a kind puts in a block's main branch: (ci, mid, co, kernel, stride, norm) -> module.
BACKBONE_BRANCHES: dict[str, Callable[..., nn.Module]] = {
    "shuffle": _shuffle_branch,
    "xception": _xception_branch,
    "identity": _identity,
}


class ShuffleBlock(nn.Module):
    """One ShuffleNetV2 unit: (N, ci, H, W) -> (N, co, H/stride, W/stride).

    Stride 1: half of the shuffled channels pass through, the other half takes the main branch.
    Stride 2: no shuffle; a projection (ci -> ci) and the main branch (ci -> co - ci) both see all of x.
    There is no ReLU after the concatenation.
    """

    def __init__(self, spec: OpSpec, ci: int, co: int, *, stride: int, norm: Norm, shuffle_method: int = 1):
        """
        Args:
            spec: an operator of a kind in :data:`BACKBONE_BRANCHES`.
            ci, co: channels. Stride 1 needs ci == co, stride 2 needs co > ci; co must be even.
            stride: 1 or 2.
            norm: function from a channel number to a normalisation layer.
            shuffle_method: see :func:`shuffle_split`.

        Raises:
            ValueError: operator or channels do not fit.
        """
        super().__init__()
        if spec.kind not in BACKBONE_BRANCHES:
            raise ValueError(
                f"operator {spec.name!r} of kind {spec.kind!r}: expected one of {sorted(BACKBONE_BRANCHES)}"
            )
        if co % 2 or (stride == 1 and ci != co) or (stride == 2 and co <= ci):
            raise ValueError(
                f"a stride-{stride} block cannot go from {ci} to {co} channels; they must be even and grow "
                "from the stem through every stage"
            )
        if shuffle_method not in (1, 2) or (shuffle_method == 2 and co % 4):
            raise ValueError(
                f"shuffle method {shuffle_method} with {co} channels; allowed are 1 (even channels) and 2 "
                "(channels divisible by 4)"
            )
        self.stride = stride
        self.shuffle_method = shuffle_method
        self.in_channels, self.out_channels = ci, co
        branch_in, branch_out = (ci // 2, co // 2) if stride == 1 else (ci, co - ci)
        self.main = BACKBONE_BRANCHES[spec.kind](branch_in, co // 2, branch_out, spec.kernel, stride, norm)
        if stride == 2:
            self.projection = nn.Sequential(
                *_conv_norm(ci, ci, spec.kernel, norm, stride=2, groups=ci, relu=False),
                *_conv_norm(ci, ci, 1, norm, relu=True),
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.stride == 1:
            kept, x = shuffle_split(x, self.shuffle_method)
        else:
            kept = self.projection(x)
        return torch.cat([kept, self.main(x)], dim=1)


def initialize_weights(module: nn.Module, stem: nn.Conv2d | None = None) -> None:
    """The ImageNet-stage initialisation of the reference code and SPOS, in place.

    Stem convolution N(0, 0.01); other convolutions N(0, 1 / weight.shape[1]), so standard deviation 1 for
    depthwise ones; convolution biases 0; BN weight 1, bias 1e-4; linear N(0, 0.01), bias 0.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, 0, 0.01 if layer is stem else 1.0 / layer.weight.shape[1])
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, (nn.BatchNorm2d, nn.SyncBatchNorm)):
            nn.init.ones_(layer.weight)
            nn.init.constant_(layer.bias, 1e-4)
            layer.reset_running_stats()
        elif isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, 0, 0.01)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class ShuffleNetV2(SettingInWeights, Backbone):
    """Stem and four stages of choice blocks; outputs res2..res5 with strides 4, 8, 16, 32."""

    setting_name = "shuffle method"

    def __init__(
        self,
        *,
        stem_channels: int,
        stage_channels: Sequence[int],
        stage_repeats: Sequence[int],
        ops: Sequence[OpSpec],
        choices: Choices | None = None,
        norm: str = "BN",
        norm_momentum: float = 0.1,
        shuffle_method: int = 1,
        in_channels: int = 3,
    ):
        """
        Args:
            stem_channels: output channels of the 3x3 stride-2 stem (with bias, BN, ReLU, no pooling).
            stage_channels, stage_repeats: output channels and blocks of the stages (first block: stride 2).
            ops, choices: operators of the sites ``backbone.0``, ``backbone.1``, ..., which run through the
                stages, and which of them are built (default: all).
            norm, norm_momentum: see :func:`make_norm`.
            shuffle_method: see :func:`shuffle_split`.
            in_channels: image channels.

        Raises:
            ValueError: channels and repeats do not fit each other or the operators.
        """
        super().__init__()
        make = make_norm(norm, norm_momentum)
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, stem_channels, 3, stride=2, padding=1),
            make(stem_channels),
            nn.ReLU(inplace=True),
        )
        self.shuffle_method = shuffle_method
        self._stage_ends = {}  # index of a stage's last block -> output name
        self._out_feature_strides, self._out_feature_channels = {}, {}
        builds, ci = [], stem_channels
        for stage, (co, repeats) in enumerate(zip(stage_channels, stage_repeats, strict=True)):
            for i in range(repeats):
                options = {"stride": 2 if i == 0 else 1, "norm": make, "shuffle_method": shuffle_method}
                builds.append(partial(ShuffleBlock, ci=ci, co=co, **options))
                ci = co
            name = f"res{stage + 2}"
            self._stage_ends[len(builds) - 1] = name
            self._out_feature_strides[name] = 2 ** (stage + 2)
            self._out_feature_channels[name] = co
        self.blocks = (choices or Choices()).row("backbone", ops, builds)
        self._out_features = list(self._out_feature_strides)
        initialize_weights(self, stem=self.stem[0])

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """(N, 3, H, W) -> {"res2": (N, C2, H/4, W/4), ..., "res5": (N, C5, H/32, W/32)}."""
        x = self.stem(x)
        outputs = {}
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in self._stage_ends:
                outputs[self._stage_ends[i]] = x
        return outputs

    def freeze(self, freeze_at: int = 0) -> ShuffleNetV2:
        """Exclude the first stages from training, as ``ResNet.freeze`` of Detectron2 does; return ``self``.

        Their parameters need no gradient, and their BatchNorm layers become ``FrozenBatchNorm2d``.

        Args:
            freeze_at: 0 freezes nothing, 1 the stem, 2 the stem and res2, and so on.
        """
        ends = [0, 0] + [end + 1 for end in self._stage_ends]  # blocks that are frozen, by freeze_at
        frozen = [self.stem, *self.blocks[: ends[min(freeze_at, len(ends) - 1)]]] if freeze_at > 0 else []
        for module in frozen:
            for parameter in module.parameters():
                parameter.requires_grad = False
            FrozenBatchNorm2d.convert_frozen_batchnorm(module)
        return self

    def setting(self) -> list[int]:
        return [self.shuffle_method]

    def weights_meta(self) -> dict:
        """What a checkpoint says about this backbone: the numbers of its width, and its shuffle method."""
        channels = [next(iter(block.candidates.values())).out_channels for block in self.blocks]
        stages = [(number, len(list(blocks))) for number, blocks in groupby(channels)]
        width = {
            "stem": self.stem[0].out_channels,
            "channels": [number for number, _ in stages],
            "repeats": [repeats for _, repeats in stages],
        }
        return {"width": width, "shuffle_method": self.shuffle_method}

    def check_weights_meta(self, meta: dict) -> None:
        """Raise ValueError if weights of a backbone with this :meth:`weights_meta` do not fit; names both."""
        ours = self.weights_meta()
        theirs = {key: meta.get(key) or value for key, value in ours.items()}
        if theirs["width"] != ours["width"]:
            raise ValueError(
                f"a backbone of width {width_name(theirs['width'])}, this config builds "
                f"{width_name(ours['width'])} (MODEL.SHUFFLENET.WIDTH)"
            )
        if theirs["shuffle_method"] != ours["shuffle_method"]:
            raise ValueError(
                f"a backbone with MODEL.SHUFFLENET.SHUFFLE_METHOD {theirs['shuffle_method']}, this config "
                f"has {ours['shuffle_method']}"
            )

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {
            name: ShapeSpec(channels=self._out_feature_channels[name], stride=self._out_feature_strides[name])
            for name in self._out_features
        }
