"""The evaluators of a data set: which ones follows from its type, TEST.METRICS and what the model gives."""

import contextlib
import importlib
import inspect
import io
import logging
from collections.abc import Sequence
from pathlib import PurePath

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import (
    COCOEvaluator,
    COCOPanopticEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    SemSegEvaluator,
)
from detectron2.utils import comm

from ..data import data_set_for
from ..data.formats.panoptic_json import read_panoptic_json, read_segments
from ..data.labels import CLASSIFIED, SEMANTIC
from ..errors import UserError, at_least, one_of
from ..screen import LOG_ONLY
from .classification import ClassificationEvaluator
from .confusion import ConfusionEvaluator
from .panoptic_evaluator import PanopticQualityEvaluator
from .panoptic_quality import PanopticQuality

METRICS = ("pq", "ap", "miou")
# ``evaluator_type`` in the metadata of a data set -> what can be computed on it; others have all METRICS.
_METRICS_OF = {CLASSIFIED: ("accuracy",), SEMANTIC: ("miou",), "coco": ("ap",)}
_OUTPUTS = {"ap": "instances", "miou": "sem_seg", "pq": "panoptic_seg", "accuracy": "logits"}


class Evaluators(DatasetEvaluators):
    """The evaluators of the data set ``name``, {"pq", "ap", "miou" or "accuracy": evaluator}.

    ``distributed``: the processes share the images; the main one alone has results. ``option`` named the
    metrics, for messages.
    """

    def __init__(self, name: str, by_metric: dict, distributed: bool = True, option: str = "TEST.METRICS"):
        super().__init__(list(by_metric.values()))
        self.name, self.by_metric = name, by_metric
        self._distributed, self._option = distributed, option

    def process(self, inputs, outputs):
        """Add a batch.

        Raises:
            UserError: the model does not give what a metric needs.
        """
        for metric in self.by_metric:
            needed = _OUTPUTS[metric]
            if any(needed not in output for output in outputs):
                given = [m for m in METRICS if all(_OUTPUTS[m] in output for output in outputs)]
                given = ",".join(given) if self._option.startswith("--") else given
                raise UserError(
                    f"{self._option} has {metric!r}, but the model gives no {needed!r} on data set "
                    f"{self.name}; set {self._option} to {given}"
                )
        super().process(inputs, outputs)

    def evaluate(self) -> dict:
        """Results {task: {metric: value}}."""
        if self._distributed:
            return super().evaluate()
        return {task: v for e in self.by_metric.values() for task, v in e.evaluate().items()}


class _AveragePrecision(COCOEvaluator):
    """Detectron2's evaluator; what pycocotools prints meanwhile goes to the log."""

    def evaluate(self, *args, **kwargs):
        printed = io.StringIO()
        try:
            with contextlib.redirect_stdout(printed):
                return super().evaluate(*args, **kwargs)
        finally:
            if text := printed.getvalue().strip():
                logging.getLogger(__name__).info("%s", text, extra=LOG_ONLY)


def check_metrics(cfg, metrics: Sequence[str]) -> None:
    """Raise UserError for an unknown metric, or settings of TEST that do not fit together."""
    unknown = sorted(set(metrics) - set(METRICS))
    if unknown or not metrics:
        raise UserError(f"TEST.METRICS: unknown {unknown}; choose from {', '.join(METRICS)}.")
    kind = one_of("TEST.PANOPTIC_EVALUATOR", cfg.TEST.PANOPTIC_EVALUATOR, ("streaming", "detectron2"))
    area = at_least("TEST.STUFF_AREA", cfg.TEST.STUFF_AREA, 0)
    if area and kind != "streaming":
        raise UserError(
            f"TEST.STUFF_AREA is {area}, but TEST.PANOPTIC_EVALUATOR {kind!r} trims nothing; choose "
            "'streaming', or set TEST.STUFF_AREA 0."
        )
    if kind == "detectron2" and "pq" in metrics:
        try:
            importlib.import_module("panopticapi.evaluation")
        except ImportError as error:
            raise UserError(
                f"TEST.PANOPTIC_EVALUATOR is {kind!r}, which needs panopticapi ({error}): pip install "
                "--no-deps panopticapi-lite, or set TEST.PANOPTIC_EVALUATOR streaming"
            ) from None


def metrics_of(dataset_name: str, metrics: Sequence[str]) -> list[str]:
    """Those of ``metrics`` that a data set can be evaluated by; of classified images always "accuracy".

    Without a thing class there is no "ap"; where things are all there is, the one label makes no "miou".

    Raises:
        UserError: none of them.
    """
    metadata = MetadataCatalog.get(dataset_name)
    kind = metadata.get("evaluator_type", None)
    lacking = {"ap"} if metadata.get("thing_classes", None) == [] else set()
    lacking |= {"miou"} if metadata.get("stuff_classes", None) == ["things"] else set()
    possible = [metric for metric in _METRICS_OF.get(kind, METRICS) if metric not in lacking]
    if "accuracy" in possible:
        return ["accuracy"]
    chosen = [metric for metric in possible if metric in metrics]
    if not chosen:
        raise UserError(
            f"TEST.METRICS is {list(metrics)}, data set {dataset_name} of type {kind!r} is evaluated by "
            f"{', '.join(possible)}; add one of these."
        )
    return chosen


