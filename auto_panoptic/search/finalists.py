"""Who takes part in finals: finalists, and the random architectures to compare the best of them with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..errors import UserError
from ..explore import Ledger
from ..explore.controls import random_of_equal_cost
from ..explore.selection import alternatives, within_limits
from ..space import Architecture, CostTables, SearchSpace
from .selection import SearchResult, fitness_name, fitness_of


@dataclass(frozen=True)
class FinalsRequest:
    """What is asked for.

    Attributes:
        finalists: how many, see :func:`contenders`; the best candidate joins them.
        controls: random architectures.
        steps: of a whole training.
        seeds: trainings of a network that is compared.
        start: digest of the weights that trainings start from; "" from scratch.
    """

    finalists: int
    controls: int
    steps: int
    seeds: int = 2
    start: str = ""


@dataclass
class Contender:
    """A network of the finals.

    Attributes:
        architecture: what is trained.
        roles: why it is there.
        trained: what its trainings came to, in their order.
    """

    architecture: Architecture
    roles: list[str]
    trained: list[dict] = field(default_factory=list)

    def scores(self, steps: int, seeds: Sequence[int], fitness: str) -> list[float | None]:
        """Fitness by seed, None where the training failed."""
        found = {(t["steps"], t["seed"]): t for t in self.trained}
        return [found[steps, seed]["metrics"].get(fitness) for seed in seeds]


def evaluated_candidates(ledger: Ledger, space: SearchSpace) -> list[tuple[Architecture, float]]:
    """(architecture, fitness) of the candidates that did not fail, in the order of cycle and index."""
    last = {(r["cycle"], r["index"]): r for r in ledger.records}
    name = fitness_name(ledger.header)
    pairs = [(r["architecture"], fitness_of(r, name)) for _, r in sorted(last.items())]
    return [(Architecture.from_indices(space, a), score) for a, score in pairs if score is not None]


def contenders(request: FinalsRequest, result: SearchResult, candidates, costs: CostTables):
    """The finalists of a finished search.

    These are the selection, the :func:`.alternatives` to it, the candidates with the next highest predicted
    scores within its limits, and the best candidate. A supernet can be wrong about an operator, so finalists
    that differ by one are worth more than those that it thinks as good.

    Args:
        candidates: (architecture, fitness) of those that were evaluated, in their order.
        costs: of the space.

    Raises:
        UserError: there are fewer candidates, within the limits, than finalists asked for; or too few random
            networks cost what one of them does, which is said before any training.
    """
    unique = {architecture: score for architecture, score in reversed(candidates)}
    if request.finalists > len(unique):
        raise UserError(
            f"--finals {request.finalists}: the search has {len(unique)} different candidates; ask for at "
            "most so many, or evaluate more"
        )
    selection = result.selection
    allowed = [a for a in unique if within_limits(costs, a, selection.limits if selection else {})]
    roles: dict[Architecture, list[str]] = {result.architecture: ["the selection"]}
    predicted = unique.__getitem__
    if selection:
        for site, architecture in alternatives(selection, costs).items():
            roles.setdefault(architecture, []).append(f"the best with another operator of {site}")

        def predicted(architecture: Architecture) -> float:
            return sum(selection.scores[site][name] for site, name in architecture.names().items())

    for place, architecture in enumerate(sorted(allowed, key=predicted, reverse=True), start=1):
        roles.setdefault(architecture, [f"candidate {place} by predicted score"])
    found = dict([*roles.items()][: request.finalists])
    if len(found) < request.finalists:
        raise UserError(
            f"--finals {request.finalists}: {len(found)} networks are within the limits, the selection, its "
            f"alternatives and candidates; give --finals {len(found)}, or evaluate more"
        )
    if allowed:
        found.setdefault(max(allowed, key=unique.__getitem__), []).append("the best candidate")
    finalists = [Contender(architecture, roles) for architecture, roles in found.items()]
    check_controls(request, finalists, costs)
    return finalists


def check_controls(request: FinalsRequest, finalists: Sequence[Contender], costs: CostTables) -> None:
    """Raise UserError if one of the finalists could win, and too few random networks cost what it does."""
    for finalist in finalists:
        random_networks(request.controls, finalist, finalists, costs)


def random_networks(number: int, winner: Contender, finalists: Sequence[Contender], costs: CostTables):
    """So many random networks that cost what the winner does, none of them a finalist.

    Raises:
        UserError: there are too few.
    """
    if not number:
        return []
    text = json.dumps(winner.architecture.indices())
    seed = int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)
    macs = costs.cost(winner.architecture).macs
    try:
        drawn = random_of_equal_cost(costs, macs, number, seed, {c.architecture for c in finalists})
    except UserError as error:
        raise UserError(f"--controls {number}: {error} (--max-macs)") from error
    return [Contender(architecture, [f"random {i}"]) for i, architecture in enumerate(drawn, start=1)]
