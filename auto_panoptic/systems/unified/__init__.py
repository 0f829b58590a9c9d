"""The unified network: one panoptic output, trained as it is used (supplement of "Unifying Training and
Inference for Panoptic Segmentation").

- ``config``         its keys
- ``meta_arch``      ``UnifiedPanoptic``: all of it together
- ``heads``          the decoders: ``UnifiedSemSegHead``, ``AffinityHead``
- ``roi_heads``      ``UnifiedROIHeads``: detections in training too, Lovasz loss of masks
- ``potential``      ``dynamic_potential``: a channel for each class of stuff and each detection
- ``affinity``       ``propagate``: pixels gather the potential of those that they resemble
- ``panoptic_loss``  the channel that each pixel should choose, and the loss
- ``panoptic_map``   the map of segments, from panoptic logits or by merging
- ``lovasz``         ``lovasz_hinge``, ``lovasz_softmax``: losses that follow the IoU
"""

from ...data.labels import ALL, declare_inputs
from .affinity import propagate
from .config import add_unified_config
from .heads import AffinityHead, UnifiedSemSegHead
from .lovasz import lovasz_hinge, lovasz_softmax
from .meta_arch import UnifiedPanoptic
from .potential import dynamic_potential
from .roi_heads import UnifiedROIHeads

__all__ = [
    "AffinityHead",
    "UnifiedPanoptic",
    "UnifiedROIHeads",
    "UnifiedSemSegHead",
    "add_unified_config",
    "dynamic_potential",
    "lovasz_hinge",
    "lovasz_softmax",
    "propagate",
]

declare_inputs("UnifiedPanoptic", labels=ALL, masks=True)  # of the panoptic targets
