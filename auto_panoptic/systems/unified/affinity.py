"""Dense instance affinity: every pixel gathers the potential of the pixels that its features resemble.

With Q the affinity features (D, n) of n pixels, A = row-softmax(Q^T Q / sqrt(D)) and P_i = sum_j A_ij Psi_j.
So a pixel outside an instance's box can join it. The supplement shows the affinities of a pixel as maps
(Fig. B); the formula, the stride and the width of Q are a re-interpretation.

A has n^2 entries, 4.3 GB for an image of 1024 x 2048 at stride 8. A few rows are computed at a time, in the
backward pass once more, into the same buffers: neither pass needs more memory for A than for those.
"""

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from auto_panoptic.errors import at_least, one_of
from auto_panoptic.modeling.layers.precision import no_autocast

__all__ = ["NORMALISATIONS", "DenseAffinity", "affinity", "propagate"]

NORMALISATIONS = ("softmax", "sigmoid")
# Entries of A at a time: on a CPU 4 MiB, which its cache holds, elsewhere 64 MiB; and the fewest rows, since
# products with fewer are slow.
_CPU_ENTRIES, _ENTRIES, _ROWS = 1 << 20, 1 << 24, 64


def affinity(queries: torch.Tensor, features: torch.Tensor, normalise: str = "softmax") -> torch.Tensor:
    """Rows of A.

    Args:
        queries: (m, D) features of m pixels.
        features: (D, n) features of all pixels.
        normalise: "softmax", or "sigmoid": sigmoid(Q^T Q / sqrt(D)), each row divided by its sum.

    Returns:
        (m, n); each row sums to 1. Without a graph.

    Raises:
        ValueError: unknown ``normalise``.
    """
    one_of("affinity: normalise", normalise, NORMALISATIONS)
    with torch.no_grad():
        buffers = features.new_empty(2, len(queries), features.shape[1])
        return _rows(queries * len(features) ** -0.5, features, normalise, buffers)


def _rows(queries, features, normalise: str, buffers: torch.Tensor) -> torch.Tensor:
    """:func:`affinity` of queries divided by sqrt(D).

    ``buffers``, (2, m, n), holds the products, or their sigmoids, and then the result.
    """
    values, rows = buffers
    torch.mm(queries, features, out=values)
    if normalise == "softmax":
        return torch.softmax(values, 1, out=rows)
    values.sigmoid_()  # at least 1/2 for a pixel and itself
    return torch.div(values, values.sum(dim=1, keepdim=True), out=rows)


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
        chunk: rows of A at a time; by default so many that they take some MiB. Any number gives the same.
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
    if torch.jit.is_tracing():
        spread = _traced_spread(keys, values, normalise == "softmax", _CPU_ENTRIES, _ROWS).t()
        return potential + spread.view_as(potential) if residual else spread.view_as(potential)
    pixels = keys.shape[1]
    if chunk is None:
        entries = _CPU_ENTRIES if keys.device.type == "cpu" else _ENTRIES
        chunk = max(_ROWS, entries // max(pixels, 1))
    at_least("propagate: chunk", chunk, 1)
    one_of("propagate: normalise", normalise, NORMALISATIONS)
    with no_autocast(keys.device.type):
        spread = _Spread.apply(keys, values, chunk, normalise).t().view_as(potential)
    return potential + spread if residual else spread


@torch.jit.script_if_tracing
def _traced_spread(
    features: torch.Tensor, values: torch.Tensor, softmax: bool, entries: int, least: int
) -> torch.Tensor:
    """:class:`_Spread` as a loop that TorchScript and ONNX store, for any number of pixels."""
    queries = features.t() * features.shape[0] ** -0.5
    chunk = max(least, entries // max(queries.shape[0], 1))
    found = [torch.zeros_like(values[:0])]  # a list in ONNX must not be empty
    for k in range((queries.shape[0] + chunk - 1) // chunk):
        rows = torch.mm(queries[k * chunk : (k + 1) * chunk], features)
        if softmax:
            rows = torch.softmax(rows, 1)
        else:
            rows = rows.sigmoid()
            rows = rows / rows.sum(dim=1, keepdim=True)
        found.append(torch.mm(rows, values))
    return torch.cat(found)


class _Spread(torch.autograd.Function):
    """(D, n) features and (n, C) values -> (n, C): the product of A and the values."""

    @staticmethod
    def forward(ctx, features, values, chunk: int, normalise: str):
        queries, output = features.t() * len(features) ** -0.5, torch.empty_like(values)
        buffers = values.new_empty(2, min(chunk, len(values)), len(values))
        for start in range(0, len(values), chunk):
            part = queries[start : start + chunk]
            rows = _rows(part, features, normalise, buffers[:, : len(part)])
            torch.mm(rows, values, out=output[start : start + chunk])
        ctx.save_for_backward(features, values, output)
        ctx.chunk, ctx.normalise = chunk, normalise
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        features, values, output = ctx.saved_tensors
        scale = len(features) ** -0.5
        queries = features.t() * scale
        grad_features, grad_values = torch.zeros_like(features), torch.zeros_like(values)
        means = (grad * output).sum(dim=1, keepdim=True)  # of each row's gradients, weighted by A
        buffers = values.new_empty(3, min(ctx.chunk, len(values)), len(values))
        with no_autocast(grad.device.type):
            for start in range(0, len(values), ctx.chunk):
                part = slice(start, start + ctx.chunk)
                sigmoids, rows, grad_rows = own = buffers[:, : len(queries[part])]
                _rows(queries[part], features, ctx.normalise, own[:2])
                grad_values.addmm_(rows.t(), grad[part])
                torch.mm(grad[part], values.t(), out=grad_rows)
                grad_products = grad_rows.sub_(means[part]).mul_(rows)
                if ctx.normalise == "sigmoid":
                    grad_products.mul_(sigmoids.neg_().add_(1))
                grad_features[:, part].addmm_(features, grad_products.t(), alpha=scale)
                grad_features.addmm_(queries[part].t(), grad_products)
        return grad_features, grad_values, None, None


def _averaged(potential: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """(C, H, W) -> (C, h, w), the size of the features."""
    if torch.jit.is_tracing():  # ONNX knows windows of fixed size only; their ratio is that of the strides
        sizes = zip(potential.shape[1:], features.shape[1:], strict=True)
        return F.avg_pool2d(potential[None], [int(size) // int(part) for size, part in sizes])[0]
    return F.adaptive_avg_pool2d(potential, features.shape[1:])


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
        if not len(potential):  # neither stuff classes nor detections
            return potential + features.sum() * 0
        pooled = _averaged(potential, features)
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
