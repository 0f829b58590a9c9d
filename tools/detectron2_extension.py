"""Stands in for Detectron2's compiled extension, which this installation was made without."""

IS_SUBSTITUTE = True
FIXUPS_FINGERPRINT = ""

_INSTALL = "https://detectron2.readthedocs.io/en/latest/tutorials/install.html"
_ROTATED = "rotated boxes"
_COCO = "the fast COCOeval (pycocotools gives the same numbers: use_fast_impl=False)"
_DEFORM = "Detectron2's own deformable convolution (torchvision.ops.deform_conv2d computes the same)"
_FEATURES = {
    "box_iou_rotated": _ROTATED,
    "nms_rotated": _ROTATED,
    "roi_align_rotated_forward": _ROTATED,
    "roi_align_rotated_backward": _ROTATED,
    "InstanceAnnotation": _COCO,
    "COCOevalEvaluateImages": _COCO,
    "COCOevalAccumulate": _COCO,
    "deform_conv_forward": _DEFORM,
    "deform_conv_backward_input": _DEFORM,
    "deform_conv_backward_filter": _DEFORM,
    "modulated_deform_conv_forward": _DEFORM,
    "modulated_deform_conv_backward": _DEFORM,
}


class MissingExtensionError(AttributeError):
    """An operator of the compiled extension was asked for."""


def get_compiler_version():
    """Read by Detectron2's environment report."""
    return "none (installed without the compiled extension)"


def get_cuda_version():
    """Read by Detectron2's environment report."""
    return "none (installed without the compiled extension)"


def has_cuda():
    """Read by Detectron2's environment report."""
    return False


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    raise MissingExtensionError(
        f"detectron2._C.{name}: this Detectron2 was installed without its compiled extension, "
        f"which provides {_FEATURES.get(name, name)}. To use it, install a compiled Detectron2: {_INSTALL}"
    )
