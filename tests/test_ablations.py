"""Every switch of the model: it builds, trains, predicts, and does what it says."""

import pytest
import torch
from modeling_util import CONFIGS, inference, make_cfg, make_input, make_model, num_params, training_losses
from torch import nn

from auto_panoptic.errors import UserError
from auto_panoptic.modeling import choice_blocks, meta_model
from auto_panoptic.modeling.backbones.builders import build_shufflenet_backbone
from auto_panoptic.space import BACKBONE_OPS, HEAD_OPS, SearchSpace
from auto_panoptic.systems.panoptic_fpn import BatchTopkRPN

INPUTS = [make_input(), make_input(48, 64, boxes=((5, 5, 30, 30),), seed=1)]


def exercise(*options):
    """Train one step and predict once.

    Returns:
        The model and its losses; the weights and the sampling start from fixed seeds.
    """
    cfg = make_cfg(*options)
    model = make_model(cfg)
    blocks = choice_blocks(model)
    assert set(blocks) == {site.name for site in SearchSpace.from_config(cfg).sites}
    losses = training_losses(model, INPUTS)
    expected = {"loss_sem_seg", "loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg"}
    assert set(losses) == expected | ({"loss_mask"} if cfg.MODEL.MASK_ON else set())
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    inactive = {
        id(parameter)
        for block in blocks.values()
        for name, candidate in block.candidates.items()
        if name != block.active
        for parameter in candidate.parameters()
    }
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or id(parameter) in inactive:
            assert parameter.grad is None, name
        else:
            assert torch.isfinite(parameter.grad).all(), name
    outputs = inference(model, INPUTS)
    for x, y in zip(INPUTS, outputs, strict=True):
        size = (x["height"], x["width"])
        assert y["sem_seg"].shape == (5, *size) and torch.isfinite(y["sem_seg"]).all()
        assert y["instances"].image_size == size and y["instances"].has("pred_masks") == cfg.MODEL.MASK_ON
        if cfg.MODEL.MASK_ON:
            panoptic, segments = y["panoptic_seg"]
            assert panoptic.shape == size
            assert set(panoptic.unique().tolist()) - {0} == {segment["id"] for segment in segments}
    return model, {name: loss.detach() for name, loss in losses.items()}


@pytest.fixture(scope="module")
def default():
    return exercise()


def test_default(default):
    model, _ = default
    assert {len(block.candidates) for block in choice_blocks(model).values()} == {3, 4, 6}


# Switches that change the function and no weight: same seed, same weights, other losses.
SAME_WEIGHTS = {
    "shuffle method": ["MODEL.SHUFFLENET.SHUFFLE_METHOD", 2],
    "align corners": ["MODEL.SEM_SEG_HEAD.ALIGN_CORNERS", False],
    "legacy RoIAlign": ["MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlign"],
    "straddling anchors": ["MODEL.RPN.BOUNDARY_THRESH", 0],
    "smooth L1": ["MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA", 1.0],
    "semantic loss": ["MODEL.SEM_SEG_HEAD.LOSS_WEIGHT", 1.0],
    "proposals over the batch": [
        *("MODEL.PROPOSAL_GENERATOR.NAME", "BatchTopkRPN", "MODEL.RPN.POST_NMS_TOPK_TRAIN", 8)
    ],
}


@pytest.mark.parametrize("case", SAME_WEIGHTS)
def test_switches_without_weights(case, default):
    model, losses = exercise(*SAME_WEIGHTS[case])
    weights, default_weights = model.state_dict(), default[0].state_dict()
    assert weights.keys() == default_weights.keys()
    assert all(weights[name].shape == default_weights[name].shape for name in weights)
    assert any(losses[name] != default[1][name] for name in losses)


def test_align_corners_reaches_both_users():
    for value in (True, False):
        model = make_model(make_cfg("MODEL.SEM_SEG_HEAD.ALIGN_CORNERS", value))
        assert model.sem_seg_head.align_corners is model.attention.align_corners is value


def test_default_is_reproducible(default):
    """What the test above rests on: without a switch, the losses are the same."""
    assert exercise()[1] == default[1]


@pytest.mark.parametrize("norm", ["BN", "SyncBN"])
def test_norm_of_the_backbone(norm, default):
    """On a CPU both are BatchNorm, with the same weights."""
    model, losses = exercise("MODEL.SHUFFLENET.NORM", norm, "MODEL.SHUFFLENET.NORM_MOMENTUM", 0.01)
    norms = [m for m in model.backbone.bottom_up.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert {(type(m), m.momentum, m.eps) for m in norms} == {(nn.BatchNorm2d, 0.01, 1e-5)}
    assert losses == default[1]


def test_syncbn_on_cuda():
    cfg = make_cfg("MODEL.SHUFFLENET.NORM", "SyncBN")
    cfg.MODEL.DEVICE = "cuda"
    with torch.device("meta"):
        backbone = build_shufflenet_backbone(cfg, ShapeOfImages)
    assert any(isinstance(m, nn.SyncBatchNorm) for m in backbone.modules())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in backbone.modules())


