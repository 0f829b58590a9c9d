"""What all executors share, and the one that evaluates in this process."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Protocol

from ...errors import Diverged, UserError, disk_problem
from ...space import Architecture

logger = logging.getLogger(__name__)


Evaluate = Callable[[Architecture], tuple[dict, dict]]  # -> metrics in percent, seconds per phase


class Executor(Protocol):
    """Evaluates candidates, in any order and any number at a time."""

    def run(self, items: Iterable[tuple[Hashable, Architecture]]) -> Iterator[tuple[Hashable, dict]]:
        """Yield (key, outcome) once for each (key, architecture), as soon as it is known.

        An outcome is what :func:`outcome_of` returns: "status" ("ok" or "failed"), "metrics" (empty if
        failed), "seconds" per phase and, if failed, "error".

        Raises:
            UserError: as the evaluation did: not the candidate is wrong, but what all of them need.
        """

    def ask(self, method: str, architecture: Architecture):
        """What ``method`` of one evaluator answers; None if none is at hand."""


class InProcess:
    """Evaluates one candidate after the other, in the given order, each when its outcome is asked for."""

    def __init__(self, evaluate: Evaluate):
        self.evaluate = evaluate

    def run(self, items: Iterable[tuple[Hashable, Architecture]]) -> Iterator[tuple[Hashable, dict]]:
        """See :class:`Executor`."""
        for key, architecture in items:
            yield key, outcome_of(self.evaluate, architecture)

    def ask(self, method: str, architecture: Architecture):
        """See :class:`Executor`."""
        return getattr(self.evaluate, method)(architecture)


def outcome_of(evaluate: Evaluate, architecture: Architecture) -> dict:
    """Facts of one evaluation, a crash included, unless it was a UserError or the disk's, which all share."""
    try:
        metrics, seconds = evaluate(architecture)
    except UserError:
        raise
    except Diverged as error:
        logger.error("candidate failed: %s: %s", architecture.indices(), error)
        return failure(str(error))
    except Exception as error:
        if disk_problem(error):
            raise
        logger.exception("candidate failed: %s", architecture.indices())
        return failure(f"{type(error).__name__}: {error}")
    return {"status": "ok", "metrics": metrics, "seconds": seconds}


def failure(error: str) -> dict:
    """The outcome of a candidate that failed."""
    return {"status": "failed", "metrics": {}, "seconds": {}, "error": error}
