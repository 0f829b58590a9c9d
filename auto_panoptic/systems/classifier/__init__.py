"""The ImageNet stage: a backbone under a classifier."""

from ...data.labels import CLASSES, declare_inputs
from .config import add_classifier_config
from .mapper import ClassificationMapper
from .meta_arch import BackboneClassifier

__all__ = ["BackboneClassifier", "ClassificationMapper", "add_classifier_config"]

declare_inputs("BackboneClassifier", labels=CLASSES, mapper="ClassificationMapper")
