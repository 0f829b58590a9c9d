"""How the space is explored: fair cycles, scores, the journal of evaluated candidates. numpy and scipy."""

from .fairness import (
    cycle_indices,
    fair_cycle,
    pass_counts,
    passes_per_iteration,
    sampled_paths,
    uniform_path,
)
from .ledger import Ledger
from .policies import POLICY_REGISTRY, Policy, path_priority_candidates
from .posterior_sampling import PosteriorSampling
from .scoreboard import Scoreboard

__all__ = [
    "POLICY_REGISTRY",
    "Ledger",
    "Policy",
    "PosteriorSampling",
    "Scoreboard",
    "cycle_indices",
    "fair_cycle",
    "pass_counts",
    "passes_per_iteration",
    "path_priority_candidates",
    "sampled_paths",
    "uniform_path",
]
