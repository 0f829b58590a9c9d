"""The search: recalibrate, evaluate, record, select.

``loop`` runs it, ``candidate`` scores one architecture, ``executors`` score many, ``selection`` turns records
into a scoreboard and an architecture. Selecting anew (``again``) needs neither torch nor Detectron2.

The room is a function, too: ``auto_panoptic.search(config)``, see :func:`.search_here`.
"""

import sys
import types

from .executors.in_process import Executor, InProcess
from .loop import run_search
from .selection import Request, SearchResult, ledger_path
from .summary import summary

__all__ = ["Executor", "InProcess", "Request", "SearchResult", "ledger_path", "run_search", "summary"]


class _Search(types.ModuleType):
    def __call__(self, *args, **options) -> SearchResult:
        from .command import search_here  # torch and Detectron2 take seconds to import

        return search_here(*args, **options)


sys.modules[__name__].__class__ = _Search
