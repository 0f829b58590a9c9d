"""A toy world for the tests of training, search and command line: tiny data, tiny configs, a tiny network."""

import contextlib
import importlib
import json
import logging
import sys
from pathlib import Path

import torch
import yaml
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils.logger import setup_logger
from torch import nn

from auto_panoptic.data import declare_inputs, ensure_shapes
from auto_panoptic.files import write_text
from auto_panoptic.modeling import Choices, configured_space
from auto_panoptic.space import BACKBONE_OPS, HEAD_OPS, INTER_OPS, ChoiceSite, SearchSpace
from auto_panoptic.training import build_config, run_command

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # train_net and search_net lie there

SIZES = {"nas_train": 14, "nas_val": 6, "val": 4}
PREFIX = "toy_panoptic"

# The full space of operators, with as few channels as GroupNorm(32) and the ratio 16 allow. Independent of
# configs/quick/, which is tuned for other ends.
SMALL = {
    "SEED": 0,
    "MODEL": {
        "DEVICE": "cpu",
        "SHUFFLENET": {
            "WIDTH": "custom",
            "STEM_CHANNELS": 8,
            "STAGE_CHANNELS": [16, 24, 32, 48],
            "STAGE_REPEATS": [1, 1, 2, 1],
            "NORM": "BN",
        },
        "FPN": {"OUT_CHANNELS": 32},
        "ANCHOR_GENERATOR": {"SIZES": [[8], [16], [32], [64], [128]]},
        "RPN": {
            "PRE_NMS_TOPK_TRAIN": 50,
            "PRE_NMS_TOPK_TEST": 50,
            "POST_NMS_TOPK_TRAIN": 20,
            "POST_NMS_TOPK_TEST": 10,
            "BATCH_SIZE_PER_IMAGE": 64,
        },
        "ROI_HEADS": {"BATCH_SIZE_PER_IMAGE": 8},
        "ROI_BOX_HEAD": {"FC_DIM": 128, "POOLER_RESOLUTION": 5},
        "ROI_MASK_HEAD": {"NUM_CONV": 1, "CONV_DIM": 32, "POOLER_RESOLUTION": 5},
        "SEM_SEG_HEAD": {"NUM_LAYERS": 1, "CONVS_DIM": 32},
        "PANOPTIC_FPN": {"COMBINE": {"STUFF_AREA_LIMIT": 20}},
    },
    "INPUT": {"MIN_SIZE_TRAIN": [48, 64], "MAX_SIZE_TRAIN": 96, "MIN_SIZE_TEST": 64, "MAX_SIZE_TEST": 96},
    "DATALOADER": {"NUM_WORKERS": 0},
    "SOLVER": {
        "IMS_PER_BATCH": 2,
        "MAX_ITER": 2,
        "STEPS": [1],
        "WARMUP_ITERS": 1,
        "CHECKPOINT_PERIOD": 1000,
        "BASE_LR": 0.01,
    },
    "TEST": {"DETECTIONS_PER_IMAGE": 5},
    "NAS": {"POLICY": "path_priority", "CYCLES": 1, "BN_RECALIBRATION": {"NUM_IMAGES": 8, "BATCH_SIZE": 4}},
}


def make_shapes(folder) -> Path:
    """Draw the tiny data set into ``folder``."""
    return ensure_shapes(Path(folder) / "shapes", sizes=SIZES, processes=1)


def dataset_entries(shapes: Path) -> list[dict]:
    """The four splits of the drawn set as entries of DATASETS.COCO_PANOPTIC, under names of our own."""
    entries = []
    for split in SIZES | {"train": 0}:
        images = "val" if split == "val" else "train"
        entries.append(
            {
                "name": f"{PREFIX}_{split}",
                "panoptic_json": str(shapes / f"annotations/panoptic_{split}.json"),
                "panoptic_root": str(shapes / f"panoptic_{images}"),
                "image_root": str(shapes / images),
                "instances_json": str(shapes / f"annotations/instances_{split}.json"),
                "sem_seg_root": str(shapes / f"panoptic_stuff_{images}"),
            }
        )
    return entries


def merged(base: dict, changes: dict) -> dict:
    """``base`` with the nested ``changes``."""
    result = dict(base)
    for key, value in changes.items():
        result[key] = merged(base.get(key, {}), value) if isinstance(value, dict) else value
    return result


def write_config(path: Path, shapes: Path, train: str = "nas_train", **changes) -> Path:
    """Write a config of the supernet, shrunk to :data:`SMALL`, on the tiny data set."""
    datasets = {
        "COCO_PANOPTIC": dataset_entries(shapes),
        "TRAIN": [f"{PREFIX}_{train}"],
        "TEST": [f"{PREFIX}_val"],
        "SEARCH": [f"{PREFIX}_nas_val"],
    }
    ours = {"DATASETS": datasets, "OUTPUT_DIR": str(path.parent / "output")}
    content = merged(ours, merged(SMALL, changes))
    content = {"_BASE_": str(ROOT / "configs/Base-AutoPanoptic.yaml"), **content}
    write_text(path, yaml.safe_dump(content))  # in one step: other ranks may be reading it
    return path


def make_config(folder: Path, shapes: Path, *options, **changes):
    """The checked config of :func:`write_config`, with ``options`` KEY VALUE ... on top."""
    path = write_config(folder / "toy.yaml", shapes, **changes)
    return build_config(str(path), [str(o) for o in options])


