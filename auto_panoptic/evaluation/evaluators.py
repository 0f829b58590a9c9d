"""Detectron2 evaluators: streaming panoptic quality, and the set that a config asks for."""

import inspect
import logging
import os
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import (
    COCOEvaluator,
    COCOPanopticEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    SemSegEvaluator,
)
from detectron2.utils import comm

from ..data import EVALUATOR_TYPE
from ..data.coco_format import read_panoptic
from ..data.register import read_panoptic_json, read_segments
from ..errors import UserError
from .classification import ClassificationEvaluator
from .panoptic_quality import PanopticQuality

logger = logging.getLogger(__name__)

METRICS = ("pq", "ap", "miou")


class PanopticQualityEvaluator(DatasetEvaluator):
    """Panoptic quality in memory, with the result keys of Detectron2's ``COCOPanopticEvaluator``.

    The ground truth is decoded once per image, predictions are never written, and each process keeps its
    counts only. Outputs of the model are not modified.

    Args:
        dataset_name: a registered data set with ``panoptic_json`` and ``panoptic_root``.
        output_dir: unused, as nothing is written; for symmetry with Detectron2's evaluators.
        distributed: whether to add the counts of all processes.
        per_image: keep what :meth:`PanopticQuality.bootstrap` needs.
        cache_ground_truth: keep decoded maps in memory (4 bytes per pixel), for repeated evaluations.

    Attributes:
        quality: the :class:`PanopticQuality`; after ``evaluate``, in the main process, of all images.
    """

    def __init__(
        self,
        dataset_name: str,
        output_dir: str | None = None,
        *,
        distributed: bool = True,
        per_image: bool = False,
        cache_ground_truth: bool = False,
    ):
        self._name = dataset_name
        self._distributed = distributed
        self._cache = {} if cache_ground_truth else None
        metadata = self._metadata = MetadataCatalog.get(dataset_name)
        for key in ("panoptic_json", "panoptic_root", "thing_dataset_id_to_contiguous_id"):
            if metadata.get(key, None) is None:
                raise UserError(
                    f"data set {dataset_name} has no {key} in its metadata; it cannot be scored by PQ."
                )
        if not os.path.isfile(metadata.panoptic_json):
            DatasetCatalog.get(dataset_name)  # makes or derives the files
        categories = read_panoptic_json(metadata.panoptic_json)["categories"]
        self._truth = read_segments(metadata.panoptic_json, {c["id"] for c in categories})
        self._things = {v: k for k, v in metadata.thing_dataset_id_to_contiguous_id.items()}
        stuff = metadata.get("stuff_dataset_id_to_contiguous_id", {})
        # Label 0 stands for "any thing" where the data set follows that convention; it is no category.
        known = {c["id"] for c in categories}
        self._stuff = {v: k for k, v in stuff.items() if k in known}
        self._categories, self._per_image = categories, per_image
        self.reset()

    def reset(self):
        self.quality = self._counts = PanopticQuality(self._categories, per_image=self._per_image)
        self._seen = set()

    def process(self, inputs, outputs):
        """Add a batch.

        Args:
            inputs: list of dicts with "image_id".
            outputs: list of dicts with "panoptic_seg": (tensor (H, W) of ids, segments_info); with
                segments_info None, ids are category * label_divisor + instance and -1 is void.
        """
        for entry, output in zip(inputs, outputs, strict=True):
            image_id = entry["image_id"]
            if image_id not in self._truth:
                raise UserError(
                    f"image {image_id} is not in {self._metadata.panoptic_json}; evaluate on {self._name}."
                )
            if image_id in self._seen:
                continue  # some samplers repeat images to fill the last batch
            self._seen.add(image_id)
            pred, segments = output["panoptic_seg"]
            pred = pred.cpu().numpy()
            if segments is None:
                segments = self._segments_from_ids(pred)
                pred = pred + 1
            try:
                segments = [self._with_dataset_id(segment) for segment in segments]
                gt_segments = self._truth[image_id][1]["segments_info"]
                self._counts.update(pred, segments, self._ground_truth(image_id), gt_segments, image_id)
            except UserError as error:
                raise UserError(f"data set {self._name}, image {image_id}: {error}") from error

    def _segments_from_ids(self, pred: np.ndarray) -> list:
        divisor = self._metadata.label_divisor
        labels = [label for label in np.unique(pred).tolist() if label != -1]
        return [
            {"id": label + 1, "category_id": label // divisor, "isthing": label // divisor in self._things}
            for label in labels
        ]

    def _with_dataset_id(self, segment: dict) -> dict:
        if segment.get("isthing") is None:  # already a data set id, as in Detectron2
            return {"id": segment["id"], "category_id": segment["category_id"]}
        kind, ids = ("thing", self._things) if segment["isthing"] else ("stuff", self._stuff)
        contiguous = int(segment["category_id"])
        if contiguous not in ids:
            raise UserError(f"predicted {kind} class {contiguous} does not exist; known are {sorted(ids)}.")
        return {"id": segment["id"], "category_id": ids[contiguous]}

    def _ground_truth(self, image_id) -> np.ndarray:
        if self._cache is not None and image_id in self._cache:
            return self._cache[image_id]
        ids = read_panoptic(os.path.join(self._metadata.panoptic_root, self._truth[image_id][1]["file_name"]))
        if self._cache is not None:
            self._cache[image_id] = ids
        return ids

    def evaluate(self):
        """Add up the processes.

        Returns:
            in the main process {"panoptic_seg": {"PQ", "SQ", ..., "RQ_st"}}, in percent, nan for
            a block without classes; None elsewhere.

        Raises:
            UserError: an image of the data set has no prediction.
        """
        seen = self._seen
        if self._distributed and comm.get_world_size() > 1:
            parts = comm.gather((self._counts, self._seen), dst=0)
            if not comm.is_main_process():
                return None
            self.quality = PanopticQuality(self._categories, per_image=self._per_image)
            for counts, _ in parts:
                self.quality.merge(counts)
            seen = set().union(*(images for _, images in parts))
        missing = sorted(set(self._truth) - seen)
        if missing:
            raise UserError(
                f"data set {self._name}: {len(missing)} of {len(self._truth)} images have no prediction, "
                f"e.g. {missing[:3]}; evaluate the whole data set."
            )
        if self.quality.num_images != len(self._truth):
            raise UserError(
                f"data set {self._name}: some images were evaluated by two processes; check the sampler."
            )
        results = {k: v for k, v in self.quality.compute().items() if k != "per_class"}
        return OrderedDict({"panoptic_seg": results})


def _coco_evaluator(dataset_name: str, tasks: tuple, output_dir: str | None) -> COCOEvaluator:
    kwargs = {"tasks": tasks, "distributed": True, "output_dir": output_dir}
    if "use_fast_impl" in inspect.signature(COCOEvaluator.__init__).parameters:
        kwargs["use_fast_impl"] = False  # the official implementation, in pure Python and numpy
    return COCOEvaluator(dataset_name, **kwargs)


def check_metrics(cfg, metrics: Sequence[str]) -> None:
    """Raise UserError for an unknown metric, or an unknown TEST.PANOPTIC_EVALUATOR."""
    unknown = sorted(set(metrics) - set(METRICS))
    if unknown or not metrics:
        raise UserError(f"TEST.METRICS: unknown {unknown}; choose from {', '.join(METRICS)}.")
    kind = cfg.TEST.PANOPTIC_EVALUATOR
    if kind not in ("streaming", "detectron2"):
        raise UserError(f"TEST.PANOPTIC_EVALUATOR is {kind!r}; choose 'streaming' or 'detectron2'.")


def build_evaluators(
    cfg,
    dataset_name: str,
    output_dir: str | None = None,
    metrics: Sequence[str] = METRICS,
    *,
    per_image: bool = False,
    cache_ground_truth: bool = False,
) -> DatasetEvaluators:
    """The evaluators of one data set; for one of classified images, top-1 and top-5 accuracy.

    Args:
        cfg: reads TEST.PANOPTIC_EVALUATOR ("streaming" or "detectron2") and MODEL.MASK_ON.
        dataset_name: a registered data set.
        output_dir: where Detectron2's evaluators write predictions; None writes none.
        metrics: any of "pq" (panoptic quality), "ap" (box and mask AP), "miou" (of the semantic head).
        per_image, cache_ground_truth: of :class:`PanopticQualityEvaluator`, for repeated evaluations and
            their noise; see :func:`panoptic_quality_of`.

    Raises:
        UserError: an unknown metric or evaluator.
    """
    check_metrics(cfg, metrics)
    if MetadataCatalog.get(dataset_name).get("evaluator_type", None) == EVALUATOR_TYPE:
        return DatasetEvaluators([ClassificationEvaluator(dataset_name)])
    DatasetCatalog.get(dataset_name)  # makes or derives the files that the evaluators read
    evaluators = []
    if "ap" in metrics:
        tasks = ("bbox", "segm") if cfg.MODEL.MASK_ON else ("bbox",)
        evaluators.append(_coco_evaluator(dataset_name, tasks, output_dir))
    if "miou" in metrics:
        evaluators.append(SemSegEvaluator(dataset_name, distributed=True, output_dir=output_dir))
    if "pq" in metrics:
        if cfg.TEST.PANOPTIC_EVALUATOR == "streaming":
            options = {"per_image": per_image, "cache_ground_truth": cache_ground_truth}
            evaluators.append(PanopticQualityEvaluator(dataset_name, output_dir, **options))
        else:
            evaluators.append(COCOPanopticEvaluator(dataset_name, output_dir))
    return DatasetEvaluators(evaluators)


def panoptic_quality_of(evaluators: DatasetEvaluators) -> PanopticQuality | None:
    """The counts behind a result, for its bootstrap; None without a streaming evaluator."""
    for evaluator in evaluators._evaluators:
        if isinstance(evaluator, PanopticQualityEvaluator):
            return evaluator.quality
    return None


def _cell(value) -> str:
    return "-" if value is None or not np.isfinite(value) else f"{value:.2f}"


def results_table(results: dict) -> str:
    """A readable table of what the evaluators returned.

    Args:
        results: {"panoptic_seg", "bbox", "segm", "sem_seg", "classification": {metric: value}}, or a part.

    Returns:
        Text of one or two tables; "-" where a value is missing or undefined.
    """
    from tabulate import tabulate

    parts = []
    panoptic = results.get("panoptic_seg")
    if panoptic:
        rows = [
            [block, *(_cell(panoptic.get(name + suffix)) for name in ("PQ", "SQ", "RQ"))]
            for block, suffix in (("all", ""), ("things", "_th"), ("stuff", "_st"))
        ]
        table = tabulate(
            rows,
            headers=["panoptic", "PQ", "SQ", "RQ"],
            tablefmt="pipe",
            stralign="right",
            disable_numparse=True,
        )
        parts.append(table)
    other = [("bbox", "AP", "box AP"), ("bbox", "AP50", "box AP50"), ("segm", "AP", "mask AP")]
    other += [("segm", "AP50", "mask AP50"), ("sem_seg", "mIoU", "mIoU")]
    other += [("classification", "top1", "top-1"), ("classification", "top5", "top-5")]
    present = [(title, _cell(results[task].get(key))) for task, key, title in other if results.get(task)]
    if present:
        titles, values = zip(*present, strict=True)
        parts.append(
            tabulate([values], headers=titles, tablefmt="pipe", stralign="right", disable_numparse=True)
        )
    return "\n\n".join(parts)
