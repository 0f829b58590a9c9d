"""The search: recalibrate, evaluate, record, select."""

from .bn_recalibration import recalibrated
from .evaluate import CandidateEvaluator, path_statistics
from .loop import ledger_path, run_search, search_cycles, search_header
from .summary import summary

__all__ = [
    "CandidateEvaluator",
    "ledger_path",
    "path_statistics",
    "recalibrated",
    "run_search",
    "search_cycles",
    "search_header",
    "summary",
]