@torch.no_grad()
def answer_strongly(model: nn.Module) -> None:
    """Let an untrained panoptic model be sure of random classes and masks: PQ differs from path to path."""
    model.roi_heads.box_predictor.cls_score.weight *= 20
    model.roi_heads.box_predictor.cls_score.bias[-1] = -3
    model.roi_heads.mask_head.predictor.bias += 1


@contextlib.contextmanager
def _own_logging():
    """Take back what a command's loggers hold: their handlers outlive the streams and folders of a test."""
    names = ("detectron2", "fvcore", "auto_panoptic")
    setup_logger.cache_clear()
    before = {name: list(logging.getLogger(name).handlers) for name in names}
    levels = {name: logging.getLogger(name).level for name in names}
    try:
        yield
    finally:
        for name, handlers in before.items():
            logger = logging.getLogger(name)
            for handler in set(logger.handlers) - set(handlers):
                logger.removeHandler(handler)
            logger.propagate = True
            logger.setLevel(levels[name])
        setup_logger.cache_clear()


def error_line(capture) -> str:
    """The line that a command wrote to stderr for its user. What the libraries of an installation say besides
    does not count; a traceback does."""
    lines = capture.readouterr().err.splitlines()
    assert not any(line.startswith("Traceback") for line in lines), lines
    (line,) = [line for line in lines if line.startswith("error: ")]
    return line


def own_messages(caplog) -> list[str]:
    """What the package logged."""
    ours = ("auto_panoptic", "fvcore.common.checkpoint")  # fvcore's checkpointer logs for ours
    return [r.getMessage() for r in caplog.records if r.name.startswith(ours)]


def run_script(name: str, *arguments) -> None:
    """Run ``train_net`` or ``search_net`` in this process, as the command line does.

    Raises:
        SystemExit: with the exit code, where the command ends with one other than 0.
    """
    module = importlib.import_module(name)
    argv = sys.argv
    sys.argv = [f"{name}.py", *map(str, arguments)]
    try:
        with _own_logging():
            run_command(module.run)
    finally:
        sys.argv = argv


class Scale(nn.Module):
    """Multiplication by one weight."""

    def __init__(self, weight: float = 1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(float(weight)))

    def forward(self, x):
        return x * self.weight


declare_inputs("ToyNet", labels="separated")  # as the panoptic model that it stands in for


@META_ARCH_REGISTRY.register()
class ToyNet(nn.Module):
    """Stands in for the panoptic model where only the training loop matters.

    A convolution, BatchNorm, and one :class:`Scale` per operator of every site of the panoptic model. Its
    loss depends on the batch and, like sampled proposals, on torch's global generator.
    """

    def __init__(self, cfg):
        super().__init__()
        self.device = torch.device(cfg.MODEL.DEVICE)
        self.stem = nn.Conv2d(3, 4, 3, stride=8)
        self.norm = nn.BatchNorm2d(4)
        panoptic, choices = cfg.clone(), Choices.from_config(cfg)
        panoptic.defrost()
        panoptic.MODEL.META_ARCHITECTURE = "AutoPanopticFPN"
        self.sites = nn.ModuleList(
            choices(site.name, site.ops, lambda op, site=site: Scale(1 + 0.01 * site.index(op.name)))
            for site in configured_space(panoptic).sites
        )
        self.to(self.device)

    def forward(self, batch):
        means = []
        for sample in batch:
            features = self.norm(self.stem(sample["image"][None].float() / 255))
            for site in self.sites:
                features = site(features)
            means.append(features.square().mean())
        prediction = torch.stack(means).mean()
        return {"loss_fit": (prediction - 1).square(), "loss_noise": prediction * (0.1 * torch.rand(()))}


TOY_NET = ("MODEL.META_ARCHITECTURE", "ToyNet")


def through_the_commands(root: Path, config: Path) -> tuple:
    """Folders whole, resumed (stopped after two of four iterations), search and retrained under ``root``.

    Returns how to run a script more, run(script, folder, *arguments), and the arguments of the found network,
    which end with the key of its weights.
    """

    def run(script, out, *arguments):
        run_script(script, "--config-file", config, *arguments, "OUTPUT_DIR", root / out)

    run("train_net", "whole")
    run("train_net", "resumed")
    for file in ("model_final.pth", "model_0000003.pth"):  # as a kill after iteration 3 leaves it
        (root / "resumed" / file).unlink()
    run("train_net", "resumed", "--resume")
    weights = root / "resumed/model_final.pth"
    run("search_net", "search", "--weights", weights)
    fixed = ("NAS.ARCHITECTURE", root / "search/search/architecture.json", "MODEL.WEIGHTS")
    run("train_net", "retrained", *fixed, weights)
    return run, fixed


def final_checkpoint(root: Path, run: str) -> dict:
    """What the training in the folder ``run`` left."""
    return torch.load(root / run / "model_final.pth", weights_only=True)


def final_results(root: Path, run: str) -> dict:
    """{metric: value} of the evaluations in the folder ``run``."""
    lines = (root / run / "metrics.json").read_text().splitlines()
    return {key: value for line in lines for key, value in json.loads(line).items() if "/" in key}


def toy_space(backbone: int = 2, head: int = 1, inter: int = 1) -> SearchSpace:
    """A search space with a few sites of each group and the published operators."""
    groups = [("backbone", backbone, BACKBONE_OPS), ("mask", head, HEAD_OPS)]
    groups += [("attention.f2b", inter, INTER_OPS)]
    return SearchSpace(
        tuple(ChoiceSite(f"{name}.{i}", tuple(ops)) for name, count, ops in groups for i in range(count))
    )
