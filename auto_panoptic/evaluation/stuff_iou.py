"""IoU of stuff, computed from final panoptic maps."""

from __future__ import annotations

import numpy as np

from .overlap import VOID, Overlap


class StuffIoU:
    """Intersection over union per stuff class, accumulated over the pixels of all images.

    Segments of a class are merged. Void pixels of the truth are ignored; void predictions on a stuff class
    are misses. As in panoptic quality only id 0 is void: true pixels without a record, and things and crowds
    of things, belong to no stuff class, so stuff predicted there enlarges the union. A record of stuff with
    ``iscrowd`` counts like any other. The counts are integers: merging is exact.

    Args:
        categories: COCO-panoptic category dicts ("id", "isthing").
    """

    def __init__(self, categories: list):
        self.ids = [int(c["id"]) for c in categories if not c["isthing"]]
        self._index = {category: i for i, category in enumerate(self.ids)}
        self._counts = np.zeros((3, len(self.ids)), np.int64)  # rows: intersection, truth, prediction

    def add(self, overlap: Overlap) -> None:
        """Add one image."""
        true_class = {g: self._index.get(s["category_id"]) for g, s in overlap.truth.items()}
        predicted_class = {p: self._index.get(s["category_id"]) for p, s in overlap.predicted.items()}
        for g, p, n in overlap.pairs:
            if g == VOID:
                continue
            true, predicted = true_class.get(g), predicted_class.get(p)
            if true is not None:
                self._counts[1, true] += n
                if true == predicted:
                    self._counts[0, true] += n
            if predicted is not None:
                self._counts[2, predicted] += n

    def merge(self, other: StuffIoU) -> StuffIoU:
        """Add the images of ``other``, of the same categories; returns self."""
        self._counts += other._counts
        return self

    def compute(self) -> dict:
        """IoU of all images so far, in percent.

        Returns:
            {"IoU_st": mean over the stuff classes that occur in the truth (as mIoU in Detectron2's
            SemSegEvaluator), nan if none does; "per_class": {category id: IoU, nan if not in the truth}}.
        """
        intersection, true, predicted = self._counts
        occurs = true > 0
        iou = np.full(len(self.ids), np.nan)
        iou[occurs] = 100 * intersection[occurs] / (true + predicted - intersection)[occurs]
        mean = float(iou[occurs].mean()) if occurs.any() else float("nan")
        return {"IoU_st": mean, "per_class": dict(zip(self.ids, iou.tolist(), strict=True))}
