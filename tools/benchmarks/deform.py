"""Deformable convolution on CPU: auto_panoptic.modeling.layers.deform against torchvision's operator.

Both sides run interleaved in one process on the same inputs; the best of the repeats counts. The last line
is one JSON object with the ratios (torchvision's time / ours), forward and forward + backward, by shape.

    python tools/benchmarks/deform.py [--threads 1] [--repeats 3]
"""

import argparse
import json
import time

import torch
from torchvision.ops import deform_conv2d as torchvision_deform_conv2d

from auto_panoptic.modeling.layers.deform import deform_conv2d

# name: images or regions, channels, height, width, output channels, kernel
SHAPES = {
    "regions_64x14x14_c64_k3": (64, 64, 14, 14, 64, 3),
    "regions_64x14x14_c64_k5": (64, 64, 14, 14, 64, 5),
    "regions_16x14x14_c256_k3": (16, 256, 14, 14, 256, 3),
    "map_2x32x32_c64_k3": (2, 64, 32, 32, 64, 3),
    "map_2x32x32_c64_k5": (2, 64, 32, 32, 64, 5),
    "map_1x48x64_c256_to_128_k3": (1, 256, 48, 64, 128, 3),
}


def make_inputs(n: int, c: int, h: int, w: int, d: int, k: int) -> list[torch.Tensor]:
    """Random input, offset (a pixel or so), weight, bias and mask that require gradients."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(n, c, h, w), (n, 2 * k * k, h, w), (d, c, k, k), (d,), (n, k * k, h, w)]
    tensors = [torch.randn(shape, generator=generator) for shape in shapes]
    tensors[2] *= (c * k * k) ** -0.5
    tensors[4].sigmoid_()
    return [t.requires_grad_() for t in tensors]


def run(operator, tensors: list[torch.Tensor], k: int):
    """Seconds of the forward pass, seconds of forward + backward, output and gradients."""
    inputs, offset, weight, bias, mask = tensors
    start = time.perf_counter()
    output = operator(inputs, offset, weight, bias, padding=k // 2, mask=mask)
    middle = time.perf_counter()
    gradients = torch.autograd.grad(output, tensors, torch.ones_like(output))
    return middle - start, time.perf_counter() - start, [output, *gradients]


def largest_difference(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> float:
    """Largest difference of output and gradients, each relative to its largest value."""
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, theirs, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1, help="threads for both sides")
    parser.add_argument("--repeats", type=int, default=3, help="the best of so many runs counts")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    print(f"torch {torch.__version__}, {args.threads} thread(s), best of {args.repeats}; milliseconds")
    print(f"{'shape':28} {'torchvision':>19} {'ours':>19} {'ratio':>13} {'difference':>11}")
    print(f"{'':28} {'fwd':>9} {'fwd+bwd':>9} {'fwd':>9} {'fwd+bwd':>9} {'fwd':>6} {'f+b':>6}")
    figures = {"forward": {}, "forward_backward": {}, "largest_difference": 0.0, "threads": args.threads}
    for name, shape in SHAPES.items():
        tensors = make_inputs(*shape)
        sides = {"torchvision": torchvision_deform_conv2d, "ours": deform_conv2d}
        times = {side: [float("inf"), float("inf")] for side in sides}
        results = {}
        for _ in range(args.repeats):
            for side, operator in sides.items():
                forward, both, results[side] = run(operator, tensors, shape[-1])
                times[side] = [min(times[side][0], forward), min(times[side][1], both)]
        theirs, ours = times["torchvision"], times["ours"]
        ratios = [theirs[0] / ours[0], theirs[1] / ours[1]]
        difference = largest_difference(results["ours"], results["torchvision"])
        cells = " ".join(f"{1000 * t:9.1f}" for t in (*theirs, *ours))
        print(f"{name:28} {cells} {ratios[0]:6.1f} {ratios[1]:6.1f} {difference:11.1e}", flush=True)
        figures["forward"][name] = round(ratios[0], 2)
        figures["forward_backward"][name] = round(ratios[1], 2)
        figures["largest_difference"] = max(figures["largest_difference"], difference)
    figures["smallest_forward_backward"] = min(figures["forward_backward"].values())
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
