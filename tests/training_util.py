"""A model whose losses and gradients are known by hand, for the tests of the training loop."""

import torch
from detectron2.utils.events import EventStorage
from torch import nn
from toy import Scale

from auto_panoptic.modeling import ChoiceBlock
from auto_panoptic.training import FairCycleTrainer

LOSSES = [float(x) for x in (3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8)]
PASSES = {"backbone": 3, "mask": 2, "attention": 4}


class Additive(nn.Module):
    """loss(c) = c * (shared + the active weight of every site): a pass adds c to each gradient it touches."""

    def __init__(self, space):
        super().__init__()
        self.shared = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.blocks = nn.ModuleList(
            ChoiceBlock(site.name, {name: Scale(0).double() for name in site.names}) for site in space.sites
        )

    def forward(self, value):
        value = torch.tensor(float(value), dtype=torch.float64)
        return {"loss": value * self.shared + sum(block(value) for block in self.blocks)}


def run_cycles(model, losses, cycles, optimizer=None, **options):
    """Train on batches that are the numbers ``losses``; by default SGD with learning rate 1."""
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=1.0)
    trainer = FairCycleTrainer(model, losses, optimizer, **options)
    trainer.draw = cycles.__getitem__
    with EventStorage():
        for trainer.iter in range(len(cycles)):
            trainer.run_step()
    return trainer


def summed_losses(space, cycle, losses):
    """By hand: the losses of the passes that use each operator of each site."""
    sums = {(site.name, name): 0.0 for site in space.sites for name in site.names}
    for architecture, loss in zip(cycle, losses, strict=True):
        for place in architecture.names().items():
            sums[place] += loss
    return sums
