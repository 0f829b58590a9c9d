"""The unified network on the drawn scenes: what its parts are worth, and how it compares to Panoptic-FPN.

ResNet-18 from scratch, half the steps of the quick configs; data, image size, steps and mini-batches alike.
"heuristic" is the unified training merged as by Panoptic-FPN; "trimmed": small stuff is void.
A training takes about ten minutes on one core.

    python tools/studies/unified.py [--seeds 3] [--only NAME] [--report]
"""

import sys

from study import Study, main

UNIFIED, FPN = "configs/quick/unified_R18.yaml", "configs/quick/panoptic_fpn.yaml"
NODE = "MODEL.UNIFIED."
# Nothing is trimmed but where a reading says so; merging drops no small stuff either.
COMMON = ("TEST.STUFF_AREA", 0, "SOLVER.MAX_ITER", 600, "SOLVER.STEPS", "(485, 560)")
LIMIT = "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT"
TRIMMED = ("TEST.STUFF_AREA", 105)
ALL = ("PQ", "PQ_th", "PQ_st", "IoU_st")

STUDY = Study(
    name="unified",
    trainings={
        "unified": (UNIFIED, COMMON),
        "panoptic_fpn": (FPN, (*COMMON, LIMIT, 1)),
        "variant C": (UNIFIED, (*COMMON, NODE + "POTENTIAL", "C")),
        "no affinity": (UNIFIED, (*COMMON, NODE + "AFFINITY.ENABLED", False)),
        "ground-truth detections": (UNIFIED, (*COMMON, NODE + "TRAIN_DETECTIONS", "ground_truth")),
        "mask-free": (UNIFIED, (*COMMON, "MODEL.MASK_ON", False, NODE + "POTENTIAL", "A")),
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
        ("unified", "variant C", ("PQ", "PQ_th", "PQ_st")),
        ("unified", "ground-truth detections", ("PQ", "PQ_th", "AP")),
        ("unified", "mask-free", ("PQ", "PQ_th", "PQ_st")),
        ("unified", "no affinity", ("PQ", "PQ_th", "PQ_st")),
    ),
)

if __name__ == "__main__":
    sys.exit(main(STUDY))
