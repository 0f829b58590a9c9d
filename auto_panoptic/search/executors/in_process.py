"""Who evaluates the candidates: this process, or others behind the same protocol."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Protocol

from ...space import Architecture

logger = logging.getLogger(__name__)


class Executor(Protocol):
    """Evaluates candidates, in any order and any number at a time."""

    def run(self, items: Iterable[tuple[Hashable, Architecture]]) -> Iterator[tuple[Hashable, dict]]:
        """Yield (key, outcome) once for each (key, architecture), as soon as it is known.

        An outcome has "status" ("ok" or "failed"), "metrics" (with a finite "PQ" if ok, else empty),
        "seconds" per phase and, if failed, "error": what :func:`outcome_of` returns.
        """


class InProcess:
    """Evaluates one candidate after the other, in the given order, each when its outcome is asked for."""

    def __init__(self, evaluate: Callable[[Architecture], tuple[dict, dict]]):
        """Args:
        evaluate: architecture -> (metrics with "PQ" in percent, seconds per phase).
        """
        self.evaluate = evaluate

    def run(self, items: Iterable[tuple[Hashable, Architecture]]) -> Iterator[tuple[Hashable, dict]]:
        """See :class:`Executor`."""
        for key, architecture in items:
            yield key, outcome_of(self.evaluate, architecture)


def outcome_of(evaluate: Callable[[Architecture], tuple[dict, dict]], architecture: Architecture) -> dict:
    """Facts of one evaluation; a crash or a PQ that is no number is a fact too, and never selected."""
    try:
        metrics, seconds = evaluate(architecture)
    except Exception as error:  # one broken candidate must not end a search of hours
        logger.exception("candidate failed: %s", architecture.indices())
        return {"status": "failed", "metrics": {}, "seconds": {}, "error": f"{type(error).__name__}: {error}"}
    if not math.isfinite(metrics.get("PQ", math.nan)):
        return {"status": "failed", "metrics": {}, "seconds": seconds, "error": "PQ is not a number"}
    return {"status": "ok", "metrics": metrics, "seconds": seconds}
