"""Panoptic quality, Detectron2's evaluators put together for panoptic segmentation, and top-k accuracy."""

from .classification import ClassificationEvaluator
from .evaluators import (
    PanopticQualityEvaluator,
    build_evaluators,
    check_metrics,
    panoptic_quality_of,
    results_table,
)
from .panoptic_quality import PanopticQuality

__all__ = [
    "ClassificationEvaluator",
    "PanopticQuality",
    "PanopticQualityEvaluator",
    "build_evaluators",
    "check_metrics",
    "panoptic_quality_of",
    "results_table",
]
