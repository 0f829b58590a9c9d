"""``search_net.py --dry-run``: what would be searched, how long, what it needs; measured on a few images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ..data.few import few_images
from ..explore import Ledger
from ..modeling import meta_model
from ..progress import hidden
from ..space import as_text
from ..training import AutoPanopticTrainer, processes
from ..training.checkpoint import checkpoint_sizes
from ..training.dry_run import (
    begins,
    duration,
    free_space,
    measure_training,
    memory,
    memory_text,
    show,
    size,
    temporary_output,
    weight_bytes,
)
from .candidate import EVALUATION_BATCH, CandidateEvaluator, load_evaluator
from .final_training import Final, final_config
from .finalists import FinalsRequest
from .finals import trainings
from .header import search_policy
from .selection import ledger_path

IMAGES = 2 * EVALUATION_BATCH
_RECORD = 4000  # bytes of a candidate in the ledger, with its bootstrap samples
_REPORT = 2_000_000  # and figures


def dry_run(args, cfg, finals: FinalsRequest | None = None) -> None:
    """Say what a search that has been checked would do, and its ``finals``; nothing is written.

    A candidate is measured on some of the images; the decoded images of all are held in memory.

    Raises:
        UserError: as the search itself would.
    """
    if not begins():
        return
    policy, path = search_policy(cfg, args.costs.space), ledger_path(cfg.OUTPUT_DIR)
    total, done = policy.cycles * policy.models, 0
    if args.resume and path.exists():
        done = len({(r["cycle"], r["index"]) for r in Ledger(path).records})
    wanted = cfg.NAS.BN_RECALIBRATION.NUM_IMAGES if cfg.NAS.BN_RECALIBRATION.ENABLED else 0
    with few_images(cfg, IMAGES) as counts, temporary_output(cfg) as small, hidden():
        wanted = min(wanted, sum(counts[name] for name in cfg.DATASETS.TRAIN))
        images = sum(counts[name] for name in cfg.DATASETS.SEARCH)
        small.NAS.BN_RECALIBRATION.NUM_IMAGES = max(min(wanted, IMAGES), 1)
        evaluate = load_evaluator(small, args.weights, args.metrics)
        evaluate.show = False
        each, held = _measure(evaluate, args.costs.space, wanted, images)
        trained = None if finals is None else _measure_finals(args, small, counts, finals)
        path_bytes = weight_bytes(meta_model(_of_path(small, args.costs.space)))
        needed = memory(cfg) + (0 if cfg.MODEL.DEVICE.startswith("cuda") else held)
    at_once, seconds = args.workers or processes(args), sum(each.values())
    left, how = max(total - done, 0), f"{policy.name}, {policy.cycles} cycles of {policy.models}"
    if args.budget is not None:
        left = min(left, int(args.budget * at_once / seconds))
        how = f"{policy.name}, as many cycles of {policy.models} as end within --budget"
    needs = (done + left) * _RECORD + _REPORT + path_bytes
    time, lines = left * seconds / at_once, []
    if finals is not None:
        lines, more, disk = _finals_lines(finals, trained, each["evaluation"], at_once)
        time, needs = time + more, needs + disk
    free = size(free_space(cfg.OUTPUT_DIR))
    parts = ", ".join(f"{name} {value:.2f} s" for name, value in each.items())
    names = ", ".join(cfg.DATASETS.SEARCH)
    show(
        [
            ("searches", f"{left:,} candidates ({how})"),
            *([("recorded", f"{done:,} others")] if done else []),
            ("supernet", args.weights),
            ("scored by", f"{', '.join(args.metrics)} on {names} ({images:,} images)"),
            *([("statistics", f"of {wanted:,} training images for each candidate")] if wanted else []),
            *lines,
            ("writes to", str(path.parent)),
            ("disk", f"{size(needs)}, {size(path_bytes)} of it for the bundle; {free} are free"),
            ("memory", f"{memory_text(needed, cfg.MODEL.DEVICE, at_once)}; decoded images {size(held)}"),
            ("time", f"{duration(time)}; for a candidate: {parts}"),
        ]
    )


def _of_path(cfg, space):
    """The config of some path, as a network of its own."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.NAS.ARCHITECTURE = as_text(space.random(np.random.default_rng(0)).names())
    return cfg


def _measure_finals(args, cfg, counts: dict, request: FinalsRequest) -> tuple[float, int]:
    """Seconds of an optimizer step of a finalist, and the bytes of the checkpoints of its training."""
    architecture = args.costs.space.random(np.random.default_rng(0))
    folder = Path(cfg.OUTPUT_DIR)
    final = Final(architecture, request.steps, 0)
    architecture.save(folder / "architecture.json")
    small = final_config(cfg, args.final_weights or "", final, folder)
    bytes_each, kept = checkpoint_sizes(small, meta_model(small))
    small.defrost()
    return measure_training(small, counts, 1, AutoPanopticTrainer)["step"], bytes_each * kept


def _finals_lines(request: FinalsRequest, trained: tuple[float, int], scoring: float, at_once: int) -> tuple:
    """A line about the finals, their seconds and bytes.

    The best candidate may be one finalist more, and the combination of the first trainings another.
    """
    step, held = trained
    least, most = (trainings(request.finalists + more, request, joining=more) for more in (0, 1))
    numbers = [sum(number for number, _ in plan) for plan in (least, most)]
    steps = sum(number * steps for number, steps in most)
    seconds = (steps * step + numbers[1] * scoring) / at_once
    number = f"{numbers[0]:,} to {numbers[1]:,}" if numbers[0] < numbers[1] else f"{numbers[0]:,}"
    networks = f"{request.controls} random network{'s' * (request.controls != 1)}"
    text = f"{number} trainings, with {networks}; in all at most {steps:,} steps"
    text += f" of {step:.2f} s, together {duration(seconds)}"
    return [("finals", text)], seconds, held * at_once


def _measure(evaluate: CandidateEvaluator, space, wanted: int, images: int) -> tuple[dict[str, float], int]:
    """Seconds of a candidate per phase, and bytes of the decoded images, scaled to all images."""
    scored = [batch for batches, _ in evaluate.data for batch in batches]
    batches = {"recalibration": evaluate.calibration, "evaluation": scored}
    few = {name: sum(map(len, found)) for name, found in batches.items()}
    scale = {"recalibration": wanted / max(few["recalibration"], 1), "evaluation": images / few["evaluation"]}
    rng = np.random.default_rng(0)
    for _ in range(2):  # the first one is slower
        _, seconds = evaluate(space.random(rng))
    held = sum(
        scale[name] * value.nbytes
        for name, found in batches.items()
        for batch in found
        for sample in batch
        for value in sample.values()
        if isinstance(value, torch.Tensor)
    )
    return {name: seconds[name] * scale[name] for name in batches if few[name]}, int(held)
