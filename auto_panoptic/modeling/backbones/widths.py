"""Channel widths of the ShuffleNetV2 backbone (supplement; reference code)."""

from __future__ import annotations

from dataclasses import dataclass

from auto_panoptic.errors import one_of


@dataclass(frozen=True)
class Width:
    """Channels and depth of the backbone.

    Attributes:
        stem: output channels of the stem, at stride 2.
        channels: output channels of the four stages C2..C5, at strides 4, 8, 16, 32.
        repeats: blocks per stage; their sum is the number of backbone sites.
        classifier: output channels of the 1x1 convolution before the ImageNet classifier.
    """

    stem: int
    channels: tuple[int, int, int, int]
    repeats: tuple[int, int, int, int]
    classifier: int = 1024


WIDTHS = {
    "300M": Width(stem=16, channels=(64, 160, 320, 640), repeats=(4, 4, 8, 4), classifier=1024),
    "1.3G": Width(stem=48, channels=(96, 240, 480, 960), repeats=(8, 8, 16, 8), classifier=1024),
    "3.8G": Width(stem=72, channels=(172, 432, 864, 1728), repeats=(8, 8, 16, 8), classifier=1728),
}


def width_name(width: dict) -> str:
    """Name of {"stem": channels, "channels": of the stages, "repeats": blocks}, or the numbers themselves."""
    for name, known in WIDTHS.items():
        if (known.stem, list(known.channels), list(known.repeats)) == tuple(width.values()):
            return name
    return f"custom (stem {width['stem']}, channels {width['channels']}, repeats {width['repeats']})"


def width_from_config(cfg) -> Width:
    """The backbone width that ``cfg.MODEL.SHUFFLENET`` asks for."""
    node = cfg.MODEL.SHUFFLENET
    if node.WIDTH == "custom":
        return Width(node.STEM_CHANNELS, tuple(node.STAGE_CHANNELS), tuple(node.STAGE_REPEATS))
    return WIDTHS[one_of("MODEL.SHUFFLENET.WIDTH", node.WIDTH, WIDTHS)]
