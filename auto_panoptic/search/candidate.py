"""The score of one candidate, a path of the supernet. What candidates share is prepared once."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from detectron2.data import DatasetCatalog, get_detection_dataset_dicts
from detectron2.evaluation import DatasetEvaluators
from detectron2.utils import comm

from ..data import build_mapper, data_set_for
from ..errors import UserError
from ..evaluation import build_evaluators, panoptic_quality_of
from ..evaluation.evaluators import panoptic_evaluator_of
from ..evaluation.gallery import Example, Gallery
from ..modeling import apply_architecture
from ..modeling.calibration import calibrated
from ..modeling.finite import finite_outputs
from ..modeling.searchable import panoptic_only
from ..progress import progress
from ..space import Architecture
from ..training.trainer import AutoPanopticTrainer
from ..training.weights import load_weights
from .selection import ranking_metric

# Resamples of the search images behind a candidate's uncertainty; the same for all candidates of a data set.
BOOTSTRAP_SAMPLES = 64
EVALUATION_BATCH = 8
LOOKED_AT = 64  # images of which the best and the worst are drawn
# Of several processes, each scores candidates of its own.
EVALUATORS = {"distributed": False, "cache_ground_truth": True, "option": "--metrics"}
# (task, metric) of Detectron2's results -> name in a record, beside those of panoptic quality.
OTHER_METRICS = (("bbox", "AP", "box_AP"), ("segm", "AP", "mask_AP"), ("sem_seg", "mIoU", "mIoU"))


def _batches(
    dicts: list[dict], mapper, size: int, key: Callable[[dict], object], what: str
) -> list[list[dict]]:
    """Decode and resize once; only images of equal ``key`` share a batch."""
    groups: dict[object, list[dict]] = {}
    for sample in map(mapper, progress(dicts, what, shown=comm.is_main_process())):
        groups.setdefault(key(sample), []).append(sample)
    return [group[i : i + size] for group in groups.values() for i in range(0, len(group), size)]


def _shape(sample: dict) -> tuple:
    """Images of one shape need no padding, so a score never depends on an image's neighbours."""
    return tuple(sample["image"].shape)


def _is_portrait(sample: dict) -> bool:
    """As in training, only images of one orientation share a batch."""
    return sample["image"].shape[1] > sample["image"].shape[2]


def calibration_batches(cfg, mapper) -> list[list[dict]]:
    """The training images of NAS.BN_RECALIBRATION, drawn by NAS.SEED, as ``mapper`` returns them.

    A moving average forgets its first batches, so there the batches of both orientations are shuffled.
    """
    settings = cfg.NAS.BN_RECALIBRATION
    names = [data_set_for(cfg, name) for name in cfg.DATASETS.TRAIN]
    dicts = get_detection_dataset_dicts(names, filter_empty=False, check_consistency=False)
    rng = np.random.default_rng(cfg.NAS.SEED)
    chosen = rng.permutation(len(dicts))[: settings.NUM_IMAGES]
    if len(chosen) < settings.NUM_IMAGES:
        logging.getLogger(__name__).warning(
            "NAS.BN_RECALIBRATION.NUM_IMAGES is %d, DATASETS.TRAIN has %d images: all are used",
            settings.NUM_IMAGES,
            len(dicts),
        )
    dicts = [dicts[i] for i in chosen]
    batches = _batches(dicts, mapper, settings.BATCH_SIZE, _is_portrait, "reading recalibration images")
    if settings.MOMENTUM:
        batches = [batches[i] for i in rng.permutation(len(batches))]
    return batches


def path_statistics(cfg, model: torch.nn.Module, space: dict[str, list[str]]):
    """Context in which a fixed ``model`` is evaluated with loaded weights of ``space``, {site: operators}.

    A supernet's running statistics mix its paths and fit none. If the weights are a supernet's, those of the
    path are recalibrated within the context, as a search does it (NAS.BN_RECALIBRATION).
    """
    settings = cfg.NAS.BN_RECALIBRATION
    if not settings.ENABLED or all(len(ops) == 1 for ops in space.values()):
        return contextlib.nullcontext()
    logging.getLogger(__name__).info("Weights of a supernet: recalibrating the path's BatchNorm statistics")
    batches = calibration_batches(cfg, build_mapper(cfg, is_train=False))
    title = "recalibration" * comm.is_main_process()
    return calibrated(model, batches, settings.MOMENTUM, title)


class SearchImages(NamedTuple):
    """Decoded images that all candidates share: lists of batches, the latter one list per DATASETS.SEARCH."""

    calibration: list[list[dict]]
    search: list[list[list[dict]]]


def search_images(cfg) -> SearchImages:
    """Decode the images that recalibrate and score candidates; UserError without a data set to score on."""
    if not cfg.DATASETS.SEARCH:
        raise UserError("DATASETS.SEARCH is empty; name the data set that scores the candidates")
    mapper = build_mapper(cfg, is_train=False)
    return SearchImages(
        calibration_batches(cfg, mapper) if cfg.NAS.BN_RECALIBRATION.ENABLED else [],
        [
            _batches(DatasetCatalog.get(name), mapper, EVALUATION_BATCH, _shape, f"reading {given}")
            for given, name in ((name, data_set_for(cfg, name)) for name in cfg.DATASETS.SEARCH)
        ],
    )


