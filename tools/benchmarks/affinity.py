"""Affinity propagation at full size: an image of 1024 x 2048 at stride 8, 32768 pixels, 10^9 pairs.

Time and peak memory of one forward pass without gradients, as in inference, and of one forward and backward
pass, each in a process of its own. Peak memory is what the process held more than before the pass: of its own
memory on a CPU, as the system counts it, and of the device's on a GPU. Beside it, what the whole matrix would
take alone. The last line is one JSON object with the figures.

    python tools/benchmarks/affinity.py [--size 1024 2048] [--stride 8] [--dim 128] [--channels 111]
        [--device cpu] [--threads 1] [--normalise softmax] [--chunk ROWS]

--channels: 11 classes of stuff and 100 detections by default.
"""

import argparse
import json
import multiprocessing
import resource
import time

import torch

from auto_panoptic.systems.unified import propagate

PASSES = ("inference", "training")


def peak(device: str) -> int:
    """The most bytes so far."""
    if device == "cpu":
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


def measure(name: str, args: argparse.Namespace, results) -> None:
    """Put {"seconds", "cpu_seconds", "peak_bytes"} of a pass into the queue ``results``."""
    torch.set_num_threads(args.threads)
    height, width = (size // args.stride for size in args.size)
    generator = torch.Generator().manual_seed(0)
    potential = torch.rand(args.channels, height, width, generator=generator).to(args.device)
    features = torch.randn(args.dim, height, width, generator=generator).to(args.device)
    inputs = [x.requires_grad_(name == "training") for x in (potential, features)]

    def run(inputs, chunk=args.chunk):
        output = propagate(*inputs, chunk=chunk, normalise=args.normalise)
        if name == "training":
            output.sum().backward()
        return output

    run([x.detach()[:, :2, :8].clone().requires_grad_(x.requires_grad) for x in inputs])  # loads libraries
    before = peak(args.device)
    start, cpu_start = time.perf_counter(), time.process_time()
    output = run(inputs)
    after = peak(args.device)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    assert output.isfinite().all()
    results.put({"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_bytes": after - before})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, nargs=2, default=[1024, 2048], help="of the image, in pixels")
    parser.add_argument("--stride", type=int, default=8)
    parser.add_argument("--dim", type=int, default=128, help="channels of the affinity features")
    parser.add_argument("--channels", type=int, default=111, help="channels of the potential")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--normalise", default="softmax", choices=("softmax", "sigmoid"))
    parser.add_argument("--chunk", type=int, help="rows at a time; by default as the network takes them")
    args = parser.parse_args()

    pixels = args.size[0] // args.stride * (args.size[1] // args.stride)
    matrix, macs = 4 * pixels**2, pixels**2 * (args.dim + args.channels)
    device = torch.cuda.get_device_name() if args.device != "cpu" else f"CPU, {args.threads} thread(s)"
    print(f"{pixels} pixels, {args.dim} features, {args.channels} channels; {device}")
    print(f"the matrix alone: {matrix / 1e9:.2f} GB; {macs / 1e9:.1f} G multiply-adds forward")
    figures = {"device": device, "pixels": pixels, "matrix_bytes": matrix}
    context = multiprocessing.get_context("spawn")
    for name in PASSES:
        results = context.Queue()
        process = context.Process(target=measure, args=(name, args, results))
        process.start()
        figures[name] = results.get()
        process.join()
        seconds, cpu_seconds, held = figures[name].values()
        print(
            f"{name:9} {seconds:7.2f} s, {cpu_seconds:.2f} of the CPU; {held / 1e6:7.0f} MB more than before"
        )
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
