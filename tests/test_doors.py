"""Detectron2's hook points: what a subclass of the trainer overrides is what trains and evaluates."""

import json
import logging

import pytest
import torch
from detectron2.data import DatasetMapper, build_detection_test_loader, build_detection_train_loader
from detectron2.engine import HookBase
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils.events import EventWriter
from toy import TOY_NET, _own_logging, make_config, run_script, write_config

import auto_panoptic
import train_net
from auto_panoptic.errors import UserError
from auto_panoptic.space import SearchSpace
from auto_panoptic.training import AutoPanopticTrainer, build_train_loader

SCHEDULE = ("SOLVER.MAX_ITER", 2, "SOLVER.WARMUP_ITERS", 0, "SOLVER.STEPS", ())


def train(folder, shapes, trainer, *options, resume=False, fixed=False):
    """Train with the class ``trainer``; ``fixed`` trains one path, which is evaluated at the end."""
    options = (*TOY_NET, *SCHEDULE, *options)
    if fixed:
        path = folder / "architecture.json"
        space = SearchSpace.from_config(make_config(folder, shapes, *options))
        space.architecture([0] * len(space.sites)).save(path)
        options += ("NAS.ARCHITECTURE", path)
    else:
        options += ("DATASETS.TEST", ())
    (folder / "output").mkdir(exist_ok=True)
    made = trainer(make_config(folder, shapes, *options))
    made.resume_or_load(resume=resume)
    made.train()
    return made


class Seven(DatasetEvaluator):
    def reset(self): ...
    def process(self, inputs, outputs): ...
    def evaluate(self):
        return {"mine": {"count": 7.0}}


class Seen(HookBase):
    """Keeps the batches of a run."""

    def __init__(self, model):
        self.batches = []
        model.register_forward_pre_hook(lambda _, inputs: self.batches.append(inputs[0]))


class Watched(AutoPanopticTrainer):
    def build_hooks(self):
        self.seen = Seen(self.model)
        return [*super().build_hooks(), self.seen]


def test_a_loader_of_detectron2_feeds_the_training(tmp_path, shapes):
    """The standard way to bring a mapper."""

    class Grey(DatasetMapper):
        def __call__(self, record):
            sample = super().__call__(record)
            return {**sample, "image": torch.full_like(sample["image"], 77)}

    class Trainer(Watched):
        @classmethod
        def build_train_loader(cls, cfg):
            return build_detection_train_loader(cfg, mapper=Grey(cfg, is_train=True, use_instance_mask=False))

    trainer = train(tmp_path, shapes, Trainer)
    assert len(trainer.seen.batches) == 24 and all(len(batch) == 2 for batch in trainer.seen.batches)
    assert all((x["image"] == 77).all() for batch in trainer.seen.batches for x in batch)
    assert trainer.data_loader is not None


def test_our_loader_with_another_mapper_stays_exact(tmp_path, shapes):
    class Named(DatasetMapper):
        def __call__(self, record):
            return {**super().__call__(record), "mine": True}

    class Trainer(Watched):
        @classmethod
        def build_train_loader(cls, cfg):
            return build_train_loader(cfg, mapper=Named(cfg, is_train=True, use_instance_mask=False))

    def order(batches):
        return [[x["image_id"] for x in batch] for batch in batches]

    (tmp_path / "straight").mkdir()
    (tmp_path / "resumed").mkdir()
    whole = train(tmp_path / "straight", shapes, Trainer).seen.batches
    train(tmp_path / "resumed", shapes, Trainer, "SOLVER.MAX_ITER", 1)
    rest = train(tmp_path / "resumed", shapes, Trainer, resume=True).seen.batches
    assert all(x["mine"] for batch in whole for x in batch)
    assert order(rest) == order(whole)[12:] and order(rest) != order(whole)[:12]


class Finite(Watched):
    """A loader of three batches without a position."""

    @classmethod
    def build_train_loader(cls, cfg):
        samples = [{"image": torch.full((3, 16, 16), float(i)), "number": i} for i in range(3)]
        return [[sample] for sample in samples]


def test_a_finite_loader_is_read_again_and_a_resume_says_that_it_begins_anew(tmp_path, shapes, caplog):
    train(tmp_path, shapes, Finite, "SOLVER.MAX_ITER", 1)
    with caplog.at_level(logging.WARNING):
        trainer = train(tmp_path, shapes, Finite, resume=True)
    assert [batch[0]["number"] for batch in trainer.seen.batches] == [0, 1, 2] * 4
    assert "list cannot skip the 12 batches that the run has seen: it begins anew" in caplog.text


