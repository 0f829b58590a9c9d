"""What an evaluation leaves: readable tables, files under OUTPUT_DIR."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from detectron2.evaluation import DatasetEvaluator
from tabulate import tabulate

from ..files import append_to, plain, write_json
from .evaluators import panoptic_evaluator_of

_BLOCKS = (("all", ""), ("things", "_th"), ("stuff", "_st"))
_SINGLE = (
    ("bbox", "AP", "box AP"),
    ("bbox", "AP50", "box AP50"),
    ("segm", "AP", "mask AP"),
    ("segm", "AP50", "mask AP50"),
    ("sem_seg", "mIoU", "mIoU"),
    ("panoptic_seg", "IoU_st", "IoU stuff"),
    ("classification", "top1", "top-1"),
    ("classification", "top5", "top-5"),
)


def _cell(value) -> str:
    return "-" if value is None or not np.isfinite(value) else f"{value:.2f}"


def _table(rows: list, headers: list) -> str:
    return tabulate(rows, headers=headers, tablefmt="pipe", stralign="right", disable_numparse=True)


def _quality_cell(values: dict, name: str) -> str:
    low, high = values.get(f"{name}_low"), values.get(f"{name}_high")
    interval = "" if low is None or not np.isfinite(low) else f" [{low:.1f}, {high:.1f}]"
    return _cell(values.get(name)) + interval


def results_table(results: dict) -> str:
    """A readable table of what the evaluators returned.

    Args:
        results: {"panoptic_seg", "bbox", "segm", "sem_seg", "classification": {metric: value}}, or a part.

    Returns:
        Text of one or two tables; PQ with its 95 % interval over the images if known; "-" where a value is
        missing or undefined.
    """
    parts = []
    panoptic = results.get("panoptic_seg")
    if panoptic:
        rows = [
            [block, _quality_cell(panoptic, f"PQ{suffix}")]
            + [_cell(panoptic.get(name + suffix)) for name in ("SQ", "RQ")]
            for block, suffix in _BLOCKS
        ]
        parts.append(_table(rows, ["panoptic", "PQ", "SQ", "RQ"]))
    present = [
        (title, _cell(results[task].get(key)))
        for task, key, title in _SINGLE
        if results.get(task) and (task != "panoptic_seg" or key in results[task])
    ]
    if present:
        titles, values = zip(*present, strict=True)
        parts.append(_table([values], list(titles)))
    return "\n\n".join(parts)


def results_of(names: Sequence[str], results: dict) -> dict[str, dict]:
    """{data set: its results}, of what Detectron2 returns: for a single set those of the set."""
    return dict(results) if len(names) > 1 else dict.fromkeys(names, results)


def results_tables(results: dict[str, dict]) -> str:
    """The table of each data set below its name."""
    return "\n\n".join(f"{name}\n\n{results_table(found)}" for name, found in results.items())


def results_line(results: dict) -> str:
    """PQ and the metrics of a single value, in one line."""
    quality = results.get("panoptic_seg", {})
    shown = [f"PQ {_cell(quality['PQ'])}"] if "PQ" in quality else []
    shown += [
        f"{title} {_cell(results[task][key])}" for task, key, title in _SINGLE if key in results.get(task, {})
    ]
    return ", ".join(shown)


def trim_table(study: dict) -> str:
    """Table of :attr:`PanopticQualityEvaluator.trim_study`: one row per trimming threshold."""
    keys = ["PQ_st", "SQ_st", "RQ_st", "IoU_st", "PQ"]
    rows = [[f"{area:,}", *(_cell(values[key]) for key in keys)] for area, values in study.items()]
    titles = ["PQ stuff", "SQ stuff", "RQ stuff", "IoU stuff", "PQ all"]
    return _table(rows, ["stuff below (pixels) is void", *titles])


def confusion_table(confusion: dict, sem_seg: dict) -> str:
    """Tables of :class:`ConfusionEvaluator`: percent of the true pixels, and IoU, of the semantic head.

    Args:
        confusion, sem_seg: its results of these names.
    """
    rows = [
        [f"true {name}", *(_cell(confusion[f"{kind}_{label}"]) for label in ("th", "st"))]
        for name, kind in (("things", "th"), ("stuff", "st"))
    ]
    iou = ["IoU", *(_cell(sem_seg.get("mIoU" + suffix)) for _, suffix in _BLOCKS)]
    labelled = _table(rows, ["semantic head, %", "labelled things", "labelled stuff"])
    return labelled + "\n\n" + _table([iou], ["semantic head", *(name for name, _ in _BLOCKS)])


def per_class_table(per_class: dict) -> str:
    """Table of :attr:`PanopticQualityEvaluator.per_class`; "-" for classes without any segment."""
    rows = []
    for values in per_class.values():
        occurs = values["TP"] + values["FP"] + values["FN"] > 0
        cells = [_cell(values[key]) if occurs else "-" for key in ("PQ", "SQ", "RQ")]
        counts = [f"{values[key]:,}" for key in ("TP", "FP", "FN")]
        kind = "thing" if values["isthing"] else "stuff"
        rows.append([values["name"], kind, *cells, _cell(values.get("IoU")), *counts])
    return _table(rows, ["class", "kind", "PQ", "SQ", "RQ", "IoU", "TP", "FP", "FN"])


def report_results(
    folder: str, results: dict[str, dict], evaluators: dict[str, DatasetEvaluator], per_class: bool = False
) -> None:
    """Print and save the results of an evaluation.

    Writes ``inference/panoptic_NAME_per_class.json`` in ``folder`` and appends a line to ``metrics.json``, in
    which the metrics carry the name of their data set if there are several; null where one is undefined.

    Args:
        results: {data set: {task: {metric: value}}}.
        evaluators: of each data set.
        per_class: print panoptic quality of each class, too.
    """
    for name, found in results.items():
        several = len(results) > 1
        lines = [name, results_table(found)]
        if "confusion" in found:
            lines.append(confusion_table(found["confusion"], found["sem_seg"]))
        flat = {f"{task}/{metric}": v for task, values in found.items() for metric, v in values.items()}
        if panoptic := panoptic_evaluator_of(evaluators[name]):
            path = Path(folder, "inference", f"panoptic_{name.replace('/', '_')}_per_class.json")
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, panoptic.per_class)
            lines += [per_class_table(panoptic.per_class)] if per_class else []
            lines += [trim_table(panoptic.trim_study)] if panoptic.trim_study else []
            for area, values in panoptic.trim_study.items():
                flat |= {f"trim_study/{area}/{metric}": v for metric, v in values.items()}
        print("\n\n".join(lines))
        prefix = f"{name}/" if several else ""
        line = json.dumps(plain({prefix + key: value for key, value in flat.items()})) + "\n"
        append_to(Path(folder, "metrics.json"), line.encode())