class ShapeOfImages:
    channels = 3


@pytest.mark.parametrize("op", [spec.name for spec in BACKBONE_OPS])
def test_backbone_operators(op):
    model, _ = exercise("NAS.SPACE.BACKBONE_OPS", [op])
    blocks = choice_blocks(model)
    assert all(list(blocks[f"backbone.{i}"].candidates) == [op] for i in range(5))


@pytest.mark.parametrize("op", [*(spec.name for spec in HEAD_OPS), "conv_3x3"])
def test_head_operators(op):
    model, _ = exercise("NAS.SPACE.HEAD_OPS", [op])
    blocks = choice_blocks(model)
    for site in ("mask.0", "mask.1", "sem_seg.0", "sem_seg.1"):
        assert list(blocks[site].candidates) == [op]
    # The first path of every other part, so nothing else differs from the default's parts.
    assert len(blocks["backbone.0"].candidates) == 4


@pytest.mark.parametrize(
    "options, f2b_inputs, hidden",
    [
        ([], 5, [16, 8, 4]),
        (["MODEL.CROSS_ATTENTION.F2B_LEVELS", ["p3", "p4", "p5", "p6"]], 4, [16, 8, 4]),
        (["MODEL.CROSS_ATTENTION.RATIOS", [8]], 5, [8]),
        (["MODEL.CROSS_ATTENTION.RATIOS", [16, 4]], 5, [4, 16]),
        (["MODEL.CROSS_ATTENTION.LEGACY_RATIO", True], 5, [16, 8, 10]),
    ],
)
def test_attention(options, f2b_inputs, hidden):
    model, _ = exercise(*options)
    for layer in (*model.attention.f2b, *model.attention.b2f):
        assert [gate.reduce.out_features for gate in layer.candidates.values()] == hidden
    assert {g.reduce.in_features for layer in model.attention.f2b for g in layer.candidates.values()} == {
        f2b_inputs * 64
    }


def test_without_attention(default):
    model, losses = exercise("MODEL.CROSS_ATTENTION.ENABLED", False)
    assert model.attention is None
    rest = {name for name in default[0].state_dict() if not name.startswith("attention.")}
    assert set(model.state_dict()) == rest
    assert any(losses[name] != default[1][name] for name in losses)


def test_detectron2s_meta_architecture_is_ours_without_attention():
    """The same weights give the same losses: the attention is all that AutoPanopticFPN adds to training."""
    ours, our_losses = exercise("MODEL.CROSS_ATTENTION.ENABLED", False)
    theirs, their_losses = exercise("MODEL.META_ARCHITECTURE", "PanopticFPN")
    assert type(theirs).__module__.startswith("detectron2")
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for name, loss in our_losses.items():
        torch.testing.assert_close(their_losses[name], loss, atol=1e-6, rtol=1e-5)


