"""Measured time of a model: of its parts, of every operator of its sites, and of whole networks.

All on noise, with random weights and no lowest score, so that as many objects as the config allows take part.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from ..progress import Progress
from ..space import Architecture
from .choice import apply_architecture, choice_blocks

REST = "rest"  # what runs in no part: resizing, grouping, merging


def timed_model(cfg: CfgNode, size: tuple[int, int]) -> tuple[nn.Module, list[dict]]:
    """The model of a config with random weights, in evaluation mode, and one image of ``size`` for it.

    Where a GPU is asked for and torch sees none, it is on the CPU.
    """
    cfg = cfg.clone()
    cfg.defrost()
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model(cfg).eval()
    for name, value in model.named_parameters():
        if {"anchor_deltas", "bbox_pred"} & set(name.split(".")):
            nn.init.zeros_(value)  # boxes stay anchors; moved at random they coincide, or leave the image
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, *size), generator=generator).float()
    return model, [{"image": image, "height": size[0], "width": size[1]}]


class Parts:
    """Follows which part of a model runs: the child whose module was entered first.

    ``entered(part)`` and ``left(part)`` are called at its beginning and end.
    """

    def __init__(self, model: nn.Module, entered, left):
        self.depth, self.hooks, self.part = 0, [], None
        self.entered, self.left = entered, left
        for name, module in model.named_modules():
            if name:
                part = name.partition(".")[0]
                self.hooks.append(module.register_forward_pre_hook(partial(self._enter, part)))
                self.hooks.append(module.register_forward_hook(self._leave))

    def _enter(self, part: str, *_) -> None:
        if not self.depth:
            self.part = part
            self.entered(part)
        self.depth += 1

    def _leave(self, *_) -> None:
        self.depth -= 1
        if not self.depth:
            self.left(self.part)
            self.part = None

    def __enter__(self) -> Parts:
        return self

    def __exit__(self, *_) -> None:
        for hook in self.hooks:
            hook.remove()


@torch.no_grad()
def seconds_of(model: nn.Module, inputs: list[dict], repeats: int) -> dict[str, float]:
    """Median seconds of the parts of ``model`` and, as "", of all of it, after a run that warms up."""
    spent, start = Counter(), [0.0]

    def now() -> float:
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def entered(part: str) -> None:
        start[0] = now()

    def left(part: str) -> None:
        spent[part] += now() - start[0]

    runs = []
    with Parts(model, entered, left):
        for _ in range(repeats + 1):
            spent.clear()
            begin = now()
            model(inputs)
            total = now() - begin
            runs.append({**spent, REST: total - sum(spent.values()), "": total})
    return {part: statistics.median(run.get(part, 0.0) for run in runs[1:]) for part in runs[1]}


class Clock:
    """Marks moments in the work of a device without waiting for it, and tells the seconds between two."""

    def __init__(self, device: torch.device):
        self.device = device

    def mark(self):
        """A moment."""
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, first, second) -> float:
        """Between two moments; waits until the work up to the second is done."""
        if self.device.type != "cuda":
            return second - first
        second.synchronize()
        return first.elapsed_time(second) / 1000


class Times(NamedTuple):
    """Median seconds.

    Attributes:
        fixed: of what no choice changes.
        sites: {site: {operator: seconds}}.
        networks: of whole networks, in the order in which they were asked for.
    """

    fixed: float
    sites: dict[str, dict[str, float]]
    networks: list[float]


class _Sites:
    """Follows the choice blocks of a model: ``seconds`` that each site has taken since it was emptied."""

    def __init__(self, blocks: Mapping[str, nn.Module], clock: Clock):
        self.clock, self.marks, self.started, self.hooks = clock, [], {}, []
        for site, block in blocks.items():
            self.hooks.append(block.register_forward_pre_hook(partial(self._enter, site)))
            self.hooks.append(block.register_forward_hook(partial(self._leave, site)))

    def _enter(self, site: str, *_) -> None:
        self.started[site] = self.clock.mark()

    def _leave(self, site: str, *_) -> None:
        self.marks.append((site, self.started.pop(site), self.clock.mark()))

    def seconds(self) -> Counter:
        spent = Counter()  # a site may be called more than once
        for site, first, second in self.marks:
            spent[site] += self.clock.seconds(first, second)
        return spent

    def remove(self) -> None:
        for hook in self.hooks:
            hook.remove()


def _pass(model: nn.Module, inputs: list[dict], clock: Clock) -> float:
    begin = clock.mark()
    model(inputs)
    return clock.seconds(begin, clock.mark())


@torch.no_grad()
def operator_seconds(
    model: nn.Module,
    inputs: list[dict],
    repeats: int,
    networks: Sequence[Architecture] = (),
    clock: Clock | None = None,
) -> Times:
    """Times of every operator of every site, and of whole networks to judge their sums by.

    Operators are measured within the network: a pass measures one of each site, and as many passes as the
    largest site has operators make a round, with one of each of ``networks``: what slows the machine for a
    while slows all of them. The first round warms up.

    Args:
        model: a supernet in evaluation mode; other paths of it are active afterwards.
        inputs: see :func:`timed_model`.
        repeats: rounds that count.
        networks: paths of the model.
        clock: another one, for tests.
    """
    clock, blocks = clock or Clock(model.device), choice_blocks(model)
    turns = max((len(block.candidates) for block in blocks.values()), default=1)
    times, rest, whole = defaultdict(list), [], [[] for _ in networks]
    with Progress("latency", (turns + len(networks)) * (repeats + 1), "passes") as bar:
        for number in range(repeats + 1):
            following = _Sites(blocks, clock)
            try:
                for turn in range(turns):
                    for block in blocks.values():
                        block.select(list(block.candidates)[turn % len(block.candidates)])
                    following.marks.clear()
                    total, spent = _pass(model, inputs, clock), following.seconds()
                    rest.append(total - sum(spent.values()))
                    for site, block in blocks.items():
                        times[site, block.active].append(spent[site])
                    bar.update()
            finally:
                following.remove()
            for architecture, found in zip(networks, whole, strict=True):
                apply_architecture(model, architecture)
                found.append(_pass(model, inputs, clock))
                bar.update()
            if number == 0:
                for found in (times, rest, *whole):
                    found.clear()
    sites = {
        site: {name: statistics.median(times[site, name]) for name in block.candidates}
        for site, block in blocks.items()
    }
    return Times(statistics.median(rest), sites, [statistics.median(found) for found in whole])


def network_seconds(
    model: nn.Module,
    inputs: list[dict],
    architecture: Architecture,
    repeats: int,
    clock: Clock | None = None,
) -> float:
    """Median seconds of a path of ``model``, after a run that warms up."""
    clock = clock or Clock(model.device)
    apply_architecture(model, architecture)
    with torch.no_grad():
        return statistics.median([_pass(model, inputs, clock) for _ in range(repeats + 1)][1:])
