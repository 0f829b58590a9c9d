"""TEST.EXPECTED_RESULTS: results that a run must reach, as in Detectron2's regression tests."""

from __future__ import annotations

import math
import sys
from numbers import Real

from ..errors import UserError


def check_expected_results(cfg) -> None:
    """Raise UserError unless TEST.EXPECTED_RESULTS is a list of [task, metric, value, tolerance]."""
    rows = cfg.TEST.EXPECTED_RESULTS
    for row in rows:
        good = isinstance(row, list | tuple) and len(row) == 4 and all(isinstance(x, str) for x in row[:2])
        if not (good and all(isinstance(x, Real) and math.isfinite(x) for x in row[2:])):
            raise UserError(
                f"TEST.EXPECTED_RESULTS holds {row!r}; expected [task, metric, value, tolerance], such as "
                "['panoptic_seg', 'PQ', 41.5, 0.2]"
            )
    if rows and len(cfg.DATASETS.TEST) != 1:
        raise UserError(
            f"TEST.EXPECTED_RESULTS are those of one data set, DATASETS.TEST is {list(cfg.DATASETS.TEST)}; "
            "name one there, or set TEST.EXPECTED_RESULTS to []"
        )


def verify_results(cfg, results: dict[str, dict[str, float]]) -> None:
    """End the process with code 1 and one line unless ``results`` {task: {metric: value}} are as expected."""
    wrong = []
    for task, metric, value, tolerance in cfg.TEST.EXPECTED_RESULTS:
        found = results.get(task, {}).get(metric)
        if found is None or not abs(found - value) <= tolerance:  # a NaN is not as expected
            wrong.append(f"{task}/{metric} is {found}, expected {value} +- {tolerance}")
    if wrong:
        sys.exit(f"error: results are not those of TEST.EXPECTED_RESULTS: {'; '.join(wrong)}")
