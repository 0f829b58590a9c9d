"""A training or a search that is resumed with other settings, data or software."""

from __future__ import annotations

import ast
import shutil

from auto_panoptic.errors import UserError
from auto_panoptic.explore import Ledger
from auto_panoptic.training.checkpoint import check_resume, training_settings

from . import pure
from .processes import error_line
from .report import Outcome, Plan
from .training import Training


def changed(plan: Plan) -> Outcome:
    """Refused by a line that names the key; nothing is written."""
    outcome = Outcome("resumed with every setting of a training, every fact of a search changed")
    training = Training(plan.folder)
    folder = plan.folder / "run"
    code = training.start(folder).wait()
    outcome.expect(
        code == 0, f"the training ended with exit code {code}: {error_line(folder / 'output.log')}"
    )
    cfg = training.cfg(folder)
    outcome.expect(check_resume(cfg), "the run cannot be resumed unchanged")
    keys = list(training_settings(cfg))[:: plan.number(1, 10)]
    for key in keys:
        outcome.count += 1
        other = cfg.clone()
        other.defrost()
        node = other
        *parents, last = key.split(".")
        for part in parents:
            node = node[part]
        node[last] = different(node[last])
        failure = refusal(lambda o=other: check_resume(o), f"{key} was ")
        outcome.expect(not failure, f"training, {key}: {failure}")
    search = plan.folder / "search"
    pure.whole(search, pure.Evaluate(search / "evaluations.log"), cycles=1)
    header, path = pure.header(), search / "search/ledger.jsonl"
    before = path.read_bytes()
    for key in header:
        outcome.count += 1
        failure = refusal(lambda k=key: Ledger.open(path, {**header, k: "other"}, resume=True), key)
        outcome.expect(not failure, f"search, {key}: {failure}")
        with Ledger.open(path, {**header, key: "other"}, resume=True, allow_changed=[key]):
            pass  # the named override
    outcome.expect(path.read_bytes() == before, "the ledger was changed")
    for number in range(plan.number(3, 1)):  # the whole command
        outcome.count += 1
        copy = plan.folder / f"command_{number}"
        shutil.copytree(folder, copy)
        key, value = (("SOLVER.BASE_LR", 0.5), ("SEED", 7), ("INPUT.RANDOM_FLIP", "none"))[number]
        process = Training(plan.folder, key, value).start(copy)
        code, line = process.wait(), error_line(copy / "output.log")
        outcome.expect(code == 2 and key in line, f"command, {key}: exit code {code}: {line}")
    outcome.numbers = {"settings": len(keys), "facts": len(header)}
    return outcome


def different(value):
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    if isinstance(value, str):
        return value + "x"
    if isinstance(value, (list, tuple)):
        return type(value)([*value, value[-1] if value else 1])
    return "other" if value is None else ast.literal_eval(repr(value))


def refusal(function, named: str) -> str:
    """What is wrong with how ``function`` refuses; "" if it names ``named``."""
    try:
        function()
    except UserError as error:
        return "" if named in str(error) else f"{named!r} is not named: {error}"
    return "it is not refused"
