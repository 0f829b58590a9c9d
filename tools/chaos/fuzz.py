"""Malformed files for every reader: each is read, or refused by one line; nothing else happens."""

from __future__ import annotations

import collections
import faulthandler
import json
import logging
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path

from auto_panoptic.errors import UserError

from .processes import fork
from .readers import READERS, Reader
from .report import Outcome, Plan

LIMIT = 10.0  # seconds for a case
MEMORY = 3 * 2**30  # bytes that a case may take
_RUNS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "pty.spawn")
_CHANGES = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink")


class Hang(BaseException):
    """A case that takes too long."""


class Watch:
    """Notes what a case does to the world outside ``allowed``. It cannot be taken off a process."""

    def __init__(self, allowed: Path):
        self.allowed, self.seen, self.on = str(allowed), [], False
        sys.addaudithook(self)

    def __call__(self, event: str, args) -> None:
        if not self.on:
            return
        if event in _RUNS or event in ("socket.connect", "pickle.find_class"):
            self.seen.append(f"{event}{args!r:.200}")
        elif event == "open":
            path, mode, flags = args
            writes = any(c in mode for c in "wax+") if mode else flags & (os.O_WRONLY | os.O_RDWR)
            if writes and not self._may(path):
                self.seen.append(f"{event} {path}")
        elif event in _CHANGES and not self._may(args[0], args[-1]):
            self.seen.append(f"{event} {args[0]}")

    def _may(self, path, folder=-1) -> bool:
        if isinstance(path, int):
            return True
        if isinstance(folder, int) and folder >= 0:  # what the path is relative to
            path = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), os.fsdecode(path))
        path = os.path.abspath(os.fsdecode(path))
        return path == os.devnull or path.startswith(self.allowed + os.sep)


def fuzz(plan: Plan) -> Outcome:
    """Of every reader: no traceback, no code that runs, no hang, no file outside the output folder."""
    count = plan.number(1000, 20)
    outcome = Outcome(f"{count} malformed inputs for each of {len(READERS)} readers")
    bar = plan.bar(len(READERS), "fuzz")
    for name in READERS:
        found = fuzzed(name, count, plan.folder / name, plan.seed)
        outcome.count += found["cases"]
        outcome.failures += found["failures"]
        outcome.numbers[name] = "/".join(map(str, (found["read"], found["refused"])))
        bar.update()
    bar.close()
    return outcome


def fuzzed(name: str, count: int, folder: Path, seed: int = 0) -> dict:
    """Read ``count`` malformed files in a process of its own.

    Returns:
        "cases", of them "read" without complaint and "refused", and "failures", a line for each kind.
    """
    folder.mkdir(parents=True)
    report, log = folder / "found.json", folder / "output.log"

    def run():
        report.write_text(json.dumps(_cases(READERS[name], name, count, folder, seed)))

    code = fork(run, log).wait()
    if code != 0:
        last = [line for line in log.read_text(errors="replace").splitlines() if line][-1:]
        number = (folder / "case").read_text() if (folder / "case").exists() else "none"
        return {
            "cases": 0, "read": 0, "refused": 0,
            "failures": [f"{name}: died with exit code {code} at case {number}: {last}"],
        }  # fmt: skip
    return json.loads(report.read_text())


def _cases(reader: Reader, name: str, count: int, folder: Path, seed: int) -> dict:
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    os.sched_getaffinity = lambda _: {0}  # no pools: everything happens in this process
    place = folder / "files"
    place.mkdir()
    path = reader.make(place)
    (place / "out").mkdir(exist_ok=True)
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    os.chdir(elsewhere)
    sound = path.read_bytes()
    reader.read(path, place)  # what is sound is read, and what is loaded late is there
    keep = {p: p.read_bytes() for p in place.rglob("*") if p.is_file() and "out" not in p.parts}
    limit_memory()
    watch = Watch(place / "out")
    failures, counts = collections.Counter(), collections.Counter()
    signal.signal(signal.SIGALRM, _hangs)
    output = snapshot(place / "out")
    for number in range(max(1, round(count * reader.share))):
        rng = random.Random(f"{seed} {name} {number}")
        data = reader.mutate(sound, rng)
        (folder / "case").write_text(str(number))
        restore(place / "out", output)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        what = _one(reader, path, place, watch)
        counts["cases"] += 1
        counts[what if what in ("read", "refused") else "failed"] += 1
        if what not in ("read", "refused"):
            failures[what] += 1
            if failures[what] == 1:
                (folder / f"case_{number}{path.suffix}").write_bytes(data)
                failures[what + f" (first: case_{number}{path.suffix})"] = 0
        if path in keep:
            path.write_bytes(sound)
    changed = [str(p) for p, data in keep.items() if not p.is_file() or p.read_bytes() != data]
    if changed or any(elsewhere.iterdir()):
        failures[f"files were touched: {changed} {os.listdir(elsewhere)}"] = 1
    firsts = {f.rpartition(" (first: ")[0]: f for f in failures if " (first: " in f}
    lines = [f"{name}: {n} times {firsts.get(f, f)}" for f, n in failures.items() if n]
    return {"cases": counts["cases"], "read": counts["read"], "refused": counts["refused"], "failures": lines}


def _one(reader: Reader, path: Path, place: Path, watch: Watch) -> str:
    """Read one file; "read", "refused", or what went wrong."""
    faulthandler.dump_traceback_later(2 * LIMIT, exit=True)
    signal.setitimer(signal.ITIMER_REAL, LIMIT)
    watch.on, watch.seen[:] = True, []
    try:
        reader.read(path, place)
        what = "read"
    except UserError:  # its message is one line always
        what = "refused"
    except (Exception, Hang, SystemExit) as error:
        where = traceback.extract_tb(error.__traceback__)
        ours = [f for f in where if "auto_panoptic" in f.filename or "quickstart" in f.filename] or where
        at = f"{Path(ours[-1].filename).name}:{ours[-1].lineno} ({Path(where[-1].filename).name})"
        what = f"{type(error).__name__} at {at}"
    finally:
        watch.on = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
    return f"touched the world: {watch.seen[0]}" if watch.seen else what


def _hangs(*_):
    raise Hang(f"more than {LIMIT} s")


def limit_memory(more: int = MEMORY) -> None:
    """So that what would take all memory fails instead."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + more, resource.getrlimit(resource.RLIMIT_AS)[1]))


def snapshot(folder: Path) -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def restore(folder: Path, files: dict[Path, bytes]) -> None:
    """Make the folder hold just ``files`` again."""
    for path in folder.rglob("*"):
        if path.is_file() and path not in files:
            path.unlink()
    for path, data in files.items():
        if not path.is_file() or path.stat().st_size != len(data) or path.read_bytes() != data:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else None
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


def main() -> None:
    """``python tools/chaos/fuzz.py READER [COUNT]`` by hand."""
    import tempfile

    start = time.monotonic()
    for name in sys.argv[1].split(",") if sys.argv[1] != "all" else READERS:
        folder = Path(tempfile.mkdtemp(prefix=f"fuzz-{name}-")) / "run"
        found = fuzzed(name, int(sys.argv[2]), folder)
        failures = found.pop("failures")
        print(folder, name, found, f"{time.monotonic() - start:.1f} s")
        print("\n".join(failures), flush=True)
