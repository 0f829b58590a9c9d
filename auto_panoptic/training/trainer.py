"""Detectron2's DefaultTrainer around the fair-cycle loop."""

from __future__ import annotations

import logging
import os
import shlex
import weakref
from functools import partial
from itertools import count

import torch
from detectron2.engine import DefaultTrainer, TrainerBase, hooks
from detectron2.evaluation import DatasetEvaluators
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter, JSONWriter

from .. import signals
from ..data import data_set_for, holds_classes, with_data_sets
from ..data.content import content_difference, contents
from ..data.labels import SUFFIX
from ..errors import Diverged, UserError
from ..evaluation import build_evaluators, check_metrics
from ..evaluation.expected import check_expected_results, verify_results
from ..files import BUNDLE
from ..modeling.choice import Choices
from ..modeling.finite import finite_outputs
from ..modeling.fold import folded
from ..validate import validate
from .archive import damage
from .bundle import training_provenance, write_bundle
from .checkpoint import INTERRUPTED, STARTED_FROM, AtomicCheckpointer, newest_intact
from .gradients import build_optimizer, model_space
from .hooks import FairnessAudit, Interruption, JSONLines, PreciseBN, RecentMetrics
from .launch import by_first
from .loader import PositionalLoader, build_test_loader, build_train_loader
from .loop import FairCycleTrainer
from .precision import Precision, check_precision, log_first_convolution, use_channels_last
from .schedule import build_lr_scheduler, check_schedule
from .shown import ShownLoader, StepPrinter, TrainingProgress
from .weights import load_weights

logger = logging.getLogger(__name__)
# Who calls the trainer hears of its error once, by the exception.
logging.getLogger("detectron2.engine.train_loop").addFilter(lambda record: not record.exc_info)


def check_training(cfg) -> None:
    """Raise UserError for settings that a training run cannot start with; writes nothing."""
    if not cfg.DATASETS.TRAIN:
        raise UserError("DATASETS.TRAIN is empty; name at least one data set")
    validate(cfg)
    check_precision(cfg)
    check_schedule(cfg)
    check_metrics(cfg, cfg.TEST.METRICS)
    check_expected_results(cfg)
    workers = cfg.SOLVER.REFERENCE_WORLD_SIZE
    if workers and cfg.SOLVER.IMS_PER_BATCH % workers:
        raise UserError(
            f"SOLVER.REFERENCE_WORLD_SIZE is {workers}; expected 0 or a divisor of SOLVER.IMS_PER_BATCH "
            f"({cfg.SOLVER.IMS_PER_BATCH})"
        )


def check_supernet(cfg) -> None:
    """Raise UserError for settings that only a fixed network can obey."""
    test, others = cfg.TEST, "needs other statistics for each path; NAS.BN_RECALIBRATION computes them"
    for key, value, neutral, reason in (
        ("TEST.EVAL_PERIOD", test.EVAL_PERIOD, 0, "has no score of its own; search_net.py scores its paths"),
        ("TEST.EXPECTED_RESULTS", test.EXPECTED_RESULTS, [], "is not evaluated"),
        ("TEST.PRECISE_BN.ENABLED", test.PRECISE_BN.ENABLED, False, f"{others} in the search"),
    ):
        if value != neutral:
            raise UserError(
                f"{key} is {value}, and this config builds a supernet, which {reason}: set it to {neutral}"
            )


