"""``python -m auto_panoptic.doctor``: what is installed, and does it work?

Prints versions, then runs one RoIAlign, one non-maximum suppression, one deformable convolution and one
panoptic quality. Each line says ok or FAIL; a FAIL is followed by its remedy. Exit code 0: all fine, 2: not.
By itself it imports the standard library only, so that it can report on a broken torch, too.
"""

import argparse
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import sys
import warnings
from dataclasses import dataclass

# torchvision is compiled against one torch: torch 2.x goes with torchvision 0.(x + 15).
TORCHVISION_OFFSET = 15
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@dataclass(frozen=True)
class Result:
    """Outcome of one check.

    Attributes:
        name: what was checked.
        ok: whether it works.
        detail: one line: the version or figure, or what is wrong.
        remedy: one line: the command that mends it; empty when ok.
    """

    name: str
    ok: bool
    detail: str
    remedy: str = ""


def _one_line(error) -> str:
    """The first line of an exception, with its type."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:300]


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _pip(*packages: str) -> str:
    return f"{sys.executable} -m pip install {' '.join(packages)}"


def matching_torchvision(torch_version: str) -> str:
    """The torchvision release line that belongs to a torch version.

    Args:
        torch_version: e.g. "2.14.1+cpu".

    Returns:
        A pip requirement: "torchvision==0.29.*"; without a bound if the version cannot be read.
    """
    try:
        major, minor = (int(part) for part in torch_version.split("+")[0].split(".")[:2])
    except ValueError:
        return "torchvision"
    return f"'torchvision==0.{minor + TORCHVISION_OFFSET}.*'" if major == 2 else "torchvision"


def torchvision_remedy() -> str:
    """The command that replaces torchvision by the release made for the installed torch."""
    return _pip("--force-reinstall", "--no-deps", matching_torchvision(_version("torch")))


def _import(module: str, distribution: str, remedy: str) -> Result:
    try:
        loaded = importlib.import_module(module)
    except Exception as error:  # broken binaries raise all sorts
        return Result(module, False, _one_line(error), remedy)
    version = _version(distribution) or getattr(loaded, "__version__", "")
    return Result(module, True, f"{version} ({os.path.dirname(getattr(loaded, '__file__', None) or '')})")


def check_torch() -> Result:
    return _import("torch", "torch", _pip("--force-reinstall", "torch", "torchvision"))


def check_torchvision() -> Result:
    """Importing torchvision does not always load its operators: look them up as well."""
    result = _import("torchvision", "torchvision", torchvision_remedy())
    if not result.ok:
        return result
    try:
        import torch

        for operator in ("nms", "roi_align", "deform_conv2d"):
            getattr(torch.ops.torchvision, operator)
    except Exception as error:
        return Result("torchvision", False, _one_line(error), torchvision_remedy())
    return result


def check_detectron2() -> Result:
    """Detectron2 and where it comes from: this project's installer, or the user's own build."""
    installer = os.path.join(ROOT, "tools", "install_detectron2.py")
    result = _import("detectron2.layers", "detectron2", f"{sys.executable} {installer}")
    if not result.ok:
        return Result("detectron2", False, result.detail, result.remedy)
    import detectron2
    from detectron2 import _C

    kind = "pure Python, tools/install_detectron2.py" if hasattr(_C, "IS_SUBSTITUTE") else "compiled"
    folder = os.path.dirname(detectron2.__file__)
    return Result("detectron2", True, f"{detectron2.__version__} ({folder}; {kind})")


def check_roi_align() -> Result:
    """RoIAlign of a constant image is that constant."""
    import torch
    from detectron2.layers import ROIAlign

    pool = ROIAlign((2, 2), spatial_scale=1.0, sampling_ratio=2, aligned=True)
    out = pool(torch.full((1, 1, 8, 8), 3.0), torch.tensor([[0.0, 1.0, 1.0, 5.0, 5.0]]))
    ok = tuple(out.shape) == (1, 1, 2, 2) and bool((out == 3.0).all())
    detail = "a constant stays constant" if ok else f"expected all 3, got {out.tolist()}"
    return Result("RoIAlign", ok, detail)


def check_nms() -> Result:
    """Of two overlapping boxes the better one stays, and the distant one, too."""
    import torch
    from detectron2.layers import batched_nms

    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 9.0], [20.0, 20.0, 30.0, 30.0]])
    scores = torch.tensor([0.8, 0.9, 0.5])
    keep = batched_nms(boxes, scores, torch.zeros(3, dtype=torch.int64), 0.5).tolist()
    detail = "keeps boxes 1 and 2" if keep == [1, 2] else f"expected [1, 2], got {keep}"
    return Result("NMS", keep == [1, 2], detail)


def check_deform_conv() -> Result:
    """The project's deformable convolution equals torchvision's."""
    import torch
    from torchvision.ops import deform_conv2d as reference

    from auto_panoptic.modeling.layers.deform import deform_conv2d

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 4, 9, 8, generator=generator)
    offset = torch.randn(1, 18, 9, 8, generator=generator)
    mask = torch.rand(1, 9, 9, 8, generator=generator)
    weight = torch.randn(6, 4, 3, 3, generator=generator)
    out = deform_conv2d(x, offset, weight, None, padding=1, mask=mask)
    error = float((out - reference(x, offset, weight, None, padding=1, mask=mask)).abs().max())
    return Result("deformable convolution", error < 1e-3, f"largest difference to torchvision {error:.1e}")


def check_panoptic_quality() -> Result:
    """A segmentation compared with itself scores 100."""
    import numpy as np

    from auto_panoptic.evaluation import PanopticQuality

    categories = [
        {"id": 1, "name": "thing", "isthing": 1, "color": [255, 0, 0]},
        {"id": 2, "name": "stuff", "isthing": 0, "color": [0, 255, 0]},
    ]
    ids = np.ones((8, 8), dtype=np.int64)
    ids[:, 4:] = 2
    segments = [
        {"id": i, "category_id": i, "iscrowd": 0, "area": 32, "bbox": [4 * (i - 1), 0, 4, 8]} for i in (1, 2)
    ]
    quality = PanopticQuality(categories)
    quality.update(ids, segments, ids.copy(), segments)
    value = quality.compute()["PQ"]
    ok = abs(value - 100.0) < 1e-9
    return Result("panoptic quality", ok, f"PQ of identical maps: {value:g}")


OPERATORS = (
    ("RoIAlign", check_roi_align),
    ("NMS", check_nms),
    ("deformable convolution", check_deform_conv),
    ("panoptic quality", check_panoptic_quality),
)

LIBRARIES = (
    ("numpy", "numpy"),
    ("PIL", "pillow"),
    ("pycocotools.mask", "pycocotools"),
    ("cv2", "opencv-python-headless"),
    ("fvcore", "fvcore"),
)


def machine() -> list[tuple[str, str]]:
    """Python, processor cores and memory, as (name, text)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    lines = [("Python", f"{platform.python_version()} ({sys.executable})"), ("system", platform.platform())]
    lines.append(("CPU cores", str(cores)))
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
        lines.append(("memory", f"{memory:.1f} GB"))
    except (AttributeError, OSError, ValueError):
        pass
    return lines


