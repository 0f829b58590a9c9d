"""The ImageNet stage: the detection model's backbone under a classifier."""

from collections import OrderedDict

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.structures import ImageList
from torch import nn
from torch.nn import functional as F

from auto_panoptic.errors import UserError
from auto_panoptic.modeling.backbones.builders import norm_name
from auto_panoptic.modeling.backbones.shufflenet import Norm, initialize_weights, make_norm
from auto_panoptic.modeling.backbones.widths import width_from_config


@META_ARCH_REGISTRY.register()
class BackboneClassifier(nn.Module):
    """Backbone, 1x1 convolution, BN, ReLU, dropout of channels, average over the image, linear layer.

    The backbone's weights are called ``backbone.bottom_up.*``, as in a detection model with an FPN, and so
    load there by name. A supernet and a fixed network differ by config only, as everywhere.
    """

    pretrains = "backbone.bottom_up."  # the weights that other models start from

    @configurable
    def __init__(
        self,
        *,
        backbone: nn.Module,
        num_classes: int,
        conv_dim: int,
        norm: Norm,
        dropout: float,
        label_smoothing: float,
        pixel_mean: tuple[float, ...],
        pixel_std: tuple[float, ...],
    ):
        """
        Args:
            backbone: a Detectron2 backbone without FPN; its output of the largest stride is classified.
            num_classes: outputs.
            conv_dim: channels of the 1x1 convolution (with bias).
            norm: function from a channel number to a normalisation layer.
            dropout: probability to drop a channel before the average.
            label_smoothing: share of the target spread evenly over the classes.
            pixel_mean, pixel_std: per channel, subtracted from and dividing the images.
        """
        super().__init__()
        shapes = backbone.output_shape()
        self.feature = max(shapes, key=lambda name: shapes[name].stride)
        self.label_smoothing = label_smoothing
        self.backbone = nn.ModuleDict({"bottom_up": backbone})
        layers = {
            "conv": nn.Conv2d(shapes[self.feature].channels, conv_dim, 1),
            "norm": norm(conv_dim),
            "relu": nn.ReLU(inplace=True),
            "dropout": nn.Dropout2d(dropout),
            "pool": nn.AdaptiveAvgPool2d(1),
            "flatten": nn.Flatten(),
            "fc": nn.Linear(conv_dim, num_classes),
        }
        self.classifier = nn.Sequential(OrderedDict(layers))
        initialize_weights(self.classifier)
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)

    @classmethod
    def from_config(cls, cfg):
        options = cfg.MODEL.CLASSIFIER
        backbone = build_backbone(cfg)
        return {
            "backbone": getattr(backbone, "bottom_up", backbone),
            "num_classes": options.NUM_CLASSES,
            "conv_dim": options.CONV_DIM or width_from_config(cfg).classifier,
            "norm": make_norm(norm_name(cfg, cfg.MODEL.SHUFFLENET.NORM), cfg.MODEL.SHUFFLENET.NORM_MOMENTUM),
            "dropout": options.DROPOUT,
            "label_smoothing": options.LABEL_SMOOTHING,
            "pixel_mean": tuple(cfg.MODEL.PIXEL_MEAN),
            "pixel_std": tuple(cfg.MODEL.PIXEL_STD),
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict]):
        """
        Args:
            batched_inputs: dicts with "image" (3, H, W), all of one size, in the range and channel order of
                ``pixel_mean``; in training with "label", an int.

        Returns:
            In training {"loss_cls": scalar}: cross-entropy with smoothed labels. In inference one
            {"logits": (num_classes,)} per image.
        """
        features = self.backbone.bottom_up(self.preprocess_image(batched_inputs).tensor)
        logits = self.classifier(features[self.feature]).float()
        if not self.training:
            return [{"logits": row} for row in logits]
        if any("label" not in x for x in batched_inputs):
            raise UserError(
                "a training image comes without 'label'; train the classifier on a data set of ImageFolder "
                "layout (DATASETS.TRAIN), for example imagenet_train"
            )
        labels = torch.tensor([x["label"] for x in batched_inputs], device=self.device)
        return {"loss_cls": F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)}

    def preprocess_image(self, batched_inputs: list[dict]) -> ImageList:
        """The images of a batch, which have one size, normalised and on the model's device."""
        images = torch.stack([x["image"] for x in batched_inputs]).to(self.device)
        images = (images - self.pixel_mean) / self.pixel_std
        return ImageList(images, [tuple(images.shape[-2:])] * len(images))
