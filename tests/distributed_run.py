"""Started by test_distributed.py under torchrun; each process saves what it has to FOLDER/<rank>.pt."""

import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn
from toy import Scale, make_config, toy_space

from auto_panoptic.explore import fair_cycle
from auto_panoptic.modeling import ChoiceBlock
from auto_panoptic.training import AutoPanopticTrainer, FairCycleTrainer, launch_processes
from auto_panoptic.training.data_loader import PositionalBatchSampler

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


def train_regression():
    """Two fair cycles; process r of R sees its share of each batch."""
    space = toy_space()
    data = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    model = Regression(space)

    def loader(start):
        world, rank = comm.get_world_size(), comm.get_rank()
        sampler = PositionalBatchSampler(60, BATCH // world, 0, start, rank=rank, world_size=world)
        return (data[[index for _, index in batch]] for batch in sampler)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    trainer = FairCycleTrainer(model, loader, optimizer)
    with EventStorage():
        for trainer.iter in range(CYCLES):
            trainer.cycle = fair_cycle(space, 0, trainer.iter)
            trainer.run_step()
    return model.state_dict()


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


def main(args, cfg):
    rank = comm.get_rank()
    folder = args.folder / str(rank)
    (folder / "output").mkdir(parents=True)
    result = {
        "world": comm.get_world_size(),
        "local": (comm.get_local_rank(), comm.get_local_size()),
        "regression": train_regression(),
        "panoptic": train_panoptic(folder, args.shapes),
    }
    torch.save(result, args.folder / f"{rank}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    arguments = SimpleNamespace(folder=Path(sys.argv[1]), shapes=Path(sys.argv[2]))
    launch_processes(main, arguments, SimpleNamespace(MODEL=SimpleNamespace(DEVICE="cpu")))
