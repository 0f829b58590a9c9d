"""The unified network: one panoptic output, trained as it is used.

- ``lovasz``     ``lovasz_hinge``, ``lovasz_softmax``: losses that follow the IoU
- ``potential``  ``dynamic_potential``: a channel for each class of stuff and each detection
- ``affinity``   ``propagate``: pixels gather the potential of those that they resemble
- ``panoptic_loss``  matching, targets and loss of the panoptic output
"""

from .affinity import propagate
from .lovasz import lovasz_hinge, lovasz_softmax
from .potential import dynamic_potential

__all__ = [
    "dynamic_potential",
    "lovasz_hinge",
    "lovasz_softmax",
    "propagate",
]
