"""What networks are built from, shared by the systems. Importing it registers the backbones in Detectron2.

- ``choice``       ChoiceBlock, Choices, the space of a model; apply_architecture, where a path switches
- ``extract``      supernet + architecture -> stand-alone network
- ``backbones``    ShuffleNetV2 / Xception, alone and with FPN
- ``layers``       deformable convolution on CPU and CUDA; the searched operators of the heads; classifier
                   over the levels of a pyramid
- ``fusion``       merging of instances and stuff into one panoptic map
- ``targets``      instances and padded labels of a training batch
- ``counting``     multiply-adds and parameters of any model
- ``timing``       measured time of parts, operators and networks
- ``searchable``   optional methods of a meta-architecture, with defaults
- ``calibration``  BatchNorm statistics of the active path
- ``fold``         BatchNorm folded into convolutions, for inference
- ``finite``       NaN and infinity in weights, statistics and outputs
"""

from .backbones import builders, narrow_resnet  # noqa: F401
from .choice import (
    ChoiceBlock,
    Choices,
    apply_architecture,
    buildable,
    check_size,
    choice_blocks,
    configured_space,
    meta_model,
    space_of,
)

__all__ = [
    "ChoiceBlock",
    "Choices",
    "apply_architecture",
    "buildable",
    "check_size",
    "choice_blocks",
    "configured_space",
    "meta_model",
    "space_of",
]
