"""Multiply-adds, parameters, measured time and memory of a network's parts, beside another network's.

    python -m auto_panoptic.analyze --config-file A [--beside B] [--size HEIGHT WIDTH] [KEY VALUE ...]

Multiply-adds and parameters are those of :mod:`auto_panoptic.modeling.counting`. Time and memory are measured
on noise, with random weights and no lowest score, so that as many objects as the config allows take part.
"""

from __future__ import annotations

import argparse
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from detectron2.config import CfgNode
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from . import systems  # noqa: F401  registers their parts
from .errors import UserError, at_least, hold_warnings, run_command
from .modeling import choice_blocks, meta_model
from .modeling.counting import count
from .modeling.timing import REST, Parts, seconds_of, timed_model
from .read_config import read_config

COLUMNS = {"macs": "G MACs", "params": "M parameters", "seconds": "ms", "bytes": "MiB"}
UNITS = {"macs": 1e9, "params": 1e6, "seconds": 1e-3, "bytes": 1 << 20}


class Figures(NamedTuple):
    """Of a network, or of a part of it, for one image.

    ``bytes``: of the tensors that are alive at once while it runs, at most, without the weights.
    """

    macs: int = 0
    params: int = 0
    seconds: float = 0.0
    bytes: int = 0


class _Alive(TorchDispatchMode):
    """Counts the bytes of tensors that are alive; ``peaks``: the most while each part ran, and in all."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.weights = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
        self.alive: dict[int, int] = {}
        self.total, self.part, self.peaks = 0, REST, Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        for key in (self.part, ""):
            self.peaks[key] = max(self.peaks[key], self.total)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self.weights and key not in self.alive:
            self.alive[key] = storage.nbytes()
            self.total += storage.nbytes()
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.total -= self.alive.pop(key, 0)


@torch.no_grad()
def bytes_of(model: nn.Module, inputs: list[dict]) -> dict[str, int]:
    """Most bytes alive at once while the parts of ``model`` run, and as "" in all."""
    with _Alive(model) as alive:

        def entered(part: str) -> None:
            alive.part = part

        def left(part: str) -> None:
            alive.part = REST

        with Parts(model, entered, left):
            model(inputs)
    return dict(alive.peaks)


def costs_of(model: nn.Module, size: tuple[int, int]) -> dict[str, tuple[int, int]]:
    """(multiply-adds, parameters) of the parts of a fixed ``model``, and as "" in all."""
    tables = count(model, size)
    parts = {part: (cost.macs, cost.params) for part, cost in tables.fixed.items()}
    places = {module.site: name for name, module in model.named_modules() if hasattr(module, "site")}
    for site, row in zip(tables.space.sites, tables.sites, strict=True):
        part = places[site.name].partition(".")[0]
        (cost,) = row.values()
        macs, params = parts.get(part, (0, 0))
        parts[part] = macs + cost.macs, params + cost.params
    total = tuple(sum(values) for values in zip(*parts.values(), strict=True)) if parts else (0, 0)
    return {**parts, "": total}


def analyze(cfg: CfgNode, size: tuple[int, int], repeats: int) -> tuple[dict[str, Figures], int | None]:
    """The figures of every part of a config's network, of the :data:`REST` and, as "", of all of it.

    Returns:
        Them by part, and how many detections took part; None of a network without detections.

    Raises:
        UserError: the config builds a supernet.
    """
    meta = meta_model(cfg).eval()
    if any(len(block.candidates) > 1 for block in choice_blocks(meta).values()):
        raise UserError("one network is analysed, this config builds a supernet; add NAS.ARCHITECTURE FILE")
    costs = costs_of(meta, size)
    model, inputs = timed_model(cfg, size)
    memory, seconds = bytes_of(model, inputs), seconds_of(model, inputs, repeats)
    parts = [name for name, _ in model.named_children() if name in {*costs, *seconds}]
    figures = {
        part: Figures(*costs.get(part, (0, 0)), seconds.get(part, 0.0), memory.get(part, 0))
        for part in [*parts, REST, ""]
    }
    with torch.no_grad():
        output = model(inputs)[0]
    return figures, len(output["instances"]) if "instances" in output else None


# ------------------------------------------------------------------ the command


def lines(found: Sequence[dict[str, Figures]]) -> Iterator[str]:
    """The table of one network, or of two beside each other with their ratios."""
    names = list(dict.fromkeys(part for figures in found for part in figures if part))
    second = [" "] if len(found) == 1 else [" A", " B"]
    yield f"{'':20}" + "".join(f"{title + mark:>16}" for title in COLUMNS.values() for mark in second)
    for part in [*names, ""]:
        cells = [
            f"{getattr(figures[part], key) / UNITS[key]:16,.2f}" if part in figures else f"{'-':>16}"
            for key in COLUMNS
            for figures in found
        ]
        yield f"{part or 'all':20}" + "".join(cells)
    if len(found) == 2:
        totals = [(getattr(found[1][""], key), getattr(found[0][""], key)) for key in COLUMNS]
        yield f"{'B / A':20}" + "".join(f"{b / a if a else float('nan'):32.3f}" for b, a in totals)


def main(arguments: Sequence[str] | None = None) -> None:
    """``python -m auto_panoptic.analyze``."""
    parser = argparse.ArgumentParser(
        prog="python -m auto_panoptic.analyze", description=__doc__.splitlines()[0]
    )
    parser.error = _refuse
    parser.add_argument("--config-file", required=True, metavar="A", help="config of a network")
    parser.add_argument("--beside", metavar="B", help="config of another, shown beside it")
    size_help = "pixels of the image (default: a square of A's INPUT.MIN_SIZE_TEST)"
    parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help=size_help)
    parser.add_argument("--repeats", type=int, default=5, help="timed runs (default: %(default)s)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs that override both configs")
    args = parser.parse_args(arguments)
    hold_warnings()
    at_least("--repeats", args.repeats, 1)
    configs = [config for config in (args.config_file, args.beside) if config]
    cfgs = [read_config(config, args.opts) for config in configs]
    side = cfgs[0].INPUT.MIN_SIZE_TEST
    size = tuple(args.size or (side, side))
    for value in size:
        at_least("--size", value, 1)
    found = []
    for mark, config, cfg in zip("AB", configs, cfgs, strict=False):
        figures, detections = analyze(cfg, size, args.repeats)
        found.append(figures)
        counted = "" if detections is None else f", {detections} objects"
        print(f"{mark}: {config}, {cfg.MODEL.META_ARCHITECTURE}{counted}", flush=True)
    device = cfgs[0].MODEL.DEVICE if torch.cuda.is_available() else "cpu"
    print(f"one image of {size[0]} x {size[1]}, {device}, {torch.get_num_threads()} thread(s)")
    print("\n".join(lines(found)))


def _refuse(message: str) -> None:
    raise UserError(f"{message}; --help shows the options")


if __name__ == "__main__":
    run_command(main)
