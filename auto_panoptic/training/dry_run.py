"""``train_net.py --dry-run``: what would run, how long, and what it needs; measured on a few images."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import tempfile
import textwrap
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage
from tqdm import tqdm

from ..data import holds_classes
from ..data.few import few_images
from ..errors import show_warnings
from ..modeling import choice_blocks, meta_model
from ..progress import hidden
from .checkpoint import checkpoint_sizes, iterations_done
from .launch import processes
from .loop import FairCycleTrainer
from .precision import Precision
from .trainer import AutoPanopticTrainer
from .weights import load_weights

IMAGES = 8  # of each data set
ENOUGH = 10.0  # seconds of steps
MOST_STEPS = 5


def dry_run(args, cfg, trainer=AutoPanopticTrainer, statistics=None) -> None:
    """Say what a training or evaluation that has been checked would do; nothing is written.

    ``statistics(cfg, model, space)`` is the context in which a path of a supernet's weights is evaluated. The
    measurement is of one process, with its share of the batch, on a few images of each set: several
    processes also wait for each other, and data loaders may be slower on many images.

    Raises:
        UserError: as the run itself would.
    """
    if not begins():
        return
    number = processes(args)
    with few_images(cfg, IMAGES) as counts, temporary_output(cfg) as small, hidden():
        if args.eval_only:
            facts = measure_evaluation(small, counts, number, trainer, statistics=statistics)
        else:
            facts = measure_training(small, counts, number, trainer)
    if args.eval_only:
        seconds = facts["evaluation"] + facts["statistics"]
        parts = [("evaluates", facts["model"]), ("weights", cfg.MODEL.WEIGHTS), *facts["of"]]
        disk = "results and logs: a few MB, and predictions with --save-predictions"
    else:
        seconds, lines, disk = _of_training(args, cfg, counts, facts)
        parts = [("trains", facts["model"]), *lines]
    show(
        [
            *parts,
            ("evaluated on", _sets(cfg.DATASETS.TEST, counts) if facts["evaluation"] else "nothing"),
            ("writes to", cfg.OUTPUT_DIR),
            ("disk", f"{disk}; {size(free_space(cfg.OUTPUT_DIR))} are free"),
            ("memory", memory_text(facts["memory"], cfg.MODEL.DEVICE, number)),
            ("time", duration(seconds) + facts["how"]),
        ]
    )


def begins() -> bool:
    """Whether this process of a run is the one to say what would happen; it says that it measures."""
    if os.environ.get("RANK", "0") != "0":
        return False
    show_warnings()
    print("Nothing is written. A moment, for a short measurement ...", flush=True)
    return True


def _of_training(args, cfg, counts: dict, facts: dict) -> tuple[float, list[tuple[str, str]], str]:
    """Seconds of the rest of a training, lines about it, and the disk space of its checkpoints."""
    file, done = iterations_done(cfg.OUTPUT_DIR) if args.resume else ("", 0)
    left, images = max(cfg.SOLVER.MAX_ITER - done, 0), sum(counts[name] for name in cfg.DATASETS.TRAIN)
    passes, batch = facts["passes"], cfg.SOLVER.IMS_PER_BATCH
    seen = cfg.SOLVER.MAX_ITER * passes * batch
    each = f"{passes} passes over {batch} images" if passes > 1 else f"a batch of {batch} images"
    period = cfg.TEST.EVAL_PERIOD
    evaluations = max(left // period, 1) if period else 1
    model = meta_model(cfg)
    bytes_each, kept = checkpoint_sizes(cfg, model)
    start = f"{file}, {done:,} iterations are done" if file else cfg.MODEL.WEIGHTS or "random weights"
    lines = [
        ("on", _sets(cfg.DATASETS.TRAIN, counts)),
        ("iterations", f"{left:,}, each {each}; in all {seen:,} images, {seen / images:.1f} epochs"),
        ("starts from", start),
    ]
    disk = f"{size(bytes_each * kept)} for {kept} checkpoints of {size(bytes_each)}"
    if is_fixed(model) and not any(map(holds_classes, cfg.DATASETS.TRAIN)):
        disk += f", {size(weight_bytes(model))} for the bundle"
    return left * facts["step"] + evaluations * facts["evaluation"], lines, disk


def measure_training(cfg, counts: dict, number: int, trainer) -> dict:
    """Seconds of a step and of an evaluation of DATASETS.TEST, and the memory of it all."""
    cfg.SOLVER.IMS_PER_BATCH //= number
    model = trainer.build_model(cfg)
    text = describe(model)
    if cfg.MODEL.WEIGHTS:
        load_weights(model, cfg.MODEL.WEIGHTS, to_train=True, cfg=cfg)
    optimizer = trainer.build_optimizer(cfg, model)
    for group in optimizer.param_groups:
        group["lr"] = 0.0  # what is measured is not to diverge
    loop = FairCycleTrainer(
        model,
        trainer.build_train_loader(cfg),
        optimizer,
        gradients=cfg.NAS.GRADIENTS,
        sampling=cfg.NAS.SAMPLING,
        path_seed=cfg.NAS.SEED,
        precision=Precision.from_config(cfg),
    )
    times = []
    with EventStorage():
        while len(times) < 2 or (sum(times[1:]) < ENOUGH and len(times) <= MOST_STEPS):
            start = time.perf_counter()
            loop.iter = len(times)
            loop.run_step()  # ends with numbers of the losses, so with all work of the GPU
            times.append(time.perf_counter() - start)
    loop.close()
    step, fixed = sum(times[1:]) / len(times[1:]), is_fixed(model)
    found = {"model": text, "step": step, "passes": max(loop.space.cycle_length, 1), "evaluation": 0.0}
    how = f", at {step:.2f} s for an iteration (mean of {len(times) - 1})"
    if fixed and cfg.DATASETS.TEST:
        found |= measure_evaluation(cfg, counts, number, trainer, model)
        how += f" and {duration(found['evaluation'])} for an evaluation"
    return found | {"model": text, "how": how, "memory": memory(cfg)}


def measure_evaluation(cfg, counts: dict, number: int, trainer, model=None, statistics=None) -> dict:
    """Seconds of an evaluation of DATASETS.TEST, from some of its images; see :func:`dry_run`.

    "statistics" are the seconds of those of a supernet's path, which "of" says in a line.
    """
    context, wanted = contextlib.nullcontext(), 0
    settings = cfg.NAS.BN_RECALIBRATION
    if model is None:
        model = trainer.build_model(cfg)
        space = load_weights(model, cfg.MODEL.WEIGHTS, cfg=cfg)
        if settings.ENABLED and statistics and any(len(ops) > 1 for ops in space.values()):
            wanted = min(settings.NUM_IMAGES, sum(counts[name] for name in cfg.DATASETS.TRAIN))
            settings.NUM_IMAGES = few = min(wanted, IMAGES)
            context = statistics(cfg, model, space)
    images = sum(min(counts[name], IMAGES) for name in cfg.DATASETS.TEST)
    begin = time.perf_counter()
    with context:
        start = time.perf_counter()
        trainer.test(cfg, model)
        each = (time.perf_counter() - start) / max(images, 1)
    seconds = each * sum(counts[name] for name in cfg.DATASETS.TEST) / number
    found = {"evaluation": seconds, "statistics": (start - begin) * wanted / few if wanted else 0.0}
    how = f", at {each:.2f} s for an image (measured on {images})"
    found["of"] = []
    if wanted:
        how += f" and {duration(found['statistics'])} for the statistics"
        found["of"] = [("statistics", f"of {wanted:,} training images: the weights are a supernet's")]
    return found | {"model": describe(model), "how": how, "memory": memory(cfg)}


def is_fixed(model) -> bool:
    """Whether a model is one network, no supernet."""
    return all(len(block.candidates) == 1 for block in choice_blocks(model).values())


def weight_bytes(model) -> int:
    """Of all weights and statistics of a model, as a bundle holds them."""
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))


def describe(model) -> str:
    """Name, device and size of a model."""
    parameters = sum(p.numel() for p in model.parameters())
    sites = sum(len(block.candidates) > 1 for block in choice_blocks(model).values())
    kind = f", a supernet of {sites} sites" if sites else ""
    return f"{type(model).__name__}{kind}, {parameters:,} parameters, on {model.device}"


@contextlib.contextmanager
def temporary_output(cfg) -> Iterator[CfgNode]:
    """A copy of the config with an OUTPUT_DIR of the block, to be changed further."""
    small = cfg.clone()
    small.defrost()
    with tempfile.TemporaryDirectory(prefix="auto_panoptic-") as small.OUTPUT_DIR:
        yield small


def _sets(names: Iterable[str], counts: dict) -> str:
    return ", ".join(f"{name} ({counts[name]:,} images)" for name in names)


def memory(cfg) -> int:
    """The most bytes that this process has held so far, of a GPU's memory where it computes on one."""
    if cfg.MODEL.DEVICE.startswith("cuda"):
        return torch.cuda.max_memory_reserved()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def memory_text(needed: int, device: str, number: int) -> str:
    """What is needed, beside what there is."""
    if device.startswith("cuda"):
        return f"{size(needed)} of each GPU's {size(torch.cuda.get_device_properties(0).total_memory)}"
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    several = f" in each of {number} processes" if number > 1 else ""
    return f"{size(needed)}{several}, without data loaders; this machine has {size(there)}"


def free_space(folder: str) -> int:
    """Free bytes where a folder is, or would be."""
    there = Path(folder).absolute()
    return shutil.disk_usage(next(p for p in (there, *there.parents) if p.exists())).free


def size(number: int) -> str:
    """Bytes for people."""
    return f"{number / 1e9:,.1f} GB" if number >= 1e9 else f"{number / 1e6:,.1f} MB"


def duration(seconds: float) -> str:
    """A time for people, with the hours of what takes long."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 3600:.2f} hours ({tqdm.format_interval(seconds)})"


def show(lines: list[tuple[str, str]]) -> None:
    """Print names and texts in two columns."""
    width = min(shutil.get_terminal_size().columns, 110)
    for name, text in lines:
        indents = {"initial_indent": f"{name:<13} ", "subsequent_indent": " " * 14}
        print(textwrap.fill(text, width, break_on_hyphens=False, break_long_words=False, **indents))
