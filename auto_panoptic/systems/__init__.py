"""The systems: whole networks, each in a folder of its own. Importing this package registers their parts.

- ``panoptic_fpn``  Auto-Panoptic on Panoptic-FPN: the paper
- ``classifier``    the ImageNet stage, which pre-trains the backbone

Nothing outside names a system: Detectron2's registries and the model's choice blocks say what others need.
"""

from . import classifier, panoptic_fpn

__all__ = ["classifier", "panoptic_fpn"]
