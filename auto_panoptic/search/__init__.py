"""The search: recalibrate, evaluate, record, select."""

from .bn_recalibration import recalibrated
from .evaluate import CandidateEvaluator
from .loop import run_search, search_header
from .summary import summary

__all__ = ["CandidateEvaluator", "recalibrated", "run_search", "search_header", "summary"]
