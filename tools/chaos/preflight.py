"""What a training or a search cannot work with, found before it begins."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from toy import run_script

from .full import small_disk
from .processes import error_line, fork
from .report import Outcome, Plan
from .training import Training

LIMIT = 10.0  # seconds until the line


def preflight(plan: Plan) -> Outcome:
    """Refused by one line within ten seconds; nothing is trained, evaluated or written."""
    outcome = Outcome("runs on read-only and full disks, with wrong weights, without the libraries they need")
    training, slowest = Training(plan.folder), 0.0
    with contextlib.ExitStack() as stack:
        cases = situations(plan.folder, training, stack)
        outcome.numbers["mounts"] = (
            "done" if "read-only disk" in cases else "skipped: mount is not allowed here"
        )
        for name, (run, named) in list(cases.items())[:: plan.number(1, 3)]:
            outcome.count += 1
            log = plan.folder / f"{name}.log"
            start = time.monotonic()
            code = fork(run, log).wait(60)
            seconds = time.monotonic() - start
            slowest = max(slowest, seconds)
            line, text = error_line(log), log.read_text()
            outcome.expect(code == 2 and "Traceback" not in text, f"{name}: exit code {code}: {line}")
            outcome.expect(named in line, f"{name}: {named} is not named: {line}")
            outcome.expect(seconds <= LIMIT, f"{name}: {seconds:.1f} s")
            outcome.expect("Starting training" not in text, f"{name}: the training began")
    outcome.numbers["slowest_seconds"] = round(slowest, 1)
    return outcome


def situations(
    folder: Path, training: Training, stack: contextlib.ExitStack
) -> dict[str, tuple[Callable[[], None], str]]:
    """{situation: (function that runs a command in it, what its line names)}."""

    def train(output: Path | str, *options) -> Callable[[], None]:
        line = ("--config-file", str(training.config), *training.options)
        return lambda: run_script("train_net", *line, *map(str, options), "OUTPUT_DIR", str(output))

    def search(*arguments) -> Callable[[], None]:
        line = ("--config-file", str(training.config), *map(str, arguments))
        return lambda: run_script("search_net", *line, *training.options, "OUTPUT_DIR", str(folder / "never"))

    def without(module: str, run: Callable) -> Callable[[], None]:
        def missing():
            for name in [n for n in sys.modules if n == module or n.startswith(f"{module}.")]:
                del sys.modules[name]
            sys.modules[module] = None
            run()

        return missing

    (folder / "file").write_text("something")
    other, text = folder / "other.pth", folder / "text.pth"
    torch.save({"model": {"layer.weight": torch.zeros(3)}}, other)
    text.write_text("<html>")
    config = ("--config-file", str(training.config))
    cases = {
        "a file in the way": (train(folder / "file/output"), "file/output"),
        "OUTPUT_DIR is a file": (train(folder / "file"), "file"),
        "weights missing": (train(folder / "never", "MODEL.WEIGHTS", "nowhere.pth"), "nowhere.pth"),
        "weights of another network": (train(folder / "never", "MODEL.WEIGHTS", other), "other.pth"),
        "weights are text": (train(folder / "never", "MODEL.WEIGHTS", text), "text.pth"),
        "search without weights": (search("--weights", folder / "nowhere.pth"), "nowhere.pth"),
        "search with other weights": (search("--weights", other), "other.pth"),
        "evaluation without weights": (
            lambda: run_script("train_net", *config, "--eval-only", *training.options),
            "MODEL.WEIGHTS",
        ),
        "without panopticapi": (
            without(
                "panopticapi",
                train(folder / "never", "TEST.PANOPTIC_EVALUATOR", "detectron2", "TEST.METRICS", ("pq",)),
            ),
            "panopticapi",
        ),
    }
    disk = stack.enter_context(small_disk(folder / "disk"))
    if disk:
        (disk / "filling").write_bytes(b"0" * 360 * 1024)
        cases["full disk"] = (train(disk / "output"), str(disk))
        locked = stack.enter_context(small_disk(folder / "locked"))
        subprocess.run(["mount", "-o", "remount,ro", str(locked)], check=True)
        cases["read-only disk"] = (train(locked / "output"), str(locked))
    return cases
