"""Detectron2's DefaultTrainer around the fair-cycle loop."""

from __future__ import annotations

import logging
import weakref

import torch
from detectron2.engine import DefaultTrainer, TrainerBase, hooks
from detectron2.evaluation import DatasetEvaluators
from detectron2.modeling import build_model
from detectron2.utils import comm

from ..errors import UserError
from ..evaluation import build_evaluators, check_metrics
from ..explore import check_sampling
from ..modeling.fold import folded
from .audit import FairnessAudit
from .checkpoint import AtomicCheckpointer, RecentMetrics
from .data_loader import PositionalLoader, build_test_loader, build_train_loader
from .fair_trainer import FairCycleTrainer
from .gradients import build_optimizer, check_gradients
from .precision import Precision, check_precision, log_first_convolution, use_channels_last
from .schedule import build_lr_scheduler, check_schedule
from .weights import load_weights


def check_training(cfg) -> None:
    """Raise UserError for settings that a training run cannot start with; writes nothing."""
    if not cfg.DATASETS.TRAIN:
        raise UserError("DATASETS.TRAIN is empty; name at least one data set")
    for key, value, least in (
        ("SOLVER.IMS_PER_BATCH", cfg.SOLVER.IMS_PER_BATCH, 1),
        ("SOLVER.MAX_ITER", cfg.SOLVER.MAX_ITER, 1),
        ("NAS.SEED", cfg.NAS.SEED, 0),
        ("NAS.AUDIT_PERIOD", cfg.NAS.AUDIT_PERIOD, 1),
    ):
        if value < least:
            raise UserError(f"{key} is {value}; expected an integer >= {least}")
    check_gradients(cfg.NAS.GRADIENTS)
    check_sampling(cfg.NAS.SAMPLING)
    check_precision(cfg)
    check_schedule(cfg)
    check_metrics(cfg, cfg.TEST.METRICS)


class AutoPanopticTrainer(DefaultTrainer):
    """Trains a supernet (one iteration = one fair cycle) or a fixed model (one iteration = one mini-batch).

    Hooks, writers, learning-rate schedule, evaluation and ``--resume`` are Detectron2's.
    """

    def __init__(self, cfg):
        TrainerBase.__init__(self)  # DefaultTrainer's would wrap the model for one pass per step
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        check_training(cfg)
        self.cfg = cfg
        self.seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        self._trainer = FairCycleTrainer(
            model,
            self._build_seeded_loader(),
            optimizer,
            gradients=cfg.NAS.GRADIENTS,
            seed=self.seed,
            sampling=cfg.NAS.SAMPLING,
            path_seed=cfg.NAS.SEED,
            precision=Precision.from_config(cfg),
        )
        log_first_convolution(model)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = AtomicCheckpointer(
            model, cfg.OUTPUT_DIR, cfg=cfg, keep=cfg.SOLVER.CHECKPOINTS_KEPT, trainer=weakref.proxy(self)
        )
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
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
        if cfg.MODEL.CHANNELS_LAST:
            use_channels_last(model)
        return model

    @property
    def last_results(self) -> dict:
        """Results of the newest evaluation on DATASETS.TEST; empty before the first."""
        return getattr(self, "_last_eval_results", {})

    def build_hooks(self):
        built = super().build_hooks()
        built.insert(0, FairnessAudit(self._trainer.counter, self.cfg.NAS.AUDIT_PERIOD))
        built.append(RecentMetrics())
        if self.is_supernet:
            # A supernet has no score of its own; the search scores its paths, each with its own statistics.
            built = [hook for hook in built if not isinstance(hook, hooks.EvalHook)]
        return built

    def resume_or_load(self, resume: bool = True) -> None:
        """Continue from OUTPUT_DIR's newest intact checkpoint if asked, else start from MODEL.WEIGHTS.

        Raises:
            UserError: a run has written to OUTPUT_DIR, but nothing usable; or it had other settings.
        """
        if resume and self.checkpointer.resume():
            self.start_iter = self.iter + 1
        else:
            if resume:
                logging.getLogger(__name__).info("Nothing to resume yet in %s", self.cfg.OUTPUT_DIR)
            if self.cfg.MODEL.WEIGHTS:
                load_weights(self.model, self.cfg.MODEL.WEIGHTS, to_train=True)
        if comm.get_world_size() > 1:
            for tensor in (*self.model.parameters(), *self.model.buffers()):
                torch.distributed.broadcast(tensor.data, src=0)

    def _build_seeded_loader(self):
        """What :meth:`build_train_loader` makes, for the seed of this run also where SEED is -1."""
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.SEED = self.seed
        cfg.freeze()
        return self.build_train_loader(cfg)

    @property
    def _images(self) -> int | None:
        """Number of training images; None where another loader does not tell."""
        return len(self.data_loader.dataset) if isinstance(self.data_loader, PositionalLoader) else None

    def run_step(self) -> None:
        self._trainer.iter = self.iter
        self._trainer.run_step()

    def state_dict(self) -> dict:
        state = TrainerBase.state_dict(self)
        state["_trainer"] = self._trainer.state_dict()
        state.update(processes=comm.get_world_size(), images=self._images)
        return state

    def load_state_dict(self, state: dict) -> None:
        if state["processes"] != comm.get_world_size():
            logging.getLogger(__name__).warning(
                "The run had %d processes, now it has %d: it goes on with the same images and paths per "
                "step, but its losses are no longer those of an uninterrupted run",
                state["processes"],
                comm.get_world_size(),
            )
        TrainerBase.load_state_dict(self, state)
        self._trainer.load_state_dict(state["_trainer"])
        if self.seed != self._trainer.seed:
            self.seed = self._trainer.seed
            self.data_loader = self._build_seeded_loader()
        if None not in (state["images"], self._images) and state["images"] != self._images:
            raise UserError(
                f"--resume: DATASETS.TRAIN {list(self.cfg.DATASETS.TRAIN)} had {state['images']} images, now "
                f"it has {self._images}; restore the data, or start a new run in another OUTPUT_DIR with "
                "MODEL.WEIGHTS"
            )

    @classmethod
    def build_train_loader(cls, cfg):
        """Batches as a function of (SEED, position); may be overridden by any loader of Detectron2."""
        return build_train_loader(cfg)

    @classmethod
    def build_optimizer(cls, cfg, model):
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg, optimizer):
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def test(cls, cfg, model, evaluators=None):
        """Evaluate on DATASETS.TEST a copy of the model with its BatchNorm folded; float32 as always."""
        return super().test(cfg, folded(model), evaluators)

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        return build_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg, dataset_name, output_folder=None) -> DatasetEvaluators:
        folder = output_folder or f"{cfg.OUTPUT_DIR}/inference"
        return build_evaluators(cfg, dataset_name, folder, tuple(cfg.TEST.METRICS), details=True)
