"""Panoptic quality, computed image by image in memory, equal to panopticapi's ``pq_compute``.

The quantity (Kirillov et al., "Panoptic Segmentation"): predicted and true segments match if their classes
agree and their IoU exceeds 0.5; per class

    PQ = sum of matched IoU / (TP + FP / 2 + FN / 2) = SQ * RQ,

averaged over the classes that occur. Pixels are compared as runs: a run of equal (truth, prediction) pairs
counts once with its length, which needs no files and no dense ids.
"""

import numpy as np

from ..errors import UserError

VOID = 0
_TP, _FP, _FN, _IOU = range(4)
_BLOCKS = {"": "all", "_th": "things", "_st": "stuff"}


def _segment_ids(segments: list, whose: str) -> dict:
    found = {}
    for segment in segments:
        segment_id = int(segment["id"])
        if segment_id == VOID:
            raise UserError(f"a {whose} segment has id 0, which marks void pixels; number segments from 1.")
        if segment_id in found:
            raise UserError(f"two {whose} segments have the id {segment_id}; give every segment its own.")
        found[segment_id] = segment
    return found


def _count_pairs(gt: np.ndarray, pred: np.ndarray) -> tuple:
    """Distinct (truth, prediction) pairs of two maps (H, W) and their pixel counts.

    Returns:
        three int64 arrays (n,): truth ids, predicted ids, pixels; sorted by truth, then prediction.
    """
    gt, pred = gt.ravel(), pred.ravel()
    if gt.size == 0:
        return (np.zeros(0, np.int64),) * 3
    change = np.flatnonzero((gt[1:] != gt[:-1]) | (pred[1:] != pred[:-1])) + 1
    starts = np.concatenate(([0], change))
    lengths = np.diff(np.append(starts, gt.size))
    base = int(pred.max()) + 1
    keys = gt[starts].astype(np.int64) * base + pred[starts]
    keys, run_to_pair = np.unique(keys, return_inverse=True)
    pixels = np.bincount(run_to_pair.ravel(), weights=lengths, minlength=len(keys)).astype(np.int64)
    return keys // base, keys % base, pixels


