"""Scores of all paths of a supernet without attention, exactly as the search scores them one by one.

The backbone's operators decide features, proposals and boxes; those of the mask head the masks; those of the
semantic head the labels. Each is computed once per choice of its own sites, and only merging and counting
are done for every path.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling.postprocessing import detector_postprocess, sem_seg_postprocess

from auto_panoptic.evaluation.evaluators import panoptic_evaluator_of
from auto_panoptic.modeling import apply_architecture
from auto_panoptic.modeling.fusion import add_stuff, combine, semantic_labels
from auto_panoptic.search.candidate import BOOTSTRAP_SAMPLES, load_evaluator
from auto_panoptic.space import Architecture, SearchSpace

METRICS = ("PQ", "SQ", "RQ", "PQ_th", "SQ_th", "RQ_th", "PQ_st", "SQ_st", "RQ_st", "PQ_se")


def choices_of(space: SearchSpace, part: str) -> list[dict[str, str]]:
    """{site: operator} of a part of the network, every combination, the last site running fastest."""
    sites = [site for site in space.sites if site.part == part]
    rows = itertools.product(*(site.names for site in sites))
    return [{site.name: name for site, name in zip(sites, row, strict=True)} for row in rows]


class PathScorer:
    """Scores the paths of supernets; the last supernet stays in memory.

    Args:
        cfg: of the supernets, which have no attention; DATASETS.SEARCH names one data set.
    """

    def __init__(self, cfg: CfgNode):
        self.cfg, self.space = cfg, SearchSpace.from_config(cfg)
        self.masks, self.semantics = (choices_of(self.space, part) for part in ("mask", "sem_seg"))
        self.paths = len(self.masks) * len(self.semantics)  # with one choice of backbone
        self._weights = None

    def scores(self, weights: str, paths: Sequence[int]) -> dict[str, list[float]]:
        """{metric: one value per path} of some paths, by their numbers among all; see :meth:`__call__`."""
        found = {}
        for number in sorted({path // self.paths for path in paths}):
            own = [path for path in paths if path // self.paths == number]
            rows = self(weights, number, [path % self.paths for path in own])
            found |= {path: {name: rows[name][i] for name in METRICS} for i, path in enumerate(own)}
        return {name: [found[path][name] for path in paths] for name in METRICS}

    def __call__(
        self, weights: str, number: int, chosen: Sequence[int] | None = None
    ) -> dict[str, list[float]]:
        """{metric: one value per path} of paths with one choice of backbone.

        Args:
            weights: the supernet's checkpoint.
            number: of the choice, in the order of :func:`choices_of`.
            chosen: numbers of the paths among those of this backbone, all by default.

        Raises:
            Diverged: statistics or outputs are not finite.
        """
        if weights != self._weights:
            self._evaluator = load_evaluator(self.cfg, weights, ("pq",))
            self._weights = weights
        evaluator, model = self._evaluator, self._evaluator.model
        masks, semantics = self.masks, self.semantics
        path = {**choices_of(self.space, "backbone")[number], **masks[0], **semantics[0]}
        apply = self._switch
        ((batches, evaluators),) = evaluator.data
        chosen = range(self.paths) if chosen is None else chosen
        counters = {}
        for place in chosen:  # the copies share what is known of the truth
            counters[place] = copy.copy(panoptic_evaluator_of(evaluators))
            counters[place].reset()
        some_masks, some_semantics = (sorted(set(part)) for part in np.divmod(chosen, len(semantics)))
        with torch.inference_mode(), evaluator.path(Architecture.from_names(self.space, path)):
            for batch in batches:
                images = model.preprocess_image(batch)
                features, *_ = model.attended_features(images.tensor)
                proposals, _ = model.proposal_generator(images, features, None)
                boxes = model.roi_heads._forward_box(features, proposals)
                labels = {}
                for s in some_semantics:
                    apply(path | semantics[s])
                    logits, _ = model.sem_seg_head(features, None)
                    labels[s] = self._labels(model, logits, batch, images.image_sizes)
                for m in some_masks:
                    apply(path | masks[m])
                    things = self._things(model, features, boxes, batch, labels[some_semantics[0]])
                    for s, semantic in labels.items():
                        if counter := counters.get(m * len(semantics) + s):
                            self._count(model, counter, batch, things, semantic)
        rows = [self._metrics(counters[place]) for place in chosen]
        return {name: [round(row[name], 6) for row in rows] for name in METRICS}

    def _switch(self, names: dict) -> None:
        apply_architecture(self._evaluator.model, Architecture.from_names(self.space, names))

    @staticmethod
    def _labels(model, logits, batch, sizes) -> list[torch.Tensor]:
        """(H, W) semantic label of each image."""
        found = []
        for one, sample, size in zip(logits, batch, sizes, strict=True):
            height, width = sample["height"], sample["width"]
            resized = sem_seg_postprocess(one, size, height, width)
            found.append(semantic_labels(model.combine_method, one, size, resized))
        return found

    @staticmethod
    def _things(model, features, boxes, batch, labels) -> list[tuple[torch.Tensor, list[dict]]]:
        """(map, segments) of each image before stuff takes what is left."""
        own = [copy.deepcopy(b) for b in boxes]  # what follows scales and clips them in place
        found = model.roi_heads.forward_with_given_boxes(features, own)
        merging = model._merging() | {"stuff_area": 1}
        maps = []
        for instances, sample, semantic in zip(found, batch, labels, strict=True):
            instances = detector_postprocess(instances, sample["height"], sample["width"])
            maps.append(combine(model.combine_method, instances, torch.zeros_like(semantic), **merging))
        return maps

    @staticmethod
    def _count(model, counter, batch, things, labels) -> None:
        area = model.combine_stuff_area_thresh
        merged = [
            {"panoptic_seg": add_stuff(drawn, list(segments), semantic, area)}
            for (drawn, segments), semantic in zip(things, labels, strict=True)
        ]
        counter.process(batch, merged)

    @staticmethod
    def _metrics(counter) -> dict[str, float]:
        found = dict(counter.evaluate()["panoptic_seg"])
        samples = counter.quality.bootstrap_samples(BOOTSTRAP_SAMPLES, seed=0)["PQ"]
        return {**found, "PQ_se": float(np.std(samples, ddof=1))}
