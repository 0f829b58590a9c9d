"""The keys of Panoptic-DeepLab: Detectron2's, and ours for what its supplement describes.

The supplement states less than a network needs. What it leaves open is marked "re-interpretation".
"""

from detectron2.config import CfgNode as CN

from ...validate import (
    CONDITIONS,
    COUNT,
    PART,
    POSITIVE,
    PROBABILITY,
    REFUSED,
    RULES,
    TEXT,
    WEIGHT,
    WIDTH,
    Rule,
    choice,
    number,
    several,
    whole,
)
from .encoder_config import add_encoder_config
from .upstream import add_panoptic_deeplab_config as add_detectron2_keys

OURS, DETECTRON2S = "AutoPanopticDeepLab", "PanopticDeepLab"
_NODE = "MODEL.PANOPTIC_DEEPLAB"
_HEADS = ("MODEL.SEM_SEG_HEAD", "MODEL.INS_EMBED_HEAD")
_ODD = Rule(lambda v: whole(1, 10**5).allows(v) and v % 2 == 1, "an odd number of at least 1")

RULES |= {
    "SOLVER.POLY_LR_POWER": POSITIVE,
    "SOLVER.POLY_LR_CONSTANT_ENDING": PROBABILITY,
    "MODEL.RESNETS.RES4_DILATION": choice(1, 2),
    "MODEL.RESNETS.RES5_MULTI_GRID": several(COUNT, count=3),
    "MODEL.RESNETS.STEM_TYPE": choice("basic", "deeplab"),
    "MODEL.SEM_SEG_HEAD.LOSS_TYPE": choice("cross_entropy", "hard_pixel_mining"),
    "MODEL.SEM_SEG_HEAD.LOSS_TOP_K": number(0, 1, above=True),
    "MODEL.INS_EMBED_HEAD.CONVS_DIM": WIDTH,
    "MODEL.INS_EMBED_HEAD.CENTER_LOSS_WEIGHT": WEIGHT,
    "MODEL.INS_EMBED_HEAD.OFFSET_LOSS_WEIGHT": WEIGHT,
    "INPUT.GAUSSIAN_SIGMA": whole(1, 10**4),
    "INPUT.SMALL_INSTANCE_AREA": whole(0),
    "INPUT.SMALL_INSTANCE_WEIGHT": whole(0, 10**6),
    f"{_NODE}.STUFF_AREA": whole(0),
    f"{_NODE}.CENTER_THRESHOLD": PROBABILITY,
    f"{_NODE}.NMS_KERNEL": _ODD,
    f"{_NODE}.TOP_K_INSTANCE": COUNT,
    f"{_NODE}.SIZE_DIVISIBILITY": whole(-1, 10**5),
    f"{_NODE}.DECODER": choice("panoptic_deeplab", "deeplabv3plus"),
    f"{_NODE}.DEEPLABV3PLUS_CHANNELS": several(WIDTH, count=2),
    f"{_NODE}.INSTANCE_SCORE": choice("objectness", "class", "product"),
    f"{_NODE}.OBJECTNESS_AT": choice("centroid", "center"),
    f"{_NODE}.GT_SOURCE": choice("panoptic", "instance"),
    "NAS.SPACE.DEEPLAB_OPS": several(TEXT),
}
for _head in _HEADS:
    RULES |= {
        f"{_head}.PROJECT_CHANNELS": several(WIDTH),
        f"{_head}.ASPP_CHANNELS": WIDTH,
        f"{_head}.ASPP_DILATIONS": several(COUNT, count=3),
        f"{_head}.ASPP_DROPOUT": PART,
        f"{_head}.HEAD_CHANNELS": WIDTH,
    }
REFUSED += [
    (f"{_NODE}.BENCHMARK_NETWORK_SPEED", False, "evaluation and search need the panoptic map"),
    ("INPUT.CROP.SINGLE_CATEGORY_MAX_AREA", 1.0, "crops are drawn once"),
]