class PanopticQuality:
    """Streaming panoptic quality: integer counts and IoU sums per class.

    Where panopticapi is well defined the result is the same. In particular: areas of predictions are counted,
    areas of the truth are taken from its records; the union leaves out predicted pixels on void; an unmatched
    prediction that lies by more than half on void or on a crowd of its class is no error; of several crowds
    of a class in one image, only the last one in the list counts. Where panopticapi stops with an exception:

    - a predicted record without a pixel is ignored;
    - ids in the predicted map without a record, unknown categories, id 0 or one id used twice: ``UserError``;
    - no class at all in a block (say, stuff in a data set of things): its values are ``nan``.

    Args:
        categories: COCO-panoptic category dicts ("id", "isthing").
        per_image: also keep each image's contributions (a few numbers), for :meth:`bootstrap`.
    """

    def __init__(self, categories: list, per_image: bool = False):
        self.categories = [{"id": int(c["id"]), "isthing": int(bool(c["isthing"]))} for c in categories]
        self._index = {c["id"]: i for i, c in enumerate(self.categories)}
        if len(self._index) != len(self.categories):
            raise UserError("category ids are not unique; panoptic quality needs one id per class.")
        self.per_image = per_image
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self.num_images = 0
        self._totals = np.zeros(
            (len(self.categories), 4)
        )  # columns TP, FP, FN (whole numbers) and sum of IoU
        self._images = []  # per image (key, classes (n,), contributions (n, 4))

    def update(self, pred, pred_segments: list, gt, gt_segments: list, image_id=None) -> None:
        """Add one image.

        Args:
            pred: (H, W) integer ids >= 0 of predicted segments, 0 where void.
            pred_segments: list of {"id", "category_id"}.
            gt: (H, W) integer ids >= 0 of the true segments.
            gt_segments: list of {"id", "category_id", "iscrowd", "area"}; "area" is counted if absent.
            image_id: orders the images for :meth:`bootstrap`; by default they stay in order of arrival.

        Raises:
            UserError: shapes differ, or ids that the records or the categories do not know.
        """
        pred, gt = self._check_map(pred, "predicted"), self._check_map(gt, "true")
        if pred.shape != gt.shape:
            raise UserError(
                f"predicted map {pred.shape} and true map {gt.shape} differ in size (height, width); "
                "predict at the original resolution."
            )
        gt_by_id = _segment_ids(gt_segments, "true")
        pred_by_id = _segment_ids(pred_segments, "predicted")
        for whose, by_id in (("true", gt_by_id), ("predicted", pred_by_id)):
            for segment in by_id.values():
                if segment["category_id"] not in self._index:
                    raise UserError(
                        f"a {whose} segment has category_id {segment['category_id']!r}; known are "
                        f"{sorted(self._index)[:8]}... (data set ids, not contiguous ones)."
                    )
        rows = self._match(_count_pairs(gt, pred), gt_by_id, pred_by_id)
        self.num_images += 1
        for i, row in rows.items():
            self._totals[i] += row
        if self.per_image:
            key = len(self._images) if image_id is None else image_id
            self._images.append(
                (key, np.array(list(rows), np.int32), np.array(list(rows.values())).reshape(-1, 4))
            )

    @staticmethod
    def _check_map(ids, whose: str) -> np.ndarray:
        ids = np.asarray(ids)
        if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer):
            raise UserError(f"the {whose} map must be (H, W) integers, got {ids.dtype} of shape {ids.shape}.")
        if ids.size and ids.min() < 0:
            raise UserError(f"the {whose} map has negative ids; void is 0.")
        return ids

    def _match(self, pairs: tuple, gt_by_id: dict, pred_by_id: dict) -> dict:
        """Contributions [TP, FP, FN, IoU] of one image, by class index."""
        rows = {}

        def row(category_id) -> list:
            return rows.setdefault(self._index[category_id], [0, 0, 0, 0.0])

        triples = list(zip(*(array.tolist() for array in pairs), strict=True))
        pred_area, gt_area, on_void = {}, {}, {}
        for g, p, n in triples:
            pred_area[p] = pred_area.get(p, 0) + n
            gt_area[g] = gt_area.get(g, 0) + n
            if g == VOID:
                on_void[p] = n
        unlisted = sorted(set(pred_area) - set(pred_by_id) - {VOID})
        if unlisted:
            raise UserError(f"the predicted map holds ids {unlisted[:5]} without a record in its segments.")

        matched_gt, matched_pred, on_crowd = set(), set(), {}
        # The last crowd of a class wins, as in panopticapi.
        crowds = {s["category_id"]: i for i, s in gt_by_id.items() if s.get("iscrowd", 0)}
        for g, p, n in triples:
            if g not in gt_by_id or p not in pred_by_id:
                continue
            category = gt_by_id[g]["category_id"]
            if category != pred_by_id[p]["category_id"]:
                continue
            if gt_by_id[g].get("iscrowd", 0):
                if crowds[category] == g:
                    on_crowd[p] = n
                continue
            union = pred_area[p] + gt_by_id[g].get("area", gt_area[g]) - n - on_void.get(p, 0)
            if union == 0:
                raise UserError(f"the area of true segment {g} is wrong in its record; recount it.")
            iou = n / union
            if iou > 0.5:
                counts = row(category)
                counts[_TP] += 1
                counts[_IOU] += iou
                matched_gt.add(g)
                matched_pred.add(p)
        for g, segment in gt_by_id.items():
            if g not in matched_gt and not segment.get("iscrowd", 0):
                row(segment["category_id"])[_FN] += 1
        for p, segment in pred_by_id.items():
            if p in pred_area and p not in matched_pred:
                ignored = on_void.get(p, 0) + on_crowd.get(p, 0)
                if ignored / pred_area[p] <= 0.5:
                    row(segment["category_id"])[_FP] += 1
        return rows

    def merge(self, other: "PanopticQuality") -> "PanopticQuality":
        """Add the images of ``other`` (say, from another process); returns self.

        Raises:
            UserError: different categories, or only one of the two keeps images.
        """
        if self.categories != other.categories or self.per_image != other.per_image:
            raise UserError("cannot merge panoptic qualities of different categories or per_image settings.")
        self.num_images += other.num_images
        self._totals += other._totals
        self._images += other._images
        return self

    def compute(self) -> dict:
        """Panoptic quality of all images so far.

        Returns:
            {"PQ", "SQ", "RQ"} over all classes, "..._th" over things, "..._st" over stuff, in percent,
            ``nan`` where no class occurs; "per_class": {category id: {"PQ", "SQ", "RQ" in percent (0 if the
            class does not occur), "TP", "FP", "FN"}}.
        """
        pq, sq, rq = self._per_class(self._totals)
        occurs = self._totals[:, :3].sum(1) > 0
        results = {}
        for suffix, block in _BLOCKS.items():
            chosen = occurs & self._members(block)
            for name, values in (("PQ", pq), ("SQ", sq), ("RQ", rq)):
                results[name + suffix] = float(100 * values[chosen].mean()) if chosen.any() else float("nan")
        results["per_class"] = {
            c["id"]: {
                "PQ": float(100 * pq[i]),
                "SQ": float(100 * sq[i]),
                "RQ": float(100 * rq[i]),
                "TP": int(self._totals[i, _TP]),
                "FP": int(self._totals[i, _FP]),
                "FN": int(self._totals[i, _FN]),
            }
            for i, c in enumerate(self.categories)
        }
        return results

    def _members(self, block: str) -> np.ndarray:
        things = np.array([c["isthing"] for c in self.categories], dtype=bool)
        return {"all": np.ones_like(things), "things": things, "stuff": ~things}[block]

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

        Args:
            n: number of samples.
            seed: of the draws.

        Returns:
            {"PQ", "PQ_th", "PQ_st"}: arrays (n,) in percent, nan where no class of the block was drawn.

        Raises:
            UserError: made without ``per_image=True``, or no image yet.
        """
        if not self.per_image or not self._images:
            raise UserError(
                "bootstrap needs PanopticQuality(categories, per_image=True) and at least one image."
            )
        images = sorted(self._images, key=lambda entry: str(entry[0]))
        table = np.zeros((len(images), len(self.categories), 4))
        for i, (_, classes, contributions) in enumerate(images):
            table[i, classes] = contributions
        rng = np.random.default_rng(seed)
        draws = rng.multinomial(len(images), np.full(len(images), 1 / len(images)), size=n)
        totals = (draws @ table.reshape(len(images), -1)).reshape(n, -1, 4)
        pq = self._per_class(totals)[0]
        occurs = totals[..., :3].sum(-1) > 0
        samples = {}
        for suffix, block in _BLOCKS.items():
            chosen = occurs & self._members(block)
            count = chosen.sum(1)
            total = np.where(chosen, pq, 0).sum(1)
            samples["PQ" + suffix] = 100 * np.where(count > 0, total / np.maximum(count, 1), np.nan)
        return samples

    def bootstrap(self, n: int = 1000, seed: int = 0, confidence: float = 0.95) -> dict:
        """Sampling noise of PQ over images.

        Args:
            n, seed: as in :meth:`bootstrap_samples`.
            confidence: level of the percentile interval.

        Returns:
            {"PQ", "PQ_th", "PQ_st"}: {"std" (standard error), "low", "high"}, in percent.
        """
        tail = 50 * (1 - confidence)
        results = {}
        for name, values in self.bootstrap_samples(n, seed).items():
            values = values[~np.isnan(values)]
            if len(values) < 2:
                results[name] = {"std": float("nan"), "low": float("nan"), "high": float("nan")}
                continue
            low, high = np.percentile(values, [tail, 100 - tail])
            results[name] = {"std": float(values.std(ddof=1)), "low": float(low), "high": float(high)}
        return results
