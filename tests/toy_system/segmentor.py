"""A system outside the package: a small semantic segmentor with two choice sites.

Reached by ``IMPORTS: [toy_system.segmentor]``. Everything that training, search, cost and evaluation need
to know of it stands here: its keys, its operators, its meta-architecture, the labels that it learns from.
"""

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.postprocessing import sem_seg_postprocess
from detectron2.structures import ImageList
from torch import nn
from torch.nn import functional as F

from auto_panoptic.data.labels import declare_inputs
from auto_panoptic.modeling import Choices
from auto_panoptic.space import OpSpec, op, register_ops

register_ops(
    OpSpec("square_3x3", kind="square", group="toy", kernel=3),
    OpSpec("square_5x5", kind="square", group="toy", kernel=5),
    OpSpec("cross_3x3", kind="cross", group="toy", kernel=3),
)
declare_inputs("ToySegmentor", labels="all")


def add_config(cfg: CfgNode) -> None:
    """The keys of this system."""
    cfg.MODEL.TOY_SEGMENTOR = CfgNode({"CHANNELS": 16, "OPS": ["square_3x3", "square_5x5", "cross_3x3"]})


def build(spec: OpSpec, channels: int) -> nn.Module:
    """An operator (N, C, H, W) -> (N, C, H, W) with BatchNorm: one square or two crossing convolutions."""
    k = spec.kernel
    kernels = [(k, k)] if spec.kind == "square" else [(k, 1), (1, k)]
    convs = [nn.Conv2d(channels, channels, kernel, padding="same", bias=False) for kernel in kernels]
    return nn.Sequential(*convs, nn.BatchNorm2d(channels), nn.ReLU())


@META_ARCH_REGISTRY.register()
class ToySegmentor(nn.Module):
    """Stem of stride 4, an encoder site, a decoder of one site and a BatchNorm of its own, a classifier."""

    @configurable
    def __init__(self, *, choices, ops, channels: int, num_classes: int, pixel_mean, pixel_std):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, channels, 7, stride=4, padding=3), nn.BatchNorm2d(channels), nn.ReLU()
        )
        self.encoder = choices("encoder.0", ops, lambda spec: build(spec, channels))
        self.decoder = nn.Sequential(
            choices("decoder.0", ops, lambda spec: build(spec, channels)), nn.BatchNorm2d(channels)
        )
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)

    @classmethod
    def from_config(cls, cfg):
        return {
            "choices": Choices.from_config(cfg),
            "ops": [op(name) for name in cfg.MODEL.TOY_SEGMENTOR.OPS],
            "channels": cfg.MODEL.TOY_SEGMENTOR.CHANNELS,
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict]):
        """Detectron2's interface: losses in training, a list of {"sem_seg": (K, H, W)} in inference."""
        images = [(x["image"].to(self.device) - self.pixel_mean) / self.pixel_std for x in batched_inputs]
        images = ImageList.from_tensors(images, size_divisibility=4)
        logits = self.classifier(self.decoder(self.encoder(self.stem(images.tensor))))
        logits = F.interpolate(logits, images.tensor.shape[-2:], mode="bilinear", align_corners=False)
        if self.training:
            targets = [x["sem_seg"].to(self.device) for x in batched_inputs]
            targets = ImageList.from_tensors(targets, size_divisibility=4, pad_value=255).tensor
            known = (targets != 255).sum().clamp(min=1)
            loss = F.cross_entropy(logits, targets, ignore_index=255, reduction="sum") / known
            return {"loss_sem_seg": loss}
        return [
            {"sem_seg": sem_seg_postprocess(result, size, x.get("height", size[0]), x.get("width", size[1]))}
            for result, x, size in zip(logits, batched_inputs, images.image_sizes, strict=True)
        ]