NO_ATTENTION = ["MODEL.CROSS_ATTENTION.ENABLED", False]
D2_MASK = ["MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead"]
D2_BOX = ["MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead"]
D2_SEM_SEG = ["MODEL.SEM_SEG_HEAD.NAME", "SemSegFPNHead"]
R50 = [
    *("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone", "MODEL.RESNETS.DEPTH", 50),
    *("MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"], "MODEL.RESNETS.RES2_OUT_CHANNELS", 16),
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", 8, "MODEL.RESNETS.WIDTH_PER_GROUP", 4, "MODEL.RESNETS.NORM", "BN"),
]
R18 = [*R50, "MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64]


def meta(name):
    return ["MODEL.META_ARCHITECTURE", name]


@pytest.mark.parametrize(
    "options, parts",
    [
        (D2_MASK, "backbone sem_seg attention"),
        (D2_BOX, "backbone mask sem_seg attention"),
        (D2_BOX + D2_MASK, "backbone sem_seg attention"),
        (NO_ATTENTION + D2_SEM_SEG, "backbone mask"),
        (NO_ATTENTION + D2_SEM_SEG + D2_MASK, "backbone"),
        (meta("PanopticFPN") + D2_SEM_SEG, "backbone mask"),
        (meta("PanopticFPN") + D2_SEM_SEG + D2_MASK + D2_BOX, "backbone"),
        (R50, "mask sem_seg attention"),
        (R18, "mask sem_seg attention"),
        (R50 + NO_ATTENTION, "mask sem_seg"),
        (R50 + meta("PanopticFPN") + D2_SEM_SEG + D2_MASK + D2_BOX, ""),
    ],
    ids=lambda value: value.replace(" ", "+") or "none" if isinstance(value, str) else "",
)
def test_detectron2s_parts(options, parts, tmp_path):
    model, _ = exercise(*options)
    assert {site.split(".")[0] for site in choice_blocks(model)} == set(parts.split())
    # The architecture file of the whole network builds the fixed model of these parts.
    whole = SearchSpace.from_config(make_cfg())
    path = tmp_path / "architecture.json"
    whole.architecture([len(site.ops) - 1 for site in whole.sites]).save(path)
    fixed, _ = exercise(*options, "NAS.ARCHITECTURE", str(path))
    last = {site.name: site.names[-1] for site in whole.sites if site.part in parts.split()}
    assert {site: list(block.candidates) for site, block in choice_blocks(fixed).items()} == {
        site: [name] for site, name in last.items()
    }
    assert set(fixed.state_dict()) <= set(model.state_dict())


def test_detectron2s_semantic_head_takes_no_attention():
    with pytest.raises(UserError, match="SEM_SEG_HEAD.NAME is 'SemSegFPNHead', which takes no attention"):
        make_model(make_cfg(*D2_SEM_SEG))


def test_without_masks():
    cfg = make_cfg("MODEL.MASK_ON", False, *meta("PanopticFPN"))
    model = make_model(cfg)
    assert "loss_mask" not in training_losses(model, INPUTS)


@pytest.mark.parametrize(
    "options",
    [["MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", True], ["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True]],
)
def test_class_agnostic_regions(options, default):
    model, _ = exercise(*options)
    # Two of the three classes' 64 mask weights and biases, or their four box deltas.
    saved = 2 * 65 if "MASK" in options[0] else 2 * 4 * 65
    assert num_params(default[0]) - num_params(model) == saved


@pytest.mark.parametrize("method", ["detectron2", "supplement", "reference"])
def test_merging_methods(method):
    assert exercise("MODEL.PANOPTIC_FPN.COMBINE.METHOD", method)[0].combine_method == method


def test_settings_of_the_reference_code():
    """Model keys of configs/reference, all at once, on the small model."""
    cfg = make_cfg(config="reference/supernet_coco.yaml")
    model = make_model(cfg)
    assert isinstance(model.proposal_generator, BatchTopkRPN)
    assert model.attention.legacy_ratio and model.attention.f2b_levels == ["p3", "p4", "p5", "p6"]
    losses = training_losses(model, INPUTS)
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    assert len(inference(model, INPUTS)) == 2


@pytest.mark.parametrize(
    "width, architecture, body",
    [
        ("1.3G", "", 28642008),
        ("1.3G", "auto_panoptic_coco", 6825840),
        ("1.3G", "auto_panoptic_ade20k", 7845360),
        ("1.3G", "detnas_coco", 8415216),
        ("3.8G", "auto_panoptic_coco", 21627126),
        ("3.8G", "auto_panoptic_ade20k", 24951932),
        ("3.8G", "detnas_coco", 26724428),
    ],
)
def test_widths(width, architecture, body):
    cfg = make_cfg("MODEL.SHUFFLENET.WIDTH", width, "NAS.ARCHITECTURE", architecture, small=False)
    with torch.device("meta"):
        assert num_params(build_shufflenet_backbone(cfg, ShapeOfImages)) == body


@pytest.mark.parametrize(
    "op, body",
    [("shuffle_3x3", 1473488), ("shuffle_5x5", 1530576), ("shuffle_7x7", 1616208), ("xception_3x3", 2189424)],
)
def test_width_300m(op, body):
    cfg = make_cfg("MODEL.SHUFFLENET.WIDTH", "300M", "NAS.SPACE.BACKBONE_OPS", [op], small=False)
    assert len(SearchSpace.from_config(cfg).group("backbone")) == 20
    with torch.device("meta"):
        assert num_params(build_shufflenet_backbone(cfg, ShapeOfImages)) == body


@pytest.mark.parametrize("name", sorted(p.stem for p in (CONFIGS / "architectures").glob("*.json")))
def test_shipped_architectures_fit_the_papers_model(name):
    options = ["NAS.SPACE.HEAD_OPS", ["conv_3x3"]] if name.endswith("_plain") else []
    cfg = make_cfg("NAS.ARCHITECTURE", name, *options, small=False)
    blocks = choice_blocks(meta_model(cfg))
    assert len(blocks) == 56 and all(len(block.candidates) == 1 for block in blocks.values())
