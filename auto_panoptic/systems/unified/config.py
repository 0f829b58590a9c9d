"""The keys of the unified network, with their meaning and the supplement's symbol.

The supplement states less than a network needs. What it leaves open is marked "re-interpretation".
"""

from detectron2.config import CfgNode as CN

from ...validate import CONDITIONS, PROBABILITY, RULES, WEIGHT, WIDTH, Rule, choice, several, whole

_GROUPED = Rule(lambda v: whole(32, 10**5).allows(v) and v % 32 == 0, "a multiple of 32")

RULES |= {
    "MODEL.UNIFIED.DECODER_DIMS": several(_GROUPED, least=1),
    "MODEL.UNIFIED.POTENTIAL": choice("A", "B", "C"),
    "MODEL.UNIFIED.TRAIN_DETECTIONS": choice("predicted", "ground_truth"),
    "MODEL.UNIFIED.TRAIN_SCORE_THRESH": PROBABILITY,
    "MODEL.UNIFIED.TRAIN_PROPOSALS": WIDTH,
    "MODEL.UNIFIED.TRAIN_TOPK": WIDTH,
    "MODEL.UNIFIED.INFERENCE": choice("panoptic", "heuristic"),
    "MODEL.UNIFIED.AFFINITY.STRIDE": choice(4, 8, 16, 32),
    "MODEL.UNIFIED.AFFINITY.DIM": WIDTH,
    "MODEL.UNIFIED.AFFINITY.NORMALISE": choice("softmax", "sigmoid"),
    "MODEL.UNIFIED.LOSS.SEMANTIC": choice("cross_entropy", "lovasz_softmax"),
    "MODEL.UNIFIED.LOSS.MASK": choice("lovasz_hinge", "bce"),
    "MODEL.UNIFIED.LOSS.PANOPTIC": choice("cross_entropy", "lovasz_softmax"),
    "MODEL.UNIFIED.LOSS.PANOPTIC_WEIGHT": WEIGHT,
}


def _fits(cfg) -> str | None:
    """Settings of the unified network that exclude each other."""
    node, model = cfg.MODEL.UNIFIED, cfg.MODEL
    if model.META_ARCHITECTURE != "UnifiedPanoptic":
        return None
    if not model.MASK_ON and node.POTENTIAL != "A":
        return (
            f"MODEL.UNIFIED.POTENTIAL is {node.POTENTIAL!r}, which needs masks, but MODEL.MASK_ON is False; "
            "add MODEL.MASK_ON True, or MODEL.UNIFIED.POTENTIAL A"
        )
    if not model.MASK_ON and node.INFERENCE == "heuristic":
        return (
            "MODEL.UNIFIED.INFERENCE is 'heuristic', which merges masks, but MODEL.MASK_ON is False; add "
            "MODEL.UNIFIED.INFERENCE panoptic"
        )
    if node.GLOBAL_TERM and node.POTENTIAL != "A":
        return (
            f"MODEL.UNIFIED.GLOBAL_TERM belongs to variant A, but MODEL.UNIFIED.POTENTIAL is "
            f"{node.POTENTIAL!r}; add MODEL.UNIFIED.GLOBAL_TERM False, or MODEL.UNIFIED.POTENTIAL A"
        )
    stride, finest = node.AFFINITY.STRIDE, model.SEM_SEG_HEAD.COMMON_STRIDE
    if node.AFFINITY.ENABLED and stride % finest:
        return (
            f"MODEL.UNIFIED.AFFINITY.STRIDE is {stride}; expected a multiple of "
            f"MODEL.SEM_SEG_HEAD.COMMON_STRIDE, which is {finest}"
        )
    classes, things = model.SEM_SEG_HEAD.NUM_CLASSES, model.ROI_HEADS.NUM_CLASSES
    if classes < things:
        return (
            f"MODEL.SEM_SEG_HEAD.NUM_CLASSES is {classes}; expected things and stuff, at least "
            f"MODEL.ROI_HEADS.NUM_CLASSES, which is {things}"
        )
    return None


CONDITIONS.append(_fits)


