"""``search_net.py --dry-run``: what would be searched, how long, what it needs; measured on a few images."""

from __future__ import annotations

import numpy as np
import torch

from ..data.few import few_images
from ..explore import Ledger
from ..progress import hidden
from ..training import processes
from ..training.dry_run import begins, duration, free_space, memory, memory_text, show, size, temporary_output
from .candidate import EVALUATION_BATCH, CandidateEvaluator, load_evaluator
from .header import search_policy
from .selection import ledger_path

IMAGES = 2 * EVALUATION_BATCH
_RECORD = 4000  # bytes of a candidate in the ledger, with its bootstrap samples
_REPORT = 2_000_000  # and figures


def dry_run(args, cfg) -> None:
    """Say what a search that has been checked would do; nothing is written.

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
        needed = memory(cfg) + (0 if cfg.MODEL.DEVICE.startswith("cuda") else held)
    at_once, seconds = args.workers or processes(args), sum(each.values())
    left, how = max(total - done, 0), f"{policy.name}, {policy.cycles} cycles of {policy.models}"
    if args.budget is not None:
        left = min(left, int(args.budget * at_once / seconds))
        how = f"{policy.name}, as many cycles of {policy.models} as end within --budget"
    needs = (done + left) * _RECORD + _REPORT
    parts = ", ".join(f"{name} {value:.2f} s" for name, value in each.items())
    names = ", ".join(cfg.DATASETS.SEARCH)
    show(
        [
            ("searches", f"{left:,} candidates ({how})"),
            *([("recorded", f"{done:,} others")] if done else []),
            ("supernet", args.weights),
            ("scored by", f"{', '.join(args.metrics)} on {names} ({images:,} images)"),
            *([("statistics", f"of {wanted:,} training images for each candidate")] if wanted else []),
            *([("finals", "their trainings are not in what follows")] if args.finals is not None else []),
            ("writes to", str(path.parent)),
            ("disk", f"{size(needs)}; {size(free_space(cfg.OUTPUT_DIR))} are free"),
            ("memory", f"{memory_text(needed, cfg.MODEL.DEVICE, at_once)}; decoded images {size(held)}"),
            ("time", f"{duration(left * seconds / at_once)}; for a candidate: {parts}"),
        ]
    )


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
