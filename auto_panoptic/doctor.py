"""Say what is installed, and prove that it works.

Imports the libraries one after the other, prints Detectron2's list of versions, then runs one RoIAlign, one
non-maximum suppression, one deformable convolution and one panoptic quality. Each line says ok or FAIL, and
a FAIL is followed by its remedy. Exit code 0: all fine, 2: not.
"""

import argparse
import importlib
import importlib.metadata
import logging
import os
import sys
import warnings

from .files import HOME

PIP = f"{sys.executable} -m pip install --force-reinstall"
LIBRARIES = {
    "numpy": "numpy",
    "scipy": "scipy",
    "PIL": "pillow",
    "pycocotools.mask": "pycocotools",
    "cv2": "opencv-python-headless",
    "fvcore": "fvcore",
}


def matching_torchvision(torch_version: str) -> str:
    """A pip requirement: the torchvision that was compiled against a torch such as "2.14.1+cpu".

    torch 2.x goes with torchvision 0.(x + 15).
    """
    try:
        major, minor = (int(part) for part in torch_version.split("+")[0].split(".")[:2])
    except ValueError:
        return "torchvision"
    return f"'torchvision==0.{minor + 15}.*'" if major == 2 else "torchvision"


def _torchvision_remedy() -> str:
    return f"{PIP} --no-deps {matching_torchvision(importlib.metadata.version('torch'))}"


def check_import(module: str) -> str:
    """Import a module; its version and place."""
    loaded = importlib.import_module(module)
    version = getattr(loaded, "__version__", "")
    if module == "torchvision":  # its import alone may leave its operators out
        operators = importlib.import_module("torch").ops.torchvision
        assert all(getattr(operators, name) for name in ("nms", "roi_align", "deform_conv2d"))
    return f"{version} ({os.path.dirname(getattr(loaded, '__file__', None) or '')})".strip()


def check_roi_align() -> str:
    """RoIAlign of a constant image is that constant."""
    import torch
    from detectron2.layers import ROIAlign

    pool = ROIAlign((2, 2), spatial_scale=1.0, sampling_ratio=2, aligned=True)
    out = pool(torch.full((1, 1, 8, 8), 3.0), torch.tensor([[0.0, 1.0, 1.0, 5.0, 5.0]]))
    return _equal(out.flatten().tolist(), [3.0] * 4)


def check_nms() -> str:
    """Of two overlapping boxes the better one stays, and the distant one, too."""
    import torch
    from detectron2.layers import batched_nms

    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 9.0], [20.0, 20.0, 30.0, 30.0]])
    scores = torch.tensor([0.8, 0.9, 0.5])
    return _equal(batched_nms(boxes, scores, torch.zeros(3, dtype=torch.int64), 0.5).tolist(), [1, 2])


def check_deform_conv() -> str:
    """The project's deformable convolution equals torchvision's."""
    import torch
    from torchvision.ops import deform_conv2d as reference

    from auto_panoptic.modeling.layers.deform import deform_conv2d

    generator = torch.Generator().manual_seed(0)
    x, offset, mask = (torch.rand(1, n, 9, 8, generator=generator) for n in (4, 18, 9))
    weight = torch.rand(6, 4, 3, 3, generator=generator)
    outs = [f(x, offset, weight, None, padding=1, mask=mask) for f in (deform_conv2d, reference)]
    return _equal(bool(torch.allclose(*outs, rtol=0, atol=1e-3)), True)


def check_panoptic_quality() -> str:
    """A segmentation compared with itself scores 100."""
    import numpy as np

    from auto_panoptic.evaluation import PanopticQuality

    quality = PanopticQuality(
        [{"id": i, "name": str(i), "isthing": i % 2, "color": [i, 0, 0]} for i in (1, 2)]
    )
    ids = np.repeat([[1, 2]], 8, axis=0)
    segments = [
        {"id": i, "category_id": i, "iscrowd": 0, "area": 8, "bbox": [i - 1, 0, 1, 8]} for i in (1, 2)
    ]
    quality.update(ids, segments, ids.copy(), segments)
    return _equal(round(quality.compute()["PQ"], 9), 100.0)


def _equal(found, expected) -> str:
    if found != expected:
        raise ValueError(f"expected {expected}, got {found}")
    return f"{found}, as expected"


OPERATORS = {
    "RoIAlign": check_roi_align,
    "NMS": check_nms,
    "deformable convolution": check_deform_conv,
    "panoptic quality": check_panoptic_quality,
}


def _passes(name: str, check, remedy) -> bool:
    try:
        print(f"{name:24s}ok    {check()}", flush=True)
    except Exception as error:  # broken binaries raise all sorts
        reason = (str(error).strip().splitlines() or [""])[0][:300]
        print(
            f"{name:24s}FAIL  {type(error).__name__}: {reason}\n{'':24s}      remedy: {remedy()}", flush=True
        )
        return False
    return True


def main(argv=None) -> int:
    """Print the report; return the exit code."""
    name, what = "python -m auto_panoptic.doctor", __doc__.splitlines()[0]
    argparse.ArgumentParser(prog=name, description=what).parse_args(argv)
    warnings.simplefilter("ignore")
    print(f"{'Python':24s}      {sys.version.split()[0]} ({sys.executable}), {os.cpu_count()} CPU cores")
    failed = []
    for module, package in LIBRARIES.items():
        if not _passes(module, lambda m=module: check_import(m), lambda p=package: f"{PIP} {p}"):
            failed.append(module)
    needed = {  # each by the next
        "torch": ("torch", lambda: f"{PIP} torch torchvision"),
        "torchvision": ("torchvision", _torchvision_remedy),
        "detectron2": ("detectron2.layers", lambda: f"{sys.executable} {HOME}/tools/install_detectron2.py"),
    }
    for name, (module, remedy) in needed.items():
        if not _passes(name, lambda m=module: check_import(m), remedy):
            failed.append(name)
            break
    else:
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it tells of compilers
        from detectron2.utils.collect_env import collect_env_info

        print(collect_env_info().partition("PyTorch built with")[0].rstrip())
        failed += [name for name, check in OPERATORS.items() if not _passes(name, check, _torchvision_remedy)]
    print(f"FAIL: {', '.join(failed)}" if failed else "all ok")
    return 2 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
