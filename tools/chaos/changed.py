"""Resuming a search that is not the recorded one."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from toy import run_script

from auto_panoptic.explore import Ledger
from auto_panoptic.search.arguments import ACCEPTABLE

from .processes import error_line, fork
from .report import Outcome, Plan
from .supernet import Supernet, toy_supernet

RESUME = ("--resume", "--cycles", 1)


def changed(plan: Plan) -> Outcome:
    """Every header key, altered: refused with a diff that names it, or accepted by name."""
    outcome = Outcome("header keys and settings changed before search_net.py --resume: refused or accepted")
    supernet = toy_supernet(plan.folder, NAS={"BN_RECALIBRATION": {"NUM_IMAGES": 2, "BATCH_SIZE": 2}})
    original = plan.folder / "original"
    code = command(supernet, original, *RESUME)
    if code != 0:
        outcome.expect(False, f"exit code {code}: {error_line(original / 'output.log')}")
        return outcome
    ledger = Ledger(original / "search/ledger.jsonl")
    keys = list(leaves(ledger.header))
    if plan.quick:
        keys = [key for key in keys if key in (("seed",), ("weights",), ("versions", "auto_panoptic"))]
    settings = {} if plan.quick else real_changes(plan.folder, supernet)
    bar = plan.bar(len(keys) + len(settings), "changed")
    for number, key in enumerate(keys):
        outcome.count += 1
        for failure in altered(plan.folder / f"key_{number}", ledger, key, partial(command, supernet)):
            outcome.expect(False, f"{'.'.join(key)}: {failure}")
        bar.update()
    for key, (arguments, other, change) in settings.items():
        outcome.count += 1
        folder = plan.folder / f"setting_{key}"
        shutil.copytree(original, folder)
        with change:
            for failure in refused(folder, partial(command, other), key, *RESUME, *arguments):
                outcome.expect(False, f"setting of {key}: {failure}")
        bar.update()
    bar.close()
    outcome.numbers = {"keys": [".".join(key) for key in keys], "settings": list(settings)}
    return outcome


def real_changes(folder: Path, supernet: Supernet) -> dict[str, tuple]:
    """{key of the header: (arguments, supernet, context) of a command that changes it}."""
    weights = folder / "other.pth"
    shutil.copy(supernet.weights, weights)
    with open(weights, "ab") as stream:
        stream.write(b"\0")
    annotations = folder / "shapes/annotations"
    nothing = contextlib.nullcontext()
    return {
        "seed": (("NAS.SEED", 1), supernet, nothing),
        "policy": (("--policy", "random"), supernet, nothing),
        "policy_settings.models_per_cycle": (("--models-per-cycle", 24), supernet, nothing),
        "config": (("INPUT.MIN_SIZE_TEST", 72), supernet, nothing),
        "weights": ((), Supernet(supernet.config_file, str(weights)), nothing),
        "data.search": ((), supernet, longer(annotations / "panoptic_nas_val.json")),
        "data.calibration": ((), supernet, longer(annotations / "panoptic_nas_train.json")),
    }


@contextlib.contextmanager
def longer(path: Path):
    """The file has one space more."""
    data = path.read_bytes()
    path.write_bytes(data + b" ")
    try:
        yield
    finally:
        path.write_bytes(data)


def leaves(value: dict, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Paths of the values of a header."""
    for key, inner in value.items():
        if isinstance(inner, dict) and inner:
            yield from leaves(inner, (*path, key))
        else:
            yield *path, key


def altered(folder: Path, ledger: Ledger, path: tuple[str, ...], run: Callable) -> list[str]:
    """What goes wrong with a copy of the ledger whose header differs at ``path``.

    ``run(folder, *arguments)`` continues the search in ``folder`` and returns its exit code.
    """
    header = json.loads(json.dumps(ledger.header))
    inner = header
    for key in path[:-1]:
        inner = inner[key]
    old = inner[path[-1]]
    inner[path[-1]] = old + 1 if isinstance(old, int) else old[:-1] if isinstance(old, list) else f"{old}x"
    with Ledger.open(folder / "search/ledger.jsonl", header) as copy:
        for record in ledger.records:
            copy.append(record)
    name, accept = ".".join(path), (*RESUME, "--accept", path[0])
    failures = refused(folder, run, name, *RESUME)
    if path[0] not in ACCEPTABLE:
        return failures + refused(folder, run, path[0], *accept)
    other = next(key for key in ACCEPTABLE if key != path[0])
    failures += refused(folder, run, name, *RESUME, "--accept", other)
    code = run(folder, *accept)
    if code != 0:
        failures.append(f"not accepted, exit code {code}: {error_line(folder / 'output.log')}")
    elif Ledger(copy.path).header != header:
        failures.append("the header was rewritten")
    return failures


def refused(folder: Path, run: Callable, key: str, *arguments) -> list[str]:
    """What is wrong unless ``run`` ends with a line that names ``key``, and leaves the ledger as it is."""
    path = folder / "search/ledger.jsonl"
    before = path.read_bytes()
    (folder / "output.log").unlink(missing_ok=True)
    code = run(folder, *arguments)
    message = error_line(folder / "output.log")
    failures = []
    if code != 2 or not re.search(rf"(has changed.*|--accept ){re.escape(key)}: ", message):
        failures.append(f"exit code {code}, not a diff that names it: {message}")
    if path.read_bytes() != before:
        failures.append("the ledger was changed")
    return failures


def command(supernet: Supernet, folder: Path, *arguments) -> int | None:
    """search_net.py in a forked process; its exit code."""
    folder.mkdir(exist_ok=True)
    files = ("--config-file", supernet.config_file, "--weights", supernet.weights)
    line = (*files, *arguments, "OUTPUT_DIR", folder, "MODEL.DEVICE", "cpu")
    return fork(lambda: run_script("search_net", *line), folder / "output.log").wait()
