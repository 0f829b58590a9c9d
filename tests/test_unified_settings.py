"""Settings of the unified network that cannot be: one line that says what is allowed."""

import math

import pytest
from detectron2.modeling import ROI_MASK_HEAD_REGISTRY
from torch import nn
from toy import ROOT
from unified_util import unified_cfg

from auto_panoptic.errors import UserError
from auto_panoptic.modeling import meta_model
from auto_panoptic.read_config import read_config
from auto_panoptic.training import check_unread
from auto_panoptic.validate import validate

NODE = "MODEL.UNIFIED"
OFF = ("MODEL.MASK_ON", False)
REFUSED = [
    ((f"{NODE}.POTENTIAL", "D"), "POTENTIAL is 'D'; expected one of A, B, C"),
    ((*OFF, f"{NODE}.POTENTIAL", "B"), "'B', which needs masks, but MODEL.MASK_ON is False; add"),
    ((*OFF, f"{NODE}.POTENTIAL", "C"), "or MODEL.UNIFIED.POTENTIAL A"),
    (
        (*OFF, f"{NODE}.POTENTIAL", "A", f"{NODE}.INFERENCE", "heuristic"),
        "INFERENCE is 'heuristic', which merges masks, but MODEL.MASK_ON is False; add",
    ),
    ((f"{NODE}.INFERENCE", "argmax"), "INFERENCE is 'argmax'; expected one of panoptic, heuristic"),
    ((f"{NODE}.SCORE_THRESH_TEST", 1.5), "SCORE_THRESH_TEST is 1.5; expected a number of at least 0"),
    ((f"{NODE}.SCORE_THRESH_TEST", math.nan), "SCORE_THRESH_TEST is nan; expected"),
    ((f"{NODE}.TRAIN_SCORE_THRESH", -0.1), "TRAIN_SCORE_THRESH is -0.1; expected"),
    ((f"{NODE}.TRAIN_PROPOSALS", 0), "TRAIN_PROPOSALS is 0; expected a whole number of at least 1"),
    ((f"{NODE}.TRAIN_TOPK", 0), "TRAIN_TOPK is 0; expected a whole number of at least 1"),
    ((f"{NODE}.TRAIN_DETECTIONS", "none"), "TRAIN_DETECTIONS is 'none'; expected one of predicted"),
    ((f"{NODE}.AFFINITY.STRIDE", 6), "STRIDE is 6; expected one of 4, 8, 16, 32"),
    ((f"{NODE}.AFFINITY.STRIDE", 2), "STRIDE is 2; expected one of 4, 8, 16, 32"),
    (
        (f"{NODE}.AFFINITY.STRIDE", 4, "MODEL.SEM_SEG_HEAD.COMMON_STRIDE", 8),
        "STRIDE is 4; expected a multiple of MODEL.SEM_SEG_HEAD.COMMON_STRIDE, which is 8",
    ),
    ((f"{NODE}.AFFINITY.DIM", 0), "AFFINITY.DIM is 0; expected"),
    ((f"{NODE}.AFFINITY.NORMALISE", "l2"), "NORMALISE is 'l2'; expected one of softmax, sigmoid"),
    ((f"{NODE}.DECODER_DIMS", []), r"DECODER_DIMS is \[\]; expected a list of at least 1"),
    ((f"{NODE}.DECODER_DIMS", [48]), r"DECODER_DIMS is \[48\]; expected .*a multiple of 32"),
    ((f"{NODE}.LOSS.MASK", "dice"), "LOSS.MASK is 'dice'; expected one of lovasz_hinge, bce"),
    ((f"{NODE}.LOSS.PANOPTIC_WEIGHT", -1.0), "PANOPTIC_WEIGHT is -1.0; expected"),
    ((f"{NODE}.GLOBAL_TERM", True), "GLOBAL_TERM belongs to variant A, but .* is 'B'; add"),
    (("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 2), "NUM_CLASSES is 2; expected things and stuff, at least"),
]  # fmt: skip
UNFIT = [
    (("MODEL.ROI_HEADS.NAME", "StandardROIHeads"), "'StandardROIHeads', .*; add MODEL.ROI_HEADS.NAME U"),
    (("MODEL.SEM_SEG_HEAD.NAME", "SemSegFPNHead"), "'SemSegFPNHead', .*; add MODEL.SEM_SEG_HEAD.NAME U"),
    (("MODEL.ROI_MASK_HEAD.NAME", "OwnMasks"), "'OwnMasks', no .*; add MODEL.ROI_MASK_HEAD.NAME M"),
    (("MODEL.SEM_SEG_HEAD.IN_FEATURES", ["p3", "p4"]), "finest level of a decoder is 'p3' of stride 8"),
]  # fmt: skip
QUICK = str(ROOT / "configs/quick/unified_supernet.yaml")


@ROI_MASK_HEAD_REGISTRY.register()
class OwnMasks(nn.Module):
    """A mask head that is none of Detectron2's kind."""

    def __init__(self, cfg, input_shape):
        super().__init__()


@pytest.mark.parametrize("options, message", REFUSED)
def test_settings_that_exclude_each_other(options, message):
    with pytest.raises(UserError, match=message) as error:
        validate(unified_cfg(*options))
    assert "\n" not in str(error.value) and str(error.value).startswith("MODEL.")


@pytest.mark.parametrize("options, message", UNFIT)
def test_parts_that_do_not_fit(options, message):
    with pytest.raises(UserError, match=message) as error:
        meta_model(unified_cfg(*options))
    assert "\n" not in str(error.value)


def test_other_networks_may_have_any_of_them():
    cfg = unified_cfg(*OFF, f"{NODE}.POTENTIAL", "C")
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    validate(cfg)


@pytest.mark.parametrize(
    "options, key",
    [
        (["MODEL.PANOPTIC_FPN.COMBINE.OVERLAP_THRESH", 0.4], "COMBINE.OVERLAP_THRESH"),
        ([f"{NODE}.INFERENCE", "heuristic", f"{NODE}.SCORE_THRESH_TEST", 0.4], "SCORE_THRESH_TEST"),
        ([f"{NODE}.AFFINITY.ENABLED", False, f"{NODE}.AFFINITY.DIM", 16], "AFFINITY.DIM"),
        ([f"{NODE}.TRAIN_DETECTIONS", "ground_truth", f"{NODE}.TRAIN_TOPK", 5], "TRAIN_TOPK"),
        ([*OFF, f"{NODE}.POTENTIAL", "A", f"{NODE}.LOSS.MASK", "bce"], "LOSS.MASK"),
        (["MODEL.SEM_SEG_HEAD.CONVS_DIM", 64], "CONVS_DIM"),
    ],
)
def test_settings_that_do_not_act(options, key):
    with pytest.raises(
        UserError, match=f"{key} is .*, but no part of this config's UnifiedPanoptic reads it"
    ):
        check_unread(read_config(QUICK, [str(x) for x in options]), QUICK, [str(x) for x in options])
