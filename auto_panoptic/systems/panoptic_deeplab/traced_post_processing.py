"""Grouping of pixels in operators that TorchScript and ONNX store, for any image.

The maps of :func:`.post_processing.panoptic_segmentation`. Shape shorthand: K centres, S segments, C classes,
H x W pixels.
"""

from collections.abc import Collection

import torch

from auto_panoptic.modeling.traced_fusion import counts_of, numbered

from .post_processing import highest

__all__ = ["traced_segmentation"]


@torch.jit.script_if_tracing
def _grouped(centers: torch.Tensor, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """(K, 2) centres, (P,) places -> (P,) int64: 1 + the index of the nearest centre, 0 without centres."""
    nearest = torch.zeros_like(y, dtype=torch.int64)
    lowest = torch.full_like(y, float("inf"))
    for k in range(centers.shape[0]):
        dy, dx = centers[k, 0] - y, centers[k, 1] - x
        distance = torch.sqrt(dy * dy + dx * dx)
        nearer = distance < lowest
        lowest = torch.where(nearer, distance, lowest)
        nearest = torch.where(nearer, k + 1, nearest)
    return nearest


def traced_segmentation(
    semantic: torch.Tensor,
    heatmap: torch.Tensor,
    offsets: torch.Tensor,
    things: Collection[int],
    classes: int,
    *,
    stuff_area: int,
    threshold: float,
    nms_kernel: int,
    top_k: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`.post_processing.panoptic_segmentation` of an output that has the size of the input.

    Args:
        classes: C; the others as there.

    Returns:
        (H, W) int32 map of the ids 1..S, 0 where void; and (S, 3) int64, for each segment its id,
        "category_id" and "isthing".
    """
    scores = torch.where(heatmap > threshold, heatmap, -1.0)
    found = highest(scores, nms_kernel)
    # The k-th highest of the centres, below all if there are fewer.
    candidates = torch.where(found, scores[0], -1.0).flatten()
    padded = torch.cat([candidates, torch.full((top_k,), -1.0, device=candidates.device)])
    found = found & (scores[0] > padded.topk(top_k).values[-1])
    centers = torch.nonzero(found)

    is_thing = torch.zeros(classes, dtype=torch.bool, device=semantic.device)
    is_thing[list(things)] = True
    pixels = torch.nonzero(is_thing[semantic])
    moved = pixels.float() + offsets.float()[:, pixels[:, 0], pixels[:, 1]].t()
    places = pixels[:, 0] * semantic.shape[1] + pixels[:, 1]
    nearest = _grouped(centers.float(), *moved.unbind(1))
    groups = torch.zeros_like(semantic).flatten().scatter(0, places, nearest).view(semantic.shape)

    counts = counts_of(groups * classes + semantic, (centers.shape[0] + 1) * classes).view(-1, classes)
    ids = numbered(counts[1:].sum(dim=1) > 0)
    categories = counts[1:].argmax(dim=1)
    present = (counts[0] >= max(stuff_area, 1)) & ~is_thing
    stuff = torch.nonzero(present)[:, 0]
    number = (ids > 0).long().sum()
    stuff_ids = numbered(present) + number * present.long()
    table = torch.cat([stuff_ids[None], ids[:, None].expand(-1, classes)])
    categories = torch.cat([categories[ids > 0], stuff])
    numbers = torch.cumsum(torch.ones_like(categories), 0)
    segments = torch.stack([numbers, categories, (numbers <= number).long()], dim=1)
    return table[groups, semantic].int(), segments
