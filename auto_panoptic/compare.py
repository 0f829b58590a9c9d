"""Evaluated networks beside each other: cost, PQ, and how much the first is above each of the others.

    python -m auto_panoptic.compare RUN RUN ...

A run is the OUTPUT_DIR of train_net.py after an evaluation. Intervals hold 95 % over the images, those of a
difference over the same images for both networks. Training again with another seed changes PQ, too: that no
single run can tell.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tabulate import tabulate

from . import systems  # noqa: F401  registers their parts
from .analyze import costs_of
from .data.labels import data_set_for
from .errors import UserError, hold_warnings, run_command
from .evaluation import PanopticQuality
from .evaluation.bootstrap import percentile_interval
from .evaluation.panoptic_evaluator import counts_file
from .explore.comparison import Difference
from .files import read_json
from .modeling import meta_model
from .read_config import read_config


class Run(NamedTuple):
    """An evaluated network; multiply-adds are for a square of INPUT.MIN_SIZE_TEST."""

    name: str
    macs: int
    params: int
    quality: PanopticQuality


def read_run(folder: Path, name: str = "") -> Run:
    """The newest evaluation of a run on the first of its DATASETS.TEST.

    Raises:
        UserError: there is none.
    """
    config = folder / "config.yaml"
    if not config.is_file():
        raise UserError(f"{folder}: no run of train_net.py, it has no config.yaml")
    cfg = read_config(str(config), [])
    if not cfg.DATASETS.TEST:
        raise UserError(f"{config}: has no DATASETS.TEST, there was no evaluation")
    given = cfg.DATASETS.TEST[0]  # an evaluation names it so, or as its sibling with the model's labels
    paths = [counts_file(folder / "inference", each) for each in (given, data_set_for(cfg, given))]
    if not (there := [path for path in paths if path.is_file()]):
        command = f"python train_net.py --config-file {config} --eval-only"
        remedy = f"evaluate the run: {command} MODEL.WEIGHTS {folder / 'model_final.pth'}"
        raise UserError(f"{paths[0]}: not there; {remedy}")
    path = max(there, key=lambda path: path.stat().st_mtime_ns)
    record = read_json(path, "counts of an evaluation")
    try:
        quality = PanopticQuality.of_record(record)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise UserError(f"{path}: damaged ({error}); evaluate the run again") from None
    side = cfg.INPUT.MIN_SIZE_TEST
    macs, params = costs_of(meta_model(cfg).eval(), (side, side))[""]
    return Run(name or folder.name, macs, params, quality)


def difference(first: PanopticQuality, second: PanopticQuality) -> Difference:
    """PQ of the first less that of the second, with 95 % over images that both have in common.

    Raises:
        UserError: they were evaluated on different images or classes.
    """
    if first.categories != second.categories or first.image_ids != second.image_ids:
        raise UserError("networks that were evaluated on different images or classes cannot be compared")
    samples = first.bootstrap_samples()["PQ"] - second.bootstrap_samples()["PQ"]
    spread = percentile_interval(samples)
    return Difference(first.compute()["PQ"] - second.compute()["PQ"], spread["low"], spread["high"])


def comparison(runs: Sequence[Run]) -> tuple[str, list[dict]]:
    """(table for a person, rows for machines); the first run is set against the others.

    Raises:
        UserError: see :func:`difference`.
    """
    rows, records = [], []
    for run in runs:
        found, spread = run.quality.compute(), run.quality.intervals()["PQ"]
        record = {"name": run.name, "macs": run.macs, "params": run.params, "PQ": found["PQ"]}
        record |= {
            "low": spread["low"],
            "high": spread["high"],
            "PQ_th": found["PQ_th"],
            "PQ_st": found["PQ_st"],
        }
        against = ""
        if run is not runs[0]:
            apart = difference(runs[0].quality, run.quality)
            record["first_minus_this"] = {**apart._asdict(), "verdict": apart.verdict}
            against = f"{apart.mean:+.1f} [{apart.low:+.1f}, {apart.high:+.1f}]"
        quality = f"{found['PQ']:.1f} [{spread['low']:.1f}, {spread['high']:.1f}]"
        parts = (f"{found[name]:.1f}" for name in ("PQ_th", "PQ_st"))
        rows.append(
            [run.name, f"{run.macs / 1e9:.3f} G", f"{run.params / 1e6:.2f} M", quality, *parts, against]
        )
        records.append(record)
    headers = ["network", "MACs", "parameters", "PQ [95 %]", "things", "stuff", f"{runs[0].name} is above by"]
    align = ("left", *["right"] * 6)
    return tabulate(rows, headers, tablefmt="pipe", disable_numparse=True, colalign=align), records


def main(arguments: Sequence[str] | None = None) -> None:
    """``python -m auto_panoptic.compare``; the last line is one JSON array."""
    parser = argparse.ArgumentParser(
        prog="python -m auto_panoptic.compare", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="OUTPUT_DIR of an evaluated network"
    )
    args = parser.parse_args(arguments)
    hold_warnings()
    text, records = comparison([read_run(folder, str(folder)) for folder in args.runs])
    print(text)
    print(json.dumps(records))


if __name__ == "__main__":
    run_command(main)
