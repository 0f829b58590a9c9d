"""What each config key may be: one table of rules, looked at once on the way into every command.

A system or a module of one's own adds the rules of its keys beside the keys: ``RULES["MODEL.MINE.SIZE"] =
whole(1)``; conditions on several keys go to ``CONDITIONS``. Registries say what names they know.
"""

from __future__ import annotations

import functools
import math
import numbers
import os
from collections.abc import Callable, Iterator
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

    def check(self, key: str, value) -> None:
        """Raise UserError if the value is not allowed."""
        if not self.allows(value):
            raise UserError(f"{key} is {shortened(value)}; expected {self.expected}")


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


def pairs(rule: Rule, example: str) -> Rule:
    """A list of pairs: a text, and a list of values that ``rule`` allows."""

    def fits(pair) -> bool:
        listed = isinstance(pair, (list, tuple)) and len(pair) == 2 and isinstance(pair[1], (list, tuple))
        return listed and TEXT.allows(pair[0]) and all(map(rule.allows, pair[1]))

    return Rule(lambda v: isinstance(v, (list, tuple)) and all(map(fits, v)), f"pairs such as {example}")


def optional(rule: Rule) -> Rule:
    """None, or what ``rule`` allows."""
    return Rule(lambda v: v is None or rule.allows(v), f"None or {rule.expected}")


def _one_line(value) -> bool:
    return isinstance(value, str) and value.isprintable() and all(len(p) < 256 for p in value.split("/"))


PROBABILITY = number(0, 1)
PART = Rule(lambda v: PROBABILITY.allows(v) and v < 1, "a number of at least 0, less than 1")
WEIGHT = number(0)
POSITIVE = number(0, above=True)
COUNT = whole(1)
LIMIT = whole(1, 10**6)
WIDTH = whole(1, 10**5)
LAYERS = whole(0, 100)
CLASSES = whole(0, 10**5)
TEXT = Rule(lambda v: _one_line(v) and v.strip() != "", "a name")
_EVEN = Rule(lambda v: whole(2, 10**5).allows(v) and v % 2 == 0, "an even number from 2 to 100000")
_LOSS = choice("smooth_l1", "giou", "diou", "ciou")

