"""Lovasz losses: piecewise linear surrogates of 1 - IoU (supplement B; Berman et al., CVPR 2018).

With the errors m of n pixels sorted, largest first, and G the number of pixels of a class,

    loss = sum_p m_p (J_p - J_{p-1}),   J_p = 1 - (G - positives among p) / (G + negatives among p),  J_0 = 0.

J_p is 1 - IoU of the class if the first p pixels are wrong. Its increments have a closed form, used here:
with the intersection I_p and the union U_p after p pixels, a positive adds 1 / U_p and a negative
I_p / (U_p (U_p - 1)). Differences of J_p would lose their digits where there are millions of pixels.
"""

import torch

__all__ = ["lovasz_hinge", "lovasz_softmax"]

# From so many elements torch sorts whole numbers of one axis by their digits, several times as fast.
_DIGITS = 1 << 15
# Errors whose weights are computed at a time, if they are of several classes: each takes about 40 bytes.
_ERRORS = 1 << 22


def lovasz_hinge(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Lovasz hinge of a binary segmentation: m = 1 - logit for positives, 1 + logit for negatives, cut at 0.

    Args:
        logits: (N,), or (R, N) for R segmentations.
        labels: of the same shape, bool, or 0 and 1.

    Returns:
        scalar, the mean over R; 0 with a graph where N or R is 0.

    Raises:
        ValueError: the shapes do not fit each other.
    """
    if logits.ndim not in (1, 2) or labels.shape != logits.shape:
        raise ValueError(
            "lovasz_hinge: expected logits and labels (N,) or (R, N), got "
            f"{tuple(logits.shape)} and {tuple(labels.shape)}"
        )
    logits, positive = _full(logits), labels.bool()
    errors = torch.atleast_2d((1 - logits * (2 * positive.to(logits.dtype) - 1)).relu())
    weights = _weights(errors.detach(), torch.atleast_2d(positive))
    return (errors * weights).sum() / max(len(errors), 1)


def lovasz_softmax(probabilities: torch.Tensor, labels: torch.Tensor, ignore: int = 255) -> torch.Tensor:
    """Lovasz-Softmax: per class m = |1[label is the class] - probability|; the mean over present classes.

    Args:
        probabilities: (N, C), C classes.
        labels: (N,) whole numbers below C, or ``ignore`` for pixels that do not count.
        ignore: label of void.

    Returns:
        scalar; 0 with a graph where no pixel counts.

    Raises:
        ValueError: the shapes do not fit each other; a label of no class.
    """
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1]:
        raise ValueError(
            "lovasz_softmax: expected probabilities (N, C) and labels (N,), got "
            f"{tuple(probabilities.shape)} and {tuple(labels.shape)}"
        )
    valid = labels != ignore
    probabilities, labels = _full(probabilities)[valid], labels[valid].long()
    classes = probabilities.shape[1]
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(
            f"lovasz_softmax: expected labels 0 to {classes - 1} or {ignore}, "
            f"got {labels.min()} to {labels.max()}"
        )
    counts = torch.bincount(labels, minlength=classes)
    present = counts.nonzero()[:, 0]
    member = labels == present[:, None]  # (present classes, N)
    errors = (member.to(probabilities.dtype) - probabilities.t()[present]).abs()
    return (errors * _weights(errors.detach(), member)).sum() / max(len(present), 1)


def _full(values: torch.Tensor) -> torch.Tensor:
    """In float32 where 16 bits would not tell the errors apart."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


@torch.no_grad()
def _weights(errors: torch.Tensor, positive: torch.Tensor) -> torch.Tensor:
    """What each error counts in the loss: (R, N) increments of J in the order of the pixels.

    Args:
        errors: (R, N), not negative.
        positive: (R, N) bool.
    """
    rows = max(1, _ERRORS // max(errors.shape[1], 1))
    parts = zip(errors.split(rows), positive.split(rows), strict=True)
    return torch.cat([_increments(*part) for part in parts])


def _increments(errors: torch.Tensor, positive: torch.Tensor) -> torch.Tensor:
    """:func:`_weights` of all rows at once."""
    order = _descending(errors)
    positive = positive.gather(1, order)
    found = positive.cumsum(1, dtype=torch.int32)
    intersection = found[:, -1:] - found
    before = torch.arange(errors.shape[1], dtype=torch.int32, device=errors.device)  # p - 1
    union = (intersection + before + 1).to(errors.dtype)  # G + negatives = G + p - positives
    # The numerator is U - 1 = I + p - 1 for positives; a choice between two quotients takes longer.
    increments = (intersection + positive * before) / (union * (union - 1))
    increments[:, :1].masked_fill_(union[:, :1] == 1, 1)  # 0 / 0: the only pixel of the union
    return torch.empty_like(errors).scatter_(1, order, increments)


def _descending(errors: torch.Tensor) -> torch.Tensor:
    """(R, N) not negative -> indices of each row's values, largest first."""
    # The bits of floats that are not negative are whole numbers in the same order.
    keys = -errors.view(torch.int32 if errors.dtype == torch.float32 else torch.int64)
    if errors.device.type == "cpu" and errors.shape[1] >= _DIGITS:
        return torch.stack([row.sort(stable=True).indices for row in keys])
    return keys.sort(dim=1, stable=True).indices
