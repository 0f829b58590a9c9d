"""Number format and memory order of the training passes: SOLVER.AMP and MODEL.CHANNELS_LAST.

Weights, gradients, optimizer and losses are float32 throughout; autocast runs convolutions and matrix
products of the passes in 16 bits. Evaluation and search always run in float32.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass

import torch

from ..errors import UserError
from ..screen import LOG_ONLY

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Precision:
    """Where and in which format passes run.

    Attributes:
        device: type of the device, such as "cuda" or "cpu".
        dtype: 16-bit format of autocast, or None to run everything in float32.
    """

    device: str = "cpu"
    dtype: torch.dtype | None = None

    @classmethod
    def from_config(cls, cfg) -> Precision:
        """Raises UserError as :func:`check_precision`."""
        check_precision(cfg)
        amp = cfg.SOLVER.AMP
        return cls(torch.device(cfg.MODEL.DEVICE).type, DTYPES[amp.DTYPE] if amp.ENABLED else None)

    def autocast(self):
        """Context of one forward pass."""
        if self.dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device, dtype=self.dtype)

    def scaler(self) -> torch.amp.GradScaler:
        """Loss scaling, which float16 needs for its narrow range of exponents; else it does nothing."""
        return torch.amp.GradScaler(self.device, enabled=self.dtype is torch.float16)


def check_precision(cfg) -> None:
    """Raise UserError if SOLVER.AMP asks for a format that MODEL.DEVICE does not train in."""
    amp, device = cfg.SOLVER.AMP, cfg.MODEL.DEVICE
    if not amp.ENABLED:
        return
    if amp.DTYPE == "float16" and not device.startswith("cuda"):
        raise UserError(
            f"SOLVER.AMP.DTYPE is 'float16', which needs a GPU, and MODEL.DEVICE is {device!r}; use "
            "'bfloat16' or set SOLVER.AMP.ENABLED to False"
        )
    if amp.DTYPE == "bfloat16" and device.startswith("cuda") and not torch.cuda.is_bf16_supported():
        raise UserError("SOLVER.AMP.DTYPE is 'bfloat16', which this GPU does not support; use 'float16'")


def use_channels_last(model: torch.nn.Module) -> None:
    """Store convolution weights channels-last, which no checkpoint shows; the backbone's images follow."""
    model.to(memory_format=torch.channels_last)
    getattr(model, "backbone", model).register_forward_pre_hook(_images_channels_last)


def _images_channels_last(module, args):
    return tuple(
        x.contiguous(memory_format=torch.channels_last) if isinstance(x, torch.Tensor) and x.dim() == 4 else x
        for x in args
    )


def log_first_convolution(model: torch.nn.Module) -> None:
    """Log once, in the first pass, the number format and memory order that a convolution really ran in.

    One of Detectron2's puts out what its norm makes of it, on GPUs float32 also where it ran in 16 bits.
    """
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    layer = next((m for m in layers if getattr(m, "norm", None) is None), None)
    if layer is None:
        return

    def report(_, inputs, output):
        handle.remove()
        last = output.is_contiguous(memory_format=torch.channels_last) and not output.is_contiguous()
        logging.getLogger(__name__).info(
            "Passes run in %s, %s, on %s; weights and losses in %s",
            str(output.dtype).removeprefix("torch."),
            "channels last" if last else "channels first",
            output.device.type,
            str(layer.weight.dtype).removeprefix("torch."),
            extra=LOG_ONLY,
        )

    handle = layer.register_forward_hook(report)
