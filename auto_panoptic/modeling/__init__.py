"""How the network is built. Importing this package registers its parts in Detectron2.

- ``choice``           ChoiceBlock, apply_architecture: the only place where a path switches
- ``shufflenet``       ShuffleNetV2 / Xception blocks, the bare backbone
- ``backbone``         registered builders: ``build_shufflenet_backbone``, ``build_shufflenet_fpn_backbone``
- ``deform``           deformable convolution on CPU and CUDA
- ``head_ops``         depthwise, atrous, deformable operators with GroupNorm and ReLU
- ``box_head``         ``GroupNormBoxHead``
- ``mask_head``        ``SearchableMaskHead``
- ``sem_seg_head``     ``SearchableSemSegFPNHead``
- ``cross_attention``  inter-modular attention
- ``fusion``           merging of instances and stuff into one panoptic map
- ``proposals``        ``BatchTopkRPN``: region proposals chosen over the batch, as in the reference code
- ``meta_arch``        ``AutoPanopticFPN``: all of it together
- ``classifier``       ``BackboneClassifier``: the backbone in the ImageNet stage
- ``extract``          supernet + architecture -> stand-alone network
"""

from .backbone import build_shufflenet_backbone, build_shufflenet_fpn_backbone
from .box_head import GroupNormBoxHead
from .choice import ChoiceBlock, apply_architecture, choice_blocks
from .classifier import BackboneClassifier
from .cross_attention import CrossAttention
from .mask_head import SearchableMaskHead
from .meta_arch import AutoPanopticFPN
from .proposals import BatchTopkRPN
from .sem_seg_head import SearchableSemSegFPNHead
from .shufflenet import ShuffleNetV2

__all__ = [
    "AutoPanopticFPN",
    "BackboneClassifier",
    "BatchTopkRPN",
    "ChoiceBlock",
    "CrossAttention",
    "GroupNormBoxHead",
    "SearchableMaskHead",
    "SearchableSemSegFPNHead",
    "ShuffleNetV2",
    "apply_architecture",
    "build_shufflenet_backbone",
    "build_shufflenet_fpn_backbone",
    "choice_blocks",
]