def test_an_empty_loader_is_named(tmp_path, shapes):
    class Trainer(AutoPanopticTrainer):
        @classmethod
        def build_train_loader(cls, cfg):
            return []

    with pytest.raises(UserError, match="training data loader, a list, gives no batch"):
        train(tmp_path, shapes, Trainer)


def test_the_optimizer_schedule_model_and_writers_of_a_subclass_are_used(tmp_path, shapes):
    class Lines(EventWriter):
        iterations = []

        def write(self):
            self.iterations.append(1)

    class Trainer(AutoPanopticTrainer):
        @classmethod
        def build_model(cls, cfg):
            model = super().build_model(cfg)
            model.mine = True
            return model

        @classmethod
        def build_optimizer(cls, cfg, model):
            return torch.optim.Adam(model.parameters(), lr=0.5)

        @classmethod
        def build_lr_scheduler(cls, cfg, optimizer):
            return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)

        def build_writers(self):
            return [Lines()]

    trainer = train(tmp_path, shapes, Trainer)
    assert trainer.model.mine and isinstance(trainer.optimizer, torch.optim.Adam)
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.5 * 0.5**2)
    assert Lines.iterations and not (tmp_path / "output/metrics.json").exists()


def test_hooks_of_a_subclass_may_leave_out_all_others(tmp_path, shapes):
    """Fair sampling is the loop's, not a hook's."""

    class Trainer(AutoPanopticTrainer):
        def build_hooks(self):
            self.seen = Seen(self.model)
            return [self.seen]

    trainer = train(tmp_path, shapes, Trainer)
    assert len(trainer.seen.batches) == 24
    counter = trainer._trainer.counter
    assert counter.passes == 24 and {row[0] for row in counter.counts.tolist()} == {6, 4, 8}


def test_evaluator_and_test_loader_of_a_subclass_evaluate(tmp_path, shapes):
    class Count(DatasetEvaluator):
        def reset(self):
            self.images = []

        def process(self, inputs, outputs):
            self.images += [x["image"] for x in inputs]

        def evaluate(self):
            return {"mine": {"count": float(len(self.images)), "grey": float(self.images[0].max())}}

    read = []

    class Trainer(AutoPanopticTrainer):
        @classmethod
        def build_evaluator(cls, cfg, dataset_name, output_folder=None):
            return Count()

        @classmethod
        def build_train_loader(cls, cfg):
            read.extend(cfg.DATASETS.TRAIN)
            return super().build_train_loader(cfg)

        @classmethod
        def build_test_loader(cls, cfg, dataset_name):
            read.append(dataset_name)
            return build_detection_test_loader([{"image": torch.full((3, 16, 16), 9)}] * 5, mapper=dict)

    named = ("toy_panoptic_val", "toy_panoptic_nas_val")
    trainer = train(tmp_path, shapes, Trainer, "DATASETS.TEST", named, fixed=True)
    assert trainer.last_results == dict.fromkeys(named, {"mine": {"count": 5.0, "grey": 9.0}})
    # Loaders of Detectron2 read what they are told: the siblings with the labels that the model needs.
    assert read == [f"toy_panoptic_{part}_separated" for part in ("nas_train", "val", "nas_val")]


def test_python_trains_with_a_class_of_ones_own(tmp_path, shapes):
    path = write_config(tmp_path / "toy.yaml", shapes)
    options = (*TOY_NET, *SCHEDULE, "DATASETS.TEST", ())
    with _own_logging():
        trainer = auto_panoptic.train(path, options, trainer=Finite)
    assert isinstance(trainer, Finite) and len(trainer.seen.batches) == 24
    assert (tmp_path / "output/model_final.pth").exists()


def test_train_net_evaluates_with_the_evaluator_of_its_class(tmp_path, shapes, monkeypatch, capfd):
    train(tmp_path, shapes, AutoPanopticTrainer, "DATASETS.TEST", (), fixed=True)

    class Trainer(train_net.Trainer):
        @classmethod
        def build_evaluator(cls, cfg, dataset_name):
            return Seven()

    monkeypatch.setattr(train_net, "Trainer", Trainer)
    options = (
        "NAS.ARCHITECTURE",
        tmp_path / "architecture.json",
        *TOY_NET,
        "OUTPUT_DIR",
        tmp_path / "evaluated",
    )
    weights = ("MODEL.WEIGHTS", tmp_path / "output/model_final.pth")
    run_script("train_net", "--config-file", tmp_path / "toy.yaml", "--eval-only", *options, *weights)
    line = (tmp_path / "evaluated/metrics.json").read_text()
    assert json.loads(line) == {"mine/count": 7.0}
