"""Numbers that are none: NaN and infinity in weights, statistics, gradients and outputs."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import torch
from detectron2.utils import comm

from ..errors import Diverged


@torch.no_grad()
def total_norm(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """A scalar, on the device of the first, that is finite unless a value or its square is not."""
    norms = torch._foreach_norm(list(tensors), 2) if tensors else [torch.zeros(())]
    return torch.stack([norm.to(norms[0].device) for norm in norms]).sum()


def finite_problem(tensors: Mapping[str, torch.Tensor]) -> str:
    """The first of ``tensors`` that holds NaN or infinity, and how many; "" if all floats are finite."""
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


def learned(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What training changes: parameters, and statistics of BatchNorm. Other buffers may hold infinity."""
    found = dict(model.named_parameters())
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            found |= {f"{name}.{key}".lstrip("."): buffer for key, buffer in module.named_buffers()}
    return found


def tensors_in(tree, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """(dotted name, tensor) of all tensors in dicts, lists, Detectron2's Instances and Boxes."""
    tree = tree.get_fields() if hasattr(tree, "get_fields") else getattr(tree, "tensor", tree)
    if isinstance(tree, torch.Tensor):
        yield name, tree
    elif isinstance(tree, (list, tuple, Mapping)):
        for key, value in tree.items() if isinstance(tree, Mapping) else enumerate(tree):
            yield from tensors_in(value, f"{name}.{key}".lstrip("."))


def images_of(batch, most: int = 16) -> str:
    """For a message: file names, or else ids, of Detectron2's samples."""
    samples = [s for s in batch if isinstance(s, dict)] if isinstance(batch, list) else ()
    names = [str(sample.get("file_name", sample.get("image_id"))) for sample in samples]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if names[most:] else "")


@contextlib.contextmanager
def finite_outputs(model: torch.nn.Module, shared: bool = False) -> Iterator[None]:
    """Within the block, NaN or infinity in inference is an error: boxes and segments chosen from it hide it.

    Watched are the outputs of the meta-architecture ``model``, of its parts and of theirs; minus infinity, as
    masks have it, is allowed. Processes that share the images all enter the block, and fail at its end.

    Raises:
        Diverged: names the part and the images.
    """
    sums: list[tuple[str, torch.Tensor]] = []
    problems: list[str] = []

    def add(name: str, module, inputs, output) -> None:
        sums.extend((name, t.sum().float()) for _, t in tensors_in(output) if t.is_floating_point())

    def look(module, inputs, output) -> None:
        values = torch.stack([value.to(sums[0][1].device) for _, value in sums]).tolist() if sums else ()
        bad = [name for (name, _), value in zip(sums, values, strict=True) if not value < math.inf]
        sums.clear()
        if bad:
            part = bad[0] or "results"
            problems.append(f"NaN or infinity in the network's {part}, on images {images_of(*inputs)}")
            if not shared:
                raise Diverged(problems[0])

    with contextlib.ExitStack() as hooks:
        for name, module in model.named_modules():
            if name.count(".") < 2 and not name.startswith("backbone."):  # whose output tells of its parts
                hooks.callback(module.register_forward_hook(partial(add, name)).remove)
        hooks.callback(model.register_forward_hook(look).remove)
        yield
    for found in comm.all_gather(problems) if shared else [problems]:
        if found:
            raise Diverged(found[0])