def add_unified_config(cfg: CN) -> None:
    """Add the keys of the unified network to a config, in place."""
    cfg.MODEL.UNIFIED = CN()

    # ------------------------------------------------------------------ feature decoders
    # Output channels of the layers of the semantic and of the affinity decoder, one layer each; P2..P5 share
    # them. UPSNet has [256, 128, 128] on COCO and [128, 128] on Cityscapes (the supplement: in a figure).
    cfg.MODEL.UNIFIED.DECODER_DIMS = [256, 128, 128]
    # Deformable operators of both decoders: v2, or (False) v1 as in UPSNet. Re-interpretation.
    cfg.MODEL.UNIFIED.DEFORM_MODULATED = True

    # ------------------------------------------------------------------ dynamic potential
    # "A" without masks; "B" (Cityscapes) and "C" (COCO) multiply and add the mask to the semantic cue. The
    # factors of score and box are a re-interpretation.
    cfg.MODEL.UNIFIED.POTENTIAL = "C"
    # Variant A also adds w V_i(c_k) everywhere, w learnt from 0: the global term of the Dynamically
    # Instantiated Network.
    cfg.MODEL.UNIFIED.GLOBAL_TERM = False
    # What the potential is made of in training: the network's own detections, so that gradients of the
    # panoptic loss reach the box head, or "ground_truth" boxes with score 1.
    cfg.MODEL.UNIFIED.TRAIN_DETECTIONS = "predicted"
    # In training they come from so many proposals of the RPN per image, have at least this score, and are so
    # many at most. Re-interpretation: as in Detectron2's inference.
    cfg.MODEL.UNIFIED.TRAIN_PROPOSALS = 1000
    cfg.MODEL.UNIFIED.TRAIN_SCORE_THRESH = 0.05
    cfg.MODEL.UNIFIED.TRAIN_TOPK = 100
    # Lowest score of a detection in inference: 0.5 on Cityscapes, 0.75 on COCO.
    cfg.MODEL.UNIFIED.SCORE_THRESH_TEST = 0.75
    # How one panoptic map is made: "panoptic", the argmax over stuff and detections; or "heuristic", by the
    # keys of MODEL.PANOPTIC_FPN.COMBINE from masks and semantic labels.
    cfg.MODEL.UNIFIED.INFERENCE = "panoptic"

    # ------------------------------------------------------------------ dense instance affinity
    # All of it is a re-interpretation. Without it the panoptic logits are the potential.
    cfg.MODEL.UNIFIED.AFFINITY = CN()
    cfg.MODEL.UNIFIED.AFFINITY.ENABLED = True
    # Stride of the affinity features Q, and their channels D.
    cfg.MODEL.UNIFIED.AFFINITY.STRIDE = 8
    cfg.MODEL.UNIFIED.AFFINITY.DIM = 128
    # Rows of the affinities: "softmax" of Q^T Q / sqrt(D), or its "sigmoid" divided by the row's sum.
    cfg.MODEL.UNIFIED.AFFINITY.NORMALISE = "softmax"
    # The panoptic logits are Psi + P, or P alone.
    cfg.MODEL.UNIFIED.AFFINITY.RESIDUAL = True

    # ------------------------------------------------------------------ losses
    cfg.MODEL.UNIFIED.LOSS = CN()
    # "cross_entropy", or "lovasz_softmax" (Cityscapes). Its weight: MODEL.SEM_SEG_HEAD.LOSS_WEIGHT, 1 on
    # Cityscapes and 0.2 on COCO (UPSNet).
    cfg.MODEL.UNIFIED.LOSS.SEMANTIC = "cross_entropy"
    # "lovasz_hinge", or "bce" as in Mask R-CNN.
    cfg.MODEL.UNIFIED.LOSS.MASK = "lovasz_hinge"
    # "cross_entropy" or "lovasz_softmax" over the channels of the panoptic logits; weight 0.5 on Cityscapes
    # and 0.1 on COCO (UPSNet). Re-interpretation.
    cfg.MODEL.UNIFIED.LOSS.PANOPTIC = "cross_entropy"
    cfg.MODEL.UNIFIED.LOSS.PANOPTIC_WEIGHT = 0.1
