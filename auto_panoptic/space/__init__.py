"""What is searched: sites, operators, architectures and their cost. Pure data, no torch."""

from .architecture_file import TEXT, as_text, load_names, names_in, resolve_architecture_path
from .cost import Cost, CostTables, backbone_cost
from .latency import LatencyTable, milliseconds, parse_latency
from .ops import BACKBONE_OPS, HEAD_OPS, INTER_OPS, OpSpec, domain, op, ratio_op, register_ops
from .space import Architecture, ChoiceSite, SearchSpace

__all__ = [
    "BACKBONE_OPS",
    "HEAD_OPS",
    "INTER_OPS",
    "Architecture",
    "ChoiceSite",
    "Cost",
    "CostTables",
    "LatencyTable",
    "OpSpec",
    "SearchSpace",
    "TEXT",
    "as_text",
    "backbone_cost",
    "domain",
    "load_names",
    "milliseconds",
    "names_in",
    "op",
    "parse_latency",
    "ratio_op",
    "register_ops",
    "resolve_architecture_path",
]