class CandidateEvaluator:
    """Scores single paths of a supernet on the search data set.

    Args:
        cfg: DATASETS.TRAIN gives the images for recalibration, DATASETS.SEARCH those for scoring.
        model: the supernet with its weights; on a CPU these are laid out channels-last for good.
        metrics: of "pq", "ap", "miou".
        images: those of :func:`search_images`, if they are decoded already.

    Attributes:
        show: whether the progress of a candidate that takes seconds is shown.
    """

    def __init__(
        self,
        cfg,
        model: torch.nn.Module,
        metrics: Sequence[str] = ("pq",),
        images: SearchImages | None = None,
    ):
        images = images or search_images(cfg)
        self.momentum = cfg.NAS.BN_RECALIBRATION.MOMENTUM
        self.cfg, self.model, self.metrics, self.show = cfg, model, tuple(metrics), False
        # What a panoptic map does not depend on is left out where nothing else is measured.
        self.lean = panoptic_only if self.metrics == ("pq",) else lambda _: contextlib.nullcontext()
        if model.device.type == "cpu":  # convolutions and BatchNorm then run up to three times as fast
            model.to(memory_format=torch.channels_last)
        self.calibration = images.calibration
        self.data = [
            (batches, build_evaluators(cfg, name, None, metrics, **EVALUATORS))
            for name, batches in zip(cfg.DATASETS.SEARCH, images.search, strict=True)
        ]

    @torch.inference_mode()
    def __call__(self, architecture: Architecture) -> tuple[dict[str, float], dict[str, float]]:
        """Return (metrics, seconds per phase) of one path; the supernet is left as it was.

        Metrics are percentages: PQ, SQ, RQ, with _th and _st, and with "ap"/"miou" box_AP, mask_AP, mIoU.
        ``PQ_se`` is the standard error of PQ over the images; ``bootstrap`` PQ on fixed resamples of them;
        neither is there where PQ is undefined on a resample.

        Raises:
            Diverged: the path's statistics or outputs are not finite.
        """
        start = time.perf_counter()
        with self.path(architecture):
            recalibrated = time.perf_counter()
            scores = [self._score(batches, evaluators) for batches, evaluators in self.data]
        seconds = {"recalibration": recalibrated - start, "evaluation": time.perf_counter() - recalibrated}
        return _mean(scores, ranking_metric(self.metrics)), {k: round(v, 3) for k, v in seconds.items()}

    @torch.inference_mode()
    def examples(self, architecture: Architecture) -> dict[str, list[Example]]:
        """{data set: the best and the worst of at most :data:`LOOKED_AT` of its images} of one path.

        There are TEST.PICTURES of each. Data sets that are not scored by panoptic quality are left out.

        Raises:
            Diverged: the path's statistics or outputs are not finite.
        """
        found = {}
        with self.path(architecture):
            for name, (batches, evaluators) in zip(self.cfg.DATASETS.SEARCH, self.data, strict=True):
                evaluator = panoptic_evaluator_of(evaluators)
                if evaluator is None:
                    continue
                evaluator.reset()
                evaluator.gallery = gallery = Gallery(self.cfg.TEST.PICTURES)
                every = -(-sum(map(len, batches)) // LOOKED_AT)
                for batch in batches[::every]:
                    evaluator.process(batch, self.model(batch))
                evaluator.reset()
                found[name] = gallery.examples
        return found

    @contextlib.contextmanager
    def path(self, architecture: Architecture) -> Iterator[None]:
        """The model as this path, with its own statistics, to be evaluated."""
        apply_architecture(self.model, architecture)
        title = "recalibration" * self.show
        own = calibrated(self.model, self.calibration, self.momentum, title) if self.calibration else None
        with self.lean(self.model), own or contextlib.nullcontext():
            self.model.eval()
            with finite_outputs(self.model):
                yield

    def _score(
        self, batches: list[list[dict]], evaluators: DatasetEvaluators
    ) -> tuple[dict, np.ndarray | None]:
        """Metrics on one data set, and PQ on bootstrap resamples of its images if the evaluator offers it."""
        evaluators.reset()
        for batch in progress(batches, "evaluation", units="batches", shown=self.show):
            evaluators.process(batch, self.model(batch))
        results = evaluators.evaluate()
        metrics = {k: float(v) for k, v in results.get("panoptic_seg", {}).items()}
        for task, name, key in OTHER_METRICS:
            if task in results:
                metrics[key] = float(results[task][name])
        quality = panoptic_quality_of(evaluators)
        samples = None if quality is None else quality.bootstrap_samples(BOOTSTRAP_SAMPLES, seed=0)["PQ"]
        return metrics, samples


def load_evaluator(cfg, weights: str, metrics: Sequence[str]) -> CandidateEvaluator:
    """The evaluator of the supernet ``cfg`` with the checkpoint ``weights``."""
    model = AutoPanopticTrainer.build_model(cfg)
    load_weights(model, weights, cfg=cfg)
    evaluate = CandidateEvaluator(cfg, model, metrics)
    evaluate.show = comm.is_main_process()
    return evaluate


def _mean(scores: list[tuple[dict, np.ndarray | None]], fitness: str) -> dict:
    """Average over the search data sets; PQ_se and bootstrap where all of them were resampled."""
    metrics = {key: sum(m[key] for m, _ in scores) / len(scores) for key in scores[0][0]}
    metrics = {key: value for key, value in metrics.items() if key == fitness or math.isfinite(value)}
    if all(samples is not None for _, samples in scores):
        samples = np.mean([samples for _, samples in scores], axis=0)
        if np.isfinite(samples).all():
            metrics["PQ_se"] = float(samples.std(ddof=1))
            metrics["bootstrap"] = [round(float(v), 4) for v in samples]
    return metrics
