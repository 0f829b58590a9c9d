"""Auto-Panoptic: Panoptic-FPN with searched backbone, heads and attention between its two branches."""

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