def cuda() -> str:
    """CUDA device, or why there is none."""
    import torch

    if not torch.cuda.is_available():
        return "none (everything runs on the CPU; set MODEL.DEVICE cpu)"
    return ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))


def check_all():
    """Yields Results; what depends on a failed part is left out, its remedy comes first."""
    torch = check_torch()
    yield torch
    for module, distribution in LIBRARIES:
        yield _import(module, distribution, _pip("--force-reinstall", distribution))
    if importlib.util.find_spec("panopticapi") is None:
        detail = "not installed (only Detectron2's own COCOPanopticEvaluator needs it)"
        yield Result("panopticapi", True, detail)
    else:
        name = "panopticapi-lite" if _version("panopticapi-lite") else "panopticapi"
        yield _import("panopticapi", name, _pip("--no-deps", "panopticapi-lite"))
    if not torch.ok:
        return
    torchvision = check_torchvision()
    yield torchvision
    if not torchvision.ok:
        return
    detectron2 = check_detectron2()
    yield detectron2
    if not detectron2.ok:
        return
    for name, check in OPERATORS:
        try:
            result = check()
        except Exception as error:
            result = Result(name, False, _one_line(error), _pip("--force-reinstall", "--no-deps", "-e", ROOT))
        if not result.ok and not result.remedy:
            result = Result(name, False, result.detail, torchvision_remedy())
        yield result


def main(argv=None) -> int:
    """Prints the report; returns the exit code."""
    parser = argparse.ArgumentParser(prog="auto_panoptic.doctor", description=__doc__.splitlines()[0])
    parser.parse_args(argv)
    warnings.simplefilter("ignore")
    for name, text in machine():
        print(f"{name:24s}{text}", flush=True)
    failed = []
    for result in check_all():
        print(f"{result.name:24s}{'ok  ' if result.ok else 'FAIL'}  {result.detail}", flush=True)
        if not result.ok:
            failed.append(result.name)
            print(f"{'':24s}      remedy: {result.remedy}", flush=True)
        elif result.name == "torch":
            print(f"{'CUDA':24s}      {cuda()}", flush=True)
    print(f"FAIL: {', '.join(failed)}" if failed else "all ok")
    return 2 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
