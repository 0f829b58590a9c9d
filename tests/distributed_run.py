"""Started by test_distributed.py under torchrun; each process saves what it has to FOLDER/<rank>.pt."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from data_util import EMPTY, write_scenes
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from modeling_util import make_cfg, make_input, make_model
from torch import nn
from toy import Scale, make_config, toy_space
from unified_util import FIXED, scene, unified_cfg

from auto_panoptic.errors import Diverged
from auto_panoptic.explore import cycle_indices
from auto_panoptic.modeling import ChoiceBlock
from auto_panoptic.modeling.finite import finite_outputs
from auto_panoptic.space import SearchSpace
from auto_panoptic.training import AutoPanopticTrainer, FairCycleTrainer, launch_processes
from auto_panoptic.training.loader import PositionalBatchSampler
from auto_panoptic.training.precision import Precision

CYCLES, BATCH = 2, 4


class Regression(nn.Module):
    """Mean loss over the batch and no BatchNorm: the mean over two half batches is that of the whole."""

    def __init__(self, space):
        super().__init__()
        self.inner = nn.Linear(5, 5)
        self.blocks = nn.ModuleList(
            ChoiceBlock(site.name, {name: Scale(1) for name in site.names}) for site in space.sites
        )

    def forward(self, batch):
        x = torch.tanh(self.inner(batch))
        for block in self.blocks:
            x = torch.tanh(block(x))
        return {"loss": (x.sum(1) - batch[:, 0]).square().mean()}


def train_regression(sampling="fair"):
    """Two fair cycles, or as many uniform paths; process r of R sees its share of each batch."""
    space = toy_space()
    data = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    model = Regression(space)

    world, rank = comm.get_world_size(), comm.get_rank()
    sampler = PositionalBatchSampler(60, BATCH // world, 0, rank=rank, world_size=world)
    loader = (data[[index for _, index in batch]] for batch in sampler)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    trainer = FairCycleTrainer(model, loader, optimizer, sampling=sampling)
    run(trainer, CYCLES)
    return model.state_dict()


def run(trainer, iterations):
    with EventStorage():
        for trainer.iter in range(iterations):
            trainer.run_step()


def train_without_objects():
    """One fair cycle of the panoptic model: no object in any image of process 1, in a few of process 0."""
    model = make_model(make_cfg())
    objects = {"boxes": ((4, 4, 40, 40), (10, 20, 60, 60))}

    def batches():
        for number in range(12):
            empty = comm.get_rank() == 1 or number in (3, 4, 9)
            yield [make_input(seed=number, **({"boxes": ()} if empty else objects))]

    trainer = FairCycleTrainer(model, batches(), torch.optim.SGD(model.parameters(), lr=0.001))
    start = {name: value.clone() for name, value in model.state_dict().items()}
    run(trainer, 1)
    return {"start": start, "end": dict(model.state_dict()), "counts": trainer.counter.state_dict()["counts"]}


def train_unified_without_objects():
    """Three steps of the unified network: process 1 finds and has nothing, and all its pixels are void."""
    model = make_model(unified_cfg(*FIXED))

    def batches():
        for number in range(3):
            sample = scene(seed=number)
            if comm.get_rank() == 1:
                sample = scene(boxes=(), seed=number)
                sample["sem_seg"][:] = 255
                model.roi_heads.train_score_thresh = 1.0
            yield [sample]

    trainer = FairCycleTrainer(model, batches(), torch.optim.SGD(model.parameters(), lr=0.001))
    start = {name: value.clone() for name, value in model.state_dict().items()}
    run(trainer, 3)
    return {"start": start, "end": dict(model.state_dict())}


class Overflow(nn.Module):
    """loss = w; where told so, its gradient is infinite although the loss is not, or the loss is NaN.

    Of Detectron2's samples the file name tells; "boxes" is found as Detectron2 finds NaN in proposals.
    """

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, batch):
        loss = self.weight.sum()
        batch = batch[0]["file_name"] if isinstance(batch, list) else batch
        if batch == "boxes":
            raise FloatingPointError("Predicted boxes contain Inf/NaN")
        if batch == "overflow":
            loss = loss + (self.weight - self.weight.detach()).sum().sqrt()
        if batch == "nan":
            loss = loss * float("nan")
        return {"loss": loss}


class Partly(nn.Module):
    """The loss of process 1 does not touch one of the parameters, none touches another."""

    def __init__(self):
        super().__init__()
        self.everywhere = Scale(0.0)
        self.never = Scale(7.0)
        self.once = Scale(0.0)

    def forward(self, batch):
        loss = self.everywhere(batch)
        return {"loss": loss if comm.get_rank() == 1 else loss + self.once(batch)}


def train_partly():
    model = Partly()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, weight_decay=0.1)
    run(FairCycleTrainer(model, [torch.ones(())], optimizer), 1)
    return {name: module.weight.item() for name, module in model.named_children()}


def train_overflow():
    """float16 training; the second of three steps overflows on process 1 only."""
    batches = ["fine", "overflow" if comm.get_rank() == 1 else "fine", "fine"]
    model = Overflow()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    precision = Precision("cpu", torch.float16)
    trainer = FairCycleTrainer(model, batches, optimizer, precision=precision)
    run(trainer, 3)
    return {
        "weight": model.weight.detach(),
        "scale": trainer.scaler.get_scale(),
        "skipped": trainer.skipped_steps,
    }


def train_nan(kind):
    """The message with which this process stops when something is NaN on process 1 in the second step."""
    batches = [[{"file_name": name}] for name in ("fine", kind if comm.get_rank() == 1 else "fine", "fine")]
    model = Overflow()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    try:
        run(FairCycleTrainer(model, batches, optimizer), 3)
    except Diverged as error:
        return {"message": str(error), "weight": model.weight.detach()}


def evaluate_nan():
    """The message with which this process ends when the results of the other one's second image are NaN."""
    model = nn.Identity()
    try:
        with finite_outputs(model, shared=True):
            for value in (1.0, float("nan") if comm.get_rank() == 1 else 2.0, 3.0):
                model([{"image_id": value, "image": torch.tensor(value)}])
    except Diverged as error:
        return str(error)


