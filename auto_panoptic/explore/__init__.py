"""How the space is explored: fair cycles, scores, the journal of evaluated candidates. numpy only."""

from .fairness import fair_cycle, pass_counts
from .ledger import Ledger
from .policies import path_priority_candidates
from .scoreboard import Scoreboard

__all__ = ["Ledger", "Scoreboard", "fair_cycle", "pass_counts", "path_priority_candidates"]
