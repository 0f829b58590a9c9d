"""The keys of Auto-Panoptic on Panoptic-FPN, with their meaning and the paper's symbol."""

from detectron2.config import CfgNode as CN

from ...validate import CONDITIONS, PROBABILITY, RULES, TEXT, choice, number, several, whole

RULES |= {
    "MODEL.SEM_SEG_HEAD.NUM_LAYERS": whole(0, 100),
    "MODEL.CROSS_ATTENTION.F2B_LEVELS": several(TEXT, least=1),
    "MODEL.CROSS_ATTENTION.RATIOS": several(whole(1, 10**5), least=1),
    "MODEL.PANOPTIC_FPN.COMBINE.METHOD": choice("detectron2", "supplement", "reference"),
    "MODEL.PANOPTIC_FPN.COMBINE.HIGH_CONFIDENCE_THRESH": PROBABILITY,
    "MODEL.PANOPTIC_FPN.COMBINE.INSTANCE_AREA_LIMIT": number(0),
}


def _merging(cfg) -> str | None:
    """Merging needs masks; Detectron2's own model merges its own way, whatever METHOD says."""
    method = cfg.MODEL.PANOPTIC_FPN.COMBINE.METHOD
    if cfg.MODEL.META_ARCHITECTURE in ("PanopticFPN", "AutoPanopticFPN") and not cfg.MODEL.MASK_ON:
        return "MODEL.MASK_ON is False, but a panoptic map is made of masks; add MODEL.MASK_ON True"
    if cfg.MODEL.META_ARCHITECTURE == "PanopticFPN" and method != "detectron2":
        return (
            f"MODEL.PANOPTIC_FPN.COMBINE.METHOD is {method!r}, but PanopticFPN merges in Detectron2's way; "
            "add MODEL.META_ARCHITECTURE AutoPanopticFPN MODEL.CROSS_ATTENTION.ENABLED False, the same "
            "network with every merging"
        )
    return None


CONDITIONS.append(_merging)


def add_panoptic_fpn_config(cfg: CN) -> None:
    """Add the keys of the semantic head, the attention and the merging to a config, in place."""
    # ------------------------------------------------------------------ semantic head
    # Searched layers of the subnet that P2..P5 share.
    cfg.MODEL.SEM_SEG_HEAD.NUM_LAYERS = 3
    # Bilinear upsampling convention of the semantic branch and of the attention's averages.
    cfg.MODEL.SEM_SEG_HEAD.ALIGN_CORNERS = True

    # ------------------------------------------------------------------ inter-modular attention
    cfg.MODEL.CROSS_ATTENTION = CN()
    # Between the branches of things and stuff, in both directions.
    cfg.MODEL.CROSS_ATTENTION.ENABLED = True
    # FPN levels that the foreground-to-background attention reads (paper Eq. 1: all five).
    cfg.MODEL.CROSS_ATTENTION.F2B_LEVELS = ["p2", "p3", "p4", "p5", "p6"]
    # Candidate reduction ratios ("r").
    cfg.MODEL.CROSS_ATTENTION.RATIOS = [4, 8, 16]
    # The reference code reads the ratio from the last digit of "r16" and divides by 6; only for its weights.
    cfg.MODEL.CROSS_ATTENTION.LEGACY_RATIO = False

    # ------------------------------------------------------------------ panoptic merging
    # "detectron2" (Panoptic-FPN), "supplement" or "reference" (the code that produced the paper's numbers).
    cfg.MODEL.PANOPTIC_FPN.COMBINE.METHOD = "detectron2"
    # "reference": instances above this score come first, smallest first; then the others, best score first.
    cfg.MODEL.PANOPTIC_FPN.COMBINE.HIGH_CONFIDENCE_THRESH = 0.725
    # "supplement": instances of fewer pixels are dropped (64 x 64).
    cfg.MODEL.PANOPTIC_FPN.COMBINE.INSTANCE_AREA_LIMIT = 4096
