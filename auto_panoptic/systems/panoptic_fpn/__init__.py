"""Auto-Panoptic: Panoptic-FPN with searched backbone, heads and attention between its two branches.

- ``config``        its keys
- ``meta_arch``     ``AutoPanopticFPN``: all of it together
- ``attention``     inter-modular attention, both directions
- ``sem_seg_head``  ``SearchableSemSegFPNHead``
- ``mask_head``     ``SearchableMaskHead``
- ``box_head``      ``GroupNormBoxHead``
- ``proposals``     ``BatchTopkRPN``: region proposals chosen over the batch, as in the reference code
- ``published``     the published costs; ``published_space``: the paper's search space
"""

from ...data.labels import SEPARATED, declare_inputs
from .attention import CrossAttention
from .box_head import GroupNormBoxHead
from .config import add_panoptic_fpn_config
from .mask_head import SearchableMaskHead
from .meta_arch import AutoPanopticFPN
from .proposals import BatchTopkRPN
from .sem_seg_head import SearchableSemSegFPNHead

__all__ = [
    "AutoPanopticFPN",
    "BatchTopkRPN",
    "CrossAttention",
    "GroupNormBoxHead",
    "SearchableMaskHead",
    "SearchableSemSegFPNHead",
    "add_panoptic_fpn_config",
]

for _name in ("AutoPanopticFPN", "PanopticFPN"):  # the latter is Detectron2's
    declare_inputs(_name, labels=SEPARATED)
