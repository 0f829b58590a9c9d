"""What has to change in Detectron2 v0.6 to run, unbuilt, on today's Python, torch, numpy and Pillow.

``FIXUPS`` is an explicit table: in which file, which exact text, by what, how often it must occur, and why.
:func:`apply_fixups` refuses to continue when a count differs, so that a changed source is never half patched.
``detectron2_extension.py`` becomes ``detectron2/_C.py`` in place of the compiled extension, whose sources the
source distribution lacks.

Standard library only.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path


class FixupError(RuntimeError):
    """A replacement does not fit the source it is applied to."""


@dataclass(frozen=True)
class Fixup:
    """One exact replacement.

    Attributes:
        file: path inside the unpacked source distribution.
        old: text that is replaced, verbatim.
        new: text that takes its place.
        count: how often ``old`` occurs in the file, exactly.
        reason: what breaks without it.
    """

    file: str
    old: str
    new: str
    count: int
    reason: str


_NUMPY = "numpy 1.24 removed np.int, np.float and np.str"
_NUMPY_BOOL = "np.bool is missing from numpy 1.24 to 1.26"
_SCHEDULER = "torch 2 renamed _LRScheduler; by the old name hooks do not resume torch's own schedulers"
_SCRIPT = "torch.jit.script is deprecated and warned at every import of Detectron2"
_AMP = "torch.cuda.amp is deprecated and warns at every step"
_EXTENSION = "torch.ops has no detectron2 operators without the extension; its own error names no remedy"
_CAFFE2 = "caffe2 left torch in 2.4, so that 'import detectron2.export' failed as a whole"

_QUIET_SCRIPT = '''
def _script(cls):
    """torch.jit.script without its deprecation warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(cls)
