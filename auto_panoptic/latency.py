"""Measured time of a network's parts, or of every operator of a supernet for search_net.py --max-latency.

    python -m auto_panoptic.latency --config-file F [--size HEIGHT WIDTH] [KEY VALUE ...]

Of a supernet it writes OUTPUT_DIR/search/latency.json, and measures whole networks to judge the table by. All
is measured on noise, with random weights and no lowest score: no weights are needed.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import detectron2
import numpy as np
import torch
from detectron2.config import CfgNode

from . import __version__, systems  # noqa: F401  registers their parts
from .data import setup_datasets
from .errors import UserError, at_least, hold_warnings, run_command, show_warnings
from .modeling import choice_blocks, meta_model
from .modeling.counting import configured_costs
from .modeling.timing import REST, operator_seconds, seconds_of, timed_model
from .read_config import read_config
from .search.latency import FILE, costs_digest, here, nanoseconds, warning, where, write_table
from .search.selection import ledger_path
from .space import Architecture, LatencyTable


def measure(cfg: CfgNode, size: tuple[int, int], repeats: int, networks: int) -> LatencyTable:
    """The table of a supernet's config, judged by so many random networks and by what was selected before."""
    device = cfg.MODEL.DEVICE if torch.cuda.is_available() else "cpu"
    costs = configured_costs(cfg)
    rng = np.random.default_rng(0)
    chosen = [costs.space.random(rng) for _ in range(networks)]
    chosen += [a for a in [selected(cfg, costs.space)] if a is not None]
    times = operator_seconds(*timed_model(cfg, size), repeats, chosen)
    made_by = {
        "auto_panoptic": __version__,
        "torch": torch.__version__,
        "detectron2": detectron2.__version__,
    }
    conditions = {
        **here(device),
        "image": list(size),
        "repeats": repeats,
        "versions": {name: str(version) for name, version in made_by.items()},
        "network": costs_digest(costs),
    }
    rows = {site: {op: nanoseconds(t) for op, t in row.items()} for site, row in times.sites.items()}
    table = LatencyTable(costs.space, nanoseconds(times.fixed), rows, conditions)
    for architecture, seconds in zip(chosen, times.networks, strict=True):
        table = table.with_network(architecture, nanoseconds(seconds))
    return table


def selected(cfg: CfgNode, space) -> Architecture | None:
    """What a search in OUTPUT_DIR has selected, if there was one."""
    try:
        return Architecture.load(ledger_path(cfg.OUTPUT_DIR).with_name("architecture.json"), space)
    except UserError:
        return None


def table_lines(table: LatencyTable, last: Architecture | None) -> Iterator[str]:
    """A table for people: per site its fastest and slowest operator, then the networks that judge it."""
    yield f"{'not searched':<20}{table.fixed / 1e6:>10.2f} ms"
    yield f"{'site':<20}{'fastest':>30}{'slowest':>30}"
    ends = [0, 0]
    for site, row in table.sites.items():
        low, high = min(row, key=row.get), max(row, key=row.get)
        ends = [ends[0] + row[low], ends[1] + row[high]]
        cells = (f"{name}{row[name] / 1e6:10.3f} ms" for name in (low, high))
        yield f"{site:<20}" + "".join(f"{cell:>30}" for cell in cells)
    low, high = ((table.fixed + end) / 1e6 for end in ends)
    yield f"networks by this table: {low:,.1f} to {high:,.1f} ms"
    yield f"{'network':<20}{'predicted':>13}{'measured':>13}{'error':>9}"
    for number, found in enumerate(table.networks, 1):
        is_selected = last is not None and found.architecture == last.indices()
        name = "selected" if is_selected else f"random {number}"
        times = "".join(f"{t / 1e6:>10,.2f} ms" for t in (found.predicted, found.measured))
        yield f"{name:<20}{times}{found.error:>+9.1%}"
    yield from warning(table.networks)


def part_lines(cfg: CfgNode, size: tuple[int, int], repeats: int) -> Iterator[str]:
    """Milliseconds of the parts of a fixed network."""
    model, inputs = timed_model(cfg, size)
    seconds = seconds_of(model, inputs, repeats)
    names = [name for name, _ in model.named_children() if name in seconds]
    for part in [*names, REST, ""]:
        yield f"{part or 'all':<20}{seconds[part] * 1e3:>10,.2f} ms"


def main(arguments: Sequence[str] | None = None) -> None:
    """``python -m auto_panoptic.latency``."""
    what = __doc__.splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m auto_panoptic.latency", description=what)
    parser.error = _refuse
    parser.add_argument("--config-file", required=True, metavar="F", help="config of a supernet or a network")
    size_help = "pixels of the image (default: a square of INPUT.MIN_SIZE_TEST)"
    parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help=size_help)
    repeats_help = "of each measurement, whose median counts (default: %(default)s)"
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help=repeats_help)
    networks_help = "random whole networks to judge the table by (default: %(default)s)"
    parser.add_argument("--networks", type=int, default=4, metavar="N", help=networks_help)
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs that override the config")
    args = parser.parse_args(arguments)
    hold_warnings()
    at_least("--repeats", args.repeats, 1)
    at_least("--networks", args.networks, 0)
    cfg = read_config(args.config_file, args.opts)
    size = tuple(args.size or (cfg.INPUT.MIN_SIZE_TEST,) * 2)
    for value in size:
        at_least("--size", value, 1)
    fixed = all(len(block.candidates) == 1 for block in choice_blocks(meta_model(cfg)).values())
    if not fixed:
        setup_datasets(cfg)  # as in the search they say how many classes there are
    show_warnings(drop=True)
    device = cfg.MODEL.DEVICE if torch.cuda.is_available() else "cpu"
    print(f"one image of {size[0]} x {size[1]}, {where(here(device))}", flush=True)
    if fixed:
        print("\n".join(part_lines(cfg, size, args.repeats)))
        return
    table = measure(cfg, size, args.repeats, args.networks)
    path = Path(ledger_path(cfg.OUTPUT_DIR)).with_name(FILE)
    write_table(path, table)
    print("\n".join(table_lines(table, selected(cfg, table.space))))
    print(f"{'table':<13} {path}")


def _refuse(message: str) -> None:
    raise UserError(f"{message}; --help shows the options")


if __name__ == "__main__":
    run_command(main)