# The rule of a key, by its name or by its last part. Others may have values of their default's kind.
RULES: dict[str, Rule] = {
    **dict.fromkeys(("POSITIVE_FRACTION", "NMS_THRESH", "NMS_THRESH_TEST", "SCORE_THRESH_TEST"), PROBABILITY),
    **dict.fromkeys(("OVERLAP_THRESH", "INSTANCES_CONFIDENCE_THRESH", "WARMUP_FACTOR"), PROBABILITY),
    **dict.fromkeys(("REPEAT_THRESHOLD", "NAS.BN_RECALIBRATION.MOMENTUM"), PROBABILITY),
    **dict.fromkeys(("LOSS_WEIGHT", "BBOX_REG_LOSS_WEIGHT", "INSTANCE_LOSS_WEIGHT"), WEIGHT),
    **dict.fromkeys(("SMOOTH_L1_BETA", "STUFF_AREA_LIMIT", "BIAS_LR_FACTOR"), WEIGHT),
    **dict.fromkeys(("WEIGHT_DECAY", "WEIGHT_DECAY_NORM"), WEIGHT),
    **dict.fromkeys(("BASE_LR", "SOLVER.GAMMA", "CLIP_VALUE"), POSITIVE),
    **dict.fromkeys(("SIZES", "ASPECT_RATIOS"), several(several(POSITIVE, least=1), least=1)),
    **dict.fromkeys(("AUDIT_PERIOD", "NUM_IMAGES", "NUM_ITER", "MAX_ITER", "CHECKPOINT_PERIOD"), COUNT),
    **dict.fromkeys(("BATCH_SIZE", "BATCH_SIZE_PER_IMAGE", "IMS_PER_BATCH"), LIMIT),
    **dict.fromkeys(("PRE_NMS_TOPK_TRAIN", "PRE_NMS_TOPK_TEST"), LIMIT),
    **dict.fromkeys(("POST_NMS_TOPK_TRAIN", "POST_NMS_TOPK_TEST"), LIMIT),
    **dict.fromkeys(("NUM_FC", "NUM_CONV", "NUM_CONVS"), LAYERS),
    **dict.fromkeys(("STEM_CHANNELS", "OUT_CHANNELS", "FC_DIM", "MODEL.ROI_BOX_HEAD.CONV_DIM"), WIDTH),
    **dict.fromkeys(("MODEL.ROI_MASK_HEAD.CONV_DIM", "CONVS_DIM", "COMMON_STRIDE"), WIDTH),
    **dict.fromkeys(("MAX_SIZE_TRAIN", "MAX_SIZE_TEST"), WIDTH),
    "NUM_CLASSES": CLASSES,
    "DETECTIONS_PER_IMAGE": WIDTH,
    "NUM_WORKERS": whole(0, 256),
    "POOLER_RESOLUTION": whole(1, 256),
    "POOLER_SAMPLING_RATIO": whole(0, 64),
    "BOUNDARY_THRESH": whole(-1),
    "BBOX_REG_LOSS_TYPE": _LOSS,
    "IOU_THRESHOLDS": several(PROBABILITY, least=1),
    "IOU_LABELS": several(choice(-1, 0, 1), least=2),
    "IGNORE_VALUE": choice(255),
    "PIXEL_MEAN": several(number(), count=3),
    "PIXEL_STD": several(POSITIVE, count=3),
    "MODEL.DEVICE": Rule(
        lambda v: isinstance(v, str) and v.partition(":")[0] in ("cpu", "cuda", "mps", "xpu"), "cuda or cpu"
    ),
    "MODEL.WEIGHTS_CLASS_LAYERS": choice("strict", "anew"),
    "MODEL.BACKBONE.FREEZE_AT": whole(0, 5),  # the stem and four stages
    "MODEL.SHUFFLENET.WIDTH": choice("300M", "1.3G", "3.8G", "custom"),
    "MODEL.SHUFFLENET.STAGE_CHANNELS": several(_EVEN, count=4),
    "MODEL.SHUFFLENET.STAGE_REPEATS": several(whole(1, 100), count=4),
    "MODEL.SHUFFLENET.NORM": choice("BN", "SyncBN"),
    "MODEL.SHUFFLENET.NORM_MOMENTUM": number(0, 1, above=True),
    "MODEL.SHUFFLENET.SHUFFLE_METHOD": choice(1, 2),
    "NAS.SEED": whole(0, 2**32 - 1),
    "NAS.SCOREBOARD": choice("exact", "reference"),
    "NAS.GRADIENTS": choice("mean", "sum", "lr_scale"),
    "NAS.SPACE.SITES": pairs(TEXT, "[['mask.0', [conv_3x3, identity]]]"),
    "NAS.SAMPLING": choice("fair", "uniform"),
    "RANK_TIMEOUT": number(1),
    "INPUT.FORMAT": choice("BGR", "RGB"),
    "INPUT.MASK_FORMAT": choice("polygon", "bitmask"),
    "INPUT.MIN_SIZE_TRAIN": several(WIDTH, least=1),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": choice("choice", "range"),
    "INPUT.MIN_SIZE_TEST": whole(0, 10**5),  # 0: as it is
    "INPUT.RANDOM_FLIP": choice("none", "horizontal", "vertical"),
    "INPUT.CROP.TYPE": choice("relative", "relative_range", "absolute", "absolute_range"),
    "INPUT.CROP.SIZE": several(POSITIVE, count=2),
    **dict.fromkeys(("DATASETS.TRAIN", "DATASETS.TEST", "DATASETS.SEARCH"), several(TEXT)),
    "DATALOADER.SAMPLER_TRAIN": choice("TrainingSampler", "RepeatFactorTrainingSampler"),
    "SOLVER.OPTIMIZER": choice("SGD", "ADAM"),
    "SOLVER.MOMENTUM": PART,
    "SOLVER.WEIGHT_DECAY_BIAS": optional(WEIGHT),
    "SOLVER.STEPS": several(COUNT, rising=True),
    "SOLVER.WARMUP_METHOD": choice("linear", "constant"),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": choice("value", "norm", "full_model"),
    "SOLVER.CLIP_GRADIENTS.NORM_TYPE": Rule(
        lambda v: v == math.inf or POSITIVE.allows(v), "inf or a number greater than 0"
    ),
    "SOLVER.AMP.DTYPE": choice("float16", "bfloat16"),
    "TEST.PANOPTIC_EVALUATOR": choice("streaming", "detectron2"),
    "TEST.METRICS": several(choice("pq", "ap", "miou"), least=1),
    "TEST.TRIM_AREAS": several(whole(0), least=1),
    "TEST.PICTURES": whole(0, 100),
    "NAS.ARCHITECTURE": Rule(
        lambda v: _one_line(v) or (isinstance(v, str) and v.isprintable() and v.startswith("json:")),
        "a path, a name under configs/architectures, or json: with the text of such a file, in one line",
    ),
    "SEED": whole(-1, 2**32 - 1 - 10**4),  # the rank is added
    "VERSION": choice(2),
    "OUTPUT_DIR": Rule(lambda v: TEXT.allows(v) and "://" not in v, "a folder of this machine"),
}

# Keys of Detectron2 that nothing here obeys: (key, the only value it may have, why).
_PROPOSALS = "proposals come from the network; files of them are pickles, which run code"
REFUSED: list[tuple[str, object, str]] = [
    ("MODEL.LOAD_PROPOSALS", False, _PROPOSALS),
    ("DATASETS.PROPOSAL_FILES_TRAIN", (), _PROPOSALS),
    ("DATASETS.PROPOSAL_FILES_TEST", (), _PROPOSALS),
    ("DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN", 2000, _PROPOSALS),
    ("DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST", 1000, _PROPOSALS),
    ("MODEL.KEYPOINT_ON", False, "panoptic data sets hold no keypoints"),
    ("TEST.KEYPOINT_OKS_SIGMAS", [], "panoptic data sets hold no keypoints"),
    ("TEST.AUG.ENABLED", False, "an image is evaluated once, at INPUT.MIN_SIZE_TEST"),
    ("MODEL.PANOPTIC_FPN.COMBINE.ENABLED", True, "evaluation and search need the merged map"),
    ("DATALOADER.REPEAT_SQRT", True, "images of rare classes come by Detectron2's square root"),
    ("DATALOADER.RANDOM_SUBSET_RATIO", 1.0, "all images of a data set are trained on"),
    ("GLOBAL.HACK", 1.0, "nothing reads it"),
]


