"""Two things that a search does with a model, and what a meta-architecture may do itself to help.

Optional methods of a meta-architecture:

- ``dry_run(size)`` runs every layer once, as inference of one image of ``size`` = (height, width) does.
- ``panoptic_only()`` is a context in which inference may skip what its panoptic map does not depend on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

import numpy as np
import torch
from detectron2.layers import DeformConv, ModulatedDeformConv
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator import rpn
from detectron2.modeling.roi_heads import cascade_rcnn, fast_rcnn
from detectron2.structures import Boxes, Instances
from torch import nn
from torch.nn import functional as F

__all__ = ["all_regions", "detections_from", "dry_run", "panoptic_only"]


@torch.no_grad()
def dry_run(model: nn.Module, size: tuple[int, int]) -> None:
    """Run every layer of ``model``, in its present mode, as inference of a zero image does.

    ``size`` is its height and width in pixels, before padding. In Detectron2's R-CNNs as many proposals and
    detections as the limits allow take part, without the final merging; they can be on the meta device.
    """
    if hasattr(model, "dry_run"):
        model.dry_run(size)
        return
    height, width = size
    image = {"image": torch.zeros(3, height, width, device=model.device), "height": height, "width": width}
    with all_regions():
        if isinstance(model, GeneralizedRCNN):
            model.inference([image], do_postprocess=False)
        else:
            model([image])


def panoptic_only(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Context in which ``model`` may compute no more than its panoptic maps need; afterwards as before."""
    return model.panoptic_only() if hasattr(model, "panoptic_only") else contextlib.nullcontext()


@contextlib.contextmanager
def detections_from(roi_heads: nn.Module, score: float) -> Iterator[None]:
    """Context in which Detectron2's ``roi_heads`` drop detections below ``score`` before their masks.

    Non-maximum suppression goes from high to low scores: the others stay the same. A cascade keeps all.
    """
    predictor = getattr(roi_heads, "box_predictor", None)
    if predictor is None:
        yield
        return
    before = predictor.test_score_thresh
    just_below = np.nextafter(np.float32(score), np.float32(0))
    with mock.patch.object(predictor, "test_score_thresh", max(before, float(just_below))):
        yield


@contextlib.contextmanager
def all_regions() -> Iterator[None]:
    """Context in which Detectron2's steps that depend on values give results of full size and no meaning."""
    stand_ins = [
        (rpn, "find_top_rpn_proposals", _proposals),
        (fast_rcnn, "fast_rcnn_inference", _detections),
        (cascade_rcnn, "fast_rcnn_inference", _detections),
        (ROIPooler, "forward", _pooled),
    ]
    for layer in (DeformConv, ModulatedDeformConv):
        if issubclass(layer, nn.Module):  # Detectron2 without its compiled part may have a placeholder
            stand_ins.append((layer, "forward", _like_a_convolution))
    with contextlib.ExitStack() as patches:
        for stand_in in stand_ins:
            patches.enter_context(mock.patch.object(*stand_in))
        yield


def _proposals(
    proposals, logits, image_sizes, nms_thresh, pre_nms_topk, post_nms_topk, *_
) -> list[Instances]:
    boxes, logits = proposals[0].new_zeros(post_nms_topk, 4), logits[0].new_zeros(post_nms_topk)
    return [Instances(s, proposal_boxes=Boxes(boxes), objectness_logits=logits) for s in image_sizes]


def _detections(boxes, scores, image_shapes, score_thresh, nms_thresh, topk_per_image):
    boxes, scores = boxes[0].new_zeros(topk_per_image, 4), scores[0].new_zeros(topk_per_image)
    results = [
        Instances(shape, pred_boxes=Boxes(boxes), scores=scores, pred_classes=scores.long())
        for shape in image_shapes
    ]
    return results, [scores.long()] * len(results)


def _pooled(pooler: ROIPooler, x: list[torch.Tensor], box_lists: list[Boxes]) -> torch.Tensor:
    return x[0].new_zeros(sum(map(len, box_lists)), x[0].shape[1], *pooler.output_size)


def _like_a_convolution(layer: nn.Module, x: torch.Tensor, *_) -> torch.Tensor:
    """Detectron2's deformable layers have no kernel for CPU and meta tensors."""
    return F.conv2d(x, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)
