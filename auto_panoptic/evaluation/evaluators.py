"""The evaluators that a config asks for."""

import inspect
from collections.abc import Sequence
from pathlib import PurePath

from detectron2.data import DatasetCatalog
from detectron2.evaluation import (
    COCOEvaluator,
    COCOPanopticEvaluator,
    DatasetEvaluators,
    SemSegEvaluator,
)
from detectron2.utils import comm

from ..data import data_set_for, holds_classes
from ..errors import UserError
from .classification import ClassificationEvaluator
from .panoptic_evaluator import PanopticQualityEvaluator
from .panoptic_quality import PanopticQuality

METRICS = ("pq", "ap", "miou")


def _coco_evaluator(
    dataset_name: str, tasks: tuple, output_dir: str | None, distributed: bool
) -> COCOEvaluator:
    kwargs = {"tasks": tasks, "distributed": distributed, "output_dir": output_dir}
    if "use_fast_impl" in inspect.signature(COCOEvaluator.__init__).parameters:
        kwargs["use_fast_impl"] = False  # the official implementation, in pure Python and numpy
    return COCOEvaluator(dataset_name, **kwargs)


def check_metrics(cfg, metrics: Sequence[str]) -> None:
    """Raise UserError for an unknown metric, or settings of TEST that do not fit together."""
    unknown = sorted(set(metrics) - set(METRICS))
    if unknown or not metrics:
        raise UserError(f"TEST.METRICS: unknown {unknown}; choose from {', '.join(METRICS)}.")
    kind = cfg.TEST.PANOPTIC_EVALUATOR
    if kind not in ("streaming", "detectron2"):
        raise UserError(f"TEST.PANOPTIC_EVALUATOR is {kind!r}; choose 'streaming' or 'detectron2'.")
    if cfg.TEST.STUFF_AREA < 0:
        raise UserError(f"TEST.STUFF_AREA is {cfg.TEST.STUFF_AREA}; expected pixels, 0 trims nothing.")
    if cfg.TEST.STUFF_AREA and kind != "streaming":
        raise UserError(
            f"TEST.STUFF_AREA is {cfg.TEST.STUFF_AREA}, but TEST.PANOPTIC_EVALUATOR {kind!r} trims nothing; "
            "choose 'streaming', or set TEST.STUFF_AREA 0."
        )


def _check_names(dataset_name: str, records: Sequence[dict]) -> None:
    """Detectron2's evaluator names the PNG of a prediction after the image, without its folder."""
    files = {}
    for record in records:
        file = record["file_name"]
        other = files.setdefault(PurePath(file).stem, file)
        if other != file:
            raise UserError(
                f"data set {dataset_name}: {other} and {file} would be one file for TEST.PANOPTIC_EVALUATOR "
                "'detectron2', which names images without folder and suffix; choose 'streaming'."
            )


def build_evaluators(
    cfg,
    dataset_name: str,
    output_dir: str | None = None,
    metrics: Sequence[str] = METRICS,
    distributed: bool = True,
    **options,
) -> DatasetEvaluators:
    """The evaluators of one data set; for one of classified images, top-1 and top-5 accuracy.

    Args:
        cfg: reads TEST.PANOPTIC_EVALUATOR ("streaming" or "detectron2"), TEST.STUFF_AREA, MODEL.MASK_ON.
        dataset_name: a registered data set.
        output_dir: where evaluators write predictions; None writes none.
        metrics: any of "pq" (panoptic quality), "ap" (box and mask AP), "miou" (of the semantic head).
        distributed: whether the images are dealt out to the processes of the run.
        options: ``per_image``, ``cache_ground_truth``, ``details``, ``trim_areas``, ``save_predictions`` of
            :class:`PanopticQualityEvaluator`; Detectron2's evaluator knows none of them.

    Raises:
        UserError: an unknown metric or evaluator, or names of images that Detectron2's evaluator confuses.
    """
    check_metrics(cfg, metrics)
    given, dataset_name = dataset_name, data_set_for(cfg, dataset_name)
    if holds_classes(dataset_name):
        return DatasetEvaluators([ClassificationEvaluator(dataset_name, distributed=distributed)])
    records = DatasetCatalog.get(dataset_name)  # makes or derives the files that the evaluators read
    evaluators = []
    if "ap" in metrics:
        tasks = ("bbox", "segm") if cfg.MODEL.MASK_ON else ("bbox",)
        evaluators.append(_coco_evaluator(dataset_name, tasks, output_dir, distributed))
    if "miou" in metrics:
        evaluators.append(SemSegEvaluator(dataset_name, distributed, output_dir))
    if "pq" in metrics:
        if cfg.TEST.PANOPTIC_EVALUATOR == "streaming":
            options |= {"stuff_area": cfg.TEST.STUFF_AREA, "saved_as": given, "distributed": distributed}
            evaluators.append(PanopticQualityEvaluator(dataset_name, output_dir, **options))
        else:
            if not distributed and comm.get_world_size() > 1:
                raise UserError(
                    "TEST.PANOPTIC_EVALUATOR 'detectron2' adds up the predictions of all processes; choose "
                    "'streaming' where each scores candidates of its own"
                )
            _check_names(dataset_name, records)
            evaluators.append(COCOPanopticEvaluator(dataset_name, output_dir))
    return (DatasetEvaluators if distributed else _OwnEvaluators)(evaluators)


class _OwnEvaluators(DatasetEvaluators):
    """Evaluators of one process, whatever others do: Detectron2 has results in the main process only."""

    def evaluate(self) -> dict:
        results = {}
        for evaluator in self._evaluators:
            results |= evaluator.evaluate()
        return results


def panoptic_evaluator_of(evaluators: DatasetEvaluators) -> PanopticQualityEvaluator | None:
    """The streaming evaluator among ``evaluators``, or None."""
    found = (e for e in evaluators._evaluators if isinstance(e, PanopticQualityEvaluator))
    return next(found, None)


def panoptic_quality_of(evaluators: DatasetEvaluators) -> PanopticQuality | None:
    """The counts behind a result, for its bootstrap; None without a streaming evaluator."""
    evaluator = panoptic_evaluator_of(evaluators)
    return None if evaluator is None else evaluator.quality
