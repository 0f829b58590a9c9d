"""What Panoptic-DeepLab learns of a panoptic map: labels, a heatmap of centres, and offsets to them.

The same values as Detectron2's ``PanopticDeepLabTargetGenerator`` gives with NumPy 2. That one goes through
the image several times for every segment; here the runs of equal pixels in the rows of the map are looked up
in tables of the segments. Shape shorthand: S segments, N instances, H x W pixels.
"""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import torch

from auto_panoptic.data.formats.panoptic_png import boxes_of, runs_of

__all__ = ["TargetGenerator"]


class TargetGenerator:
    """Makes the targets of one image."""

    def __init__(
        self,
        ignore_label: int,
        things: Collection[int],
        sigma: int = 8,
        ignore_stuff_in_offset: bool = False,
        small_instance_area: int = 0,
        small_instance_weight: int = 1,
        ignore_crowd_in_semantic: bool = False,
    ):
        """
        Args:
            ignore_label: of pixels without a segment.
            things: the labels of things.
            sigma: of the Gaussian of a centre, in pixels; it ends after three of them.
            ignore_stuff_in_offset: offsets are learnt on things only; else those of stuff are 0.
            small_instance_area, small_instance_weight: in the semantic loss the pixels of things with fewer
                pixels than the first have the second as weight; all others 1.
            ignore_crowd_in_semantic: crowds have the label to ignore.
        """
        self.ignore_label = ignore_label
        self.things = np.array(sorted(things), dtype=np.int64)
        self.ignore_stuff_in_offset = ignore_stuff_in_offset
        self.small_instance_area = small_instance_area
        self.small_instance_weight = small_instance_weight
        self.ignore_crowd_in_semantic = ignore_crowd_in_semantic
        self.reach = 3 * sigma + 1
        distance = np.arange(-self.reach, self.reach + 1, dtype=float)
        squares = distance**2 + distance[:, None] ** 2
        self.gaussian = np.exp(-squares / (2 * sigma**2)).astype(np.float32)

    def __call__(
        self,
        panoptic: np.ndarray,
        segments_info: Sequence[Mapping],
        instances: Sequence[tuple[np.ndarray, bool]] | None = None,
    ) -> dict:
        """
        Args:
            panoptic: (H, W) ids, 0 or more.
            segments_info: S dicts with "id", "category_id" (the label) and, where it is one, "iscrowd".
            instances: None, the things of the map; else N pairs of a bool mask (H, W) and whether it is a
                crowd, which may overlap. Centres and offsets are then of these (``GT_SOURCE`` "instance"):
                a centre is the mean of its whole mask, a pixel belongs to the last mask of the list that has
                it. Nothing of centres and offsets is learnt on things of the map outside all masks.

        Returns:
            dict of "sem_seg" (H, W) int64, "center" (H, W) from 0 to 1, "center_points" list of (y, x) in
            pixels, "offset" (2, H, W) in pixels, y and x; and float weights of the losses, "sem_seg_weights"
            (H, W), "center_weights" and "offset_weights" (1, H, W). Crowds have a centre and offsets of
            weight 0, as in Detectron2.
        """
        labels = np.array([self.ignore_label, *(s["category_id"] for s in segments_info)], dtype=np.int64)
        crowd = np.array([True, *(bool(s.get("iscrowd", False)) for s in segments_info)])
        thing = np.isin(labels, self.things)
        thing[0] = False
        runs = _Runs(panoptic, [segment["id"] for segment in segments_info])
        area, centers = runs.areas(), runs.centers()
        small = np.where(thing & (area < self.small_instance_area), self.small_instance_weight, 1)
        semantic = np.where(crowd, self.ignore_label, labels) if self.ignore_crowd_in_semantic else labels
        has_center, learnt = thing & (area > 0), ~crowd
        offset_learnt = learnt & (thing | (not self.ignore_stuff_in_offset))
        if instances is None:
            offset = runs.offsets(centers, has_center)
            weights = [runs.spread(table.astype(np.float32)) for table in (learnt, offset_learnt)]
        else:
            owner, centers, has_center = _painted(instances, panoptic.shape)
            painted = _Runs(owner, range(1, len(instances) + 1))
            offset = painted.offsets(centers, has_center)
            clear = np.array([False, *(not is_crowd for _, is_crowd in instances)])
            weights = [
                np.where(owner, painted.spread(clear), runs.spread(table & ~thing)).astype(np.float32)
                for table in (learnt, offset_learnt)
            ]
        points = centers[has_center]
        return {
            "sem_seg": torch.from_numpy(runs.spread(semantic)),
            "center": torch.from_numpy(self._heatmap(points, panoptic.shape)),
            "center_points": points.tolist(),
            "offset": torch.from_numpy(offset),
            "sem_seg_weights": torch.from_numpy(runs.spread(small.astype(np.float32))),
            "center_weights": torch.from_numpy(weights[0][None]),
            "offset_weights": torch.from_numpy(weights[1][None]),
        }

    def _heatmap(self, points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """(H, W) float32: of the Gaussians around the points, rounded to pixels, the highest."""
        heatmap, reach = np.zeros(size, dtype=np.float32), self.reach
        for y, x in points.round().astype(int).tolist():  # halves to the even neighbour, as Python rounds
            top, left = max(y - reach, 0), max(x - reach, 0)
            part = heatmap[top : y + reach + 1, left : x + reach + 1]
            gaussian = self.gaussian[top - y + reach :, left - x + reach :]
            np.maximum(part, gaussian[: part.shape[0], : part.shape[1]], out=part)
        return heatmap


class _Runs:
    """The runs of a map (H, W), each with a number: 1 + the position of its id in a list, or 0.

    Arrays of the whole image are what takes the time, the fresh memory of them more than the arithmetic:
    there are none but those that are returned.
    """

    def __init__(self, ids: np.ndarray, listed: Sequence[int]):
        self.ids, self.listed = ids, listed
        self.runs = runs_of(ids)
        self.starts, self.lengths, values, which = self.runs
        position = {segment_id: number for number, segment_id in enumerate(listed, start=1)}
        self.numbers = np.array([position.get(value, 0) for value in values.tolist()], dtype=int)[which]

    def spread(self, table: np.ndarray) -> np.ndarray:
        """(H, W) of a table by number."""
        return np.repeat(table[self.numbers], self.lengths).reshape(self.ids.shape)

    def areas(self) -> np.ndarray:
        """(count,) pixels of each number."""
        return np.bincount(self.numbers, self.lengths, len(self.listed) + 1)

    def centers(self) -> np.ndarray:
        """(count, 2) mean y and x of its pixels, in exact sums."""
        y, left = np.divmod(self.starts, self.ids.shape[1])
        x = left + (self.lengths - 1) / 2
        sums = [np.bincount(self.numbers, at * self.lengths, len(self.listed) + 1) for at in (y, x)]
        return np.stack(sums, axis=1) / np.maximum(self.areas(), 1)[:, None]

    def offsets(self, centers: np.ndarray, has_center: np.ndarray) -> np.ndarray:
        """(2, H, W) float32 from each pixel to the centre of its number, 0 where that has none."""
        offset = np.zeros((2, *self.ids.shape), dtype=np.float32)
        boxes = boxes_of(self.ids, self.runs)
        for number in np.flatnonzero(has_center).tolist():
            segment_id = self.listed[number - 1]
            if segment_id not in boxes:
                continue  # an instance behind others
            left, top, width, height = boxes[segment_id]
            window = slice(top, top + height), slice(left, left + width)
            mask, (y, x) = self.ids[window] == segment_id, centers[number]
            down, across = y - np.arange(top, top + height), x - np.arange(left, left + width)
            np.copyto(offset[0][window], down.astype(np.float32)[:, None], where=mask)
            np.copyto(offset[1][window], across.astype(np.float32), where=mask)
        return offset


def _painted(
    instances: Sequence[tuple[np.ndarray, bool]], size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(H, W) the last mask that has a pixel, 1 + its position, or 0; (N + 1, 2) centres; (N + 1) if any."""
    owner = np.zeros(size, dtype=np.intp)
    centers, seen = np.zeros((len(instances) + 1, 2)), np.zeros(len(instances) + 1, dtype=bool)
    for number, (mask, _) in enumerate(instances, start=1):
        y, x = mask.nonzero()
        if len(y):
            owner[y, x], seen[number] = number, True
            centers[number] = y.mean(), x.mean()
    return owner, centers, seen
