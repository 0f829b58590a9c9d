"""From panoptic logits, or from masks and semantic labels, to one map of segments.

Shape shorthand: K classes, of which the first T are things; C panoptic channels: K - T of stuff, then one per
detection; h x w the size of the logits, H x W that of the output.
"""

from collections.abc import Mapping

import torch
from detectron2.modeling.postprocessing import sem_seg_postprocess
from detectron2.structures import Instances
from torch.nn import functional as F

from auto_panoptic.modeling.fusion import combine, semantic_labels
from auto_panoptic.modeling.traced_fusion import counts_of, merged, numbered

__all__ = ["best_channels", "heuristic_map", "panoptic_map", "traced_heuristic_map", "traced_map"]

# Values that are resized at a time: 128 MiB in float32.
_VALUES = 1 << 25


def best_channels(
    logits: torch.Tensor, stride: int, image_size: tuple[int, int], size: tuple[int, int]
) -> torch.Tensor:
    """The channel of the highest logit for every pixel of the output; of equal ones the first.

    Args:
        logits: (C, h, w) with C > 0, for the padded input.
        stride: of the logits.
        image_size: height and width of the input without padding.
        size: (H, W).

    Returns:
        (H, W) int64.
    """
    channels, h, w = logits.shape
    step = max(1, _VALUES // max(h * w * stride**2, size[0] * size[1]))
    best = highest = None
    for start in range(0, channels, step):
        part = F.interpolate(
            logits[None, start : start + step], scale_factor=stride, mode="bilinear", align_corners=False
        )
        values, indices = sem_seg_postprocess(part[0], image_size, *size).max(dim=0)
        indices += start
        if best is not None:
            kept = highest >= values
            values, indices = torch.where(kept, highest, values), torch.where(kept, best, indices)
        best, highest = indices, values
    return best


def panoptic_map(
    channels: torch.Tensor, things: int, classes: int, detections: Instances, numbers: list[int]
) -> tuple[torch.Tensor, list[dict]]:
    """Every channel that is the best of some pixel becomes a segment; no pixel is void.

    Args:
        channels: (H, W) best channels.
        things: T.
        classes: K.
        detections: those of the channels after stuff, with "scores" and "pred_classes".
        numbers: of each detection among all of the image, its "instance_id".

    Returns:
        (H, W) int32 map of the ids 1, 2, ...; and the segments: dicts with "id", "isthing", "category_id"
        (contiguous id of a thing, label of stuff) and, as in Detectron2, "score" and "instance_id" or "area".
    """
    stuff = classes - things
    areas = torch.bincount(channels.flatten(), minlength=stuff + len(numbers)).tolist()
    scores, labels = detections.scores.tolist(), detections.pred_classes.tolist()
    ids, segments = torch.zeros(len(areas), dtype=torch.int32), []
    for channel, area in enumerate(areas):
        if not area:
            continue
        ids[channel] = len(segments) + 1
        segment = {"id": len(segments) + 1, "isthing": channel >= stuff}
        if channel < stuff:
            segment |= {"category_id": things + channel, "area": area}
        else:
            k = channel - stuff
            segment |= {"score": scores[k], "category_id": labels[k], "instance_id": numbers[k]}
        segments.append(segment)
    return ids.to(channels.device)[channels], segments


def heuristic_map(
    instances: Instances,
    logits: torch.Tensor,
    image_size: tuple[int, int],
    resized: torch.Tensor,
    things: int,
    *,
    method: str,
    **options,
) -> tuple[torch.Tensor, list[dict]]:
    """Merge masks and semantic labels as :func:`auto_panoptic.modeling.fusion.combine` does.

    Args:
        instances: with "pred_masks" (N, H, W).
        logits, image_size, resized: see :func:`auto_panoptic.modeling.fusion.semantic_labels`.
        things: T.
        method, options: of :func:`combine`.

    Returns:
        As :func:`panoptic_map`.
    """
    labels = semantic_labels(method, logits, image_size, resized)
    panoptic, segments = combine(method, instances, (labels - things + 1).clamp(min=0), **options)
    for segment in segments:
        if not segment["isthing"]:
            segment["category_id"] += things - 1
    return panoptic, segments


def traced_map(
    logits: torch.Tensor,
    stride: int,
    size: tuple[int, int],
    things: int,
    classes: int,
    detected: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`panoptic_map` at the size of the input, in operators that TorchScript and ONNX store.

    Args:
        logits, stride: as there; of all channels together, where there the memory is bounded.
        size: (H, W), that of the input without padding.
        things, classes: T and K.
        detected: (D,) classes of the detections.

    Returns:
        (H, W) int32 map; and (S, 3) int64, for each segment its id, "category_id" and "isthing".
    """
    resized = F.interpolate(logits[None], scale_factor=stride, mode="bilinear", align_corners=False)[0]
    channels = resized[:, : size[0], : size[1]].max(dim=0).indices
    stuff = torch.arange(things, classes, device=detected.device)
    categories = torch.cat([stuff, detected])
    is_thing = torch.cat([torch.zeros_like(stuff), torch.ones_like(detected)])
    ids = numbered(counts_of(channels, categories.shape[0]) > 0)
    segments = torch.stack([ids, categories, is_thing], dim=1)[ids > 0]
    return ids[channels].int(), segments


def traced_heuristic_map(
    found: Mapping[str, torch.Tensor], logits: torch.Tensor, things: int, *, method: str, **options
) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`heuristic_map` at the size of the input, in operators that TorchScript and ONNX store.

    Args:
        found: fields of the detections.
        logits: (K, H, W) of the input without padding.
        things, method, options: as there.

    Returns:
        As :func:`traced_map`.
    """
    labels = (logits.max(dim=0).indices - things + 1).clamp(min=0)
    parts = (found[name] for name in ("pred_boxes", "pred_masks", "scores", "pred_classes"))
    panoptic, segments = merged(method, *parts, labels, logits.shape[0] - things + 1, **options)
    numbers, categories, is_thing = segments.unbind(1)
    return panoptic, torch.stack([numbers, categories + (1 - is_thing) * (things - 1), is_thing], dim=1)
