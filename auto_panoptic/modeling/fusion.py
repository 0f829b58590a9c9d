"""Merging of the instance and the semantic branch into one panoptic map: three published procedures.

"detectron2" is Panoptic-FPN's, as Detectron2 implements it. "supplement" is the text of the paper's
supplement. "reference" is the reference code, which produced the paper's numbers and differs from that text.

Shape shorthand: N instances, K semantic classes (label 0 is any thing), H x W the size of the output.
"""

from functools import lru_cache

import numpy as np
import torch
from detectron2.modeling.meta_arch.panoptic_fpn import combine_semantic_and_instance_outputs
from detectron2.structures import Instances
from PIL import Image
from torch.nn import functional as F

__all__ = ["METHODS", "check_method", "combine", "semantic_labels"]

METHODS = ("detectron2", "supplement", "reference")


def check_method(method: str) -> None:
    """Raise a ValueError unless ``method`` is one of :data:`METHODS`."""
    if method not in METHODS:
        raise ValueError(f"merging method {method!r}: expected one of {', '.join(METHODS)}")


def combine(
    method: str,
    instances: Instances,
    semantic: torch.Tensor,
    *,
    overlap: float,
    stuff_area: float,
    score: float,
    high_score: float,
    instance_area: float,
) -> tuple[torch.Tensor, list[dict]]:
    """Merge one image's instances and semantic labels.

    All methods drop instances below ``score`` and empty masks, drop an instance if more than ``overlap`` of
    its mask is covered by the instances kept before it, let the earlier segment keep a pixel, and give stuff
    what the instances leave. They differ in the order and in what is too small:

    - "detectron2": best score first; stuff of fewer than ``stuff_area`` remaining pixels becomes void.
    - "reference": scores above ``high_score`` first, smallest mask first; then the others, best score first.
      Stuff as in "detectron2".
    - "supplement": coverage is judged best score first; what is left without masks of fewer than
      ``instance_area`` pixels is painted smallest mask first. Stuff of any size stays.

    Args:
        method: one of :data:`METHODS`.
        instances: N detections with ``scores``, ``pred_classes`` and ``pred_masks`` (N, H, W).
        semantic: (H, W) labels.
        overlap: share of a mask, in [0, 1].
        stuff_area: pixels.
        score: lowest score of an instance that counts.
        high_score: score above which "reference" sorts by area.
        instance_area: pixels.

    Returns:
        (H, W) int32 map of segment ids, 0 is void; and the segments by id 1, 2, ...: dicts with "id",
        "isthing", "category_id" and, as in Detectron2, "score" and "instance_id" or "area".

    Raises:
        ValueError: unknown method.
    """
    check_method(method)
    if method == "detectron2":
        return combine_semantic_and_instance_outputs(instances, semantic, overlap, stuff_area, score)

    masks = instances.pred_masks.to(dtype=torch.bool, device=semantic.device)
    scores = instances.scores.tolist()
    areas = [torch.count_nonzero(mask) for mask in masks]  # on a CPU far faster than a sum over two axes
    areas = torch.stack(areas).tolist() if areas else []
    ranked = sorted(range(len(scores)), key=lambda i: -scores[i])  # stable: equal scores keep their order
    ranked = [i for i in ranked if scores[i] >= score and areas[i] > 0]
    if method == "reference":
        high = [i for i in ranked if scores[i] > high_score]
        low = [i for i in ranked if scores[i] <= high_score]
        order = _uncovered(masks, areas, sorted(high, key=lambda i: areas[i]) + low, overlap)
    else:
        kept = [i for i in _uncovered(masks, areas, ranked, overlap) if areas[i] >= instance_area]
        order, stuff_area = sorted(kept, key=lambda i: areas[i]), 0
    panoptic = torch.zeros_like(semantic, dtype=torch.int32)
    segments = _paint(panoptic, masks, order, scores, instances.pred_classes.tolist())
    return add_stuff(panoptic, segments, semantic, stuff_area)


def semantic_labels(
    method: str, logits: torch.Tensor, image_size: tuple[int, int], resized: torch.Tensor
) -> torch.Tensor:
    """Semantic label of every pixel of the output.

    "detectron2" takes the best class of the resized logits. The others take the best class at the size of
    the network's input, then nearest neighbours: "reference" those of PIL, as the reference code does,
    "supplement" PyTorch's "nearest-exact". They differ only where a pixel lies halfway between two others.

    Args:
        method: one of :data:`METHODS`.
        logits: (K, h, w) of the padded network input.
        image_size: height and width of the network input without padding.
        resized: (K, H, W), the logits resized to the output.

    Returns:
        (H, W) int64.
    """
    if method == "detectron2":
        return _best_class(resized)
    labels = _best_class(logits[:, : image_size[0], : image_size[1]])
    if method == "reference":
        rows, columns = (
            _pil_nearest(source, target).to(labels.device)
            for source, target in zip(labels.shape, resized.shape[-2:], strict=True)
        )
        return labels[rows[:, None], columns]
    resized_labels = F.interpolate(labels[None, None].float(), size=resized.shape[-2:], mode="nearest-exact")
    return resized_labels[0, 0].long()


@lru_cache(maxsize=1024)
def _pil_nearest(source: int, target: int) -> torch.Tensor:
    """The pixel that PIL takes for each of ``target`` pixels of a row of ``source`` ones, (target,) int64."""
    row = Image.fromarray(np.arange(source, dtype=np.int32)[None])
    return torch.from_numpy(np.array(row.resize((target, 1), Image.Resampling.NEAREST))[0]).long()


def _best_class(logits: torch.Tensor) -> torch.Tensor:
    """``logits.argmax(dim=0)``, of equal logits the first; on a CPU three to seven times as fast."""
    return logits.max(dim=0).indices


def _uncovered(masks: torch.Tensor, areas: list[int], order: list[int], overlap: float) -> list[int]:
    """The instances of ``order`` of which at most ``overlap`` is covered by those kept before them."""
    kept = []
    used = torch.zeros_like(masks[0]) if order else None
    for i in order:
        if torch.count_nonzero(masks[i] & used).item() / areas[i] > overlap:
            continue
        used |= masks[i]
        kept.append(i)
    return kept


def _paint(
    panoptic: torch.Tensor, masks: torch.Tensor, order: list[int], scores: list[float], classes: list[int]
) -> list[dict]:
    """Give each instance of ``order`` the pixels that are left of its mask; return the segments."""
    free = torch.ones_like(panoptic, dtype=torch.bool)
    segments = []
    for i in order:
        region = masks[i] & free
        if not torch.count_nonzero(region):  # smaller masks may cover all of a large one
            continue
        free ^= region
        number = len(segments) + 1
        panoptic.add_(region, alpha=number)
        segments.append(
            {"id": number, "isthing": True, "score": scores[i], "category_id": classes[i], "instance_id": i}
        )
    return segments


def add_stuff(panoptic: torch.Tensor, segments: list[dict], semantic: torch.Tensor, stuff_area: float):
    """Give free pixels to their stuff classes, by ascending label, where ``stuff_area`` of them are left."""
    rest = torch.where(panoptic == 0, semantic, 0).long()
    counts = torch.bincount(rest.flatten()).tolist()
    ids = torch.zeros(len(counts), dtype=torch.int32)
    for label, area in enumerate(counts):
        if label == 0 or area < max(stuff_area, 1):
            continue
        ids[label] = len(segments) + 1
        segments.append({"id": len(segments) + 1, "isthing": False, "category_id": label, "area": area})
    return panoptic + ids.to(panoptic.device)[rest], segments
