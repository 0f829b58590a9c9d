"""Things taken for stuff and the reverse by the semantic head, and its IoU over each of the two."""

from __future__ import annotations

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import SemSegEvaluator

from ..data.labels import THINGS_LABEL
from ..errors import UserError


def thing_labels(name: str) -> list[int]:
    """The labels of the semantic head that stand for things in a registered data set.

    Raises:
        UserError: its label maps, if there are any, do not hold both things and stuff.
    """
    metadata = MetadataCatalog.get(name)
    things = metadata.get("thing_dataset_id_to_contiguous_id", None)
    classes = list(metadata.get("stuff_classes", None) or [])
    if things is None or classes in ([], ["things"]):
        raise UserError(
            f"--confusion needs label maps of things and stuff, which data set {name} does not have; name a "
            "panoptic data set in DATASETS.TEST, or leave --confusion out"
        )
    return [THINGS_LABEL] if classes[0] == "things" else sorted(things.values())


class ConfusionEvaluator(SemSegEvaluator):
    """Detectron2's evaluator of the semantic head, which also tells things from stuff.

    Its results are those of Detectron2, and

    - in "sem_seg" ``mIoU_th`` and ``mIoU_st``, the mean IoU over labels of things and of stuff, as ``mIoU``
      is over all (supplement, Table E); for things only where each has a label of its own;
    - "confusion": percent of the pixels of true things (``th_th``, ``th_st``) and of true stuff (``st_th``,
      ``st_st``) that the head labels as things and as stuff; void pixels are ignored (supplement, Table B).

    All are nan where the truth has no such pixel.

    Args:
        dataset_name, distributed, output_dir: as for :class:`SemSegEvaluator`.

    Raises:
        UserError: as :func:`thing_labels`.
    """

    def __init__(self, dataset_name: str, distributed: bool = True, output_dir: str | None = None):
        super().__init__(dataset_name, distributed, output_dir)
        self.things = thing_labels(dataset_name)

    def evaluate(self) -> dict | None:
        """Results of all processes in the main one, None in the others."""
        results = super().evaluate()
        if results is not None:
            counts = self._conf_matrix[:-1, :-1].T  # void left out; Detectron2's rows are the predictions
            groups = mean_iou(counts, self.things)
            if self._class_names[0] == "things":
                del groups["mIoU_th"]
            results["sem_seg"].update(groups)
            results["confusion"] = thing_stuff_confusion(counts, self.things)
        return results


def thing_stuff_confusion(counts: np.ndarray, things: list[int]) -> dict[str, float]:
    """Percent of the pixels of true things and true stuff by what they are labelled as.

    Args:
        counts: (K, K) pixels by true and predicted label.
        things: the labels of things; the others are stuff.

    Returns:
        {"th_th", "th_st", "st_th", "st_st"}: the truth comes first; nan where it has no pixel.
    """
    isthing = np.isin(np.arange(len(counts)), things)
    found = {}
    for true, rows in (("th", isthing), ("st", ~isthing)):
        pixels = counts[rows].sum()
        for predicted, columns in (("th", isthing), ("st", ~isthing)):
            part = counts[np.ix_(rows, columns)].sum()
            found[f"{true}_{predicted}"] = float(100 * part / pixels) if pixels else float("nan")
    return found


def mean_iou(counts: np.ndarray, things: list[int]) -> dict[str, float]:
    """Mean IoU over the labels of things and of stuff, in percent.

    As in Detectron2, a label that is predicted but not true somewhere counts as 0.

    Args:
        counts, things: as for :func:`thing_stuff_confusion`.

    Returns:
        {"mIoU_th", "mIoU_st"}: nan where no label of a kind is true or predicted.
    """
    right, true, predicted = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)
    union = true + predicted - right
    isthing = np.isin(np.arange(len(counts)), things)
    found = {}
    for kind, chosen in (("th", isthing & (union > 0)), ("st", ~isthing & (union > 0))):
        iou = 100 * right[chosen] / union[chosen]
        found[f"mIoU_{kind}"] = float(iou.mean()) if len(iou) else float("nan")
    return found
