"""Panoptic-DeepLab on the drawn scenes: what its variants are worth, and how it compares to other systems.

ShuffleNet from scratch, a fifth of the steps of the quick config; data, image size, steps and mini-batches
alike. "whole objects" learns centres and offsets from the overlapping instance annotation of the same scenes.
"HRNet+" has 144 M multiply-adds for 128 x 160 pixels, "ShuffleNet, wide" 141 M; "panoptic_deeplab" and
"searched" have at most 80 M. The last three networks have 0.46 to 0.47 G, and their published or plainest
operators. A training takes three to six minutes on one core. "searched" needs what the search of
configs/quick/panoptic_deeplab_supernet.yaml wrote, with --max-macs the cost of "panoptic_deeplab" for
128 x 128 pixels, 63.712M.

    python tools/studies/panoptic_deeplab.py [--seeds 3] [--only NAME] [--report]
"""

import sys

from study import Study, main

DEEPLAB, SEARCHED, FPN, UNIFIED = (
    f"configs/quick/{name}.yaml"
    for name in ("panoptic_deeplab", "panoptic_deeplab_searched", "whole", "unified")
)
COMMON = ("SOLVER.MAX_ITER", 600)
SHORT = ("SOLVER.MAX_ITER", 300)
STEPS = ("SOLVER.STEPS", "(245, 280)")  # of the two systems whose learning rate falls in steps
SCORE = "MODEL.PANOPTIC_DEEPLAB.INSTANCE_SCORE"
HRNET = (
    *("MODEL.BACKBONE.NAME", "build_hrnet_backbone", "MODEL.HRNET.WIDTH", "custom", "MODEL.HRNET.NORM", "BN"),
    *("MODEL.HRNET.HEAD", "classification", "MODEL.HRNET.CHANNELS", "[8, 16, 32, 64]"),
    *("MODEL.HRNET.BLOCKS", 1, "MODEL.HRNET.MODULES", "[1, 1, 1]", "MODEL.HRNET.BOTTLENECK", 4),
    *("MODEL.HRNET.RAISED", "[32, 64, 128, 256]", "MODEL.HRNET.ASPP_INPUT", 1024),
)


def shufflenet(stem: int, first: int) -> tuple:
    """Options of a backbone of other widths."""
    stages = [first * 2**i for i in range(4)]
    return ("MODEL.SHUFFLENET.STEM_CHANNELS", stem, "MODEL.SHUFFLENET.STAGE_CHANNELS", str(stages))


def branches(semantic: int, instances: int) -> tuple:
    """Options of Panoptic-DeepLab's two branches of other widths."""
    head = "MODEL.SEM_SEG_HEAD."
    options = [x for key in ("CONVS_DIM", "ASPP_CHANNELS", "HEAD_CHANNELS") for x in (head + key, semantic)]
    instance = ("MODEL.INS_EMBED_HEAD.CONVS_DIM", instances, "MODEL.INS_EMBED_HEAD.ASPP_CHANNELS", semantic)
    return (*options, *instance)


ONE_OPERATOR = (
    *("NAS.ARCHITECTURE", "", "NAS.SPACE.BACKBONE_OPS", "['shuffle_3x3']"),
    *("NAS.SPACE.HEAD_OPS", "['dwconv_3x3']"),
)
AS_LARGE = (*branches(240, 176), *shufflenet(48, 96))
ALL = ("PQ", "PQ_th", "PQ_st")

STUDY = Study(
    name="panoptic_deeplab",
    trainings={
        "panoptic_deeplab": (DEEPLAB, COMMON),
        "deeplabv3plus": (DEEPLAB, (*COMMON, "MODEL.PANOPTIC_DEEPLAB.DECODER", "deeplabv3plus")),
        "whole objects": (
            DEEPLAB,
            (
                *(*COMMON, "DATASETS.TRAIN", "('shapes_panoptic_train_overlapping',)"),
                *("MODEL.PANOPTIC_DEEPLAB.GT_SOURCE", "instance"),
            ),
        ),
        "HRNet+": (DEEPLAB, (*COMMON, *HRNET)),
        "ShuffleNet, wide": (DEEPLAB, (*COMMON, *shufflenet(32, 84))),
        "searched": (SEARCHED, COMMON),
        "panoptic_deeplab, 0.47 G": (DEEPLAB, (*SHORT, *AS_LARGE)),
        "auto_panoptic, 0.47 G": (
            FPN,
            (
                *(*SHORT, *STEPS, *ONE_OPERATOR, "MODEL.CROSS_ATTENTION.RATIOS", "[4]"),
                *(*shufflenet(48, 96), "MODEL.SEM_SEG_HEAD.CONVS_DIM", 96),
            ),
        ),
        "unified, 0.47 G": (UNIFIED, (*SHORT, *STEPS, *ONE_OPERATOR)),
    },
    readings={
        "score: objectness": ("panoptic_deeplab", (SCORE, "objectness")),
        "score: class": ("panoptic_deeplab", (SCORE, "class")),
        "product at the centre": (
            "panoptic_deeplab",
            ("MODEL.PANOPTIC_DEEPLAB.OBJECTNESS_AT", "center"),
        ),
    },
    comparisons=(
        ("panoptic_deeplab", "deeplabv3plus", (*ALL, "segm/AP", "mIoU")),
        ("panoptic_deeplab", "score: objectness", ("PQ", "mIoU", "segm/AP")),
        ("panoptic_deeplab", "score: class", ("PQ", "mIoU", "segm/AP")),
        ("score: class", "score: objectness", ("segm/AP",)),
        ("panoptic_deeplab", "product at the centre", ("segm/AP",)),
        ("whole objects", "panoptic_deeplab", (*ALL, "segm/AP")),
        ("HRNet+", "ShuffleNet, wide", (*ALL, "mIoU")),
        ("searched", "panoptic_deeplab", (*ALL, "mIoU")),
        ("panoptic_deeplab, 0.47 G", "auto_panoptic, 0.47 G", ALL),
        ("panoptic_deeplab, 0.47 G", "unified, 0.47 G", ALL),
    ),
)

if __name__ == "__main__":
    sys.exit(main(STUDY))
