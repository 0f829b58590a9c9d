"""The training of one finalist: a short run of its own, then its score on the search images."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from detectron2.utils.env import seed_all_rng

from ..data import setup_datasets
from ..modeling.fold import folded
from ..read_config import import_modules
from ..screen import only_warnings
from ..space import Architecture
from ..training import AutoPanopticTrainer
from ..training.run_folder import only_run
from .candidate import CandidateEvaluator, SearchImages, search_images
from .executors.ray import RayExecutor, import_ray

FOLDER = "finals"  # beside the ledger


@dataclass(frozen=True)
class Final:
    """One training: an architecture, for so many steps, from this seed."""

    architecture: Architecture
    steps: int
    seed: int

    def indices(self) -> dict:
        """Those of the architecture; executors show them."""
        return self.architecture.indices()

    @property
    def folder(self) -> str:
        text = json.dumps(self.indices(), sort_keys=True)
        return f"{hashlib.sha256(text.encode()).hexdigest()[:8]}_{self.steps}_{self.seed}"


def final_config(cfg, weights: str, final: Final, folder: Path):
    """The config of a training: that of the search with the architecture, a start, and a schedule.

    The learning rate falls at the same shares of the schedule; the warm-up is at most a tenth of it.
    """
    cfg = cfg.clone()
    cfg.defrost()
    solver, whole = cfg.SOLVER, cfg.SOLVER.MAX_ITER
    cfg.NAS.ARCHITECTURE, cfg.MODEL.WEIGHTS = str(folder / "architecture.json"), weights
    cfg.OUTPUT_DIR, cfg.SEED = str(folder), max(cfg.SEED, 0) + 1000 * (final.seed + 1)
    falls = {max(1, round(step * final.steps / whole)) for step in solver.STEPS}
    solver.STEPS = tuple(sorted(step for step in falls if step < final.steps))
    solver.MAX_ITER = final.steps
    solver.WARMUP_ITERS = min(solver.WARMUP_ITERS, final.steps // 10)
    solver.CHECKPOINT_PERIOD, solver.CHECKPOINTS_KEPT = max(1, final.steps // 4), 1
    cfg.TEST.EVAL_PERIOD, cfg.DATASETS.TEST = 0, ()
    cfg.freeze()
    return cfg


class FinalTraining:
    """Trains and scores; a training that was stopped is resumed, and ends as without interruption.

    Args:
        cfg: that of the search.
        weights: a checkpoint to start from, of which a path's weights are taken; "" from scratch.
        directory: where the trainings lie, one folder for each.
        metrics: of "pq", "ap", "miou".
    """

    def __init__(self, cfg, weights: str, directory: Path, metrics: Sequence[str]):
        self.cfg, self.weights, self.directory, self.metrics = cfg, weights, directory, tuple(metrics)

    @cached_property
    def images(self) -> SearchImages:
        """Those that score; a trained network's statistics are its own."""
        plain = self.cfg.clone()
        plain.defrost()
        plain.NAS.BN_RECALIBRATION.ENABLED = False
        return search_images(plain)

    def __call__(self, final: Final) -> tuple[dict[str, float], dict[str, float]]:
        """(metrics, seconds) as :class:`CandidateEvaluator` has them, of the trained network.

        Raises:
            Diverged: the training did.
        """
        return self.trained(final)(final.architecture)

    def trained(self, final: Final) -> CandidateEvaluator:
        """Train, or go on; what scores the network."""
        folder = self.directory / final.folder
        final.architecture.save(folder / "architecture.json")
        cfg = final_config(self.cfg, self.weights, final, folder)
        with only_run(str(folder), alone=True), only_warnings():
            seed_all_rng(cfg.SEED)
            trainer = AutoPanopticTrainer(cfg)
            trainer.resume_or_load(resume=True)
            trainer.train()
        return CandidateEvaluator(cfg, folded(trainer.model), self.metrics, self.images)

    def clean(self, final: Final) -> None:
        """Delete what an evaluated training has left."""
        shutil.rmtree(self.directory / final.folder, ignore_errors=True)


def ray_trainings(training: FinalTraining, workers: int, address: str | None) -> RayExecutor:
    """Workers that train finalists, each on the device that Ray gives it."""
    gpus = training.cfg.MODEL.DEVICE.startswith("cuda") and torch.cuda.is_available()
    return RayExecutor(partial(_in_worker, training), lambda: None, workers, address, gpus)


def _in_worker(training: FinalTraining, _shared) -> FinalTraining:
    cfg = training.cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cuda" if import_ray().get_gpu_ids() else "cpu"
    import_modules(cfg.IMPORTS)
    setup_datasets(cfg)
    cfg.freeze()
    return FinalTraining(cfg, training.weights, training.directory, training.metrics)