def _fits(cfg) -> str | None:
    """Settings of Panoptic-DeepLab, Detectron2's or ours, that exclude each other."""
    model = cfg.MODEL
    if model.META_ARCHITECTURE not in (OURS, DETECTRON2S):
        return None
    key = "USE_DEPTHWISE_SEPARABLE_CONV"
    if model.SEM_SEG_HEAD[key] != model.PANOPTIC_DEEPLAB[key]:
        return (
            f"MODEL.SEM_SEG_HEAD.{key} is {model.SEM_SEG_HEAD[key]}, but {_NODE}.{key} is "
            f"{model.PANOPTIC_DEEPLAB[key]}; expected the same: add {_NODE}.{key} {model.SEM_SEG_HEAD[key]}"
        )
    if cfg.INPUT.CROP.ENABLED and cfg.INPUT.CROP.TYPE != "absolute":
        return (
            f"INPUT.CROP.TYPE is {cfg.INPUT.CROP.TYPE!r}, but crops give the ASPP its size; add "
            "INPUT.CROP.TYPE absolute, with INPUT.CROP.SIZE in pixels"
        )
    classes, things = model.SEM_SEG_HEAD.NUM_CLASSES, model.ROI_HEADS.NUM_CLASSES
    if model.META_ARCHITECTURE == OURS and classes < things:
        return (
            f"MODEL.SEM_SEG_HEAD.NUM_CLASSES is {classes}; expected things and stuff, at least "
            f"MODEL.ROI_HEADS.NUM_CLASSES, which is {things}"
        )
    return _not_in_detectron2(cfg) if model.META_ARCHITECTURE == DETECTRON2S else None


def _not_in_detectron2(cfg) -> str | None:
    """What ends Detectron2's own class with an error in the midst of a step."""
    model, remedy = cfg.MODEL, f"or MODEL.META_ARCHITECTURE {OURS} with its heads"
    if model.SEM_SEG_HEAD.LOSS_TYPE == "cross_entropy":
        return (
            "MODEL.SEM_SEG_HEAD.LOSS_TYPE is 'cross_entropy', which Detectron2's head cannot weight; add "
            f"MODEL.SEM_SEG_HEAD.LOSS_TYPE hard_pixel_mining MODEL.SEM_SEG_HEAD.LOSS_TOP_K 1.0, {remedy}"
        )
    return None


CONDITIONS.append(_fits)


def add_panoptic_deeplab_config(cfg: CN) -> None:
    """Add the keys of Panoptic-DeepLab to a config, in place; none that was there changes."""
    add_detectron2_keys(cfg)
    # "SGD" or "ADAM". Detectron2's Panoptic-DeepLab has "ADAM"; the configs of this system say so.
    cfg.SOLVER.OPTIMIZER = "SGD"

    # ------------------------------------------------------------------ decoder and heads
    node = cfg.MODEL.PANOPTIC_DEEPLAB
    # "panoptic_deeplab": a stage for each skip, with one 5x5 separable convolution; "deeplabv3plus": the
    # finest skip alone, with two 3x3 separable convolutions (supplement 3). Dense ones are two 3x3 in both.
    node.DECODER = "panoptic_deeplab"
    # Channels of the one skip of DeepLabV3+ in the semantic and in the instance branch. The latter is a
    # re-interpretation that gives the published numbers of parameters and multiply-adds.
    node.DEEPLABV3PLUS_CHANNELS = [48, 24]
    # The convolution before the centres is one 5x5 separable too; Detectron2 has two dense 3x3 there always.
    node.CENTER_SEPARABLE = False
    # The ASPP's pooled branch has a norm, as in the authors' code; the published numbers of parameters count
    # it. Then a process trains on two images or more. Detectron2 has a bias there.
    node.ASPP_POOL_NORM = False
    # Operators of every decoder stage and head convolution; [] is the published one alone, by the keys above:
    # sep_5x5, sep_3x3_twice or conv_3x3_twice. It comes first where the list lacks it.
    cfg.NAS.SPACE.DEEPLAB_OPS = []

    # ------------------------------------------------------------------ annotation and post-processing
    # What centres and offsets are made of: "panoptic" annotation, or "instance" annotation, whose masks may
    # overlap (supplement 5; larger masks are painted first: re-interpretation).
    node.GT_SOURCE = "panoptic"
    # What ranks instances for AP (supplement 4): "objectness", the centre's value; "class", the mean semantic
    # probability of its pixels; or their "product".
    node.INSTANCE_SCORE = "product"
    # Where the heatmap is read for it: at the mask's "centroid" (Detectron2) or at the predicted "center"
    # (the authors' later code). Re-interpretation.
    node.OBJECTNESS_AT = "centroid"
    # Scale offsets with the maps, where outputs have another size than the network's input. Detectron2 leaves
    # them in pixels of the input.
    node.RESCALE_OFFSETS = False

    add_encoder_config(cfg)
