"""Scores of all paths of a supernet without attention, exactly as the search scores them one by one.

The backbone's operators decide features, proposals and boxes; those of the mask head the masks; those of the
semantic head the labels. Each is computed once per choice of its own sites, and only merging and counting
are done for every path.
"""

from __future__ import annotations

import copy
import itertools

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
        self._weights = None

    def __call__(self, weights: str, number: int) -> dict[str, list[float]]:
        """{metric: one value per path} of all paths with one choice of backbone.

        Args:
            weights: the supernet's checkpoint.
            number: of the choice, in the order of :func:`choices_of`.

        Raises:
            Diverged: statistics or outputs are not finite.
        """
        if weights != self._weights:
            self._evaluator = load_evaluator(self.cfg, weights, ("pq",))
            self._weights = weights
        evaluator, model = self._evaluator, self._evaluator.model
        masks, semantics = choices_of(self.space, "mask"), choices_of(self.space, "sem_seg")
        path = {**choices_of(self.space, "backbone")[number], **masks[0], **semantics[0]}
        apply = self._switch
        ((batches, evaluators),) = evaluator.data
        counters = []
        for _ in range(len(masks) * len(semantics)):  # the copies share what is known of the truth
            counters.append(copy.copy(panoptic_evaluator_of(evaluators)))
            counters[-1].reset()
        with torch.inference_mode(), evaluator.path(Architecture.from_names(self.space, path)):
            for batch in batches:
                images = model.preprocess_image(batch)
                features, *_ = model.attended_features(images.tensor)
                proposals, _ = model.proposal_generator(images, features, None)
                boxes = model.roi_heads._forward_box(features, proposals)
                labels = []
                for choice in semantics:
                    apply(path | choice)
                    logits, _ = model.sem_seg_head(features, None)
                    labels.append(self._labels(model, logits, batch, images.image_sizes))
                for m, choice in enumerate(masks):
                    apply(path | choice)
                    things = self._things(model, features, boxes, batch, labels[0])
                    for s, semantic in enumerate(labels):
                        self._count(model, counters[m * len(semantics) + s], batch, things, semantic)
        rows = [self._metrics(counter) for counter in counters]
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
