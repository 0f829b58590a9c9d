"""What the optimizer sees after the passes of one cycle: sums, averages, or sums at divided learning rates.

A parameter's passes are those whose path uses it. In a fair cycle of K passes an operator of a site with P
operators has K / P of them, a shared parameter K: in the paper's space 3, 2 or 4 for sites of 4, 6 or 3
operators, and 12 everywhere else.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.solver import build_optimizer as build_detectron2_optimizer
from detectron2.solver import get_default_optimizer_params
from detectron2.solver.build import reduce_param_groups
from detectron2.utils import comm

from ..explore import pass_counts, passes_per_iteration
from ..modeling import choice_blocks
from ..space import Architecture, ChoiceSite, SearchSpace


def model_space(model: torch.nn.Module) -> SearchSpace:
    """The paths a model can run: its choice blocks and the operators they hold, one in a fixed model."""
    return SearchSpace(
        tuple(
            ChoiceSite(site, tuple(spec for spec in block.ops if spec.name in block.candidates))
            for site, block in choice_blocks(model).items()
        )
    )


def passes_by_parameter(model: torch.nn.Module, passes: int) -> dict[torch.nn.Parameter, int]:
    """How many of the ``passes`` of one fair cycle use each parameter; at least 1."""
    result = dict.fromkeys(model.parameters(), passes)
    for block in choice_blocks(model).values():
        result.update(dict.fromkeys(block.candidates.parameters(), max(passes // len(block.candidates), 1)))
    return result


def build_optimizer(cfg, model: torch.nn.Module) -> torch.optim.Optimizer:
    """Detectron2's optimizer, gradient clipping included, with the learning rates that ``cfg.NAS`` asks for.

    SOLVER.OPTIMIZER "ADAM" is torch's Adam with the parameter groups of "SGD", as Panoptic-DeepLab trains.
    NAS.GRADIENTS "lr_scale" divides the learning rate of each parameter by its passes. NAS.REFERENCE_BIAS_LR
    then gives every parameter with "bias" in its name 2 * BASE_LR, undivided, and no weight decay (reference
    code); norm weights keep SOLVER.WEIGHT_DECAY_NORM.
    """
    clip, plain = cfg.SOLVER.CLIP_GRADIENTS, cfg.clone()
    plain.defrost()
    plain.SOLVER.CLIP_GRADIENTS.ENABLED = False
    optimizer = (_adam if plain.SOLVER.OPTIMIZER == "ADAM" else build_detectron2_optimizer)(plain, model)
    if clip.ENABLED:
        kind, limit = clip.CLIP_TYPE, clip.CLIP_VALUE
        norm = None if kind == "value" else clip.NORM_TYPE
        optimizer.register_step_pre_hook(lambda optimizer, *_: _clip_gradients(optimizer, limit, norm))
    divided = cfg.NAS.GRADIENTS == "lr_scale"
    if not divided and not cfg.NAS.REFERENCE_BIAS_LR:
        return optimizer
    passes = passes_by_parameter(model, passes_per_iteration(model_space(model), cfg.NAS.SAMPLING))
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            own = {**group, "params": [parameter]}
            if cfg.NAS.REFERENCE_BIAS_LR and "bias" in names[parameter]:
                own.update(lr=2 * cfg.SOLVER.BASE_LR, weight_decay=0.0)
            elif divided:
                own["lr"] = group["lr"] / passes[parameter]
            groups.append(own)
    optimizer.param_groups.clear()
    for group in reduce_param_groups(groups):
        optimizer.add_param_group(group)
    return optimizer


def _adam(cfg, model: torch.nn.Module) -> torch.optim.Adam:
    solver = cfg.SOLVER
    groups = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay=solver.WEIGHT_DECAY,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
    )
    return torch.optim.Adam(groups, lr=solver.BASE_LR)


def _clip_gradients(optimizer: torch.optim.Optimizer, limit: float, norm: float | None) -> None:
    """Every parameter's gradient alone, as Detectron2, to the last bit; here a path may leave none.

    All norms are one call: on a CPU a call for each takes a tenth of a small network's step. Without ``norm``
    the limit is that of every value.
    """
    parameters = (p for group in optimizer.param_groups for p in group["params"])
    gradients = [p.grad for p in parameters if p.grad is not None]
    if norm is None:
        for gradient in gradients:
            gradient.clamp_(-limit, limit)
    elif gradients:
        norms = torch.stack(torch._foreach_norm(gradients, norm))
        shares = torch.clamp(limit / (norms + 1e-6), max=1)
        torch._foreach_mul_(gradients, list(shares))


def average_over_passes(model: torch.nn.Module, cycle: Sequence[Architecture]) -> None:
    """Divide each parameter's accumulated gradient by the passes of ``cycle`` that used it, in place.

    So every path steps as if it had been trained alone, on the mean of its mini-batches.
    """
    if len(cycle) == 1:
        return
    counts = pass_counts(cycle)
    divisors = dict.fromkeys(model.parameters(), len(cycle))
    for site, block in choice_blocks(model).items():
        for name, candidate in block.candidates.items():
            divisors.update(dict.fromkeys(candidate.parameters(), counts[site].get(name, 0)))
    for parameter, passes in divisors.items():
        if parameter.grad is not None:
            parameter.grad /= max(passes, 1)


def average_over_processes(model: torch.nn.Module) -> None:
    """Average the accumulated gradients over the processes, once per cycle, in place.

    DistributedDataParallel would leave out parameters used only in early passes. A parameter that one process
    did not use counts as zero there; one that none used keeps no gradient, as with one process.
    """
    if comm.get_world_size() == 1:
        return
    parameters = [p for p in model.parameters() if p.requires_grad]
    used = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32)
    used = used.to(parameters[0].device)
    torch.distributed.all_reduce(used, torch.distributed.ReduceOp.MAX)
    parameters = [p for p, somewhere in zip(parameters, used.tolist(), strict=True) if somewhere]
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    average([p.grad for p in parameters])


def average(tensors: Sequence[torch.Tensor]) -> None:
    """Average tensors over the processes, in place, in one message."""
    if comm.get_world_size() == 1 or not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    torch.distributed.all_reduce(flat)
    flat /= comm.get_world_size()
    for tensor, mean in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(mean.view_as(tensor))
