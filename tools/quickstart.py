#!/usr/bin/env python
"""From nothing to a searched, trained and evaluated panoptic model on the built-in data set.

A random network of as many multiply-adds is trained alike, and a Panoptic-FPN from scratch in three times the
steps: the last table shows whether the search paid.

Runs the commands a user would type, one after the other, and shows them. What an earlier call finished with
the same settings is reused; what it began is continued.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from auto_panoptic import signals  # noqa: E402
from auto_panoptic.compare import comparison, read_run  # noqa: E402
from auto_panoptic.data import ensure_shapes  # noqa: E402
from auto_panoptic.errors import UserError  # noqa: E402
from auto_panoptic.evaluation import results_table  # noqa: E402
from auto_panoptic.explore.controls import random_of_equal_cost  # noqa: E402
from auto_panoptic.files import (  # noqa: E402
    BUNDLE,
    PARTIAL,
    WriterLock,
    digest,
    open_own,
    read_bytes,
    read_json,
    write_json,
)
from auto_panoptic.modeling.counting import configured_costs  # noqa: E402
from auto_panoptic.progress import Progress  # noqa: E402
from auto_panoptic.report import report_after_search  # noqa: E402
from auto_panoptic.space import Architecture  # noqa: E402
from auto_panoptic.training import build_config, run_command  # noqa: E402

SUPERNET, RETRAIN = "configs/quick/supernet.yaml", "configs/quick/retrain.yaml"
BASELINE = "configs/quick/panoptic_fpn_quarter.yaml"
SEARCH = ("--max-macs", "310M")
TESTED = "shapes_panoptic_val"
PROCESSES = 2  # of one thread each: no result depends on the number of cores
# Threads that wait for each other sleep instead of spinning: otherwise another job on the machine makes a
# search many times slower.
WAITING = {"OMP_WAIT_POLICY": "passive"}
GRACE = 8  # seconds for a command to end after a signal, in which a training saves


class Stage:
    """One command with its folder; ``stage.json`` there holds the settings it was started with.

    Args:
        name: shown to the user.
        directory: what the command writes; removed when the settings have changed.
        inputs: text that identifies the settings and the files the command reads.

    Attributes:
        command: a script and its arguments.
        steps: that a training has; 0 for other commands.
    """

    command: Sequence[str] = ()
    steps = 0

    def __init__(self, name: str, directory: Path, inputs: str):
        self.name, self.directory = name, directory
        self.state = directory / "stage.json"
        self.fingerprint = hashlib.sha256(inputs.encode()).hexdigest()
        found = self._found()
        others = [f for f in os.listdir(directory) if not f.startswith(PARTIAL)] if directory.is_dir() else []
        if others and not found:
            raise UserError(f"{directory} holds something else; remove it, or choose another --output")
        if found and found.get("fingerprint") != self.fingerprint:
            shutil.rmtree(directory)
            found = {}
        self.done, self.begun = found.get("done", False), bool(found)

    def _found(self) -> dict:
        if not os.path.lexists(self.state):
            return {}
        try:
            found = read_json(self.state, "record of a stage")
        except UserError as error:
            raise UserError(f"{error}; remove {self.directory}, or choose another --output") from None
        return found if isinstance(found, dict) else {}

    def mark(self, done: bool) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        write_json(self.state, {"fingerprint": self.fingerprint, "done": done})

    @property
    def log(self) -> Path:
        """What the command of a training prints."""
        return self.directory / "stdout.txt"

    def start(self) -> subprocess.Popen:
        """The command under way: a training in one process, anything else in PROCESSES."""
        launcher = [] if self.steps else ["torchrun", "--standalone", "--nproc-per-node", str(PROCESSES)]
        shown = shlex.join([*(launcher or ["python"]), *self.command])
        print(f"   $ OMP_NUM_THREADS=1 {shown}", flush=True)
        module = ["-m", "torch.distributed.run", *launcher[1:]] if launcher else []
        self.mark(done=False)
        with os.fdopen(open_own(self.log), "ab") if self.steps else contextlib.nullcontext() as stream:
            return subprocess.Popen(
                [sys.executable, *module, *self.command],
                cwd=ROOT,
                stdout=stream,
                stderr=stream,
                **signals.bound(OMP_NUM_THREADS="1", **WAITING),
            )


def run_beside(title: str, *stages: Stage) -> None:
    """Run the commands of all stages that are not done at the same time."""
    print(f"\n== {title}", flush=True)
    for stage in stages:
        if stage.done:
            print(f"   done by an earlier call, reused: {stage.directory}")
    if not (stages := [stage for stage in stages if not stage.done]):
        return
    start, children = time.monotonic(), []
    with _ended(children):
        seen = [Steps(stage) for stage in stages]
        for stage in stages:
            children.append(stage.start())
        for steps, child in zip(seen, children, strict=True):
            if steps.total:
                _show_training(steps, child, children, seen)
        for stage, child in zip(stages, children, strict=True):
            while child.poll() is None and not _failed(children):
                time.sleep(0.1)
            if child.poll() == 0:
                stage.mark(done=True)
        for stage, child in zip(stages, children, strict=True):
            if code := child.poll():
                raise _failure(stage, code)
    print(f"   {time.monotonic() - start:.0f} s", flush=True)


def _failed(children: Iterable[subprocess.Popen]) -> bool:
    return any(child.poll() for child in children)


def _failure(stage: Stage, code: int) -> UserError:
    ended = f"{stage.name}: the command above ended with exit code {code}"
    if not stage.steps:
        return UserError(ended)
    print("\n".join(stage.log.read_text(errors="replace").splitlines()[-15:]), file=sys.stderr)
    return UserError(f"{ended}; its output: {stage.log}")


@contextlib.contextmanager
def _ended(children: list[subprocess.Popen]) -> Iterator[None]:
    """Pass a signal on to the commands, and leave none of their processes."""
    try:
        yield
    except KeyboardInterrupt as error:
        for child in children:
            child.send_signal(getattr(error, "number", signal.SIGINT))
        until = time.monotonic() + GRACE
        for child in children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(max(0.0, until - time.monotonic()))
        error.args = ("interrupted; the same command continues",)
        raise
    finally:
        for child in children:
            child.kill()  # which ends its own processes, too
            child.wait()


class Steps:
    """The steps of a training, from the lines that it appends to metrics.json from now on.

    Attributes:
        total: that it has to make.
        done: 0 until the first line.
        loss: of the newest one.
    """

    def __init__(self, stage: Stage):
        self.name, self.total, self.done, self.loss = stage.name, stage.steps, 0, ""
        self._metrics = stage.directory / "metrics.json"
        self._seen = self._metrics.stat().st_size if self._metrics.exists() else 0

    def read(self) -> None:
        if not self._metrics.exists() or self._metrics.stat().st_size == self._seen:
            return
        with open(self._metrics) as stream:
            stream.seek(self._seen)
            text = stream.read()
        complete = text[: text.rfind("\n") + 1]
        self._seen += len(complete)
        for line in filter(None, map(_json, complete.splitlines())):
            if "total_loss" in line and "iteration" in line:
                self.done, self.loss = min(line["iteration"] + 1, self.total), f"{line['total_loss']:.2f}"


def _show_training(steps: Steps, child, children: Iterable, beside: Iterable[Steps]) -> None:
    """Progress of one training to its end, or to the failure of any, with the steps of those beside it."""
    if steps.done == steps.total or child.poll() is not None:
        return
    with Progress(f"   {steps.name}", steps.total, "steps") as bar:
        while bar.done < steps.total and child.poll() is None and not _failed(children):
            time.sleep(0.5)
            for each in beside:
                each.read()
            if not bar.done:
                bar.skip(steps.done)  # the time left counts this call's steps only
            others = {each.name: f"{each.done} of {each.total}" for each in beside if each is not steps}
            bar.update(steps.done - bar.done, **({"loss": steps.loss} if steps.loss else {}), **others)
    if child.poll() is None:
        print(f"   {steps.name}: saving and evaluating", flush=True)


def _json(line: str) -> dict:
    """What a line of metrics.json holds; empty if it is damaged."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def final_results(metrics: Path) -> dict:
    """The newest evaluation in a metrics.json: {task: {metric: value}}.

    Raises:
        UserError: the file cannot be read, or a line is damaged.
    """
    results: dict[str, dict[str, float]] = {}
    try:
        lines = read_bytes(metrics).decode(errors="replace").splitlines()
    except OSError as error:
        raise UserError(f"{metrics}: {error.strerror}; remove {metrics.parent} and start again") from None
    for number, text in enumerate(lines, start=1):
        if not (line := _json(text)):
            raise UserError(f"{metrics}: line {number} is damaged; delete that line and start again")
        for key, value in line.items():
            task, _, name = key.partition("/")
            if task in ("panoptic_seg", "bbox", "segm", "sem_seg") and name:
                results.setdefault(task, {})[name] = value
    return results


