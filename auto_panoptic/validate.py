"""What each config key may be: one table of rules, looked at once on the way into every command.

A system or a module of one's own adds the rules of its keys beside the keys: ``RULES["MODEL.MINE.SIZE"] =
whole(1)``; conditions on several keys go to ``CONDITIONS``. Registries say what names they know.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass

from .errors import UserError


@dataclass(frozen=True)
class Rule:
    """What a value may be.

    Attributes:
        allows: whether a value is right.
        expected: the same in words, after "expected".
    """

    allows: Callable[[object], bool]
    expected: str


def choice(*values) -> Rule:
    """One of ``values``, of the same type."""
    known = {(type(value), value) for value in values}
    words = ", ".join(map(str, values))
    return Rule(lambda v: isinstance(v, (str, int, float)) and (type(v), v) in known, f"one of {words}")


def whole(least: int, most: int = 10**9) -> Rule:
    """An integer from ``least`` to ``most``."""
    return Rule(
        lambda v: isinstance(v, numbers.Integral) and not isinstance(v, bool) and least <= v <= most,
        f"a whole number of at least {least}" + (f", at most {most}" if most < 10**9 else ""),
    )


def number(least: float = -math.inf, most: float = math.inf, above: bool = False) -> Rule:
    """A finite number from ``least`` to ``most``; with ``above`` greater than ``least``."""
    limits = [f"greater than {least:g}" if above else f"of at least {least:g}"] if least > -math.inf else []
    limits += [f"at most {most:g}"] if most < math.inf else []
    return Rule(
        lambda v: (
            isinstance(v, numbers.Real)
            and not isinstance(v, bool)
            and math.isfinite(v)
            and least <= v <= most
            and not (above and v == least)
        ),
        "a finite number" if not limits else f"a number {', '.join(limits)}",
    )


def several(rule: Rule, count: int | None = None, least: int = 0, rising: bool = False) -> Rule:
    """A list or tuple of values that ``rule`` allows: ``count`` of them, or at least ``least``."""
    size = f"{count} times " if count else f"a list of at least {least} times " if least else "a list of "
    return Rule(
        lambda v: (
            isinstance(v, (list, tuple))
            and (len(v) == count if count else len(v) >= least)
            and all(map(rule.allows, v))
            and (not rising or all(a < b for a, b in zip(v, v[1:], strict=False)))
        ),
        size + rule.expected + (", each greater than the one before" if rising else ""),
    )


def optional(rule: Rule) -> Rule:
    """None, or what ``rule`` allows."""
    return Rule(lambda v: v is None or rule.allows(v), f"None or {rule.expected}")


PROBABILITY = number(0, 1)
WEIGHT = number(0)
SIDE = whole(1, 10**5)
TEXT = Rule(lambda v: isinstance(v, str) and v.strip() != "", "a name")

RULES: dict[str, Rule] = {
    # ------------------------------------------------------------------ search
    "NAS.SEED": whole(0, 2**32 - 1),
    "NAS.SCOREBOARD": choice("exact", "reference"),
    "NAS.GRADIENTS": choice("mean", "sum", "lr_scale"),
    "NAS.SAMPLING": choice("fair", "uniform"),
    "NAS.AUDIT_PERIOD": whole(1),
    "NAS.BN_RECALIBRATION.NUM_IMAGES": whole(1),
    "NAS.BN_RECALIBRATION.BATCH_SIZE": whole(1, 10**6),
    "NAS.BN_RECALIBRATION.MOMENTUM": PROBABILITY,
    # ------------------------------------------------------------------ backbones
    "MODEL.SHUFFLENET.STEM_CHANNELS": whole(1, 10**5),
    "MODEL.SHUFFLENET.STAGE_CHANNELS": several(
        Rule(lambda v: whole(2, 10**5).allows(v) and v % 2 == 0, "an even number from 2 to 100000"), count=4
    ),
    "MODEL.SHUFFLENET.STAGE_REPEATS": several(whole(1, 1000), count=4),
    "MODEL.SHUFFLENET.NORM": choice("BN", "SyncBN"),
    "MODEL.SHUFFLENET.NORM_MOMENTUM": number(0, 1, above=True),
    "MODEL.SHUFFLENET.SHUFFLE_METHOD": choice(1, 2),
    "MODEL.BACKBONE.FREEZE_AT": whole(0),
    "MODEL.WEIGHTS_CLASS_LAYERS": choice("strict", "anew"),
    "MODEL.PIXEL_MEAN": several(number(), count=3),
    "MODEL.PIXEL_STD": several(number(0, above=True), count=3),
    # ------------------------------------------------------------------ detection, segmentation, merging
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": whole(1),
    "MODEL.RPN.POSITIVE_FRACTION": PROBABILITY,
    "MODEL.RPN.NMS_THRESH": PROBABILITY,
    "MODEL.RPN.LOSS_WEIGHT": WEIGHT,
    "MODEL.RPN.BBOX_REG_LOSS_WEIGHT": WEIGHT,
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": whole(1),
    "MODEL.RPN.PRE_NMS_TOPK_TEST": whole(1),
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": whole(1),
    "MODEL.RPN.POST_NMS_TOPK_TEST": whole(1),
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": whole(1),
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": PROBABILITY,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": PROBABILITY,
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": PROBABILITY,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT": WEIGHT,
    "MODEL.SEM_SEG_HEAD.IGNORE_VALUE": choice(255),
    "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT": WEIGHT,
    "MODEL.PANOPTIC_FPN.INSTANCE_LOSS_WEIGHT": WEIGHT,
    "MODEL.PANOPTIC_FPN.COMBINE.OVERLAP_THRESH": PROBABILITY,
    "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT": number(0),
    "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH": PROBABILITY,
    # ------------------------------------------------------------------ input and data
    "INPUT.FORMAT": choice("BGR", "RGB"),
    "INPUT.MASK_FORMAT": choice("polygon", "bitmask"),
    "INPUT.MIN_SIZE_TRAIN": several(SIDE, least=1),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": choice("choice", "range"),
    "INPUT.MAX_SIZE_TRAIN": SIDE,
    "INPUT.MIN_SIZE_TEST": whole(0, 10**5),  # 0: as it is
    "INPUT.MAX_SIZE_TEST": SIDE,
    "INPUT.RANDOM_FLIP": choice("none", "horizontal", "vertical"),
    "INPUT.CROP.TYPE": choice("relative", "relative_range", "absolute", "absolute_range"),
    "INPUT.CROP.SIZE": several(number(0, above=True), count=2),
    "DATALOADER.NUM_WORKERS": whole(0, 1024),
    "DATALOADER.REPEAT_THRESHOLD": PROBABILITY,
    # ------------------------------------------------------------------ training
    "SOLVER.IMS_PER_BATCH": whole(1, 10**6),
    "SOLVER.MAX_ITER": whole(1),
    "SOLVER.BASE_LR": number(0, above=True),
    "SOLVER.BIAS_LR_FACTOR": WEIGHT,
    "SOLVER.MOMENTUM": Rule(lambda v: PROBABILITY.allows(v) and v < 1, "a number of at least 0, less than 1"),
    "SOLVER.WEIGHT_DECAY": WEIGHT,
    "SOLVER.WEIGHT_DECAY_NORM": WEIGHT,
    "SOLVER.WEIGHT_DECAY_BIAS": optional(WEIGHT),
    "SOLVER.GAMMA": number(0, above=True),
    "SOLVER.STEPS": several(whole(1), rising=True),
    "SOLVER.WARMUP_FACTOR": PROBABILITY,
    "SOLVER.WARMUP_ITERS": whole(0),
    "SOLVER.WARMUP_METHOD": choice("linear", "constant"),
    "SOLVER.CHECKPOINT_PERIOD": whole(1),
    "SOLVER.CHECKPOINTS_KEPT": whole(0),
    "SOLVER.REFERENCE_WORLD_SIZE": whole(0, 10**6),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": choice("value", "norm", "full_model"),
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": number(0, above=True),
    "SOLVER.CLIP_GRADIENTS.NORM_TYPE": Rule(
        lambda v: v == math.inf or number(0, above=True).allows(v), "inf or a number greater than 0"
    ),
    "SOLVER.AMP.DTYPE": choice("float16", "bfloat16"),
    "SEED": whole(-1, 2**32 - 1 - 10**4),  # the rank is added
    "VIS_PERIOD": whole(0),
    # ------------------------------------------------------------------ evaluation
    "TEST.PANOPTIC_EVALUATOR": choice("streaming", "detectron2"),
    "TEST.METRICS": several(choice("pq", "ap", "miou"), least=1),
    "TEST.STUFF_AREA": whole(0),
    "TEST.TRIM_AREAS": several(whole(0), least=1),
    "TEST.DETECTIONS_PER_IMAGE": whole(1),
    "TEST.EVAL_PERIOD": whole(0),
    "TEST.PRECISE_BN.NUM_ITER": whole(1),
    "OUTPUT_DIR": TEXT,
}

# Keys of Detectron2 that nothing here obeys: (key, the only value it may have, why).
_PROPOSALS = "proposals come from the network; files of them are pickles, which run code"
REFUSED: list[tuple[str, object, str]] = [
    ("MODEL.LOAD_PROPOSALS", False, _PROPOSALS),
    ("DATASETS.PROPOSAL_FILES_TRAIN", (), _PROPOSALS),
    ("DATASETS.PROPOSAL_FILES_TEST", (), _PROPOSALS),
    ("MODEL.KEYPOINT_ON", False, "panoptic data sets hold no keypoints"),
    ("TEST.KEYPOINT_OKS_SIGMAS", [], "panoptic data sets hold no keypoints"),
    ("TEST.AUG.ENABLED", False, "an image is evaluated once, at INPUT.MIN_SIZE_TEST"),
]


def _pair_for_range(cfg) -> str | None:
    """Why the sizes of training images do not fit their sampling."""
    sizes = cfg.INPUT.MIN_SIZE_TRAIN
    if cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range" and (len(sizes) != 2 or sizes[0] > sizes[1]):
        return f"INPUT.MIN_SIZE_TRAIN is {sizes}; expected (least, most) with MIN_SIZE_TRAIN_SAMPLING 'range'"
    return None


def _repeats(cfg) -> str | None:
    """Why a threshold for the repetition of images has no effect."""
    loader = cfg.DATALOADER
    if loader.REPEAT_THRESHOLD > 0 and loader.SAMPLER_TRAIN != "RepeatFactorTrainingSampler":
        return (
            f"DATALOADER.REPEAT_THRESHOLD is {loader.REPEAT_THRESHOLD}, which only "
            f"RepeatFactorTrainingSampler obeys; DATALOADER.SAMPLER_TRAIN is {loader.SAMPLER_TRAIN!r}"
        )
    return None


# Conditions on several keys: each returns what is wrong with a config, in one line, or None.
CONDITIONS: list[Callable] = [_pair_for_range, _repeats]


def validate(cfg) -> None:
    """Raise UserError for a value that no run can mean, or a key that nothing would obey.

    Keys that a config lacks (those of another version of Detectron2) are passed over.
    """
    missing = object()

    def value_of(key: str):
        node = cfg
        for part in key.split("."):
            node = node.get(part, missing) if isinstance(node, dict) else missing
        return node

    for key, rule in RULES.items():
        value = value_of(key)
        if value is not missing and not rule.allows(value):
            raise UserError(f"{key} is {value!r}; expected {rule.expected}")
    for key, neutral, reason in REFUSED:
        value = value_of(key)
        if value is not missing and value != neutral:
            raise UserError(f"{key} is {value!r}, but {reason}: leave it at {neutral!r}")
    for condition in CONDITIONS:
        if problem := condition(cfg):
            raise UserError(problem)
