"""The ImageNet stage: a backbone under a classifier."""

from .meta_arch import BackboneClassifier

__all__ = ["BackboneClassifier"]
