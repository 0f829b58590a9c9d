"""Learning-rate schedules: Detectron2's, its DeepLab's and two more, by SOLVER.LR_SCHEDULER_NAME."""

from __future__ import annotations

import torch
from detectron2.projects.deeplab import build_lr_scheduler as build_detectron2_lr_scheduler
from detectron2.solver.lr_scheduler import LRMultiplier, WarmupParamScheduler
from fvcore.common.param_scheduler import CompositeParamScheduler, CosineParamScheduler, LinearParamScheduler

from ..errors import UserError

SCHEDULES = ("WarmupLinearLR", "ReferenceCosineLR")


def build_lr_scheduler(cfg, optimizer: torch.optim.Optimizer):
    """Build the schedule SOLVER.LR_SCHEDULER_NAME; one step of it is one iteration, i.e. one cycle.

    - "WarmupLinearLR": BASE_LR * (1 - iteration / MAX_ITER); Detectron2's warm-up leads to that line.
    - "ReferenceCosineLR" (reference code): linear from WARMUP_FACTOR to 1 in WARMUP_ITERS, then half a cosine
      that starts where the warm-up ends. Detectron2's WarmupCosineLR starts its cosine at iteration 0.
    - any other name: Detectron2's, with the "WarmupPolyLR" of its DeepLab.
    """
    solver = cfg.SOLVER
    if solver.LR_SCHEDULER_NAME not in SCHEDULES:
        return build_detectron2_lr_scheduler(cfg, optimizer)
    warmup = min(solver.WARMUP_ITERS / solver.MAX_ITER, 1.0)
    if solver.LR_SCHEDULER_NAME == "WarmupLinearLR":
        schedule = WarmupParamScheduler(
            LinearParamScheduler(1, 0), solver.WARMUP_FACTOR, warmup, solver.WARMUP_METHOD
        )
    else:
        schedule = CompositeParamScheduler(
            [LinearParamScheduler(solver.WARMUP_FACTOR, 1), CosineParamScheduler(1, 0)],
            lengths=[warmup, 1 - warmup],
            interval_scaling=["rescaled", "rescaled"],
        )
    return LRMultiplier(optimizer, multiplier=schedule, max_iter=solver.MAX_ITER)


def check_schedule(cfg) -> None:
    """Raise UserError unless a schedule can be built from ``cfg.SOLVER``."""
    solver = cfg.SOLVER
    if solver.LR_SCHEDULER_NAME in SCHEDULES and not 0 <= solver.WARMUP_ITERS < solver.MAX_ITER:
        raise UserError(
            f"SOLVER.WARMUP_ITERS is {solver.WARMUP_ITERS}; {solver.LR_SCHEDULER_NAME} needs a warm-up of at "
            f"least 0 and less than SOLVER.MAX_ITER ({solver.MAX_ITER}) iterations"
        )
    trial = cfg.clone()
    trial.defrost()
    trial.SOLVER.STEPS = tuple(step for step in solver.STEPS if step <= solver.MAX_ITER)
    try:
        build_lr_scheduler(trial, torch.optim.SGD([torch.zeros(1)], lr=1.0))
    except ValueError as error:
        raise UserError(
            f"SOLVER.LR_SCHEDULER_NAME {solver.LR_SCHEDULER_NAME!r}, STEPS {tuple(solver.STEPS)}, "
            f"WARMUP_METHOD {solver.WARMUP_METHOD!r} make no schedule: {error}; names are Detectron2's "
            f"(WarmupMultiStepLR, WarmupCosineLR, WarmupPolyLR) and {', '.join(SCHEDULES)}"
        ) from None
