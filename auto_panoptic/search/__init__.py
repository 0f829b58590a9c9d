"""The search: recalibrate, evaluate, record, select.

What evaluates, and so needs torch and Detectron2, is imported on its first use: selecting anew does without.
"""

import importlib

from .executors import Executor, InProcess
from .header import ACCEPTABLE, CYCLE_KEYS, ledger_path, search_header, search_policy
from .selecting import (
    add_selection_arguments,
    asks_for_selection,
    check_limits,
    rescore,
    selection_summary,
)
from .summary import summary

_ON_FIRST_USE = {
    "CandidateEvaluator": ".evaluate",
    "path_statistics": ".evaluate",
    "recalibrated": ".bn_recalibration",
    "run_search": ".loop",
}

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


def __getattr__(name):
    if name in _ON_FIRST_USE:
        return getattr(importlib.import_module(_ON_FIRST_USE[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
