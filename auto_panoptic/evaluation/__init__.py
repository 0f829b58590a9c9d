"""Panoptic quality and IoU of stuff, Detectron2's evaluators put together, and top-k accuracy."""

from .classification import ClassificationEvaluator
from .confusion import ConfusionEvaluator, mean_iou, thing_labels, thing_stuff_confusion
from .evaluators import build_evaluators, check_metrics, panoptic_quality_of
from .overlap import Overlap
from .panoptic_evaluator import PanopticQualityEvaluator
from .panoptic_quality import PanopticQuality
from .stuff_iou import StuffIoU
from .tables import confusion_table, per_class_table, results_table, trim_table

__all__ = [
    "ClassificationEvaluator",
    "ConfusionEvaluator",
    "Overlap",
    "PanopticQuality",
    "PanopticQualityEvaluator",
    "StuffIoU",
    "build_evaluators",
    "check_metrics",
    "confusion_table",
    "mean_iou",
    "panoptic_quality_of",
    "per_class_table",
    "results_table",
    "thing_labels",
    "thing_stuff_confusion",
    "trim_table",
]
