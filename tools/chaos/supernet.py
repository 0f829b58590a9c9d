"""A toy supernet on drawn images, for the drill that needs a real evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from detectron2.modeling import build_model
from toy import answer_strongly, make_shapes, write_config

from auto_panoptic.search.candidate import CandidateEvaluator
from auto_panoptic.space import SearchSpace
from auto_panoptic.training import AutoPanopticTrainer, build_config, load_weights

METRICS = ("pq", "miou")  # of the toy's candidates, mIoU tells more


class Supernet(NamedTuple):
    config_file: str
    weights: str

    def config(self, *options):
        return build_config(self.config_file, ["MODEL.DEVICE", "cpu", *map(str, options)])

    def space(self) -> SearchSpace:
        return SearchSpace.from_config(self.config())

    def evaluator(self) -> CandidateEvaluator:
        """In this process, on one thread."""
        torch.set_num_threads(1)
        cfg = self.config()
        model = AutoPanopticTrainer.build_model(cfg)
        load_weights(model, self.weights)
        return CandidateEvaluator(cfg, model, METRICS)


def toy_supernet(folder: Path) -> Supernet:
    """Random weights that differ by candidate, and 20 drawn images."""
    folder.mkdir(parents=True, exist_ok=True)
    path = write_config(folder / "toy.yaml", make_shapes(folder))
    found = Supernet(str(path), str(folder / "supernet.pth"))
    torch.manual_seed(0)
    model = build_model(found.config())
    answer_strongly(model)
    torch.save({"model": model.state_dict(), "space": None}, found.weights)
    return found