def train_panoptic(folder, shapes):
    """One fair cycle of the panoptic supernet, each process initialised differently before the start."""
    cfg = make_config(folder, shapes, "SOLVER.MAX_ITER", 1, "SOLVER.STEPS", ())
    torch.manual_seed(comm.get_rank())
    trainer = AutoPanopticTrainer(cfg)
    own = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.resume_or_load(resume=False)
    start = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    return {"own": own, "start": start, "end": dict(trainer.model.state_dict())}


def train_scenes(folder, shapes):
    """Two fair cycles on registered images; process 1 meets only images without objects.

    The order of the first epoch is known, so that the images of process 1 can be the empty ones.
    """
    order = np.random.default_rng([0, 0]).permutation(48)
    kinds = ["objects" if i % 3 else EMPTY[i // 3 % 3] for i in range(48)]
    for place, index in enumerate(order[1::2]):
        kinds[index] = EMPTY[place % 3]
    entry = {"name": "scenes", **write_scenes(folder / "scenes", kinds)}
    cfg = make_config(
        folder,
        shapes,
        DATASETS={"COCO_PANOPTIC": [entry], "TRAIN": ["scenes"], "TEST": [], "SEARCH": []},
        DATALOADER={"FILTER_EMPTY_ANNOTATIONS": False},
        OUTPUT_DIR=str(folder / "scenes_output"),
    )
    trainer = AutoPanopticTrainer(cfg)
    trainer.resume_or_load(resume=False)
    objects, losses = [], []

    def watch(model, inputs, outputs):
        objects.append(sum(len(sample["instances"]) for sample in inputs[0]))
        losses.append(sum(outputs.values()).item())

    trainer.model.register_forward_hook(watch)
    trainer.train()
    return {"end": dict(trainer.model.state_dict()), "objects": objects, "losses": losses}


def main(args, cfg):
    rank = comm.get_rank()
    folder = args.folder / str(rank)
    (folder / "output").mkdir(parents=True)
    result = {
        "world": comm.get_world_size(),
        "local": (comm.get_local_rank(), comm.get_local_size()),
        "regression": train_regression(),
        "uniform": train_regression("uniform"),
        "empty": train_without_objects(),
        "unified": train_unified_without_objects(),
        "partly": train_partly(),
        "overflow": train_overflow(),
        "nan": {kind: train_nan(kind) for kind in ("nan", "boxes", "overflow")},
        "evaluated": evaluate_nan(),
        "cycles": torch.stack(
            [torch.from_numpy(cycle_indices(SearchSpace.default(), 3, cycle)) for cycle in range(20)]
        ),
        "panoptic": train_panoptic(folder, args.shapes),
        "scenes": train_scenes(folder, args.shapes),
    }
    torch.save(result, args.folder / f"{rank}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    arguments = SimpleNamespace(folder=Path(sys.argv[1]), shapes=Path(sys.argv[2]))
    config = SimpleNamespace(MODEL=SimpleNamespace(DEVICE="cpu"), RANK_TIMEOUT=120.0)
    launch_processes(main, arguments, config)
