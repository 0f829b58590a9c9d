"""Numbers that are none: NaN and infinity in weights, statistics, gradients and outputs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

__all__ = ["finite_problem", "total_norm"]


def total_norm(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """A scalar that is finite unless a value is not, or is so large that its square is not.

    Nothing waits for it: it is computed on the device of the first tensor, in one pass over the values.
    """
    norms = torch._foreach_norm(list(tensors), 2) if tensors else [torch.zeros(())]
    return torch.stack([norm.to(norms[0].device) for norm in norms]).sum()


def finite_problem(tensors: Mapping[str, torch.Tensor]) -> str:
    """The first of ``tensors`` that holds NaN or infinity, and how many values; "" if all are finite.

    Integers, and what is no tensor, are passed over.
    """
    floats = {
        name: tensor.detach().float() if tensor.element_size() == 1 else tensor.detach()
        for name, tensor in tensors.items()
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and not tensor.is_meta
    }
    if math.isfinite(total_norm(list(floats.values()))):
        return ""
    for name, tensor in floats.items():  # a square may have been too large for its format
        if bad := int((~torch.isfinite(tensor)).sum()):
            return f"{name} holds {bad} of {tensor.numel()} values that are NaN or infinite"
    return ""