def build_evaluators(
    cfg,
    dataset_name: str,
    output_dir: str | None = None,
    metrics: Sequence[str] = METRICS,
    distributed: bool = True,
    option: str = "TEST.METRICS",
    confusion: bool = False,
    **options,
) -> Evaluators:
    """The evaluators of one data set; for one of classified images, top-1 and top-5 accuracy.

    Args:
        cfg: reads TEST.PANOPTIC_EVALUATOR ("streaming" or "detectron2"), TEST.STUFF_AREA, MODEL.MASK_ON.
        dataset_name: a registered data set; its ``evaluator_type`` says what it can be evaluated by. The
            model may need its sibling, see :func:`..data.labels.data_set_for`.
        output_dir: where evaluators write predictions; None writes none.
        metrics: any of "pq" (panoptic quality), "ap" (box and mask AP), "miou" (of the semantic head).
        distributed: whether the images are dealt out to the processes of the run.
        option: what named the metrics, for messages.
        confusion: "miou" also tells things from stuff, see :class:`ConfusionEvaluator`.
        options: ``cache_ground_truth``, ``details``, ``trim_areas``, ``save_predictions`` of
            :class:`PanopticQualityEvaluator`; Detectron2's evaluator knows none of them.

    Raises:
        UserError: an unknown metric or evaluator, no metric for the data set, names of images that
            Detectron2's evaluator confuses, or ``confusion`` without labels of things and stuff.
    """
    check_metrics(cfg, metrics)
    given, dataset_name = dataset_name, data_set_for(cfg, dataset_name)
    chosen = metrics_of(dataset_name, metrics)
    if "accuracy" not in chosen:
        records = DatasetCatalog.get(dataset_name)  # makes or derives the files that the evaluators read
    found: dict[str, DatasetEvaluator] = {}
    if "accuracy" in chosen:
        found["accuracy"] = ClassificationEvaluator(dataset_name, distributed=distributed)
    if "ap" in chosen:
        tasks = ("bbox", "segm") if cfg.MODEL.MASK_ON else ("bbox",)
        kwargs = {"tasks": tasks, "distributed": distributed, "output_dir": output_dir}
        if "use_fast_impl" in inspect.signature(COCOEvaluator.__init__).parameters:
            kwargs["use_fast_impl"] = False  # the official implementation, in pure Python and numpy
        found["ap"] = _AveragePrecision(dataset_name, **kwargs)
    if "miou" in chosen:
        kind = ConfusionEvaluator if confusion else SemSegEvaluator
        found["miou"] = kind(dataset_name, distributed, output_dir)
    if "pq" in chosen and cfg.TEST.PANOPTIC_EVALUATOR == "streaming":
        options |= {"stuff_area": cfg.TEST.STUFF_AREA, "saved_as": given, "distributed": distributed}
        found["pq"] = PanopticQualityEvaluator(dataset_name, output_dir, **options)
    elif "pq" in chosen:
        _check_for_detectron2(dataset_name, records, distributed)
        found["pq"] = COCOPanopticEvaluator(dataset_name, output_dir)
    return Evaluators(given, found, distributed, option)


def _check_for_detectron2(dataset_name: str, records: Sequence[dict], distributed: bool) -> None:
    """What Detectron2's evaluator and panopticapi stumble over, but only after all images were predicted."""
    if not distributed and comm.get_world_size() > 1:
        raise UserError(
            "TEST.PANOPTIC_EVALUATOR 'detectron2' adds up the predictions of all processes; choose "
            "'streaming' where each scores candidates of its own"
        )
    problem, files = _lacking(MetadataCatalog.get(dataset_name).panoptic_json), {}
    for file in (record["file_name"] for record in records):  # predictions lose folder and suffix
        if (other := files.setdefault(PurePath(file).stem, file)) != file:
            problem = f"the predictions of {other} and {file} would be one file"
    if problem:
        raise UserError(
            f"data set {dataset_name}: {problem}, which TEST.PANOPTIC_EVALUATOR 'detectron2' cannot score; "
            "choose 'streaming'."
        )


def _lacking(panoptic_json: str) -> str | None:
    """panopticapi reads two optional keys, and divides by the number of classes of things and of stuff."""
    isthing = {c["id"]: bool(c["isthing"]) for c in read_panoptic_json(panoptic_json)["categories"]}
    kinds = set()
    for _, annotation in read_segments(panoptic_json).values():
        for segment in annotation["segments_info"]:
            missing = {"area", "iscrowd"} - set(segment)
            if missing:
                return f"segment {segment['id']} of {annotation['file_name']} has no {missing.pop()!r}"
            if not segment["iscrowd"]:
                kinds.add(isthing[segment["category_id"]])
    absent = {True, False} - kinds
    return f"no image has {'things' if absent.pop() else 'stuff'}" if absent else None


def panoptic_evaluator_of(evaluators: DatasetEvaluators) -> PanopticQualityEvaluator | None:
    """The streaming evaluator among ``evaluators``, or None."""
    found = evaluators.by_metric.get("pq") if isinstance(evaluators, Evaluators) else evaluators
    return found if isinstance(found, PanopticQualityEvaluator) else None


def panoptic_quality_of(evaluators: DatasetEvaluators) -> PanopticQuality | None:
    """The counts behind a result, for its bootstrap; None without a streaming evaluator."""
    evaluator = panoptic_evaluator_of(evaluators)
    return None if evaluator is None else evaluator.quality
