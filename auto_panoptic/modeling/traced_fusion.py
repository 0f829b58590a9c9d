"""Merging of instances and stuff in operators that TorchScript and ONNX store, for any image.

:func:`merged` gives the maps of :func:`.fusion.combine`. What depends on the order of the instances is a
loop; it is scripted while a model is traced, and so stays a loop in the stored network.

Shape shorthand: N instances, best score first; K semantic classes; H x W pixels; S segments.
"""

import torch
from torch.nn import functional as F

from .fusion import check_method

__all__ = ["counts_of", "merged", "numbered"]


@torch.jit.script_if_tracing
def _pasted(masks: torch.Tensor, boxes: torch.Tensor, canvas: torch.Tensor) -> torch.Tensor:
    """(N, M, M) probabilities, (N, 4) boxes in pixels -> (N, H, W) bool, one after the other.

    The numbers of Detectron2's ``paste_masks_in_image``; ``canvas``, (H, W), tells the size.
    """
    rows = torch.arange(canvas.shape[0], device=boxes.device).to(boxes.dtype) + 0.5
    columns = torch.arange(canvas.shape[1], device=boxes.device).to(boxes.dtype) + 0.5
    found = [torch.zeros_like(canvas, dtype=torch.bool)[None]]  # a list in ONNX must not be empty
    for k in range(masks.shape[0]):
        box = boxes[k]
        y = (rows - box[1]) / (box[3] - box[1]) * 2 - 1
        x = (columns - box[0]) / (box[2] - box[0]) * 2 - 1
        zeros = torch.zeros_like(canvas, dtype=boxes.dtype)
        grid = torch.stack([zeros + x, zeros + y[:, None]], dim=2)
        sampled = F.grid_sample(masks[k][None, None], grid[None], align_corners=False)[0]
        found.append(sampled >= 0.5)
    return torch.cat(found)[1:]


@torch.jit.script_if_tracing
def _uncovered(
    masks: torch.Tensor, areas: torch.Tensor, order: torch.Tensor, valid: torch.Tensor, overlap: float
) -> torch.Tensor:
    """(N, H, W), (N,), (N,), (N,) -> (N,) bool, for the instances in ``order``: whether they are kept.

    Kept are valid ones of which at most ``overlap`` is covered by those kept before.
    """
    places = torch.arange(order.shape[0], device=order.device)
    used = torch.zeros_like(masks.any(dim=0))
    kept = torch.zeros_like(valid)
    for k in range(order.shape[0]):
        mask = masks[order[k]]
        covered = (mask & used).to(torch.int64).sum().to(torch.float64)
        keep = valid[order[k]] & (covered <= overlap * areas[order[k]].to(torch.float64))
        used = used | (mask & keep)
        kept = kept | ((places == k) & keep)
    return kept


@torch.jit.script_if_tracing
def _painted(
    masks: torch.Tensor, order: torch.Tensor, kept: torch.Tensor, canvas: torch.Tensor, empty: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Give each kept instance of ``order`` the pixels that are left of its mask.

    ``empty``: it is a segment even if none is left. Returns the (H, W) map of the ids 1, 2, ..., and
    (N,) bool, in ``order``: which are segments.
    """
    places = torch.arange(order.shape[0], device=order.device)
    painted = torch.zeros_like(canvas, dtype=torch.int64)
    drawn = torch.zeros_like(kept)
    number = torch.zeros_like(order.sum())
    for k in range(order.shape[0]):
        region = masks[order[k]] & (painted == 0) & kept[k]
        draw = kept[k] if empty else region.any()
        number = number + draw.to(torch.int64)
        painted = torch.where(region, number, painted)
        drawn = drawn | ((places == k) & draw)
    return painted, drawn


def counts_of(numbers: torch.Tensor, most: int, weights: torch.Tensor | None = None) -> torch.Tensor:
    """How often each of 0 .. ``most`` - 1 occurs in an int64 tensor of any shape, (most,) int64."""
    weights = torch.ones_like(numbers) if weights is None else weights.long()
    zeros = torch.zeros(most, dtype=torch.int64, device=numbers.device)
    return zeros.scatter_add(0, numbers.flatten(), weights.flatten())


def numbered(present: torch.Tensor) -> torch.Tensor:
    """(n,) bool -> (n,) int64: 1, 2, ... for those that are present, 0 for the others."""
    return torch.cumsum(present.long(), 0) * present.long()


def merged(
    method: str,
    boxes: torch.Tensor,
    masks: torch.Tensor,
    scores: torch.Tensor,
    classes: torch.Tensor,
    labels: torch.Tensor,
    num_labels: int,
    *,
    overlap: float,
    stuff_area: float,
    score: float,
    high_score: float,
    instance_area: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`.fusion.combine` of one image whose output has the size of the network's input.

    Args:
        method, overlap, stuff_area, score, high_score, instance_area: as there.
        boxes: (N, 4) in pixels, none of them empty.
        masks: (N, 1, M, M) probabilities within the boxes.
        scores, classes: (N,).
        labels: (H, W) int64 semantic labels, 0 is any thing.
        num_labels: K.

    Returns:
        (H, W) int32 map of segment ids, 0 is void; and (S, 3) int64, for each segment its id, "category_id"
        and "isthing" as there.
    """
    check_method(method)
    scores = scores.double()  # thresholds have more digits than scores
    full = _pasted(masks[:, 0], boxes, labels)
    areas = full.flatten(1).long().sum(dim=1)
    rank = torch.arange(scores.shape[0], device=scores.device)
    valid = (scores >= score) & (areas > 0)
    by_area = areas * (scores.shape[0] + 1) + rank  # of equally large ones the better comes first
    judged = rank
    if method == "reference":
        last = (labels.shape[0] * labels.shape[1] + 1) * (scores.shape[0] + 1)
        judged = torch.argsort(torch.where(scores > high_score, by_area, rank + last))
    kept = _uncovered(full, areas, judged, valid, overlap)
    order = judged
    if method == "supplement":
        order = torch.argsort(by_area)
        kept = (kept & (areas >= instance_area))[order]
        stuff_area = 0
    things, drawn = _painted(full, order, kept, labels, method == "detectron2")
    table = classes[order][drawn]

    counts = counts_of(labels, num_labels, things == 0)
    real = torch.arange(num_labels, device=labels.device) > 0
    present = real & (counts >= max(stuff_area, 1))
    ids = numbered(present) + (table.shape[0] * present.long())
    panoptic = torch.where(things == 0, ids[labels], things)
    stuff = torch.nonzero(present)[:, 0]
    categories = torch.cat([table, stuff])
    is_thing = torch.cat([torch.ones_like(table), torch.zeros_like(stuff)])
    numbers = torch.cumsum(torch.ones_like(categories), 0)
    return panoptic.int(), torch.stack([numbers, categories, is_thing], dim=1)