def _pair_for_range(cfg) -> str | None:
    sizes = cfg.INPUT.MIN_SIZE_TRAIN
    if cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range" and (len(sizes) != 2 or sizes[0] > sizes[1]):
        return f"INPUT.MIN_SIZE_TRAIN is {sizes}; expected (least, most) with MIN_SIZE_TRAIN_SAMPLING 'range'"


def _crop(cfg) -> str | None:
    kind, size = cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE
    if not cfg.INPUT.CROP.ENABLED:
        return None
    if kind.startswith("relative"):
        wrong = max(size) > 1 and "two parts of the image's height and width, at most 1"
    elif not all(whole(1).allows(v) for v in size):
        wrong = "whole numbers of pixels"
    else:
        wrong = kind == "absolute_range" and size[0] > size[1] and "(least, most)"
    return f"INPUT.CROP.SIZE is {size}; expected {wrong} with INPUT.CROP.TYPE {kind!r}" if wrong else None


def _repeats(cfg) -> str | None:
    loader = cfg.DATALOADER
    if loader.REPEAT_THRESHOLD > 0 and loader.SAMPLER_TRAIN != "RepeatFactorTrainingSampler":
        rule = "only RepeatFactorTrainingSampler obeys (DATALOADER.SAMPLER_TRAIN)"
        return f"DATALOADER.REPEAT_THRESHOLD is {loader.REPEAT_THRESHOLD}, which {rule}"


def _memory(cfg) -> str | None:
    """Why images are too large: a network takes ten times their memory, a run has at most 256 processes."""
    sizes, batch = cfg.INPUT, -(-cfg.SOLVER.IMS_PER_BATCH // 256)
    for key, sides, longest, count in (
        ("TRAIN", sizes.MIN_SIZE_TRAIN, sizes.MAX_SIZE_TRAIN, batch),
        ("TEST", [sizes.MIN_SIZE_TEST], sizes.MAX_SIZE_TEST, 1),
    ):
        side = min(max(sides), longest)
        if (need := 10 * count * side**2 * 3 * 4) > machine_memory():
            return (
                f"INPUT.MIN_SIZE_{key} makes images of {side} x {side} pixels, and {count} of them need "
                f"{need >> 30} GiB or more; this machine has {machine_memory() >> 30}: make them smaller"
            )


# Conditions on several keys: each returns what is wrong with a config, in one line, or None.
CONDITIONS: list[Callable] = [_pair_for_range, _crop, _repeats, _memory]


def machine_memory() -> int:
    """Bytes of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def shortened(value, most: int = 200) -> str:
    """``value`` as code writes it; no more than its beginning, where that is long."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}..."


def flat(node: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    """(full key, value) of a config, or of the content of a YAML file."""
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


@functools.cache
def defaults() -> dict[str, object]:
    """{full key: value} of Detectron2's keys and ours."""
    from detectron2.config import get_cfg  # needs torch

    from .config import add_auto_panoptic_config

    cfg = get_cfg()
    add_auto_panoptic_config(cfg)
    return dict(flat(cfg))


def _like(default, item: bool = False) -> Rule:
    """Values of the kind of ``default``; an ``item`` of a list may be any number where it is one."""
    if isinstance(default, bool):
        return choice(True, False)
    if isinstance(default, numbers.Real):
        return number() if item or isinstance(default, float) else whole(min(default, 0))
    if isinstance(default, str):
        return Rule(_one_line, "a name or a path, in one line")
    if isinstance(default, list | tuple) and default:
        return several(_like(default[0], item=True))
    return Rule(lambda v: isinstance(v, type(default)) or {type(v), type(default)} <= {list, tuple}, "a list")


def rule_of(key: str) -> Rule | None:
    """What a key may be; None if nothing is known of it. Its full name comes before its last part."""
    rule = RULES.get(key)
    if rule is None and key in defaults():
        rule = RULES.get(key.rpartition(".")[2]) or _like(defaults()[key])
    return rule


def validate(cfg) -> None:
    """Raise UserError for a value that no run can mean, or a key that nothing would obey.

    A key without a rule of its own may have values of its default's kind.
    """
    given = dict(flat(cfg))
    for key, value in given.items():
        if rule := rule_of(key):
            rule.check(key, value)
    for key, neutral, reason in REFUSED:
        if given.get(key, neutral) != neutral and (given[key] or neutral):
            raise UserError(f"{key} is {shortened(given[key])}, but {reason}: leave it at {neutral!r}")
    for condition in CONDITIONS:
        if problem := condition(cfg):
            raise UserError(problem)
