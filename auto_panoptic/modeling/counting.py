"""Multiply-adds (MACs) and parameters of any model, counted on its layers while an image runs through it.

One MAC is one multiplication with the addition that follows, in convolutions, deconvolutions and fully
connected layers. A deformable convolution counts as its kernel plus its offset convolution. Not counted:
sampling and resizing, pooling, normalisation, biases, and the products of attention gates with features or
weights. Parameters are all that a model's ``parameters()`` returns.

A layer whose work its type does not tell has a method ``macs(inputs, output) -> int``: the multiply-adds of
one call beside those of its child modules.
"""

from __future__ import annotations

import copy
import logging
from collections import Counter
from functools import partial

import torch
import torchvision
from detectron2.layers import DeformConv, ModulatedDeformConv
from torch import nn

from auto_panoptic.space import ChoiceSite, Cost, CostTables, SearchSpace

from .choice import choice_blocks, meta_model
from .searchable import dry_run

logger = logging.getLogger(__name__)

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_WEIGHTED = (
    *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(DeformConv, ModulatedDeformConv, torchvision.ops.DeformConv2d),
)


def count(model: nn.Module, size: tuple[int, int]) -> CostTables:
    """Cost tables of a supernet or a fixed model, per image.

    One pass is enough: each site's operators all run on the site's input, and none changes the shape of what
    comes after it. Regions of R-CNNs: :func:`.searchable.dry_run`.

    Args:
        model: a meta-architecture, best on the meta device; it is left as it was.
        size: height and width of the image in pixels, before padding.

    Returns:
        Tables over the operators that the model holds; ``fixed`` has an entry for each child of the model.

    Raises:
        ValueError: not a size; a site within an operator of another.
    """
    if len(size) != 2 or any(isinstance(s, bool) or not isinstance(s, int) or s < 1 for s in size):
        raise ValueError(f"image size {size!r}: expected (height, width), two integers >= 1")
    candidates = {
        (site, name): candidate
        for site, block in choice_blocks(model).items()
        for name, candidate in block.candidates.items()
    }
    for (site, _), candidate in candidates.items():
        if inner := choice_blocks(candidate):
            raise ValueError(f"site {next(iter(inner))!r} lies within {site!r}: their costs do not add up")
    params = _params(model, candidates)
    try:
        macs = _macs(model, size)
    except (NotImplementedError, RuntimeError):
        if not any(p.is_meta for p in model.parameters()):
            raise
        logger.info("Counting on the CPU: inference of this model depends on values")
        return count(_on_cpu(model), size)
    keys = {**params, **macs}  # work without weights counts, too
    costs = {key: Cost(macs[key], params[key]) for key in keys}
    fixed = {key: cost for key, cost in costs.items() if isinstance(key, str)}
    sites: dict[str, dict[str, Cost]] = {}
    for site, name in candidates:
        sites.setdefault(site, {})[name] = costs[site, name]
    space = SearchSpace(tuple(ChoiceSite(site, tuple(row)) for site, row in sites.items()))
    return CostTables(space, fixed, sites)


def configured_costs(cfg, size: tuple[int, int] | None = None) -> CostTables:
    """:func:`count` of the supernet that ``cfg`` describes; by default of a square MIN_SIZE_TEST."""
    supernet = cfg.clone()
    supernet.defrost()
    supernet.NAS.ARCHITECTURE = ""
    return count(meta_model(supernet), size or (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MIN_SIZE_TEST))


def _params(model: nn.Module, candidates: dict) -> Counter:
    """Parameters by child of the model, without the candidates; and by candidate. Each tensor counts once."""
    inside = {module for candidate in candidates.values() for module in candidate.modules()}
    params, seen = Counter(), set()
    for path, module in model.named_modules():
        for parameter in () if module in inside else module.parameters(recurse=False):
            params[path.partition(".")[0]] += 0 if parameter in seen else parameter.numel()
            seen.add(parameter)
    for key, candidate in candidates.items():
        params[key] = sum(p.numel() for p in candidate.parameters() if p not in seen)
    return params


def _macs(model: nn.Module, size: tuple[int, int]) -> Counter:
    """Multiply-adds by child of the model, without the candidates; and by candidate."""
    working = {path: layer for path, layer in model.named_modules() if _works(layer)}
    macs, counting_for, reached = Counter(), [], set()

    def add(path, layer, inputs, output):
        reached.add(path)
        key = counting_for[-1] if counting_for else path.partition(".")[0]
        if key is not None:
            macs[key] += _layer_macs(layer, inputs, output)

    def run_all(block, inputs):
        for name, candidate in block.candidates.items():
            counting_for.append((block.site, name))
            candidate(*inputs)
            counting_for.pop()
        counting_for.append(None)  # the active one runs once more, for the layers that follow

    def leave(*_):
        counting_for.pop()

    hooks = [
        layer.register_forward_hook(partial(add, path))
        for path, layer in working.items()
        if hasattr(layer, "macs") or isinstance(layer, _WEIGHTED + _TRANSPOSED)
    ]
    for block in choice_blocks(model).values():
        hooks += [block.register_forward_pre_hook(run_all), block.register_forward_hook(leave)]
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        dry_run(model, size)
    finally:
        for module in training:
            module.training = True
        for hook in hooks:
            hook.remove()
    if left_out := [path for path in working if path not in reached]:
        logger.warning(
            "Multiply-adds leave out %s%s: inference does not call it, or its type is unknown; a method "
            "macs(inputs, output) of the layer says its work",
            ", ".join(left_out[:4]),
            f" and {len(left_out) - 4} more" if len(left_out) > 4 else "",
        )
    return macs


def _works(layer: nn.Module) -> bool:
    """Whether multiply-adds are expected of a layer: it has weights, or says how many."""
    weights = any(p.ndim > 1 for p in layer.parameters(recurse=False))
    return hasattr(layer, "macs") or (weights and not isinstance(layer, nn.Embedding))


def _layer_macs(layer: nn.Module, inputs: tuple, output) -> int:
    """Multiply-adds of one call of a layer."""
    if hasattr(layer, "macs"):
        return layer.macs(inputs, output)
    if isinstance(layer, _TRANSPOSED):  # each input value meets a whole kernel: (out / groups, k, k)
        return inputs[0].numel() * layer.weight[0].numel()
    return output.numel() * layer.weight[0].numel()  # each output value sums over (in / groups, k, k)


def _on_cpu(model: nn.Module) -> nn.Module:
    """A copy of a model of the meta device; parameters of 0 and buffers of 1 keep its values finite."""
    model = copy.deepcopy(model).to_empty(device="cpu")
    with torch.no_grad():
        for tensors, value in ((model.parameters(), 0), (model.buffers(), 1)):
            for tensor in tensors:
                tensor.fill_(value)
    return model