def training(
    name: str, folder: Path, config: str, architecture: Path | None = None, weights: Path | None = None
) -> Stage:
    """Training of a network, from scratch or ``weights``; one that is no supernet is evaluated, too."""
    files = {"NAS.ARCHITECTURE": architecture, "MODEL.WEIGHTS": weights}
    files = {key: path for key, path in files.items() if path}
    opts = ["OUTPUT_DIR", str(folder), *(word for pair in files.items() for word in map(str, pair))]
    cfg = build_config(config, opts)
    stage = Stage(name, folder, cfg.dump() + "".join(map(digest, files.values())))
    stage.steps = cfg.SOLVER.MAX_ITER
    stage.command = ["train_net.py", "--config-file", config, *["--resume"] * stage.begun, *opts]
    return stage


def search(output: Path, weights: Path) -> Stage:
    """Search for the architecture, among the paths of the supernet with these weights."""
    folder = output / "search"
    cfg = build_config(SUPERNET, ["OUTPUT_DIR", str(output / "supernet")])
    stage = Stage("search", folder, cfg.dump() + digest(weights) + shlex.join(SEARCH))
    resume = ["--resume"] * (stage.begun and (folder / "ledger.jsonl").exists())
    opts = ["--weights", str(weights), *SEARCH, *resume, "OUTPUT_DIR", str(output)]
    stage.command = ["search_net.py", "--config-file", SUPERNET, *opts]
    return stage


