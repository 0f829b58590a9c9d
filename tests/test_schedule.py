"""Learning rates of the paper's stages, at known points."""

import pytest
import torch
from toy import TOY_NET, make_config

from auto_panoptic.errors import UserError
from auto_panoptic.training import build_lr_scheduler, check_training


class Solver:
    """Rates of a schedule at any iteration."""

    def __init__(self, cfg):
        parameter = torch.nn.Parameter(torch.zeros(1))
        self.optimizer = torch.optim.SGD([parameter], lr=cfg.SOLVER.BASE_LR)
        self.scheduler = build_lr_scheduler(cfg, self.optimizer)

    def rate(self, iteration):
        self.scheduler.last_epoch = iteration
        return self.scheduler.get_lr()[0]


def config(folder, shapes, name, base, length, warmup, *options):
    options += ("SOLVER.LR_SCHEDULER_NAME", name, "SOLVER.BASE_LR", base, "SOLVER.MAX_ITER", length)
    options += ("SOLVER.WARMUP_ITERS", warmup, "SOLVER.STEPS", ())
    return make_config(folder, shapes, *TOY_NET, *options)


def test_reference_cosine(tmp_path, shapes):
    solver = Solver(config(tmp_path, shapes, "ReferenceCosineLR", 0.02, 90000, 3000))
    points = {0: 0.002, 1500: 0.011, 3000: 0.02, 46500: 0.01, 90000: 0}
    assert {k: solver.rate(k) for k in points} == pytest.approx(points, rel=1e-9, abs=1e-12)


def test_a_supernet_step_has_the_rate_of_its_first_mini_batch(tmp_path, shapes):
    """One iteration is a cycle of 12 mini-batches: 90000 and 3000 become 7500 and 250."""
    mini_batches = Solver(config(tmp_path, shapes, "ReferenceCosineLR", 0.02, 90000, 3000))
    cycles = Solver(config(tmp_path, shapes, "ReferenceCosineLR", 0.02, 7500, 250))
    for step in range(7501):
        assert cycles.rate(step) == pytest.approx(mini_batches.rate(12 * step), rel=1e-9, abs=1e-12)


def test_detectron2s_cosine_is_another_one(tmp_path, shapes):
    """It starts at iteration 0, so at the end of the warm-up it has already come down."""
    solver = Solver(config(tmp_path, shapes, "WarmupCosineLR", 0.02, 90000, 3000))
    assert 0.0199 < solver.rate(3000) < 0.019999


def test_linear_decay_of_the_imagenet_stage(tmp_path, shapes):
    solver = Solver(config(tmp_path, shapes, "WarmupLinearLR", 0.5, 300000, 0))
    points = {0: 0.5, 1: 0.5 * 299999 / 300000, 75000: 0.375, 150000: 0.25, 300000: 0}
    assert {k: solver.rate(k) for k in points} == pytest.approx(points, rel=1e-9, abs=1e-12)


def test_linear_decay_after_a_warm_up(tmp_path, shapes):
    """From a tenth of the rate to where the line is at the end of the warm-up."""
    solver = Solver(config(tmp_path, shapes, "WarmupLinearLR", 0.5, 1000, 100))
    points = {0: 0.05, 50: 0.25, 100: 0.45, 550: 0.225, 1000: 0}
    assert {k: solver.rate(k) for k in points} == pytest.approx(points, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    "name", ["WarmupLinearLR", "ReferenceCosineLR", "WarmupMultiStepLR", "WarmupCosineLR"]
)
def test_the_schedule_steps_and_continues(tmp_path, shapes, name):
    """Through a whole run, and from its middle with the state of a checkpoint."""
    cfg = config(tmp_path, shapes, name, 0.02, 40, 7)
    whole, resumed = Solver(cfg), Solver(cfg)
    rates = []
    for step in range(40):
        if step == 23:
            resumed.scheduler.load_state_dict(whole.scheduler.state_dict())
            # torch sets the rate in step(); a checkpoint of the optimizer carries the current one
            resumed.optimizer.load_state_dict(whole.optimizer.state_dict())
        rates.append(whole.optimizer.param_groups[0]["lr"])
        if step >= 23:
            assert resumed.optimizer.param_groups[0]["lr"] == rates[-1]
            resumed.optimizer.step()
            resumed.scheduler.step()
        whole.optimizer.step()
        whole.scheduler.step()
    reference = Solver(cfg)
    assert rates == pytest.approx([reference.rate(k) for k in range(40)], rel=1e-12)
    assert max(rates) > 5 * rates[0] > 0


@pytest.mark.parametrize(
    "options, message",
    [
        (("SOLVER.LR_SCHEDULER_NAME", "CosineLR"), "LR_SCHEDULER_NAME 'CosineLR'.*ReferenceCosineLR"),
        (("SOLVER.STEPS", (30, 20)), r"STEPS is \(30, 20\)"),
        (("SOLVER.WARMUP_METHOD", "quadratic"), "WARMUP_METHOD is 'quadratic'"),
        (
            ("SOLVER.LR_SCHEDULER_NAME", "ReferenceCosineLR", "SOLVER.WARMUP_ITERS", 40),
            r"WARMUP_ITERS is 40; ReferenceCosineLR needs .* less than SOLVER.MAX_ITER \(40\)",
        ),
        (("SOLVER.LR_SCHEDULER_NAME", "WarmupLinearLR", "SOLVER.WARMUP_ITERS", -1), "WARMUP_ITERS is -1"),
    ],
)
def test_mistakes_are_named(tmp_path, shapes, options, message):
    with pytest.raises(UserError, match=message) as error:
        check_training(make_config(tmp_path, shapes, *TOY_NET, "SOLVER.MAX_ITER", 40, *options))
    assert "\n" not in str(error.value)
