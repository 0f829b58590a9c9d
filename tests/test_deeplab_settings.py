"""Settings of Panoptic-DeepLab that cannot be: one line that says what is allowed."""

import pytest
from deeplab_util import HEADS, RESNET, SEPARABLE, as_detectron2s, deeplab_cfg, scene
from detectron2.config import CfgNode, get_cfg
from modeling_util import make_model, training_losses
from torch import nn
from toy import ROOT

from auto_panoptic import add_auto_panoptic_config
from auto_panoptic.errors import UserError
from auto_panoptic.modeling import meta_model
from auto_panoptic.read_config import read_config
from auto_panoptic.systems.panoptic_deeplab import AutoPanopticDeepLab, add_panoptic_deeplab_config
from auto_panoptic.training import check_unread
from auto_panoptic.validate import flat, validate

QUICK = str(ROOT / "configs/quick/panoptic_deeplab.yaml")
NODE, SEM = "MODEL.PANOPTIC_DEEPLAB", "MODEL.SEM_SEG_HEAD"
REFUSED = [
    ((f"{NODE}.DECODER", "fpn"), "DECODER is 'fpn'; expected one of panoptic_deeplab, deeplabv3plus"),
    ((f"{NODE}.INSTANCE_SCORE", "mask"), "INSTANCE_SCORE is 'mask'; expected one of objectness, class, pr"),
    ((f"{NODE}.OBJECTNESS_AT", "box"), "OBJECTNESS_AT is 'box'; expected one of centroid, center"),
    ((f"{NODE}.GT_SOURCE", "coco"), "GT_SOURCE is 'coco'; expected one of panoptic, instance"),
    ((f"{NODE}.NMS_KERNEL", 8), "NMS_KERNEL is 8; expected an odd number"),
    ((f"{NODE}.DEEPLABV3PLUS_CHANNELS", [48]), r"DEEPLABV3PLUS_CHANNELS is \[48\]; expected 2 times"),
    ((f"{NODE}.USE_DEPTHWISE_SEPARABLE_CONV", True), "is False, but .* is True; expected the same: add"),
    ((f"{NODE}.BENCHMARK_NETWORK_SPEED", True), "but evaluation and search need the panoptic map"),
    (("SOLVER.OPTIMIZER", "RMSPROP"), "SOLVER.OPTIMIZER is 'RMSPROP'; expected one of SGD, ADAM"),
    (("INPUT.CROP.ENABLED", True, "INPUT.CROP.TYPE", "relative"), "'relative', but crops give the ASPP"),
    ((f"{SEM}.NUM_CLASSES", 2), "NUM_CLASSES is 2; expected things and stuff, at least"),
    (("MODEL.HRNET.WIDTH", 40), "HRNET.WIDTH is 40; expected None or one of 18, 32, 48, wider"),
    (("MODEL.HRNET.HEAD", "ocr"), "HRNET.HEAD is 'ocr'; expected one of none, concat, classification"),
]  # fmt: skip
UNFIT = [
    ((f"{SEM}.NAME", "PanopticDeepLabSemSegHead"), "'PanopticDeepLabSemSegHead', .*; add MODEL.SEM_SEG"),
    (("MODEL.INS_EMBED_HEAD.NAME", "PanopticDeepLabInsEmbedHead"), "; add MODEL.INS_EMBED_HEAD.NAME Auto"),
    ((f"{SEM}.IN_FEATURES", ["res2", "p6"]), "IN_FEATURES has 'p6', but .* gives res2, res3, res4, res5"),
    ((f"{SEM}.IN_FEATURES", ["res5"]), r"IN_FEATURES is \['res5'\]; expected skips and the input"),
    ((f"{SEM}.IN_FEATURES", ["res3", "res5"]), "COMMON_STRIDE is 4; expected the stride of res3, .* is 8"),
    ((f"{SEM}.PROJECT_CHANNELS", [8]), r"PROJECT_CHANNELS is \[8\]; expected a number for each of res2"),
    (("NAS.SPACE.DEEPLAB_OPS", ["sep_7x7"]), "NAS.SPACE.DEEPLAB_OPS has 'sep_7x7': expected head operators"),
    (("NAS.SPACE.DEEPLAB_OPS", ["shuffle_3x3"]), "DEEPLAB_OPS has 'shuffle_3x3': expected head operators"),
]  # fmt: skip


