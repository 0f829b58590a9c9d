"""The unified network on the drawn scenes: what its parts are worth, and how it compares to Panoptic-FPN.

ResNet-18 from scratch, half the steps of the quick config; data, image size, steps and mini-batches alike.
"heuristic" is the unified training merged as by Panoptic-FPN; "trimmed": small stuff is void. A training
takes about six minutes on one core. The last two have the ShuffleNet backbone; "searched" needs what the
search of configs/quick/unified_supernet.yaml wrote, with --max-macs the multiply-adds of "all dfconv_3x3",
1.222G.

    python tools/studies/unified.py [--seeds 3] [--only NAME] [--report]
"""

import sys

from study import Study, main

UNIFIED, FPN, SEARCHED = (f"configs/quick/{name}.yaml" for name in ("unified_R18", "panoptic_fpn", "unified"))
NODE = "MODEL.UNIFIED."
# Nothing is trimmed but where a reading says so; merging drops no small stuff either.
COMMON = ("TEST.STUFF_AREA", 0, "SOLVER.MAX_ITER", 450, "SOLVER.STEPS", "(365, 420)")
LIMIT = "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT"
ONE_OPERATOR = ("NAS.SPACE.BACKBONE_OPS", "['shuffle_3x3']", "NAS.SPACE.HEAD_OPS", "['dfconv_3x3']")
TRIMMED = ("TEST.STUFF_AREA", 105)
ALL = ("PQ", "PQ_th", "PQ_st", "IoU_st")

STUDY = Study(
    name="unified",
    trainings={
        "unified": (UNIFIED, COMMON),
        "panoptic_fpn": (FPN, (*COMMON, LIMIT, 1)),
        "variant B": (UNIFIED, (*COMMON, NODE + "POTENTIAL", "B")),
        "no affinity": (UNIFIED, (*COMMON, NODE + "AFFINITY.ENABLED", False)),
        "ground-truth detections": (UNIFIED, (*COMMON, NODE + "TRAIN_DETECTIONS", "ground_truth")),
        "mask-free": (UNIFIED, (*COMMON, "MODEL.MASK_ON", False, NODE + "POTENTIAL", "A")),
        "searched": (SEARCHED, COMMON),
        "all dfconv_3x3": (SEARCHED, (*COMMON, "NAS.ARCHITECTURE", "", *ONE_OPERATOR)),
    },
    readings={
        "heuristic": ("unified", (NODE + "INFERENCE", "heuristic", LIMIT, 1)),
        "unified, trimmed": ("unified", TRIMMED),
        "heuristic, trimmed": ("unified", (NODE + "INFERENCE", "heuristic", LIMIT, 1, *TRIMMED)),
        "panoptic_fpn, trimmed": ("panoptic_fpn", TRIMMED),
    },
    comparisons=(
        ("unified", "heuristic", ALL),
        ("unified", "panoptic_fpn", ALL),
        ("unified, trimmed", "panoptic_fpn, trimmed", ALL),
        ("unified, trimmed", "heuristic, trimmed", ALL),
        ("unified, trimmed", "unified", ALL),
        ("panoptic_fpn, trimmed", "panoptic_fpn", ALL),
        ("variant B", "unified", ("PQ", "PQ_th", "PQ_st")),
        ("unified", "ground-truth detections", ("PQ", "PQ_th", "AP")),
        ("unified", "mask-free", ("PQ", "PQ_th", "PQ_st")),
        ("unified", "no affinity", ("PQ", "PQ_th", "PQ_st")),
        ("searched", "all dfconv_3x3", ("PQ", "PQ_th", "PQ_st")),
    ),
)

if __name__ == "__main__":
    sys.exit(main(STUDY))
