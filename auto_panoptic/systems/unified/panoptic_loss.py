"""The loss of the panoptic output: which channel each pixel should choose, and how far it is from that.

The supplement states neither; this follows the Dynamically Instantiated Network and UPSNet, as a
re-interpretation. Detections and instances of the ground truth are matched one to one. A pixel of stuff
should choose the channel of its class, a pixel of a matched instance that of its detection. Void does not
count, nor do pixels of instances without a detection, for which no channel would be right. Detections without
an instance are channels that no pixel should choose.

Shape shorthand: N_st stuff classes; D detections and G instances of an image; h x w pixels of the logits.
"""

from collections.abc import Sequence

import torch
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks, pairwise_iou
from torch.nn import functional as F

from auto_panoptic.errors import one_of

from .lovasz import lovasz_softmax

__all__ = ["IGNORED", "KINDS", "match_detections", "one_to_one", "panoptic_loss", "panoptic_targets"]

KINDS = ("cross_entropy", "lovasz_softmax")
IGNORED = -1  # target of pixels that do not count; 255 may be a channel
MATCH_IOU = 0.5


@torch.no_grad()
def match_detections(boxes: torch.Tensor, classes: torch.Tensor, truth: Instances) -> torch.Tensor:
    """Give each instance at most one detection of its class whose box has an IoU above 0.5 with its own.

    Args:
        boxes: (D, 4) as x0, y0, x1, y1 in pixels of the image.
        classes: (D,) as ``gt_classes``.
        truth: G instances with ``gt_boxes`` and ``gt_classes``.

    Returns:
        (D,) int64, the index of each detection's instance, or -1; see :func:`one_to_one`.
    """
    iou = pairwise_iou(Boxes(boxes), truth.gt_boxes)
    allowed = (classes[:, None] == truth.gt_classes) & (iou > MATCH_IOU)
    return one_to_one(torch.where(allowed, iou, 0))


def one_to_one(values: torch.Tensor) -> torch.Tensor:
    """Greedy matching, the largest first, of equal ones that of the lowest row, then of the lowest column.

    A pair that is the best of its row and of its column is the next of these that the greedy order meets:
    all such pairs are taken at once, and a few rounds are enough.

    Args:
        values: (D, G), not negative; pairs of 0 are never matched.

    Returns:
        (D,) int64, the column of each row, or -1.
    """
    left = values.clone()
    rows = torch.arange(len(left), device=left.device)
    matches = torch.full_like(rows, -1)
    while left.any():
        (value, column), row = left.max(dim=1), left.max(dim=0).indices
        taken = (row[column] == rows) & (value > 0)
        matches[taken] = column[taken]
        left[taken] = 0
        left[:, column[taken]] = 0
    return matches


@torch.no_grad()
def panoptic_targets(
    labels: torch.Tensor, truth: Instances, matches: torch.Tensor, stuff: Sequence[int], stride: int = 4
) -> torch.Tensor:
    """The channel that each pixel of the logits should choose.

    Labels say what is stuff, a thing and void. A pixel of a thing belongs to the first instance of its class
    whose mask covers it. Both are read at the centres of the pixels of the logits.

    Args:
        labels: (H, W) labels of an image, things first, padded with void as the image is.
        truth: its G instances with ``gt_masks`` (without the padding) and ``gt_classes``.
        matches: (D,), see :func:`match_detections`.
        stuff: the N_st labels of the stuff channels, in their order.
        stride: of the logits, in pixels of the image.

    Returns:
        (H / stride, W / stride) int64: stuff channels are 0, 1, ..., that of detection k is N_st + k;
        :data:`IGNORED` where no channel is right.
    """
    labels = labels[stride // 2 :: stride, stride // 2 :: stride].long()
    channel = labels.new_full((max([255, *stuff]) + 1,), IGNORED)
    channel[list(stuff)] = torch.arange(len(stuff), device=labels.device)
    targets = channel[labels]
    if not len(truth):
        return targets
    of_instance = labels.new_full((len(truth),), IGNORED)
    matched = (matches >= 0).nonzero()[:, 0]
    of_instance[matches[matched]] = len(stuff) + matched
    masks = _masks(truth).to(labels.device)[:, stride // 2 :: stride, stride // 2 :: stride]
    height, width = labels.shape
    masks = F.pad(masks, (0, width - masks.shape[2], 0, height - masks.shape[1]))
    covers = masks & (labels == truth.gt_classes[:, None, None])
    covered, first = covers.byte().max(dim=0)
    return torch.where(covered.bool(), of_instance[first], targets)


def _masks(truth: Instances) -> torch.Tensor:
    """(G, H, W) bool."""
    masks = truth.gt_masks
    if isinstance(masks, PolygonMasks):
        masks = BitMasks.from_polygon_masks(masks, *truth.image_size)
    return masks.tensor


def panoptic_loss(
    logits: Sequence[torch.Tensor], targets: Sequence[torch.Tensor], kind: str = "cross_entropy"
) -> torch.Tensor:
    """The loss of a batch of images, each with channels of its own.

    Args:
        logits: for each image (N_st + D, h, w).
        targets: for each image (h, w), see :func:`panoptic_targets`.
        kind: "cross_entropy", the mean over the batch's pixels that count; or "lovasz_softmax", the mean over
            the images that have such pixels.

    Returns:
        scalar; 0 with a graph where no pixel counts.

    Raises:
        ValueError: unknown ``kind``.
    """
    one_of("panoptic_loss: kind", kind, KINDS)
    counts = torch.stack([(target != IGNORED).sum() for target in targets])
    pairs = zip(logits, targets, strict=True)
    if kind == "cross_entropy":
        losses = [F.cross_entropy(x[None], y[None], ignore_index=IGNORED, reduction="sum") for x, y in pairs]
        return torch.stack(losses).sum() / counts.sum().clamp(min=1)
    losses = [lovasz_softmax(x.flatten(1).softmax(dim=0).t(), y.flatten(), IGNORED) for x, y in pairs]
    return torch.stack(losses).sum() / (counts > 0).sum().clamp(min=1)
