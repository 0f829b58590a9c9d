"""What all panoptic metrics need to know of one image: how its true and predicted segments overlap."""

from __future__ import annotations

import dataclasses
import operator

import numpy as np

from ..errors import UserError

VOID = 0


def _where(sparse: np.ndarray) -> np.ndarray:
    """``np.flatnonzero`` of a flag array (n,) with few set; looks at eight flags at a time."""
    packed = np.packbits(sparse, bitorder="little")
    groups = np.flatnonzero(packed.astype(bool))
    flags = np.flatnonzero(np.unpackbits(packed[groups], bitorder="little").view(bool))
    return (groups[flags >> 3] << 3) + (flags & 7)


def count_pairs(gt: np.ndarray, pred: np.ndarray) -> list[tuple[int, int, int]]:
    """Distinct (true id, predicted id, pixels) of two maps (H, W) of ids, in ascending order.

    Pixels are compared as runs: a run of equal pairs counts once with its length, which needs neither files
    nor dense ids.

    Raises:
        UserError: a negative id.
    """
    gt, pred = gt.ravel(), pred.ravel()
    if gt.size == 0:
        return []
    change = gt[1:] != gt[:-1]
    np.logical_or(change, pred[1:] != pred[:-1], out=change)
    ends = np.append(_where(change), gt.size - 1)
    lengths = np.diff(ends, prepend=-1)
    true_ids, predicted_ids = gt.take(ends).astype(np.int64), pred.take(ends).astype(np.int64)
    for whose, ids in (("true", true_ids), ("predicted", predicted_ids)):
        if ids.min() < 0:
            raise UserError(f"the {whose} map has negative ids; void is 0.")
    base = int(predicted_ids.max()) + 1
    keys = true_ids * base + predicted_ids
    bits = gt.size.bit_length()
    if (int(true_ids.max()) + 1) * base < 1 << (63 - bits):  # key and length fit into one number
        keys = keys << bits | lengths
        keys.sort()
        lengths = keys & ((1 << bits) - 1)
        keys >>= bits
    else:
        order = np.argsort(keys)
        keys, lengths = keys[order], lengths[order]
    starts = np.concatenate(([0], np.flatnonzero(keys[1:] != keys[:-1]) + 1))
    pixels = np.add.reduceat(lengths, starts)
    return [(*divmod(key, base), n) for key, n in zip(keys[starts].tolist(), pixels.tolist(), strict=True)]


def _by_id(segments: list, whose: str) -> dict:
    found = {}
    for segment in segments:
        try:
            segment_id, category = operator.index(segment["id"]), operator.index(segment["category_id"])
        except (KeyError, TypeError):
            what = " ".join(f"a {whose} segment is {segment!r}".split())
            raise UserError(f"{what}; expected integers as 'id' and 'category_id' (data set ids).") from None
        if segment.get("iscrowd") not in (None, 0, 1):
            raise UserError(f"{whose} segment {segment_id} has iscrowd {segment['iscrowd']!r}; write 0 or 1.")
        if category is not segment["category_id"]:  # of numpy or torch
            segment = {**segment, "category_id": category}
        if segment_id == VOID:
            raise UserError(f"a {whose} segment has id 0, which marks void pixels; number segments from 1.")
        if segment_id in found:
            raise UserError(f"two {whose} segments have the id {segment_id}; give every segment its own.")
        found[segment_id] = segment
    return found


@dataclasses.dataclass(frozen=True, slots=True)
class Overlap:
    """Pixel counts of the pairs of segments of one image.

    Attributes:
        pairs: list of (true id, predicted id, pixels), 0 is void; pairs that do not touch are absent.
        truth: {id: {"id", "category_id", "iscrowd"}}, the true segments.
        predicted: {id: {"id", "category_id"}}, the predicted segments that have pixels.
        areas: {id: pixels} of the predicted segments.
        true_areas: {id: pixels} of all ids in the true map, void too; whatever the records say.
    """

    pairs: list
    truth: dict
    predicted: dict
    areas: dict
    true_areas: dict

    @classmethod
    def of(cls, pred, pred_segments: list, gt, gt_segments: list) -> Overlap:
        """Compare two maps.

        Args:
            pred, gt: (H, W) integer ids >= 0, 0 where void.
            pred_segments, gt_segments: their records; a predicted record without a pixel is left out.

        Raises:
            UserError: no integers, shapes differ, negative ids, id 0 in a record or an id used twice, or
                predicted ids without a record.
        """
        pred, gt = np.asarray(pred), np.asarray(gt)
        for whose, ids in (("predicted", pred), ("true", gt)):
            if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer):
                found = f"{ids.dtype} of shape {ids.shape}"
                raise UserError(f"the {whose} map must be (H, W) integers, got {found}.")
        if pred.shape != gt.shape:
            raise UserError(
                f"predicted map {pred.shape} and true map {gt.shape} differ in size (height, width); "
                "predict at the original resolution."
            )
        truth, predicted = _by_id(gt_segments, "true"), _by_id(pred_segments, "predicted")
        pairs = count_pairs(gt, pred)
        areas, true_areas = {}, {}
        for g, p, n in pairs:
            areas[p] = areas.get(p, 0) + n
            true_areas[g] = true_areas.get(g, 0) + n
        areas.pop(VOID, None)
        unlisted = sorted(areas.keys() - predicted.keys())
        if unlisted:
            raise UserError(f"the predicted map holds ids {unlisted[:5]} without a record in its segments.")
        return cls(pairs, truth, {p: s for p, s in predicted.items() if p in areas}, areas, true_areas)

    def matches(self) -> dict:
        """{(true id, predicted id): IoU} of the pairs of one class whose IoU exceeds 0.5, crowds left out."""
        on_void = self.on_void()
        found = {}
        for g, p, n in self.pairs:
            true, predicted = self.truth.get(g), self.predicted.get(p)
            if true is None or predicted is None or true["category_id"] != predicted["category_id"]:
                continue
            if true.get("iscrowd", 0):
                continue
            iou = n / (self.areas[p] + self.true_areas[g] - n - on_void.get(p, 0))
            if iou > 0.5:
                found[g, p] = iou
        return found

    def on_void(self) -> dict:
        """{id: pixels} of the predicted segments where the truth is void."""
        return {p: n for g, p, n in self.pairs if g == VOID}

    def small_stuff(self, stuff: set, area: int) -> set:
        """Ids of the predicted stuff (category ids) whose class covers fewer than ``area`` pixels."""
        covered = {}
        for p, segment in self.predicted.items():
            category = segment["category_id"]
            if category in stuff:
                covered[category] = covered.get(category, 0) + self.areas[p]
        return {p for p, s in self.predicted.items() if covered.get(s["category_id"], area) < area}

    def without(self, ids: set) -> Overlap:
        """The overlap after the predicted segments ``ids`` have become void."""
        if not ids:
            return self
        return dataclasses.replace(
            self,
            pairs=[(g, VOID if p in ids else p, n) for g, p, n in self.pairs],
            predicted={p: s for p, s in self.predicted.items() if p not in ids},
            areas={p: n for p, n in self.areas.items() if p not in ids},
        )
