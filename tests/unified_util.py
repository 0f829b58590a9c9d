"""A small unified network and scenes whose labels and instances agree, for its tests."""

import torch
from modeling_util import make_cfg, make_input

THINGS, STUFF = 3, 2  # classes of the small network: labels 0, 1, 2 and 3, 4
CUT = 0.8  # score of a detection that takes part in inference
UNIFIED = [
    "MODEL.META_ARCHITECTURE", "UnifiedPanoptic",
    "MODEL.CROSS_ATTENTION.ENABLED", False,
    "MODEL.ROI_HEADS.NAME", "UnifiedROIHeads",
    "MODEL.SEM_SEG_HEAD.NAME", "UnifiedSemSegHead",
    "MODEL.UNIFIED.DECODER_DIMS", [64, 32],
    "MODEL.UNIFIED.POTENTIAL", "B",
    "MODEL.UNIFIED.SCORE_THRESH_TEST", CUT,
    "TEST.DETECTIONS_PER_IMAGE", 12,
    "MODEL.UNIFIED.TRAIN_SCORE_THRESH", 0.0,
    "MODEL.UNIFIED.AFFINITY.DIM", 16,
]  # fmt: skip
FIXED = ["NAS.SPACE.HEAD_OPS", ["conv_3x3"], "NAS.SPACE.BACKBONE_OPS", ["shuffle_3x3"]]


def unified_cfg(*options):
    """The config of the small network, with ``options`` KEY VALUE ... on top."""
    return make_cfg(*UNIFIED, *options)


def scene(height=64, width=64, boxes=((4, 4, 40, 40), (10, 20, 60, 60)), seed=0):
    """One training input: the left half is stuff 3, the right 4; box i, of class i, is above the earlier."""
    made = make_input(height, width, boxes, seed)
    labels = torch.full((height, width), THINGS)
    labels[:, width // 2 :] = THINGS + 1
    for label, mask in enumerate(made["instances"].gt_masks.tensor):
        labels[mask] = label
    return {**made, "sem_seg": labels}


@torch.no_grad()
def answer(model, scale=20.0):
    """Let an untrained network be sure of random things."""
    model.roi_heads.box_predictor.cls_score.weight *= scale
    model.roi_heads.box_predictor.cls_score.bias[-1] = -1
    model.sem_seg_head.predictor.weight *= scale
