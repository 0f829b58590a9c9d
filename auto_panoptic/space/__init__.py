"""What is searched: sites, operators, architectures and their cost. Pure data, no torch."""

from .architecture import Architecture, configured_ops, resolve_architecture_path
from .cost import backbone_cost
from .ops import BACKBONE_OPS, HEAD_OPS, INTER_OPS, OpSpec, op, ratio_op
from .search_space import ChoiceSite, SearchSpace
from .widths import WIDTHS, Width, width_from_config

__all__ = [
    "BACKBONE_OPS",
    "HEAD_OPS",
    "INTER_OPS",
    "WIDTHS",
    "Architecture",
    "ChoiceSite",
    "OpSpec",
    "SearchSpace",
    "Width",
    "backbone_cost",
    "configured_ops",
    "op",
    "ratio_op",
    "resolve_architecture_path",
    "width_from_config",
]
