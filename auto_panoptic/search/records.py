"""What the lines of a ledger hold, beyond an intact checksum."""

from __future__ import annotations

import math
from numbers import Real
from pathlib import Path

from ..errors import UserError, one_of
from ..explore import Ledger
from ..space import Architecture, SearchSpace
from .selection import fitness_name


def check_content(ledger: Ledger, space: SearchSpace | None = None) -> None:
    """Raise UserError, with the line, for one that is not as a search writes it: another program's, say.

    ``space`` is that of the candidates, by default the header's.
    """
    line = 1
    try:
        header = ledger.header
        space, fitness = space or SearchSpace.from_dict(header["space"]), fitness_name(header)
        models = next(iter(header.get("policy_settings", {}).values()), math.inf)
        for key, kind in (("policy", str), ("seed", int), ("weights", str), ("config", object)):
            _expect(isinstance(header[key], kind), f"{key} is {header[key]!r:.60}")
        _expect(isinstance(header["versions"]["auto_panoptic"], str), "versions are no texts")
        samples = 0
        for record in ledger.records:
            line += 1
            _check(record, space, models, fitness)
            bootstrap = record["metrics"].get("bootstrap") or []
            samples = samples or len(bootstrap)
            _expect(
                len(bootstrap) in (0, samples) and all(map(_number, bootstrap)), "other bootstrap samples"
            )
    except (UserError, KeyError, TypeError, ValueError, AttributeError) as error:
        problem = f"it has no {error}" if isinstance(error, KeyError) else error
        raise UserError(
            f"{ledger.path}: line {line} is not as a search writes it ({problem}): restore the file from a "
            "copy, or delete that line and all after it and continue with --resume"
        ) from None


def _check(record: dict, space: SearchSpace, models: float, fitness: str) -> None:
    place = [record["cycle"], record["index"]]
    _expect(all(type(n) is int and n >= 0 for n in place) and place[1] < models, f"cycle, index are {place}")
    Architecture.from_indices(space, record["architecture"])
    one_of("status", record["status"], ("ok", "failed"))
    _expect(isinstance(record["metrics"], dict), "metrics are no mapping")
    times = (*record.get("seconds", {}).values(), record.get("elapsed", 0))
    _expect(all(_number(t) and t >= 0 for t in times), "times are no numbers")
    if record["status"] == "ok":
        score = record["metrics"][fitness]
        _expect(_number(score) and abs(score) < 1e6, f"{fitness} is {score!r:.60}; expected percent")


def _number(value) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and -math.inf < value < math.inf


def _expect(good: bool, problem: str) -> None:
    if not good:
        raise ValueError(problem)


def recorded_space(path: Path, space: SearchSpace) -> dict:
    """The header of a ledger, which must be of ``space``.

    Raises:
        UserError: there is no ledger, it is of another space, or :func:`check_content`.
    """
    ledger = Ledger(path)
    check_content(ledger)
    header, recorded = ledger.header, SearchSpace.from_dict(ledger.header["space"])
    if recorded != space:
        raise UserError(
            f"{path}: a search of another space than the config's (recorded first): "
            f"{recorded.difference(space)}; give the config of the search"
        )
    return header
