"""A disk that is full at every save: a limit on the size of files, then a small file system of its own."""

from __future__ import annotations

import contextlib
import io
import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from auto_panoptic.errors import UserError
from auto_panoptic.training import checkpoint
from auto_panoptic.training.checkpoint import newest_intact

from .boundaries import after
from .processes import error_line, fork
from .report import Outcome, Plan
from .saves import Save, saves
from .training import ITERATIONS, PERIOD, Training, differences

SIZE = 400 * 1024  # bytes of the small file system


def full(plan: Plan) -> Outcome:
    """Exit code 2 with path and bytes; what was there is whole, and the same command goes on with space."""
    outcome = Outcome("saves to a full disk (size limit of files; small tmpfs), then continued with space")
    everything = saves(plan.folder / "common")
    for name, save in everything.items():
        sizes = limits(plan.folder / f"{name}_whole", save, plan.number(8, 2))
        for size in sizes:
            outcome.count += 1
            if failure := limited(plan.folder / f"{name}_{size}", save, size):
                outcome.expect(False, f"{name}, files of {size} bytes at most: {failure}")
        outcome.numbers[name] = len(sizes)
    training = Training(plan.folder / "common")
    training.start(plan.folder / "reference").wait()
    for number in range(1, plan.number(ITERATIONS // PERIOD + 1, 1) + 1):
        outcome.count += 1
        if failure := trained(training, plan.folder, number):
            outcome.expect(False, f"training, save {number}: {failure}")
    with small_disk(plan.folder / "tmpfs") as folder:
        outcome.numbers["tmpfs"] = "done" if folder else "skipped: mount is not allowed here"
        if folder:
            outcome.count += 1
            failure = on_small_disk(folder, everything["checkpoint"], plan.folder / "tmpfs.log")
            outcome.expect(not failure, f"tmpfs: {failure}")
    return outcome


def limits(folder: Path, save: Save, count: int) -> list[int]:
    """Sizes that the largest new file of a save does not keep to."""
    folder.mkdir(parents=True)
    log = folder.with_suffix(".log")
    fork(lambda: save.prepare(folder), log).wait()
    fork(lambda: save.save(folder), log).wait()
    most = max(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    return sorted({most * (2 * i + 1) // (2 * count) for i in range(count)} | {most - 1})


def limited(folder: Path, save: Save, size: int) -> str:
    """What is wrong with a save where no file may have more than ``size`` bytes; "" if nothing is."""
    folder.mkdir(parents=True)
    log = folder.with_suffix(".log")
    if fork(lambda: save.prepare(folder), log).wait() != 0:
        return f"not prepared: {error_line(log)}"

    def run():
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # the log is a file, too
                save.save(folder)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    code, message = fork(run, log).wait(), error_line(log)
    if code == 0:
        return after(folder, save, log)  # it needed less
    if code != 2 or str(folder) not in message:
        return f"exit code {code}, no line that names the file: {message}"
    return after(folder, save, log)


def trained(training: Training, parent: Path, number: int) -> str:
    """What is wrong with a training whose ``number``-th save finds the disk full."""
    folder, calls = parent / f"training_{number}", []
    write = checkpoint._write

    def cramped(data, path):
        if str(path) == os.devnull:  # to count its bytes
            return write(data, path)
        calls.append(path)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        if len(calls) == number:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
        try:
            return write(data, path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    checkpoint._write = cramped
    try:
        process = training.start(folder)
    finally:
        checkpoint._write = write
    code, message = process.wait(), error_line(folder / "output.log")
    if code != 2 or str(folder) not in message or "bytes" not in message:
        return f"exit code {code}: {message}"
    if number > 1 and not newest_intact(str(folder / "output"))[0]:
        return "the checkpoint before is lost"
    code = training.start(folder).wait()
    return (
        f"not continued: {error_line(folder / 'output.log')}"
        if code
        else ", ".join(differences(folder, parent / "reference"))
    )


def on_small_disk(folder: Path, save: Save, log: Path) -> str:
    """What is wrong with a second checkpoint on a disk that has room for the first only."""
    (folder / "filling").write_bytes(b"")

    def run():
        save.prepare(folder)
        free = shutil.disk_usage(folder).free
        (folder / "filling").write_bytes(b"0" * max(0, free - 8192))
        try:
            save.save(folder)
        except UserError as error:
            return str(error)
        raise RuntimeError("it was saved")

    report = log.with_suffix(".message")
    code = fork(lambda: report.write_text(run()), log).wait()
    if code != 0:
        return f"exit code {code}: {error_line(log)}"
    if str(folder) not in report.read_text():
        return f"no line that names the file: {report.read_text()}"
    (folder / "filling").unlink()
    code = fork(lambda: report.write_text(save.problem(folder)), log).wait()
    return report.read_text() if code == 0 else f"one cannot go on: {error_line(log)}"


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path | None]:
    """A file system of :data:`SIZE` bytes; None where this process may not mount one."""
    folder.mkdir(parents=True)
    line = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(line, capture_output=True).returncode == 0
    except OSError:
        mounted = False
    try:
        yield folder if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], capture_output=True)