@pytest.mark.parametrize("options, message", REFUSED)
def test_settings_that_exclude_each_other(options, message):
    with pytest.raises(UserError, match=message) as error:
        validate(deeplab_cfg(*options))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("options, message", UNFIT)
def test_parts_that_do_not_fit(options, message):
    with pytest.raises(UserError, match=message) as error:
        meta_model(deeplab_cfg(*options))
    assert "\n" not in str(error.value)


def test_other_systems_keep_their_defaults():
    """Ours come on top: no key of Detectron2 or of another system gets another value."""
    cfg = get_cfg()
    cfg.NAS = CfgNode({"SPACE": CfgNode()})
    before = dict(flat(cfg)) | {"NAS.SPACE": None}
    add_panoptic_deeplab_config(cfg)
    after = dict(flat(cfg)) | {"NAS.SPACE": None}
    assert {key: after[key] for key in before} == before
    assert (cfg.SOLVER.OPTIMIZER, cfg.NAS.SPACE.DEEPLAB_OPS) == ("SGD", [])


def test_both_widths_of_hrnet_can_be_given():
    for width in (18, "wider"):
        cfg = get_cfg()
        add_auto_panoptic_config(cfg)
        cfg.merge_from_list(["MODEL.HRNET.WIDTH", width])
        assert cfg.MODEL.HRNET.WIDTH == width
        validate(cfg)


def test_synchronised_norms_need_a_gpu():
    cfg = deeplab_cfg(*SEPARABLE, *RESNET, "MODEL.RESNETS.NORM", "SyncBN")
    for node in HEADS:
        cfg.MODEL[node].NORM = "SyncBN"
    model = make_model(cfg)
    kinds = {type(m) for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    assert kinds == {nn.BatchNorm2d}
    assert all(loss.isfinite() for loss in training_losses(model, [scene()]).values())
    cfg.MODEL.DEVICE = "cuda"
    parts = AutoPanopticDeepLab.from_config(cfg)
    kinds = {type(m) for m in parts["backbone"].modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    assert kinds == {nn.SyncBatchNorm}


def test_a_sample_without_targets():
    model = make_model(deeplab_cfg())
    inputs = scene()
    del inputs["offset_weights"]
    with pytest.raises(UserError, match="comes without 'offset_weights'; leave INPUT.DATASET_MAPPER_NAME"):
        training_losses(model, [inputs])


def test_detectron2s_class_may_have_any_of_ours():
    validate(as_detectron2s(deeplab_cfg(f"{NODE}.INSTANCE_SCORE", "class")))


@pytest.mark.parametrize(
    "options, key",
    [
        ([f"{NODE}.DECODER", "deeplabv3plus", f"{SEM}.PROJECT_CHANNELS", [8]], f"{SEM}.PROJECT_CHANNELS"),
        ([f"{NODE}.DEEPLABV3PLUS_CHANNELS", [8, 8]], "DEEPLABV3PLUS_CHANNELS"),
        ([f"{NODE}.INSTANCE_SCORE", "class", f"{NODE}.OBJECTNESS_AT", "center"], "OBJECTNESS_AT"),
        (["MODEL.HRNET.WIDTH", 18], "HRNET.WIDTH"),
        (["SOLVER.MOMENTUM", 0.5], "SOLVER.MOMENTUM"),
        ([f"{SEM}.LOSS_TYPE", "cross_entropy", f"{SEM}.LOSS_TOP_K", 0.5], "LOSS_TOP_K"),
    ],
)
def test_settings_that_do_not_act(options, key):
    options = [str(word) for word in options]
    with pytest.raises(UserError, match=f"{key} is .*, but no part of this config's AutoPanopticDeepLab"):
        check_unread(read_config(QUICK, options), QUICK, options)
