"""Detectron2's own trainers, as installed: schedule on resume, mixed precision."""

import io
import warnings

import pytest
import torch
from detectron2 import _C
from detectron2.config import get_cfg
from detectron2.engine import HookBase, SimpleTrainer, hooks

OURS = getattr(_C, "IS_SUBSTITUTE", False) is True  # not a compiled build, whose warnings are its own matter


class RecordLR(HookBase):
    def __init__(self):
        self.lr = []

    def before_step(self):
        self.lr.append(self.trainer.optimizer.param_groups[0]["lr"])


class TinyModel(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))

    def forward(self, x):
        return {"loss": (self.weight * x).sum()}


def make_trainer(kind):
    model = TinyModel()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    if kind == "detectron2":
        from detectron2.solver import build_lr_scheduler

        cfg = get_cfg()
        cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS, cfg.SOLVER.WARMUP_ITERS = 10, (6, 8), 4
        cfg.SOLVER.WARMUP_FACTOR = 0.2
        scheduler = build_lr_scheduler(cfg, optimizer)
    else:
        scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[3, 7], gamma=0.5)
    trainer = SimpleTrainer(model, [torch.ones(3)] * 100, optimizer)
    record = RecordLR()
    trainer.register_hooks([record, hooks.LRScheduler(scheduler=scheduler)])
    return trainer, record


@pytest.mark.parametrize("kind", ["detectron2", "torch"])
def test_learning_rate_schedule_is_restored_on_resume(kind):
    whole, expected = make_trainer(kind)
    whole.train(0, 10)
    assert len(set(expected.lr)) >= 3

    first, before = make_trainer(kind)
    first.train(0, 5)
    stream = io.BytesIO()
    torch.save(first.state_dict(), stream)
    second, after = make_trainer(kind)
    second.load_state_dict(torch.load(io.BytesIO(stream.getvalue()), weights_only=True))
    second.train(5, 10)
    assert before.lr + after.lr == expected.lr


def test_mixed_precision_trainer_makes_its_scaler():
    from detectron2.engine import AMPTrainer

    model = TinyModel()
    with warnings.catch_warnings():
        warnings.simplefilter("error" if OURS else "default", FutureWarning)
        warnings.simplefilter("ignore", UserWarning)  # no CUDA: the scaler switches itself off
        trainer = AMPTrainer(model, [torch.ones(3)], torch.optim.SGD(model.parameters(), lr=1.0))
    assert isinstance(trainer.grad_scaler, torch.amp.GradScaler)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_mixed_precision_trainer_steps_without_a_warning():
    from detectron2.engine import AMPTrainer

    model = TinyModel().cuda()
    trainer = AMPTrainer(model, [torch.ones(3).cuda()] * 4, torch.optim.SGD(model.parameters(), lr=1.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error" if OURS else "default", FutureWarning)
        trainer.train(0, 2)
    torch.testing.assert_close(model.weight.cpu(), torch.full((3,), -1.0))