'''

FIXUPS = (
    Fixup(
        "detectron2/__init__.py",
        "from .utils.env import setup_environment\n",
        "import warnings\n\n"
        "with warnings.catch_warnings():  # fvcore scripts its losses when it is imported\n"
        '    warnings.simplefilter("ignore", FutureWarning)\n'
        '    warnings.simplefilter("ignore", DeprecationWarning)\n'
        "    import fvcore.nn  # noqa: F401\n\n"
        "from .utils.env import setup_environment\n",
        1,
        _SCRIPT,
    ),
    Fixup(
        "detectron2/data/transforms/transform.py",
        "interp=Image.LINEAR",
        "interp=Image.BILINEAR",
        1,
        "Pillow 10 removed Image.LINEAR, the old name of Image.BILINEAR",
    ),
    Fixup("detectron2/data/build.py", "dtype=np.int)", "dtype=int)", 1, _NUMPY),
    Fixup("detectron2/data/build.py", "dtype=np.int\n", "dtype=int\n", 1, _NUMPY),
    Fixup("detectron2/data/datasets/pascal_voc.py", "dtype=np.str)", "dtype=str)", 1, _NUMPY),
    Fixup(
        "detectron2/evaluation/pascal_voc_evaluation.py", ".astype(np.bool)", ".astype(bool)", 2, _NUMPY_BOOL
    ),
    Fixup("detectron2/evaluation/sem_seg_evaluation.py", "dtype=np.int)", "dtype=int)", 2, _NUMPY),
    Fixup("detectron2/evaluation/sem_seg_evaluation.py", "dtype=np.float)", "dtype=float)", 2, _NUMPY),
    Fixup("detectron2/evaluation/sem_seg_evaluation.py", ".astype(np.float)", ".astype(float)", 3, _NUMPY),
    Fixup("detectron2/structures/masks.py", ".astype(np.bool)", ".astype(bool)", 2, _NUMPY_BOOL),
    Fixup("detectron2/structures/masks.py", "dtype=np.bool)", "dtype=bool)", 1, _NUMPY_BOOL),
    Fixup("detectron2/utils/video_visualizer.py", "dtype=np.bool)", "dtype=bool)", 1, _NUMPY_BOOL),
    Fixup("detectron2/utils/visualizer.py", ".astype(np.bool)", ".astype(bool)", 3, _NUMPY_BOOL),
    Fixup(
        "detectron2/data/benchmark.py",
        'interpolation="nearest"',
        'method="nearest"',
        1,
        "numpy 2.4 removed percentile(interpolation=)",
    ),
    Fixup(
        "detectron2/data/common.py",
        "self._rng.sample(self._fallback_candidates, k=1)[0]",
        "self._rng.sample(sorted(self._fallback_candidates), k=1)[0]",
        1,
        "Python 3.11 refuses random.sample on a set (MapDataset, when a mapper returns None)",
    ),
    Fixup(
        "detectron2/engine/hooks.py",
        "torch.optim.lr_scheduler._LRScheduler",
        "torch.optim.lr_scheduler.LRScheduler",
        2,
        _SCHEDULER,
    ),
    Fixup(
        "detectron2/solver/build.py",
        "torch.optim.lr_scheduler._LRScheduler",
        "torch.optim.lr_scheduler.LRScheduler",
        1,
        _SCHEDULER,
    ),
    Fixup(
        "detectron2/solver/lr_scheduler.py",
        "torch.optim.lr_scheduler._LRScheduler",
        "torch.optim.lr_scheduler.LRScheduler",
        4,
        _SCHEDULER,
    ),
    Fixup(
        "projects/DeepLab/deeplab/build_solver.py",
        "torch.optim.lr_scheduler._LRScheduler",
        "torch.optim.lr_scheduler.LRScheduler",
        1,
        _SCHEDULER,
    ),
    Fixup(
        "projects/DeepLab/deeplab/lr_scheduler.py",
        "torch.optim.lr_scheduler._LRScheduler",
        "torch.optim.lr_scheduler.LRScheduler",
        1,
        _SCHEDULER,
    ),
    Fixup(
        "detectron2/engine/train_loop.py",
        "            from torch.cuda.amp import GradScaler\n\n            grad_scaler = GradScaler()\n",
        '            from torch.amp import GradScaler\n\n            grad_scaler = GradScaler("cuda")\n',
        1,
        _AMP,
    ),
    Fixup(
        "detectron2/engine/train_loop.py",
        "        from torch.cuda.amp import autocast\n",
        "        from torch.amp import autocast\n",
        1,
        _AMP,
    ),
    Fixup(
        "detectron2/engine/train_loop.py",
        "        with autocast():\n",
        '        with autocast("cuda"):\n',
        1,
        _AMP,
    ),
    Fixup(
        "detectron2/modeling/anchor_generator.py",
        "torch.meshgrid(shifts_y, shifts_x)",
        'torch.meshgrid(shifts_y, shifts_x, indexing="ij")',
        1,
        "torch warns about meshgrid without indexing; ij is what it has always meant here",
    ),
    Fixup(
        "projects/Panoptic-DeepLab/panoptic_deeplab/post_processing.py",
        "torch.arange(width, dtype=offsets.dtype, device=offsets.device),\n    )\n",
        'torch.arange(width, dtype=offsets.dtype, device=offsets.device),\n        indexing="ij",\n    )\n',
        1,
        "torch warns about meshgrid without indexing; ij is what it has always meant here",
    ),
    Fixup(
        "detectron2/modeling/box_regression.py",
        "import math\n",
        "import math\nimport warnings\n",
        1,
        _SCRIPT,
    ),
    Fixup(
        "detectron2/modeling/box_regression.py",
        '"Box2BoxTransformLinear"]\n',
        '"Box2BoxTransformLinear"]\n\n' + _QUIET_SCRIPT,
        1,
        _SCRIPT,
    ),
    Fixup("detectron2/modeling/box_regression.py", "@torch.jit.script\n", "@_script\n", 2, _SCRIPT),
    Fixup(
        "detectron2/utils/comm.py",
        "    storage = torch.ByteStorage.from_buffer(buffer)\n"
        "    tensor = torch.ByteTensor(storage).to(device=device)\n",
        "    tensor = torch.frombuffer(bytearray(buffer), dtype=torch.uint8).to(device=device)\n",
        1,
        "typed storages are deprecated: every gather between processes warned",
    ),
    Fixup(
        "detectron2/model_zoo/model_zoo.py",
        "import pkg_resources\n",
        "",
        1,
        "setuptools 82 removed pkg_resources",
    ),
    Fixup(
        "detectron2/model_zoo/model_zoo.py",
        "    cfg_file = pkg_resources.resource_filename(\n"
        '        "detectron2.model_zoo", os.path.join("configs", config_path)\n'
        "    )\n",
        '    cfg_file = os.path.join(os.path.dirname(os.path.abspath(__file__)), "configs", config_path)\n',
        1,
        "setuptools 82 removed pkg_resources",
    ),
    Fixup(
        "detectron2/export/__init__.py",
        "from .api import *\n",
        "try:\n"
        "    from .api import *\n"
        "except ImportError:  # caffe2 and onnx are optional: tracing and scripting need neither\n"
        "    pass\n",
        1,
        _CAFFE2,
    ),
    Fixup(
        "detectron2/layers/nms.py",
        "    return torch.ops.detectron2.nms_rotated(boxes, scores, iou_threshold)\n",
        "    from detectron2 import _C\n\n    return _C.nms_rotated(boxes, scores, iou_threshold)\n",
        1,
        _EXTENSION,
    ),
    Fixup(
        "detectron2/evaluation/coco_evaluation.py",
        "from detectron2.evaluation.fast_eval_api import COCOeval_opt\n",
        "",
        1,
        "the fast COCOeval is part of the extension: fall back to pycocotools, same numbers",
    ),
    Fixup(
        "detectron2/evaluation/coco_evaluation.py",
        "from .evaluator import DatasetEvaluator\n",
        "from .evaluator import DatasetEvaluator\n\n"
        "# The fast implementation is part of the compiled extension; pycocotools gives the same numbers.\n"
        "COCOeval_opt = COCOeval\n",
        1,
        "the fast COCOeval is part of the extension: fall back to pycocotools, same numbers",
    ),
    Fixup(
        "detectron2/evaluation/coco_evaluation.py",
        "        self._use_fast_impl = use_fast_impl\n",
        "        self._use_fast_impl = use_fast_impl and COCOeval_opt is not COCOeval\n",
        1,
        "the log must not call the plain pycocotools evaluation 'unofficial'",
    ),
)

EXTENSION_SUBSTITUTE = Path(__file__).with_name("detectron2_extension.py")


def fingerprint() -> str:
    """Eight hexadecimal digits that change whenever the result of the fix-ups changes."""
    digest = hashlib.sha256(repr([(f.file, f.old, f.new, f.count) for f in FIXUPS]).encode())
    digest.update(EXTENSION_SUBSTITUTE.read_bytes())
    return digest.hexdigest()[:8]


def apply_fixups(root: Path, fixups=FIXUPS) -> int:
    """Applies every replacement below ``root``; all counts are checked before anything is written.

    Args:
        root: the unpacked source distribution.
        fixups: the table.

    Returns:
        The number of replacements made.

    Raises:
        FixupError: a file is missing, or a text occurs another number of times than the table says.
    """
    texts = {}
    for fixup in fixups:
        path = root / fixup.file
        if path not in texts:
            if not path.is_file():
                raise FixupError(f"{fixup.file}: no such file in the source distribution")
            texts[path] = path.read_bytes().decode("utf-8")
        found = texts[path].count(fixup.old)
        if found != fixup.count:
            raise FixupError(f"{fixup.file}: {fixup.old!r} occurs {found} times instead of {fixup.count}")
        texts[path] = texts[path].replace(fixup.old, fixup.new)
    for path, text in texts.items():
        path.write_bytes(text.encode("utf-8"))
    return sum(f.count for f in fixups)


def write_substitute(root: Path) -> None:
    """Writes ``detectron2/_C.py`` below ``root``."""
    text = EXTENSION_SUBSTITUTE.read_text(encoding="utf-8")
    text = text.replace('FIXUPS_FINGERPRINT = ""', f'FIXUPS_FINGERPRINT = "{fingerprint()}"')
    (root / "detectron2" / "_C.py").write_text(text, encoding="utf-8")
