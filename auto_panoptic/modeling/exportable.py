"""What any network finds in one image as named tensors: the form in which it is stored for other programs.

An optional method of a meta-architecture: ``tensors(image, merge)`` -> {name: tensor} in operators that
TorchScript and ONNX store for images of any size, without loops over what it finds. Names are those of its
outputs. "panoptic_seg", (H, W) int32 ids, and "segments", (S, 3) int64 rows of id, "category_id" and
"isthing", are left out unless ``merge``.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from detectron2.export.torchscript_patch import patch_builtin_len
from detectron2.modeling import GeneralizedRCNN
from detectron2.structures import Instances
from torch import nn

__all__ = ["Exportable", "fields_of", "tensors", "visible"]


def tensors(model: nn.Module, image: torch.Tensor, merge: bool = True) -> dict[str, torch.Tensor]:
    """What ``model``, in evaluation mode, finds in one image.

    Args:
        model: a meta-architecture. Of one without a method ``tensors`` the tensors of its outputs are taken,
            of Detectron2's R-CNNs those before any merging.
        image: (3, H, W) in the range and channel order of its mean pixel.
        merge: also merge the parts into a panoptic map, where the model's method does.
    """
    if hasattr(model, "tensors"):
        return model.tensors(image, merge)
    if not isinstance(model, GeneralizedRCNN):
        output = model([{"image": image}])[0]
        return {name: value for name, value in output.items() if isinstance(value, torch.Tensor)}
    outputs = model.inference([{"image": image}], do_postprocess=False)
    if not isinstance(outputs, tuple):
        return fields_of(visible(outputs[0]))
    (detections, *_), logits = outputs
    return {**fields_of(visible(detections)), "sem_seg": logits[0, :, : image.shape[-2], : image.shape[-1]]}


def visible(detections: Instances) -> Instances:
    """The detections whose boxes are not empty: the others are in no output."""
    return detections[detections.pred_boxes.nonempty()]


def fields_of(detections: Instances) -> dict[str, torch.Tensor]:
    """The fields as tensors, by name."""
    return {name: getattr(value, "tensor", value) for name, value in detections.get_fields().items()}


class Exportable(nn.Module):
    """A module whose ``forward`` is :func:`tensors`, to be traced; it shares the model's weights."""

    def __init__(self, model: nn.Module, merge: bool = True):
        super().__init__()
        self.model = model
        self.merge = merge

    @torch.no_grad()
    def forward(self, image: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """(3, H, W) -> {name: tensor}."""
        with patch_builtin_len():
            return tensors(self.model, image, self.merge)
