"""Detectron2 evaluator of panoptic maps: panoptic quality and its noise, IoU of stuff, trimming, saving."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from ..data.formats.findings import raise_first
from ..data.formats.panoptic_json import read_panoptic_json, read_segments
from ..data.formats.panoptic_png import check_areas, read_ids
from ..errors import UserError
from ..files import write_json
from .gallery import Example, Gallery, class_names, write_pictures
from .overlap import Overlap
from .panoptic_quality import PanopticQuality
from .predictions import PredictionWriter
from .stuff_iou import StuffIoU


def counts_file(folder: str | os.PathLike, data_set: str) -> Path:
    """Where an evaluation in ``folder`` leaves the counts of every image, for comparisons."""
    return Path(folder) / f"panoptic_counts_{data_set.replace('/', '_')}.json"


class _Scores:
    """What is counted at one trimming threshold: panoptic quality, and with ``iou`` the IoU of stuff."""

    def __init__(self, categories: list, iou: bool):
        self.quality = PanopticQuality(categories)
        self.stuff = StuffIoU(categories) if iou else None

    def add(self, overlap: Overlap, image_id) -> float:
        if self.stuff:
            self.stuff.add(overlap)
        return self.quality.add(overlap, image_id)

    def merge(self, other: _Scores) -> None:
        self.quality.merge(other.quality)
        if self.stuff:
            self.stuff.merge(other.stuff)

    def results(self) -> dict:
        """{"PQ", ..., "RQ_st"} and, if counted, "IoU_st"."""
        found = {k: v for k, v in self.quality.compute().items() if k != "per_class"}
        if self.stuff:
            found["IoU_st"] = self.stuff.compute()["IoU_st"]
        return found

    def per_class(self) -> dict:
        """{category id: {"PQ", "SQ", "RQ", "TP", "FP", "FN", and "IoU" of stuff that occurs}}."""
        found = self.quality.compute()["per_class"]
        for category, iou in self.stuff.compute()["per_class"].items() if self.stuff else ():
            if np.isfinite(iou):
                found[category]["IoU"] = iou
        return found


class PanopticQualityEvaluator(DatasetEvaluator):
    """Panoptic quality in memory, with the result keys of Detectron2's ``COCOPanopticEvaluator``.

    The ground truth is decoded once per image, predictions are not written unless asked for, and each process
    keeps its counts only. Outputs of the model are not modified.

    Args:
        dataset_name: a registered data set with ``panoptic_json`` and ``panoptic_root``.
        output_dir: folder of saved predictions, and of :func:`counts_file`.
        distributed: whether to add the counts of all processes.
        cache_ground_truth: keep decoded maps in memory (4 bytes per pixel), for repeated evaluations.
        details: also compute the IoU of stuff and 95 % intervals of PQ over the images.
        stuff_area: predicted stuff whose class covers fewer pixels of its image becomes void first.
        trim_areas: also score at these values of ``stuff_area``.
        save_predictions: write what is scored to ``output_dir``, see :class:`PredictionWriter`.
        saved_as: name of the data set in their paths, where it is not ``dataset_name``.
        pictures: draw so many of the best and as many of the worst images into ``output_dir``.
        operators: {site: operator} of the network, for their record.

    Attributes:
        quality: the :class:`PanopticQuality`; after ``evaluate``, in the main process, of all images.
        per_class: {category id: {"name", "isthing", "PQ", "SQ", "RQ", "TP", "FP", "FN", "IoU"}} likewise.
        trim_study: {area: results with "IoU_st"} of ``trim_areas``, likewise.
        gallery: the images that are best and worst so far; None where there are to be no pictures.
    """

    def __init__(
        self,
        dataset_name: str,
        output_dir: str | None = None,
        *,
        distributed: bool = True,
        cache_ground_truth: bool = False,
        details: bool = False,
        stuff_area: int = 0,
        trim_areas: Sequence[int] = (),
        save_predictions: bool = False,
        saved_as: str = "",
        pictures: int = 0,
        operators: Mapping[str, str] | None = None,
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
        self._truth = read_segments(metadata.panoptic_json)
        self._root = metadata.panoptic_root
        self._things = {v: k for k, v in metadata.thing_dataset_id_to_contiguous_id.items()}
        stuff = metadata.get("stuff_dataset_id_to_contiguous_id", {})
        self._kinds = {c["id"]: bool(c["isthing"]) for c in categories}
        # Label 0 stands for "any thing" where the data set follows that convention; it is no category.
        self._stuff = {v: k for k, v in stuff.items() if k in self._kinds}
        self._stuff_categories = {i for i, isthing in self._kinds.items() if not isthing}
        self._categories, self._details = categories, details
        self._stuff_area, self._trim_areas = stuff_area, tuple(trim_areas)
        self._writer = PredictionWriter(output_dir, saved_as or dataset_name) if save_predictions else None
        self._pictures, self._operators = pictures if output_dir else 0, operators
        self._shown_as = saved_as or dataset_name
        self._folder = f"{output_dir}/pictures_{self._shown_as.replace('/', '_')}"
        self._counts = counts_file(output_dir, self._shown_as) if output_dir else None
        self.gallery: Gallery | None = None
        self.reset()

    def _new_scores(self) -> dict:
        """{None: the scores, area: those of the study}."""
        scores = {None: _Scores(self._categories, self._details)}
        return scores | {area: _Scores(self._categories, True) for area in self._trim_areas}

    def reset(self):
        self._scores = self._new_scores()
        self.quality = self._scores[None].quality
        self.per_class, self.trim_study = {}, {}
        self._seen = set()
        self.gallery = Gallery(self._pictures) if self._pictures else None
        if self._writer:
            self._writer.records = []

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
                self._add(image_id, pred, segments, entry.get("file_name"))
            except UserError as error:
                raise UserError(f"data set {self._name}, image {image_id}: {error}") from error

    def _add(self, image_id, pred: np.ndarray, segments: list, file_name: str | None) -> None:
        annotation = self._truth[image_id][1]
        path = os.path.join(self._root, annotation["file_name"])
        truth = self._ids(image_id, path)
        overlap = Overlap.of(pred, segments, truth, annotation["segments_info"])
        check_areas(path, image_id, overlap.true_areas, annotation["segments_info"], self._kinds)
        small = overlap.small_stuff(self._stuff_categories, self._stuff_area)
        trimmed = overlap.without(small)
        score = self._scores[None].add(trimmed, image_id)
        if self.gallery and file_name:
            gone = list(small)
            self.gallery.offer(
                score,
                lambda: Example(
                    score, image_id, file_name, np.where(np.isin(pred, gone), 0, pred), truth, trimmed
                ),
            )
        for area in self._trim_areas:
            study = overlap.without(overlap.small_stuff(self._stuff_categories, area))
            self._scores[area].add(study, image_id)
        if self._writer:
            if small:
                pred = np.where(np.isin(pred, list(small)), 0, pred)
            records = [{**s, "area": trimmed.areas[p]} for p, s in trimmed.predicted.items()]
            self._writer.add(image_id, annotation["file_name"], pred, records)

    def _segments_from_ids(self, pred: np.ndarray) -> list:
        divisor = self._metadata.label_divisor
        labels = [label for label in np.unique(pred).tolist() if label != -1]
        return [
            {"id": label + 1, "category_id": label // divisor, "isthing": label // divisor in self._things}
            for label in labels
        ]

    def _with_dataset_id(self, segment: dict) -> dict:
        segment_id, category = int(segment["id"]), int(segment["category_id"])
        isthing = segment.get("isthing")
        if isthing is None:  # already a data set id, as in Detectron2
            return {"id": segment_id, "category_id": category}
        ids = self._things if isthing else self._stuff
        if category not in ids:
            kind = "thing" if isthing else "stuff"
            raise UserError(f"predicted {kind} class {category} does not exist; known are {sorted(ids)}.")
        return {"id": segment_id, "category_id": ids[category]}

    def _ids(self, image_id, path: str) -> np.ndarray:
        """The true map (H, W)."""
        if self._cache is not None and image_id in self._cache:
            return self._cache[image_id]
        image = self._truth[image_id][0]
        ids, findings = read_ids(path, image_id, "the JSON says", (image["width"], image["height"]))
        raise_first(findings)
        if self._cache is not None:
            self._cache[image_id] = ids
        return ids

    def evaluate(self):
        """Add up the processes.

        Returns:
            in the main process {"panoptic_seg": {"PQ", "SQ", ..., "RQ_st"}}, in percent, nan for a block
            without classes, with ``details`` also "PQ_low", "PQ_high" and so on, and "IoU_st"; else None.

        Raises:
            UserError: an image of the data set has no prediction.
        """
        records, examples = (self._writer.records if self._writer else []), self.gallery
        parts = [(self._scores, self._seen, records, examples.examples if examples else [])]
        if self._distributed and comm.get_world_size() > 1:
            parts = comm.gather(parts[0], dst=0)
            if not comm.is_main_process():
                return None
        seen = [images for _, images, *_ in parts]
        missing = sorted(set(self._truth).difference(*seen))
        if missing:
            raise UserError(
                f"data set {self._name}: {len(missing)} of {len(self._truth)} images have no prediction, "
                f"e.g. {missing[:3]}; evaluate the whole data set."
            )
        if sum(map(len, seen)) != len(self._truth):
            raise UserError(
                f"data set {self._name}: some images were evaluated by two processes; check the sampler."
            )
        merged = self._new_scores()
        for scores, *_ in parts:
            for area, part in scores.items():
                merged[area].merge(part)
        self.quality = merged[None].quality
        results = merged[None].results()
        if self._details:
            for name, interval in self.quality.intervals().items():
                results |= {f"{name}_low": interval["low"], f"{name}_high": interval["high"]}
        self.trim_study = {area: merged[area].results() for area in self._trim_areas}
        values = merged[None].per_class()
        self.per_class = {
            c["id"]: {"name": c.get("name", str(c["id"])), "isthing": bool(c["isthing"]), **values[c["id"]]}
            for c in self._categories
        }
        if self._counts:
            self._counts.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._counts, self.quality.record())
        if self._writer:
            records = [record for _, _, part, _ in parts for record in part]
            self._writer.finish(records, read_panoptic_json(self._metadata.panoptic_json))
        if self._pictures:
            gallery = Gallery(self._pictures)
            gallery.extend([example for *_, part in parts for example in part])
            facts = {"data_set": self._shown_as, "metrics": results, "operators": self._operators}
            names = class_names(self._metadata, self._categories)
            write_pictures(self._folder, gallery.chosen(), names, facts)
        return OrderedDict({"panoptic_seg": results})
