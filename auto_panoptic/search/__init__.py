"""The search: recalibrate, evaluate, record, select.

``loop`` runs it, ``candidate`` scores one architecture, ``executors`` score many, ``selection`` turns records
into a scoreboard and an architecture. Selecting anew (``again``) needs neither torch nor Detectron2.
"""

from .executors.in_process import Executor, InProcess
from .loop import run_search
from .selection import Request, SearchResult, ledger_path
from .summary import summary

__all__ = ["Executor", "InProcess", "Request", "SearchResult", "ledger_path", "run_search", "summary"]
