"""Dense instance affinity: every pixel gathers the potential of the pixels that its features resemble.

With Q the affinity features (D, n) of n pixels, A = row-softmax(Q^T Q / sqrt(D)) and P_i = sum_j A_ij Psi_j.
So a pixel outside an instance's box can join it. The supplement shows the affinities of a pixel as maps
(Fig. B); the formula, the stride and the width of Q are a re-interpretation.

A has n^2 entries, 4.3 GB for an image of 1024 x 2048 at stride 8. It is computed a few rows at a time, and in
training computed again in the backward pass, which needs no more memory for it than a few rows either.
"""

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from auto_panoptic.errors import at_least, one_of
from auto_panoptic.modeling.layers.precision import no_autocast

__all__ = ["NORMALISATIONS", "DenseAffinity", "affinity", "propagate"]

NORMALISATIONS = ("softmax", "sigmoid")
# Entries of A at a time: on a CPU what its cache holds (4 MiB), elsewhere 64 MiB.
_CPU_ENTRIES, _ENTRIES = 1 << 20, 1 << 24


def affinity(queries: torch.Tensor, features: torch.Tensor, normalise: str = "softmax") -> torch.Tensor:
    """Rows of A.

    Args:
        queries: (m, D) features of m pixels.
        features: (D, n) features of all pixels.
        normalise: "softmax", or "sigmoid": sigmoid(Q^T Q / sqrt(D)), each row divided by its sum.

    Returns:
        (m, n); each row sums to 1.

    Raises:
        ValueError: unknown ``normalise``.
    """
    one_of("affinity: normalise", normalise, NORMALISATIONS)
    products = (queries * queries.shape[1] ** -0.5) @ features
    if normalise == "softmax":
        return products.softmax(dim=1)
    weights = products.sigmoid()  # at least 1/2 for a pixel and itself
    return weights / weights.sum(dim=1, keepdim=True)


def propagate(
    potential: torch.Tensor,
    features: torch.Tensor,
    residual: bool = True,
    chunk: int | None = None,
    normalise: str = "softmax",
) -> torch.Tensor:
    """Spread a potential by the affinities of the pixels: P_i = sum_j A_ij Psi_j, in float32 at least.

    Args:
        potential: (C, h, w), Psi.
        features: (D, h, w), Q.
        residual: return Psi + P instead of P.
        chunk: rows of A at a time; by default so many that they take a few MiB. Any number gives the same.
        normalise: as for :func:`affinity`.

    Returns:
        (C, h, w). n^2 (D + C) multiply-adds for n = h w pixels.

    Raises:
        ValueError: sizes that differ, a chunk below 1, unknown ``normalise``.
    """
    if potential.ndim != 3 or features.ndim != 3 or potential.shape[1:] != features.shape[1:]:
        raise ValueError(
            "propagate: expected a potential (C, h, w) and features (D, h, w), got "
            f"{tuple(potential.shape)} and {tuple(features.shape)}"
        )
    if potential.dtype in (torch.float16, torch.bfloat16):
        potential = potential.float()
    keys = features.flatten(1).to(potential.dtype)
    values = potential.flatten(1).t()
    pixels = keys.shape[1]
    if chunk is None:
        entries = _CPU_ENTRIES if keys.device.type == "cpu" else _ENTRIES
        chunk = max(1, entries // max(pixels, 1))
    at_least("propagate: chunk", chunk, 1)
    again = pixels > chunk and torch.is_grad_enabled()
    with no_autocast(keys.device.type):
        rows = [
            checkpoint(_gather, part, keys, values, normalise, use_reentrant=False, preserve_rng_state=False)
            if again
            else _gather(part, keys, values, normalise)
            for part in keys.t().split(chunk)
        ]
    spread = torch.cat(rows).t().view_as(potential)
    return potential + spread if residual else spread


def _gather(queries, keys, values, normalise: str) -> torch.Tensor:
    """(m, D) features of some pixels, (D, n) of all and (n, C) values -> (m, C)."""
    return affinity(queries, keys, normalise) @ values


class DenseAffinity(nn.Module):
    """:func:`propagate` at the stride of the affinity features, for a potential of a finer stride."""

    def __init__(self, residual: bool = True, normalise: str = "softmax"):
        """Arguments as those of :func:`propagate`."""
        super().__init__()
        self.residual = residual
        self.normalise = one_of("affinity: normalise", normalise, NORMALISATIONS)

    def forward(self, potential: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """The potential is averaged to the size of the features, spread, and resized bilinearly.

        Args:
            potential: (C, H, W), Psi of one image.
            features: (D, h, w), Q of the image.

        Returns:
            (C, H, W): Psi + P, or P.
        """
        pooled = F.adaptive_avg_pool2d(potential, features.shape[1:])
        spread = propagate(pooled, features, residual=False, normalise=self.normalise)
        size = potential.shape[1:]
        if spread.shape[1:] != size:
            spread = F.interpolate(spread[None], size=size, mode="bilinear", align_corners=False)[0]
        return potential + spread if self.residual else spread

    def macs(self, inputs: tuple, output: torch.Tensor) -> int:
        """Multiply-adds of one call, n^2 (D + C): all pairs of pixels, in Q^T Q and in the sum over j."""
        potential, features = inputs
        pixels = features.shape[1] * features.shape[2]
        return pixels * pixels * (len(features) + len(potential))
