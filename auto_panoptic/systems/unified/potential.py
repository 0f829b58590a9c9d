"""The dynamic potential: a channel for each class of stuff and for each detection (supplement A.3).

Shape shorthand: K classes, N_st of them stuff; D detections; H x W pixels of the semantic map.
"""

from collections.abc import Sequence

import torch
from detectron2.layers.mask_ops import _do_paste_mask
from detectron2.structures import Instances
from torch import nn

from auto_panoptic.errors import one_of

__all__ = ["VARIANTS", "PotentialHead", "dynamic_potential", "paste_masks"]

VARIANTS = ("A", "B", "C")


def dynamic_potential(
    variant: str,
    semantic: torch.Tensor,
    stuff: Sequence[int] | torch.Tensor,
    boxes: torch.Tensor,
    classes: torch.Tensor,
    scores: torch.Tensor,
    masks: torch.Tensor | None = None,
    global_weight: torch.Tensor | float | None = None,
) -> torch.Tensor:
    """The potential of one image. With V the semantic probabilities, at pixel i

    - stuff j: V_i(j), as it is;
    - detection k of class c, score s, box B and mask probability M: s 1[i in B] times V_i(c) in variant A
      (mask-free), V_i(c) M_i in B and V_i(c) + M_i in C. That the variants multiply and add is stated; the
      factors s and 1[i in B] are a re-interpretation.

    A pixel lies in a box if its centre does. Gradients reach ``semantic``, ``scores``, ``masks`` and
    ``global_weight``.

    Args:
        variant: one of :data:`VARIANTS`.
        semantic: (K, H, W) probabilities.
        stuff: (N_st,) indices of the stuff classes among the K.
        boxes: (D, 4) as x0, y0, x1, y1 in pixels of the semantic map; D may be 0.
        classes: (D,) index among the K of each box's class.
        scores: (D,) in [0, 1].
        masks: (D, H, W) probabilities; A does without.
        global_weight: w of the global term w V_i(c) that the Dynamically Instantiated Network adds
            everywhere; None: no such term.

    Returns:
        (N_st + D, H, W).

    Raises:
        ValueError: unknown variant; a variant that needs masks without them.
    """
    one_of("dynamic_potential: variant", variant, VARIANTS)
    if variant != "A" and masks is None:
        raise ValueError(f"dynamic_potential: variant {variant} needs masks")
    height, width = semantic.shape[-2:]
    things = semantic[classes]  # (D, H, W)
    cue = things
    if variant == "B":
        cue = things * masks
    elif variant == "C":
        cue = things + masks
    channels = cue * (scores[:, None, None] * _inside(boxes, height, width))
    if global_weight is not None:
        channels = channels + global_weight * things
    stuff = torch.as_tensor(stuff, dtype=torch.int64, device=semantic.device)
    return torch.cat([semantic[stuff], channels])


def _inside(boxes: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """(D, 4) -> (D, H, W) bool: whether the centre of a pixel lies in a box."""
    x, y = (torch.arange(size, device=boxes.device) + 0.5 for size in (width, height))
    x0, y0, x1, y1 = boxes[:, :, None].unbind(1)  # (D, 1) each
    return ((y >= y0) & (y < y1))[:, :, None] & ((x >= x0) & (x < x1))[:, None, :]


def paste_masks(masks: torch.Tensor, boxes: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Resize each mask bilinearly to its box, as Detectron2 pastes masks, all at once and differentiably.

    Args:
        masks: (D, S, S) probabilities; D may be 0.
        boxes: (D, 4) as x0, y0, x1, y1 in pixels of the result; no gradient reaches them.
        height, width: size of the result.

    Returns:
        (D, height, width); 0 outside the boxes, but for the half cell of a mask by which it fades out.
    """
    boxes = boxes.detach()
    corner = torch.maximum(boxes[:, 2:], boxes[:, :2] + 1e-3)  # a box of no size would divide by 0
    boxes = torch.cat([boxes[:, :2], corner], dim=1)
    return _do_paste_mask(masks[:, None], boxes, height, width, skip_empty=False)[0]


class PotentialHead(nn.Module):
    """:func:`dynamic_potential` of the semantic logits and the detections of an image."""

    def __init__(self, variant: str, stuff: Sequence[int], stride: int, global_term: bool = False):
        """
        Args:
            variant: one of :data:`VARIANTS`.
            stuff: indices of the stuff classes.
            stride: of the semantic logits.
            global_term: add w V(class) everywhere, w learnt from 0.
        """
        super().__init__()
        self.variant = one_of("MODEL.UNIFIED.POTENTIAL", variant, VARIANTS)
        self.stuff = stuff
        self.stride = stride
        self.global_weight = nn.Parameter(torch.zeros(())) if global_term else None

    def forward(self, semantic: torch.Tensor, detections: Instances) -> torch.Tensor:
        """
        Args:
            semantic: (K, H, W) logits.
            detections: D with "pred_boxes" in pixels of the image, "pred_classes", "scores" and, but for
                variant A, "pred_masks" (D, 1, S, S) probabilities.

        Returns:
            (N_st + D, H, W).
        """
        boxes, masks = detections.pred_boxes.tensor / self.stride, None
        if self.variant != "A":
            masks = paste_masks(detections.pred_masks[:, 0].float(), boxes, *semantic.shape[1:])
        return dynamic_potential(
            self.variant,
            semantic.float().softmax(dim=0),
            self.stuff,
            boxes,
            detections.pred_classes,
            detections.scores,
            masks,
            self.global_weight,
        )
