"""What is searched: sites, operators, architectures and their cost. Pure data, no torch."""

from .architecture_file import load_names, resolve_architecture_path
from .cost import Cost, CostTables, backbone_cost
from .ops import (
    BACKBONE_OPS,
    HEAD_OPS,
    INTER_OPS,
    OpSpec,
    domain,
    effective_ratio,
    op,
    ratio_op,
    register_ops,
)
from .space import Architecture, ChoiceSite, SearchSpace
from .widths import WIDTHS, Width, width_from_config

__all__ = [
    "BACKBONE_OPS",
    "HEAD_OPS",
    "INTER_OPS",
    "WIDTHS",
    "Architecture",
    "ChoiceSite",
    "Cost",
    "CostTables",
    "OpSpec",
    "SearchSpace",
    "Width",
    "backbone_cost",
    "domain",
    "effective_ratio",
    "load_names",
    "op",
    "ratio_op",
    "register_ops",
    "resolve_architecture_path",
    "width_from_config",
]
