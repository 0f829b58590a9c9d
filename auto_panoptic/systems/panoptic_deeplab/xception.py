"""Xception-71 as the encoder of Panoptic-DeepLab, on timm's ``xception71``."""

from __future__ import annotations

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY

from .encoder import Encoder, import_timm, synchronised

TAPS = {2: "res2", 4: "res3"}  # block -> output: what its last convolution, which has the stride, works on


class Xception71(Encoder):
    """timm's aligned Xception-71 with output stride 16; names of weights are timm's.

    The skips are what the second of the three separable convolutions of a block gives, after its ReLU (before
    it in DeepLab's own code): 256 channels of stride 4 and 728 of stride 8.
    """

    classifier_layers = ("head.",)

    def __init__(self, in_channels: int = 3):
        super().__init__()
        from timm import create_model

        network = create_model("xception71", pretrained=False, in_chans=in_channels, output_stride=16)
        self.stem, self.blocks = network.stem, network.blocks
        self.set_outputs({"res2": (256, 4), "res3": (728, 8), "res5": (network.num_features, 16)})

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """(N, 3, H, W) -> {"res2": (N, 256, H/4, W/4), "res3": (N, 728, ...), "res5": (N, 2048, ...)}."""
        x, outputs = self.stem(x), {}
        for i, block in enumerate(self.blocks):
            if i in TAPS:
                x, outputs[TAPS[i]] = block.forward_with_tap(x)
            else:
                x = block(x)
        return {**outputs, "res5": x}


@BACKBONE_REGISTRY.register()
def build_xception71_backbone(cfg, input_shape: ShapeSpec) -> Xception71:
    """Xception-71 with output stride 16; UserError without timm."""
    import_timm("MODEL.BACKBONE.NAME", cfg.MODEL.BACKBONE.NAME)
    from timm.layers import convert_sync_batchnorm  # knows that timm's BatchNorm may end in a ReLU

    return synchronised(
        Xception71(input_shape.channels), cfg.MODEL.XCEPTION.NORM, cfg, convert_sync_batchnorm
    )
