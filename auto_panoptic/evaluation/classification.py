"""Accuracy of the ImageNet stage."""

from collections import OrderedDict

import torch
from detectron2.data import DatasetCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from ..errors import UserError


class ClassificationEvaluator(DatasetEvaluator):
    """Top-1 and top-5 accuracy over the images of all processes, in percent.

    With fewer than five classes, top-5 counts all of them. ``distributed``: add the counts of all processes.
    """

    def __init__(self, dataset_name: str, *, distributed: bool = True):
        self._name, self._distributed = dataset_name, distributed
        self._expected = len(DatasetCatalog.get(dataset_name))
        self.reset()

    def reset(self):
        self._images = self._top1 = self._top5 = 0

    def process(self, inputs, outputs):
        """Add a batch: dicts with "label", and with "logits" (num_classes,), best class highest."""
        for entry, output in zip(inputs, outputs, strict=True):
            logits = output["logits"]
            best = torch.topk(logits, min(5, len(logits))).indices.tolist()
            self._images += 1
            self._top1 += entry["label"] == best[0]
            self._top5 += entry["label"] in best

    def evaluate(self):
        """{"classification": {"top1", "top5"}} in percent in the main process, None elsewhere.

        Raises:
            UserError: not every image of the data set was seen once.
        """
        counts = (self._images, self._top1, self._top5)
        if self._distributed and comm.get_world_size() > 1:
            parts = comm.gather(counts, dst=0)
            if not comm.is_main_process():
                return None
            counts = tuple(map(sum, zip(*parts, strict=True)))
        images, top1, top5 = counts
        if images != self._expected:
            raise UserError(
                f"data set {self._name}: {images} predictions for {self._expected} images; evaluate "
                "the whole data set, each image once"
            )
        results = {"top1": 100 * top1 / images, "top5": 100 * top5 / images}
        return OrderedDict({"classification": results})
