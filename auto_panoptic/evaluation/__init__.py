"""Panoptic quality, and Detectron2's evaluators put together for panoptic segmentation."""

from .evaluators import (
    PanopticQualityEvaluator,
    build_evaluators,
    check_metrics,
    panoptic_quality_of,
    results_table,
)
from .panoptic_quality import PanopticQuality

__all__ = [
    "PanopticQuality",
    "PanopticQualityEvaluator",
    "build_evaluators",
    "check_metrics",
    "panoptic_quality_of",
    "results_table",
]
