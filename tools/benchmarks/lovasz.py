"""Lovasz losses: auto_panoptic.systems.unified.lovasz against a plain formulation with one sort per class.

The plain one sorts the errors of each class, largest first, and takes the differences of the Jaccard losses
of all their beginnings. Both run in turns in one process on one core, forward and backward, on the same
inputs; the best of the repeats counts, in CPU seconds. The inputs are those of a half-trained network:
random, most pixels right. The last line is one JSON object with the ratios (our time / that of the plain
formulation; below 1 is faster), by shape.

    python tools/benchmarks/lovasz.py [--repeats 5]
"""

import argparse
import json
import time

import torch

from auto_panoptic.systems.unified import lovasz_hinge, lovasz_softmax

# name: pixels, or (segmentations, pixels of each); classes, or None for the hinge
SHAPES = {
    "hinge_64_regions_28x28": ((64, 28 * 28), None),
    "hinge_512_regions_28x28": ((512, 28 * 28), None),
    "hinge_512x1024": (512 * 1024, None),
    "softmax_19_classes_64x64": (64 * 64, 19),
    "softmax_19_classes_128x256": (128 * 256, 19),
    "softmax_19_classes_512x1024": (512 * 1024, 19),
    "softmax_133_classes_200x304": (200 * 304, 133),
}


def plain_lovasz(errors: torch.Tensor, positive: torch.Tensor) -> torch.Tensor:
    """The loss of one class of (N,) errors; ``positive``: (N,), 1 for pixels of the class, else 0."""
    ordered, order = errors.sort(descending=True)
    positive = positive[order]
    intersection = positive.sum() - positive.cumsum(0)
    union = positive.sum() + (1 - positive).cumsum(0)
    jaccard = 1 - intersection / union
    jaccard[1:] = jaccard[1:] - jaccard[:-1]
    return torch.dot(ordered, jaccard)


def plain_hinge(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Lovasz hinge of (N,) or (R, N) logits and labels 0 and 1."""
    if logits.ndim == 2:
        return torch.stack([plain_hinge(*row) for row in zip(logits, labels, strict=True)]).mean()
    positive = labels.float()
    return plain_lovasz((1 - logits * (2 * positive - 1)).relu(), positive)


def plain_softmax(probabilities: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Lovasz-Softmax of (N, C) probabilities and (N,) labels, 255 being void."""
    valid = labels != 255
    probabilities, labels = probabilities[valid], labels[valid]
    losses = []
    for c in labels.unique().tolist():
        positive = (labels == c).float()
        losses.append(plain_lovasz((positive - probabilities[:, c]).abs(), positive))
    return torch.stack(losses).mean()


def make_inputs(pixels: int | tuple, classes: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits or probabilities of a network that mostly errs little, and labels; 5 % of the softmax's void."""
    generator = torch.Generator().manual_seed(0)
    if classes is None:
        labels = torch.randint(0, 2, (pixels,) if isinstance(pixels, int) else pixels, generator=generator)
        return 2 * torch.randn(labels.shape, generator=generator) + 4 * labels - 2, labels
    labels = torch.randint(0, classes, (pixels,), generator=generator)
    logits = torch.randn(pixels, classes, generator=generator)
    logits[torch.arange(pixels), labels] += 5
    labels[torch.rand(pixels, generator=generator) < 0.05] = 255
    return logits.softmax(dim=1), labels


def run(loss, values: torch.Tensor, labels: torch.Tensor) -> tuple[float, float]:
    """CPU seconds of forward and backward, and the loss."""
    values = values.requires_grad_()
    start = time.process_time()
    result = loss(values, labels)
    torch.autograd.grad(result, values)
    return time.process_time() - start, result.item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5, help="the best of so many runs counts")
    args = parser.parse_args()
    torch.set_num_threads(1)

    print(f"torch {torch.__version__}, one core, best of {args.repeats}; milliseconds")
    print(f"{'shape':30} {'plain':>9} {'ours':>9} {'ratio':>7} {'loss, plain':>12} {'ours':>12}")
    figures = {"ratio": {}}
    for name, (pixels, classes) in SHAPES.items():
        values, labels = make_inputs(pixels, classes)
        plain, ours = (plain_hinge, lovasz_hinge) if classes is None else (plain_softmax, lovasz_softmax)
        best, losses = {plain: float("inf"), ours: float("inf")}, {}
        for _ in range(args.repeats):
            for loss in best:
                seconds, losses[loss] = run(loss, values, labels)
                best[loss] = min(best[loss], seconds)
        assert abs(losses[plain] - losses[ours]) < 1e-3 * losses[plain], "the sides disagree"
        ratio = best[ours] / best[plain]
        times = f"{1000 * best[plain]:9.1f} {1000 * best[ours]:9.1f} {ratio:7.2f}"
        print(f"{name:30} {times} {losses[plain]:12.6f} {losses[ours]:12.6f}", flush=True)
        figures["ratio"][name] = round(ratio, 3)
    figures["largest_ratio"] = max(figures["ratio"].values())
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
