"""Supernet + architecture -> a stand-alone network that holds only the chosen operators."""

import copy

from torch import nn

from .choice import check_fit, choice_blocks


def extract(supernet: nn.Module, architecture) -> nn.Module:
    """Copy ``supernet``, or what DistributedDataParallel wraps, with one candidate per site.

    Weights, buffers and mode are copied, gradients are not. State-dict names are those of a model built with
    NAS.ARCHITECTURE set to ``architecture``, an :class:`auto_panoptic.space.Architecture`.

    Raises:
        UserError: the architecture does not fit the model.
    """
    if isinstance(supernet, nn.parallel.DistributedDataParallel):
        supernet = supernet.module
    blocks, names = choice_blocks(supernet), architecture.names()
    check_fit(blocks, names)

    # deepcopy takes what it finds in `memo` as the finished copy, so the full candidate tables are
    # replaced by tables of one before they would be visited.
    memo = {}
    for site, block in blocks.items():
        table = nn.ModuleDict({names[site]: copy.deepcopy(block.candidates[names[site]], memo)})
        table.training = block.candidates.training
        memo[id(block.candidates)] = table
    fixed = copy.deepcopy(supernet, memo)
    for site, block in choice_blocks(fixed).items():
        block.select(names[site])
    fixed.zero_grad(set_to_none=True)
    return fixed
