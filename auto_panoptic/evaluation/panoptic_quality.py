"""Panoptic quality, computed image by image in memory, equal to panopticapi's ``pq_compute``.

The quantity (Kirillov et al., "Panoptic Segmentation"): predicted and true segments match if their classes
agree and their IoU exceeds 0.5; per class

    PQ = sum of matched IoU / (TP + FP / 2 + FN / 2) = SQ * RQ,

averaged over the classes that occur.
"""

from __future__ import annotations

import numpy as np

from ..errors import UserError
from .bootstrap import multinomial_draws, percentile_interval, poisson_draws, resampled_totals
from .overlap import Overlap

_TP, _FP, _FN, _IOU = range(4)
_BLOCK = 32  # images that the intervals add at once


class PanopticQuality:
    """Streaming panoptic quality: integer counts and IoU sums per class.

    Where panopticapi is well defined the result is the same. In particular: areas are counted, whatever the
    records say (panopticapi takes the true ones from them); the union leaves out predicted pixels on void; an
    unmatched prediction that lies by more than half on void or on a crowd of its class is no error; of
    several crowds of a class in one image, only the last one in the list counts. Where panopticapi stops with
    an exception:

    - a predicted record without a pixel is ignored;
    - ids in the predicted map without a record, unknown categories, id 0 or one id used twice: ``UserError``;
    - no class at all in a block (say, stuff in a data set of things): its values are ``nan``.

    Args:
        categories: COCO-panoptic category dicts ("id", "isthing").

    Each image's contributions, a few hundred bytes, are kept for the noise of the result.
    """

    def __init__(self, categories: list):
        if not all({"id", "isthing"} <= set(c) for c in categories):
            raise UserError("every category needs 'id' and 'isthing' (1 for things, 0 for stuff).")
        self.categories = [{"id": int(c["id"]), "isthing": int(bool(c["isthing"]))} for c in categories]
        self._index = {c["id"]: i for i, c in enumerate(self.categories)}
        if len(self._index) != len(self.categories):
            raise UserError("category ids are not unique; panoptic quality needs one id per class.")
        things = np.array([c["isthing"] for c in self.categories], dtype=bool)
        self._blocks = {"": np.ones_like(things), "_th": things, "_st": ~things}
        self.num_images = 0
        self._totals = np.zeros((len(self.categories), 4))  # columns: TP, FP, FN (whole numbers), sum of IoU
        self._images = []  # per image (key, classes (n,), contributions (n, 4))

    def update(self, pred, pred_segments: list, gt, gt_segments: list, image_id=None) -> None:
        """Add one image.

        Args:
            pred: (H, W) integer ids >= 0 of predicted segments, 0 where void.
            pred_segments: list of {"id", "category_id"}.
            gt: (H, W) integer ids >= 0 of the true segments.
            gt_segments: list of {"id", "category_id", "iscrowd" (0 if absent)}; other keys are not read.
            image_id: tells the images apart in :meth:`intervals`; by default their number by order of
                arrival, which parts to be merged must not rely on.

        Raises:
            UserError: shapes differ, or ids that the records or the categories do not know.
        """
        self.add(Overlap.of(pred, pred_segments, gt, gt_segments), image_id)

    def add(self, overlap: Overlap, image_id=None) -> float:
        """Add one image that :class:`Overlap` has compared; otherwise as :meth:`update`.

        Returns:
            its quality in percent, all segments taken as of one class; nan where it has none.
        """
        for whose, by_id in (("true", overlap.truth), ("predicted", overlap.predicted)):
            for segment in by_id.values():
                if segment["category_id"] not in self._index:
                    raise UserError(
                        f"a {whose} segment has category_id {segment['category_id']!r}; known are "
                        f"{sorted(self._index)[:8]}... (data set ids, not contiguous ones)."
                    )
        rows = self._match(overlap)
        key = self.num_images if image_id is None else image_id
        self.num_images += 1
        for i, row in rows.items():
            self._totals[i] += row
        contributions = np.array(list(rows.values())).reshape(-1, 4)
        self._images.append((key, np.array(list(rows), np.int32), contributions))
        tp, fp, fn, iou = contributions.sum(0).tolist()
        counted = tp + fp / 2 + fn / 2
        return 100 * iou / counted if counted else float("nan")

    def _match(self, overlap: Overlap) -> dict:
        """Contributions [TP, FP, FN, IoU] of one image, by class index."""
        rows = {}

        def row(category_id) -> list:
            return rows.setdefault(self._index[category_id], [0, 0, 0, 0.0])

        on_void, on_crowd = overlap.on_void(), {}
        # The last crowd of a class wins, as in panopticapi.
        crowds = {s["category_id"]: g for g, s in overlap.truth.items() if s.get("iscrowd", 0)}
        for g, p, n in overlap.pairs if crowds else ():
            predicted = overlap.predicted.get(p)
            if predicted is not None and crowds.get(predicted["category_id"]) == g:
                on_crowd[p] = n
        matches = overlap.matches()
        for (g, _), iou in matches.items():
            counts = row(overlap.truth[g]["category_id"])
            counts[_TP] += 1
            counts[_IOU] += iou
        matched_gt, matched_pred = {g for g, _ in matches}, {p for _, p in matches}
        for g, segment in overlap.truth.items():
            if g not in matched_gt and not segment.get("iscrowd", 0):
                row(segment["category_id"])[_FN] += 1
        for p, segment in overlap.predicted.items():
            if p not in matched_pred:
                ignored = on_void.get(p, 0) + on_crowd.get(p, 0)
                if ignored / overlap.areas[p] <= 0.5:
                    row(segment["category_id"])[_FP] += 1
        return rows

    def merge(self, other: PanopticQuality) -> PanopticQuality:
        """Add the images of ``other`` (say, from another process); returns self.

        Raises:
            UserError: different categories.
        """
        if self.categories != other.categories:
            raise UserError("cannot merge panoptic qualities with different categories.")
        self.num_images += other.num_images
        self._totals += other._totals
        self._images += other._images
        return self

    @property
    def image_ids(self) -> set:
        """Of the images so far."""
        return {key for key, _, _ in self._images}

    def record(self) -> dict:
        """What JSON can hold and :meth:`of_record` reads: the categories and each image's contributions."""
        images = [[key, classes.tolist(), rows.tolist()] for key, classes, rows in self._images]
        return {"categories": self.categories, "images": images}

    @classmethod
    def of_record(cls, record: dict) -> PanopticQuality:
        """The object whose :meth:`record` this is."""
        made = cls(record["categories"])
        for key, classes, rows in record["images"]:
            classes, rows = np.array(classes, np.int32), np.array(rows, float).reshape(-1, 4)
            made._totals[classes] += rows
            made._images.append((key, classes, rows))
        made.num_images = len(made._images)
        return made

    def compute(self) -> dict:
        """Panoptic quality of all images so far.

        Returns:
            {"PQ", "SQ", "RQ"} over all classes, "..._th" over things, "..._st" over stuff, in percent,
            ``nan`` where no class occurs; "per_class": {category id: {"PQ", "SQ", "RQ" in percent (0 if the
            class does not occur), "TP", "FP", "FN"}}.
        """
        qualities = dict(zip(("PQ", "SQ", "RQ"), self._per_class(self._totals), strict=True))
        occurs = self._totals[:, :3].sum(1) > 0
        results = {}
        for suffix, block in self._blocks.items():
            chosen = occurs & block
            for name, values in qualities.items():
                results[name + suffix] = float(100 * values[chosen].mean()) if chosen.any() else float("nan")
        results["per_class"] = {
            c["id"]: {
                **{name: float(100 * values[i]) for name, values in qualities.items()},
                **dict(zip(("TP", "FP", "FN"), map(int, self._totals[i, :3]), strict=True)),
            }
            for i, c in enumerate(self.categories)
        }
        return results

    @staticmethod
    def _per_class(totals: np.ndarray) -> tuple:
        """PQ, SQ, RQ in [0, 1] of counts (..., 4); 0 where the class does not occur."""
        tp, fp, fn, iou = np.moveaxis(totals, -1, 0)
        denominator = tp + 0.5 * fp + 0.5 * fn
        safe = np.where(denominator > 0, denominator, 1)
        return iou / safe, iou / np.where(tp > 0, tp, 1), tp / safe

    def bootstrap_samples(self, n: int = 1000, seed: int = 0) -> dict:
        """PQ of ``n`` data sets drawn from the images with replacement.

        Two objects with the same images (same ``image_id``) and the same seed are resampled alike, so that
        the difference of their samples is the noise of their comparison.

        Returns:
            {"PQ", "PQ_th", "PQ_st"}: arrays (n,) in percent, nan where no class of the block was drawn.

        Raises:
            UserError: no image yet.
        """
        if not self._images:
            raise UserError("a bootstrap needs at least one image.")
        images = sorted(self._images, key=lambda entry: str(entry[0]))
        draws = multinomial_draws(images, n, seed)
        return self._samples(resampled_totals(images, len(self.categories), draws, len(images)))

    def _samples(self, totals: np.ndarray) -> dict:
        """PQ in percent, (n,) per block, of counts (n, C, 4)."""
        pq = self._per_class(totals)[0]
        occurs = totals[..., :3].sum(-1) > 0
        samples = {}
        for suffix, block in self._blocks.items():
            chosen = occurs & block
            count = chosen.sum(1)
            total = np.where(chosen, pq, 0).sum(1)
            samples["PQ" + suffix] = 100 * np.where(count > 0, total / np.maximum(count, 1), np.nan)
        return samples

    def intervals(self, n: int = 1000, confidence: float = 0.95) -> dict:
        """Sampling noise of PQ over images; draws depend on the image alone: alike in every evaluation.

        Returns:
            {"PQ", "PQ_th", "PQ_st"}: {"std" (standard error), "low", "high"} at ``confidence``, in percent.
        """
        images = [entry for entry in self._images if len(entry[1])]
        draws = poisson_draws([key for key, _, _ in images], n)
        samples = self._samples(resampled_totals(images, len(self.categories), draws, _BLOCK))
        return {name: percentile_interval(values, confidence) for name, values in samples.items()}
