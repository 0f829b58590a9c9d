"""Trainings of a toy supernet by the real command, in forked processes: a second or two each."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

import torch
from detectron2.data import DatasetCatalog
from detectron2.engine import defaults
from toy import PREFIX, TOY_NET, make_shapes, run_script, write_config

from auto_panoptic.modeling import meta_model
from auto_panoptic.training import FairCycleTrainer, build_config

from .processes import Process, fork

ITERATIONS, PERIOD = 12, 3
SMALLER = {  # two passes in an iteration
    "NAS": {
        "SPACE": {"BACKBONE_OPS": ["shuffle_3x3", "xception_3x3"], "HEAD_OPS": ["dwconv_3x3", "dfconv_3x3"]}
    },
    "MODEL": {"CROSS_ATTENTION": {"RATIOS": [4, 8]}},
}


class Training:
    """One fixed command that trains, always with --resume.

    Args:
        folder: of data and config; made once.
    """

    def __init__(self, folder: Path, *options: object):
        folder.mkdir(parents=True, exist_ok=True)
        self.config = folder / "toy.yaml"
        if not self.config.exists():
            write_config(self.config, make_shapes(folder), **SMALLER)
        steps = ("SOLVER.MAX_ITER", ITERATIONS, "SOLVER.WARMUP_ITERS", 3, "SOLVER.STEPS", (8,))
        steps += ("SOLVER.CHECKPOINT_PERIOD", PERIOD)
        self.options = tuple(map(str, (*TOY_NET, *steps, *options)))
        defaults.collect_env_info = lambda: "not asked for"  # asks compilers and other programs
        forget_data_sets()
        meta_model(self.cfg(folder))  # what it imports late is there in every fork
        importlib.import_module("train_net")

    def cfg(self, folder: Path, *options: object):
        return build_config(
            str(self.config), [*self.options, *map(str, options), "OUTPUT_DIR", str(folder / "output")]
        )

    def run(self, folder: Path, before: Callable[[], object] = lambda: None) -> None:
        """Train in this process, into ``folder``/output; its losses go to ``folder``/losses."""
        write = FairCycleTrainer._write_metrics

        def record(self, *arguments):
            write(self, *arguments)
            with open(folder / "losses", "a") as stream:
                stream.write(f"{self.iter} {sum(self.losses.values()).hex()}\n")

        FairCycleTrainer._write_metrics = record
        torch.set_num_threads(1)
        before()
        try:
            options = (*self.options, "OUTPUT_DIR", str(folder / "output"))
            run_script("train_net", "--config-file", str(self.config), "--resume", *options)
        finally:
            FairCycleTrainer._write_metrics = write

    def start(self, folder: Path, before: Callable[[], object] = lambda: None) -> Process:
        """:meth:`run` in a forked process."""
        folder.mkdir(parents=True, exist_ok=True)
        return fork(lambda: self.run(folder, before), folder / "output.log")


def forget_data_sets() -> None:
    """Those of another folder, which a drill or the process that it was forked from has registered."""
    for name in [name for name in DatasetCatalog.list() if name.startswith(PREFIX)]:
        DatasetCatalog.remove(name)


def losses(folder: Path) -> list[tuple[int, str]]:
    """(iteration, its loss bit for bit) in the order in which they were computed, repeated ones included."""
    path = folder / "losses"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [(int(i), loss) for i, loss in (line.split() for line in lines if line.endswith("\n"))]


def final(folder: Path) -> dict | None:
    path = folder / "output/model_final.pth"
    return torch.load(path, weights_only=True) if path.exists() else None


def differences(folder: Path, reference: Path) -> list[str]:
    """Names of what differs between two finished trainings: losses, or a part of the last checkpoint."""
    found, expected = final(folder), final(reference)
    if found is None:
        return ["no model_final.pth"]
    names = [] if dict(losses(folder)) == dict(losses(reference)) else ["losses"]
    return names + [key for key in expected if not same(found.get(key), expected[key])]


def same(a, b) -> bool:
    """Whether two trees are equal, tensors bit for bit."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    return a == b
