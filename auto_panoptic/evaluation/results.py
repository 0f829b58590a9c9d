"""What an evaluation leaves: tables on the screen, files under OUTPUT_DIR."""

from __future__ import annotations

import json
from pathlib import Path

from detectron2.evaluation import DatasetEvaluator

from ..files import append_to, plain, write_json
from .evaluators import panoptic_evaluator_of
from .tables import confusion_table, per_class_table, results_table, trim_table


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
        lines = [name] if several else []
        lines.append(results_table(found))
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
