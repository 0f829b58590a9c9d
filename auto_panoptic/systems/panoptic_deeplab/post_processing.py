"""From centres, offsets and semantic labels to one map of segments, and to instances with scores.

The same numbers as the functions of ``detectron2.projects.panoptic_deeplab.post_processing``, in less time
and memory. Shape shorthand: K centres, S segments, N of them things, C classes, H x W pixels of the output.
"""

from collections.abc import Collection

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from torch.nn import functional as F

__all__ = ["find_centers", "group_pixels", "instances_of", "panoptic_segmentation"]

_CHUNK = 1 << 14  # pixels at a time: what belongs to them stays in the cache of a core
_DISTANCES = 1 << 24  # at a time on an accelerator: 64 MiB each for y, x and their norm


def find_centers(
    heatmap: torch.Tensor, threshold: float = 0.1, nms_kernel: int = 7, top_k: int | None = 200
) -> torch.Tensor:
    """Pixels above ``threshold`` that are the highest of their neighbourhood.

    Args:
        heatmap: (1, H, W) raw output of the centre head.
        threshold: lowest score, exclusive; below 0 it acts as 0.
        nms_kernel: odd side of the neighbourhood, in pixels. Equal highest pixels are all centres.
        top_k: keep those that score *more* than the k-th, as Detectron2 does: k - 1 of k and more different
            scores, and none of those that equal the k-th. Fewer than k stay as they are. None keeps all.

    Returns:
        (K, 2) int64, y and x, row by row.
    """
    scores = F.threshold(heatmap, threshold, -1)
    found = highest(scores, nms_kernel)
    if top_k is not None:
        candidates = scores[0][found]
        if len(candidates) >= top_k:
            found &= scores[0] > candidates.topk(top_k).values[-1]
    return found.nonzero()


def highest(scores: torch.Tensor, nms_kernel: int) -> torch.Tensor:
    """(1, H, W) -> (H, W) bool: positive and the highest within ``nms_kernel`` pixels."""
    border = (nms_kernel - 1) // 2
    around = F.max_pool2d(scores[None], (nms_kernel, 1), 1, (border, 0))
    around = F.max_pool2d(around, (1, nms_kernel), 1, (0, border))
    return ((scores == around[0]) & (scores > 0))[0]