class AutoPanopticTrainer(DefaultTrainer):
    """Trains a supernet (one iteration = one fair cycle) or a fixed model (one iteration = one mini-batch).

    Hooks, writers, learning-rate schedule, evaluation and ``--resume`` are Detectron2's.
    """

    def __init__(self, cfg):
        TrainerBase.__init__(self)  # DefaultTrainer's would wrap the model for one pass per step
        check_training(cfg)
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        self.cfg = cfg
        self.seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
        model = self.build_model(cfg)
        if model_space(model).cycle_length > 1:
            check_supernet(cfg)
        optimizer = self.build_optimizer(cfg, model)
        self._trainer = FairCycleTrainer(
            model,
            self.build_train_loader(self._seeded_config()),
            optimizer,
            gradients=cfg.NAS.GRADIENTS,
            seed=self.seed,
            sampling=cfg.NAS.SAMPLING,
            path_seed=cfg.NAS.SEED,
            precision=Precision.from_config(cfg),
        )
        read = contents(cfg, cfg.DATASETS.TRAIN) if comm.is_main_process() else None
        self._contents = comm.all_gather(read)[0]
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
        logger.info("%s on %s: %.2f M parameters", type(model).__name__, model.device, count / 1e6)
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
        self._interruption = Interruption()
        evaluations = [i for i, hook in enumerate(built) if isinstance(hook, hooks.EvalHook)]
        built.insert(evaluations[0] if evaluations else len(built), self._interruption)
        for i, hook in enumerate(built):
            if isinstance(hook, hooks.PreciseBN):
                built[i] = self._precise_bn()
        if self.is_supernet:
            # A supernet has no score of its own; the search scores its paths, each with its own statistics.
            built = [hook for hook in built if not isinstance(hook, hooks.EvalHook)]
        return [*built, TrainingProgress()] if comm.is_main_process() else built

    def build_writers(self):
        writers = super().build_writers()
        writers = [StepPrinter(self.max_iter) if type(w) is CommonMetricPrinter else w for w in writers]
        for writer in writers:
            if isinstance(writer, JSONWriter):
                writer._file_handle = JSONLines(writer._file_handle)
        return writers

    def _precise_bn(self) -> PreciseBN:
        cfg = self._seeded_config()
        cfg.defrost()
        cfg.DATALOADER.NUM_WORKERS = 0  # as Detectron2: it need not be fast
        count = cfg.TEST.PRECISE_BN.NUM_ITER
        return PreciseBN(cfg.TEST.EVAL_PERIOD, self.model, self.build_train_loader(cfg), count)

    @staticmethod
    def auto_scale_workers(cfg, num_workers: int):
        """Detectron2's SOLVER.REFERENCE_WORLD_SIZE; what was at least 1 stays so."""
        scaled = DefaultTrainer.auto_scale_workers(cfg, num_workers)
        if scaled is not cfg:
            scaled.defrost()
            for part, key in ("SOLVER", "MAX_ITER"), ("SOLVER", "CHECKPOINT_PERIOD"), ("TEST", "EVAL_PERIOD"):
                if cfg[part][key]:
                    scaled[part][key] = max(scaled[part][key], 1)
            scaled.freeze()
        return scaled

    def train(self):
        """Train to SOLVER.MAX_ITER, evaluate; compare with TEST.EXPECTED_RESULTS.

        Returns:
            the results of the last evaluation; empty where there was none.

        Raises:
            Diverged: losses, weights or outputs are not finite; nothing of that was written.
            SystemExit: results other than expected; with the message, exit code 1.
        """
        if self.start_iter >= self.max_iter:
            logger.warning(
                "Nothing is left to train: the run in %s has done %d iterations, SOLVER.MAX_ITER is %d",
                *(self.cfg.OUTPUT_DIR, self.start_iter, self.max_iter),
            )
            final = os.path.join(self.cfg.OUTPUT_DIR, "model_final.pth")
            if self.start_iter == self.max_iter and damage(final):
                self.checkpointer.save("model_final", iteration=self.iter)  # killed before it was, say
        signal = None
        with signals.deferred():
            try:
                TrainerBase.train(self, self.start_iter, self.max_iter)
            except Diverged as error:
                raise Diverged(f"{error}. {self._remedy()}") from None
            except KeyboardInterrupt as error:
                signal, message = error, self._save_interrupted(error)
        if signal:
            signals.leave(signal, message)
        if comm.is_main_process():
            self._write_bundle()
            verify_results(self.cfg, self.last_results)
        return self.last_results

    def _write_bundle(self) -> None:
        """OUTPUT_DIR/bundle.pth of a fixed network: all that it needs to predict."""
        if self.is_supernet:
            return
        path, done = os.path.join(self.cfg.OUTPUT_DIR, BUNDLE), max(self.start_iter, self.max_iter)
        start = self.checkpointer.settings[STARTED_FROM]
        provenance = training_provenance(self.cfg, done, self.last_results, start)
        if write_bundle(path, self.cfg, self.model, provenance):
            logger.info("The network with all that it needs to predict: %s", path)

    def _save_interrupted(self, error: KeyboardInterrupt) -> str:
        """Save the iteration after which a signal ends the run, unless it is the last; what to say."""
        said = f"{error} at iteration {self.iter}"
        if self._interruption.done == self.iter < self.max_iter - 1:
            by_first(partial(self.checkpointer.save, INTERRUPTED, iteration=self.iter))
            self._trainer.close()
            said += f"; saved {os.path.join(self.cfg.OUTPUT_DIR, INTERRUPTED)}.pth"
        return f"{said}; --resume continues"

    def after_train(self):
        if self.iter < self.max_iter:  # something went wrong: no time for an evaluation
            self._hooks = [hook for hook in self._hooks if not isinstance(hook, hooks.EvalHook)]
        super().after_train()

    def _remedy(self) -> str:
        """What to add to the command of a run that diverged."""
        solver, folder = self.cfg.SOLVER, self.cfg.OUTPUT_DIR.rstrip("/")
        other = next(path for n in count(2) if not os.path.exists(path := f"{folder}_{n}"))
        options = ["OUTPUT_DIR", other, "SOLVER.BASE_LR", f"{solver.BASE_LR / 10:g}"]
        if path := newest_intact(folder)[0]:
            options += ["MODEL.WEIGHTS", path]
        if not solver.CLIP_GRADIENTS.ENABLED:
            options += ["SOLVER.CLIP_GRADIENTS.ENABLED", "True", "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "norm"]
        if solver.AMP.ENABLED:
            options += ["SOLVER.AMP.ENABLED", "False"]
        typed = shlex.join(options)
        return f"Check these images and their labels, and start a new run with, for example, {typed}"

    def resume_or_load(self, resume: bool = True) -> None:
        """Continue from OUTPUT_DIR's newest intact checkpoint if asked, else start from MODEL.WEIGHTS.

        Raises:
            UserError: a run has written to OUTPUT_DIR, but nothing usable; or it had other settings.
        """
        if resume and self.checkpointer.resume():
            self.start_iter = self.iter + 1
        else:
            if resume:
                logger.info("Nothing to resume yet in %s", self.cfg.OUTPUT_DIR)
            if self.cfg.MODEL.WEIGHTS:
                load_weights(self.model, self.cfg.MODEL.WEIGHTS, to_train=True, cfg=self.cfg)
        if comm.get_world_size() > 1:
            for tensor in (*self.model.parameters(), *self.model.buffers()):
                torch.distributed.broadcast(tensor.data, src=0)

    def _seeded_config(self):
        """The config with the seed of this run also where SEED is -1, and the data sets that are read."""
        cfg = with_data_sets(self.cfg)
        cfg.defrost()
        cfg.SEED = self.seed
        cfg.freeze()
        return cfg

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
        state.update(processes=comm.get_world_size(), images=self._images, contents=self._contents)
        return state

    def load_state_dict(self, state: dict) -> None:
        if state["processes"] != comm.get_world_size():
            logger.warning(
                "The run had %d processes, now it has %d: it goes on with the same images and paths per "
                "step, but its losses are no longer those of an uninterrupted run",
                *(state["processes"], comm.get_world_size()),
            )
        TrainerBase.load_state_dict(self, state)
        self._trainer.load_state_dict(state["_trainer"])
        if self.seed != self._trainer.seed:
            self.seed = self._trainer.seed
            self.data_loader = self.build_train_loader(self._seeded_config())
        different = content_difference(state.get("contents", {}), self._contents)
        problem = f"has changed: {different}" if different else ""
        if None not in (state["images"], self._images) and state["images"] != self._images:
            problem = f"had {state['images']} images, now it has {self._images}"
        if problem:
            raise UserError(
                f"--resume: DATASETS.TRAIN {list(self.cfg.DATASETS.TRAIN)} {problem}; restore the data, or "
                "start a new run in another OUTPUT_DIR with MODEL.WEIGHTS"
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
        """Evaluate on DATASETS.TEST a copy of the model with its BatchNorm folded; float32 as always.

        Raises:
            Diverged: in every process, if the model gives NaN or infinity.
        """
        network = folded(model)
        with signals.at_once(), finite_outputs(network, shared=comm.get_world_size() > 1):
            results = super().test(with_data_sets(cfg), network, evaluators)
        names = {data_set_for(cfg, name): name for name in cfg.DATASETS.TEST}
        return type(results)((names.get(key, key), value) for key, value in results.items())

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        units = "batches" if holds_classes(dataset_name) else "images"
        shown = dataset_name.removesuffix(SUFFIX)
        return ShownLoader(build_test_loader(cfg, dataset_name), f"evaluation of {shown}", units)

    @classmethod
    def build_evaluator(cls, cfg, dataset_name, output_folder=None, **options) -> DatasetEvaluators:
        """Those of TEST.METRICS; ``options`` go to :func:`build_evaluators`."""
        folder = output_folder or f"{cfg.OUTPUT_DIR}/inference"
        options |= {"pictures": cfg.TEST.PICTURES, "operators": Choices.from_config(cfg).names}
        return build_evaluators(cfg, dataset_name, folder, tuple(cfg.TEST.METRICS), details=True, **options)
