"""Detectron2's DefaultTrainer around the fair-cycle loop."""

from __future__ import annotations

import logging
import weakref

import torch
from detectron2.data import build_detection_test_loader
from detectron2.engine import DefaultTrainer, TrainerBase, hooks
from detectron2.evaluation import DatasetEvaluators
from detectron2.modeling import build_model
from detectron2.utils import comm

from ..data import PanopticMapper
from ..errors import UserError
from ..evaluation import build_evaluators, check_metrics
from .checkpoint import AtomicCheckpointer, load_weights
from .data_loader import build_train_loader
from .fair_trainer import FairCycleTrainer, FairSamplingHook, check_gradients


def check_training(cfg) -> None:
    """Raise UserError for settings that a training run cannot start with; writes nothing."""
    if cfg.SOLVER.AMP.ENABLED:
        raise UserError("SOLVER.AMP.ENABLED is True; mixed precision is not supported, set it to False")
    if not cfg.DATASETS.TRAIN:
        raise UserError("DATASETS.TRAIN is empty; name at least one data set")
    for key, value, least in (
        ("SOLVER.IMS_PER_BATCH", cfg.SOLVER.IMS_PER_BATCH, 1),
        ("SOLVER.MAX_ITER", cfg.SOLVER.MAX_ITER, 1),
        ("NAS.SEED", cfg.NAS.SEED, 0),
    ):
        if value < least:
            raise UserError(f"{key} is {value}; expected an integer >= {least}")
    check_gradients(cfg.NAS.GRADIENTS)
    check_metrics(cfg, cfg.TEST.METRICS)


class AutoPanopticTrainer(DefaultTrainer):
    """Trains a supernet (one iteration = one fair cycle) or a fixed model (one iteration = one mini-batch).

    Hooks, writers, learning-rate schedule, evaluation and ``--resume`` are Detectron2's.
    """

    def __init__(self, cfg):
        TrainerBase.__init__(self)
        check_training(cfg)
        self.seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        self._trainer = FairCycleTrainer(
            model,
            lambda start: build_train_loader(cfg, self.seed, start),
            optimizer,
            gradients=cfg.NAS.GRADIENTS,
            seed=self.seed,
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = AtomicCheckpointer(model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    @property
    def is_supernet(self) -> bool:
        return self._trainer.space.cycle_length > 1

    @classmethod
    def build_model(cls, cfg):
        model = build_model(cfg)
        count = sum(p.numel() for p in model.parameters())
        logging.getLogger(__name__).info(
            "%s on %s: %.2f M parameters", type(model).__name__, model.device, count / 1e6
        )
        return model

    @property
    def last_results(self) -> dict:
        """Results of the newest evaluation on DATASETS.TEST; empty before the first."""
        return getattr(self, "_last_eval_results", {})

    def build_hooks(self):
        built = super().build_hooks()
        built.insert(0, FairSamplingHook(self._trainer, self.cfg.NAS.SEED))
        if self.is_supernet:
            # A supernet has no score of its own; the search scores its paths, each with its own statistics.
            built = [hook for hook in built if not isinstance(hook, hooks.EvalHook)]
        return built

    def resume_or_load(self, resume: bool = True) -> None:
        """Continue from OUTPUT_DIR's last checkpoint if asked and there is one, else load MODEL.WEIGHTS."""
        if resume and self.checkpointer.has_checkpoint():
            self.checkpointer.resume_or_load("", resume=True)
            self.start_iter = self.iter + 1
        elif self.cfg.MODEL.WEIGHTS:
            load_weights(self.model, self.cfg.MODEL.WEIGHTS)
            logging.getLogger(__name__).info("Loaded %s", self.cfg.MODEL.WEIGHTS)
        if comm.get_world_size() > 1:
            for tensor in (*self.model.parameters(), *self.model.buffers()):
                torch.distributed.broadcast(tensor.data, src=0)

    def run_step(self) -> None:
        self._trainer.iter = self.iter
        self._trainer.run_step()

    def state_dict(self) -> dict:
        state = TrainerBase.state_dict(self)
        state["_trainer"] = {"optimizer": self.optimizer.state_dict(), "seed": self.seed}
        return state

    def load_state_dict(self, state: dict) -> None:
        TrainerBase.load_state_dict(self, state)
        self.optimizer.load_state_dict(state["_trainer"]["optimizer"])
        self.seed = self._trainer.seed = state["_trainer"]["seed"]

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        return build_detection_test_loader(cfg, dataset_name, mapper=PanopticMapper(cfg, is_train=False))

    @classmethod
    def build_evaluator(cls, cfg, dataset_name, output_folder=None) -> DatasetEvaluators:
        folder = output_folder or f"{cfg.OUTPUT_DIR}/inference"
        return build_evaluators(cfg, dataset_name, folder, tuple(cfg.TEST.METRICS))
