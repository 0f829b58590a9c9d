"""The search: recalibrate, evaluate, record, select."""

from .bn_recalibration import recalibrated
from .evaluate import CandidateEvaluator, path_statistics
from .executor import Executor, InProcess
from .header import ACCEPTABLE, CYCLE_KEYS, ledger_path, search_header, search_policy
from .loop import run_search
from .selecting import (
    add_selection_arguments,
    asks_for_selection,
    check_limits,
    rescore,
    selection_summary,
)
from .summary import summary

__all__ = [
    "ACCEPTABLE",
    "CYCLE_KEYS",
    "CandidateEvaluator",
    "Executor",
    "InProcess",
    "add_selection_arguments",
    "asks_for_selection",
    "check_limits",
    "ledger_path",
    "path_statistics",
    "recalibrated",
    "rescore",
    "run_search",
    "search_header",
    "search_policy",
    "selection_summary",
    "summary",
]