@torch.no_grad()
def group_pixels(
    centers: torch.Tensor, offsets: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """The centre that is nearest to where each pixel points, by the distance in float32.

    Args:
        centers: (K, 2), y and x.
        offsets: (2, H, W), from a pixel to its centre, y and x, in pixels.
        mask: (H, W), the pixels to group; None: all.

    Returns:
        (H, W) int64: 1 + the index of the centre, the lowest of equally near ones; 0 outside the mask, and
        everywhere without centres.
    """
    height, width = offsets.shape[1:]
    groups = torch.zeros(height * width, dtype=torch.int64, device=offsets.device)
    if not len(centers):
        return groups.view(height, width)
    if mask is None:
        pixels = torch.arange(height * width, device=offsets.device)
    else:
        pixels = mask.flatten().nonzero()[:, 0]
    # Detectron2 adds in the dtype of the offsets; a half cannot tell the pixels of a large image apart.
    y, x = offsets.flatten(1)[:, pixels].float()
    y += pixels // width
    x += pixels % width
    groups[pixels] = _nearest(centers.float(), y, x) + 1
    return groups.view(height, width)


def _nearest(centers: torch.Tensor, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """(P,) index of the centre that is nearest to each of P places (y, x)."""
    return (_running_minimum if y.device.type == "cpu" else _of_distances)(centers, y, x)


def _of_distances(centers: torch.Tensor, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """For accelerators: as Detectron2 has it, in memory too, so that both round alike; but in parts."""
    step = max(1, _DISTANCES // len(centers))
    parts = [
        torch.norm(centers[:, None] - torch.stack(place).T, dim=-1).argmin(dim=0)
        for place in zip(y.split(step), x.split(step), strict=True)
    ]
    return torch.cat(parts) if parts else y.long()


def _running_minimum(centers: torch.Tensor, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """For CPUs; in numpy, whose square root is rounded correctly, on which ties depend."""
    nearest = np.zeros(len(y), dtype=np.int64)
    for start in range(0, len(y), _CHUNK):
        ys, xs, best = (a[start : start + _CHUNK] for a in (y.numpy(), x.numpy(), nearest))
        dy, dx, lowest = np.empty_like(ys), np.empty_like(ys), np.full_like(ys, np.inf)
        nearer = np.empty(len(ys), dtype=bool)
        for k, (center_y, center_x) in enumerate(centers.numpy()):
            np.subtract(center_y, ys, out=dy)
            np.subtract(center_x, xs, out=dx)
            dy *= dy
            dx *= dx
            dy += dx
            np.sqrt(dy, out=dy)  # different squares may have one root: they tie
            np.less(dy, lowest, out=nearer)
            np.copyto(lowest, dy, where=nearer)
            np.copyto(best, k, where=nearer)
    return torch.from_numpy(nearest)


def panoptic_segmentation(
    semantic: torch.Tensor,
    heatmap: torch.Tensor,
    offsets: torch.Tensor,
    things: Collection[int],
    stuff_area: int = 2048,
    threshold: float = 0.1,
    nms_kernel: int = 7,
    top_k: int | None = 200,
) -> tuple[torch.Tensor, list[dict], torch.Tensor]:
    """Group the pixels of things; every group gets the label that most of its pixels have.

    Of equally frequent labels it gets the lowest. The segments are those of Detectron2's
    ``get_panoptic_segmentation``; stuff below ``stuff_area`` and things without any centre are void.

    Args:
        semantic: (H, W) int64 labels.
        heatmap: (1, H, W) raw output of the centre head.
        offsets: (2, H, W), see :func:`group_pixels`.
        things: the labels of things.
        stuff_area: fewest pixels of a class of stuff.
        threshold, nms_kernel, top_k: see :func:`find_centers`.

    Returns:
        - (H, W) int32 map of the ids 1..S, 0 where void.
        - The segments by id, things in the order of their centres, then stuff by label: dicts with "id",
          "isthing", "category_id" (the label), "area" (pixels); of things also "instance_id", 0..N-1, and
          "center", (y, x) in pixels.
        - (K, 2) the centres, also those without a pixel.
    """
    centers = find_centers(heatmap, threshold, nms_kernel, top_k)
    classes = max(int(semantic.max()), *things, 0) + 1 if semantic.numel() else 1
    is_thing = torch.zeros(classes, dtype=torch.bool, device=semantic.device)
    is_thing[list(things)] = True
    mask = is_thing[semantic]
    groups = group_pixels(centers, offsets, mask)
    # Pixels of every group and label; group 0 holds stuff, and things if there is no centre.
    counts = torch.bincount((groups * classes + semantic).flatten(), minlength=(len(centers) + 1) * classes)
    counts = counts.view(len(centers) + 1, classes).cpu().numpy()
    segment_of = np.zeros(counts.shape, dtype=np.int32)  # by group and label
    segments = []
    for group, (center, row) in enumerate(zip(centers.tolist(), counts[1:], strict=True), start=1):
        if row.any():
            segment = {"id": len(segments) + 1, "isthing": True, "category_id": int(row.argmax())}
            instance = {"instance_id": len(segments), "center": tuple(center)}
            segments.append(segment | {"area": int(row.sum())} | instance)
            segment_of[group] = segment["id"]
    for label, area in enumerate(counts[0].tolist()):
        if area and area >= stuff_area and not is_thing[label]:
            segments.append({"id": len(segments) + 1, "isthing": False, "category_id": label, "area": area})
            segment_of[0, label] = len(segments)
    table = torch.from_numpy(segment_of).to(semantic.device)
    return table[groups, semantic], segments, centers


def instances_of(
    panoptic: torch.Tensor,
    segments: list[dict],
    probabilities: torch.Tensor,
    heatmap: torch.Tensor,
    score: str = "product",
    objectness_at: str = "centroid",
) -> Instances:
    """The things of a panoptic map as instances, in their order (supplement, section 4).

    Args:
        panoptic, segments: of :func:`panoptic_segmentation`.
        probabilities: (C, H, W) of the labels.
        heatmap: (1, H, W) raw output of the centre head, whose values are no probabilities.
        score: "objectness", the heatmap at one pixel; "class", the mean probability of its label over the
            pixels of an instance; "product" of both.
        objectness_at: "centroid", the mean of its pixels, rounded down, as Detectron2 has it (there in
            float32, here exact); "center", the centre that they were grouped to, as the authors' later code.

    Returns:
        Instances of size (H, W): "pred_masks" (N, H, W) bool, "pred_boxes", "pred_classes" (N,) int64,
        "scores" (N,) float32.
    """
    device, (height, width) = panoptic.device, panoptic.shape
    things = [segment for segment in segments if segment["isthing"]]
    count = len(things)
    labels = torch.tensor([s["category_id"] for s in things], dtype=torch.int64, device=device)
    ids = torch.tensor([s["id"] for s in things], dtype=panoptic.dtype, device=device)
    of_id = torch.full((len(segments) + 1,), -1, device=device)
    of_id[ids.long()] = torch.arange(count, device=device)
    owner = of_id[panoptic.long()].flatten()
    pixels = (owner >= 0).nonzero()[:, 0]
    owner = owner[pixels]
    y, x = pixels // width, pixels % width

    def mean(values: torch.Tensor) -> torch.Tensor:
        return torch.bincount(owner, values.double(), count) / torch.bincount(owner, minlength=count)

    scores = torch.ones(count, device=device)
    if score != "objectness":
        scores = mean(probabilities.flatten(1)[labels[owner], pixels]).float()
    if score != "class":
        if objectness_at == "centroid":
            at = mean(y).long(), mean(x).long()
        else:
            at = torch.tensor([s["center"] for s in things], device=device).view(-1, 2).long().unbind(1)
        scores = scores * heatmap[0][at].float()
    low = torch.full((2, count), max(height, width), device=device)
    high = torch.zeros_like(low)
    for axis, place in enumerate((x, y)):
        low[axis].scatter_reduce_(0, owner, place, "amin")
        high[axis].scatter_reduce_(0, owner, place + 1, "amax")
    return Instances(
        (height, width),
        pred_masks=panoptic == ids[:, None, None],
        pred_boxes=Boxes(torch.cat([low, high]).T.float()),
        pred_classes=labels,
        scores=scores,
    )