def random_architecture(output: Path, found: Path) -> Path:
    """One that is drawn from all with the multiply-adds of the found one, to within 2 %."""
    costs = configured_costs(build_config(SUPERNET, ["OUTPUT_DIR", str(output / "supernet")]))
    searched = Architecture.load(found)
    (drawn,) = random_of_equal_cost(costs, costs.cost(searched).macs, 1, seed=0, other_than=[searched])
    path = output / "random.json"
    drawn.save(path)
    return path


def show_found(results: dict, paths: dict[str, Path]) -> None:
    """Print the found network's table, and the paths of what was made."""
    if "PQ" not in results.get("panoptic_seg", {}):
        metrics = paths["metrics"]
        raise UserError(f"{metrics}: holds no evaluation; remove {metrics.parent} and start again")
    print(f"\n{TESTED}, the found network\n\n{results_table(results)}\n")
    for name, path in paths.items():
        print(f"{name:<16} {path}")


def what_it_is_worth(networks: dict[str, Path]) -> list[dict]:
    """Print the networks beside each other, the found one first; returns their rows."""
    table, rows = comparison([read_run(folder, name) for name, folder in networks.items()])
    print(f"\n{TESTED}, the Panoptic-FPN trained from scratch\n\n{table}\n")
    for row in rows[1:]:
        apart = row["first_minus_this"]
        paid = {
            "above": "better than",
            "below": "worse than",
            "undecided": "not shown to be better or worse than",
        }
        print(
            f"the found network is {paid[apart['verdict']]} {row['name']}: "
            f"{apart['mean']:+.1f} PQ [{apart['low']:+.1f}, {apart['high']:+.1f}]"
        )
    print("over these images; another training gives another PQ, which one training each cannot tell")
    return rows


def run():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output", default="output/quickstart", help="folder of all results (default: %(default)s)"
    )
    output = Path(parser.parse_args().output)
    signals.end_with_parent()
    start = time.monotonic()
    os.chdir(ROOT)
    output.mkdir(parents=True, exist_ok=True)
    lock = WriterLock(output / "quickstart.lock", protects=str(output), option="--output")

    print("\n== data set: drawn scenes in COCO-panoptic format", flush=True)
    print(f"   {ensure_shapes()}")
    supernet = training("supernet", output / "supernet", SUPERNET)
    baseline = training("Panoptic-FPN", output / "panoptic_fpn", BASELINE)
    run_beside(
        "train the supernet, every path of the space in one network; beside it a Panoptic-FPN",
        supernet,
        baseline,
    )
    weights, architecture = supernet.directory / "model_final.pth", output / "search" / "architecture.json"
    run_beside(
        "search: score paths of the supernet, select the best operator of each site", search(output, weights)
    )
    drawn = random_architecture(output, architecture)
    found = training("found", output / "retrain", RETRAIN, architecture, weights)
    other = training("a random one", output / "random", RETRAIN, drawn, weights)
    run_beside(
        "train the selected network, from its weights in the supernet; beside it a random one of its cost",
        found,
        other,
    )
    retrained = found.directory
    networks = {stage.name: stage.directory for stage in (found, other, baseline)}
    paths = {
        "supernet": weights,
        "candidates": output / "search" / "ledger.jsonl",
        "architecture": architecture,
        "retrained model": retrained / "model_final.pth",
        "for prediction": retrained / BUNDLE,
        "metrics": retrained / "metrics.json",
    }
    print("\n== report: anew, with pictures of what the retrained network predicts", flush=True)
    report_after_search(output)
    if (page := output / "search" / "report.html").is_file():
        paths["report"] = page
    show_found(final_results(paths["metrics"]), paths)
    rows = what_it_is_worth(networks)
    seconds = time.monotonic() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"\n{seconds:.0f} s" + (f", largest process {peak:.1f} GiB" if peak > 0.1 else ""))
    line = {"PQ": rows[0]["PQ"], "networks": rows, "seconds": round(seconds, 1)}
    line |= {"architecture": str(architecture), "report": str(paths["report"]) if "report" in paths else None}
    print(json.dumps(line))
    lock.release()


if __name__ == "__main__":
    run_command(run)
