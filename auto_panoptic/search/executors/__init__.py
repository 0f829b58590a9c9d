"""Who evaluates the candidates: this process, one rank per candidate, or Ray workers."""

from .in_process import Evaluate, Executor, InProcess, outcome_of

__all__ = ["Evaluate", "Executor", "InProcess", "outcome_of"]
