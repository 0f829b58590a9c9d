"""Costs counted on built models: equal to the published closed form and to torch's own counter."""

import numpy as np
import pytest
import torch
from closed_form_costs import add, panoptic_fpn
from detectron2 import model_zoo
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from modeling_util import make_cfg, make_input, make_model, num_params
from torch.utils.flop_counter import FlopCounterMode

from auto_panoptic.modeling import apply_architecture
from auto_panoptic.modeling.choice import meta_model, space_of
from auto_panoptic.modeling.counting import configured_costs, count
from auto_panoptic.modeling.extract import extract
from auto_panoptic.space import HEAD_OPS, Architecture, Cost, resolve_architecture_path

ALL_HEAD_OPS = [*(spec.name for spec in HEAD_OPS), "conv_3x3"]
R50 = {
    "BACKBONE.NAME": "build_resnet_fpn_backbone",
    "RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "RESNETS.RES2_OUT_CHANNELS": 16,
    "RESNETS.STEM_OUT_CHANNELS": 8,
    "RESNETS.WIDTH_PER_GROUP": 4,
    "RESNETS.NUM_GROUPS": 2,
}
R18 = {**R50, "RESNETS.DEPTH": 18, "RESNETS.NUM_GROUPS": 1, "RESNETS.RES2_OUT_CHANNELS": 64}
R50_BN = {**R50, "RESNETS.STRIDE_IN_1X1": False, "RESNETS.NORM": "BN", "BACKBONE.FREEZE_AT": 3}
D2_MASK = {"ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsampleHead"}
D2_HEADS = {
    **D2_MASK,
    "ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
    "SEM_SEG_HEAD.NAME": "SemSegFPNHead",
    "CROSS_ATTENTION.ENABLED": False,
}
D2_CONVS = {"ROI_BOX_HEAD.NUM_CONV": 2, "ROI_BOX_HEAD.CONV_DIM": 32, "ROI_BOX_HEAD.NORM": "GN"}
D2_NORMS = {"ROI_MASK_HEAD.NORM": "BN", "SEM_SEG_HEAD.NORM": ""}
PANOPTIC_FPN = {"META_ARCHITECTURE": "PanopticFPN"}
OURS = {
    "plain": {},
    "four levels": {"FPN.NORM": "", "CROSS_ATTENTION.F2B_LEVELS": ["p3", "p4", "p5", "p6"]},
    "agnostic": {"ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True, "ROI_MASK_HEAD.CLS_AGNOSTIC_MASK": True},
    "legacy": {"CROSS_ATTENTION.LEGACY_RATIO": True, "CROSS_ATTENTION.RATIOS": [4, 16]},
    "anchors": {"ANCHOR_GENERATOR.ASPECT_RATIOS": [[1.0, 2.0]], "RPN.CONV_DIMS": [-1, 32]},
    "no mask": {"MASK_ON": False, "ROI_BOX_HEAD.NUM_FC": 1, "CROSS_ATTENTION.ENABLED": False},
    "panoptic fpn": {**PANOPTIC_FPN, "SEM_SEG_HEAD.IN_FEATURES": ["p2", "p3", "p4"]},
    "depths": {"ROI_MASK_HEAD.NUM_CONV": 0, "SEM_SEG_HEAD.NUM_LAYERS": 3},
}
DETECTRON2 = {
    "heads": D2_HEADS,
    "heads with convolutions": {**D2_HEADS, **D2_CONVS, **D2_NORMS},
    "mask head": D2_MASK,
    "R50": R50,
    "R50 stride in 3x3, BN, frozen": R50_BN,
    "R18": R18,
    "all": {**PANOPTIC_FPN, **R50, **D2_HEADS},
}


def config(*options, **kwargs):
    """Options are {key below MODEL: value} or KEY VALUE."""
    pairs = [x for o in options if isinstance(o, dict) for k, v in o.items() for x in (f"MODEL.{k}", v)]
    return make_cfg(*pairs, *(o for o in options if not isinstance(o, dict)), **kwargs)


def rows(tables):
    return {site.name: row for site, row in zip(tables.space.sites, tables.sites, strict=True)}


def assert_closed_form(tables, cfg, size):
    """Every entry is that of the formulas; so is the cost of any architecture."""
    fixed, sites = panoptic_fpn(cfg, size)
    assert tables.fixed == fixed
    allowed = {site: {op: sites[site][op] for op in row} for site, row in rows(tables).items()}
    assert rows(tables) == allowed and list(sites) == list(allowed)


@pytest.mark.parametrize("variant", OURS)
def test_closed_form_of_small_networks(variant):
    ops = ("NAS.SPACE.HEAD_OPS", ALL_HEAD_OPS)
    cfg = config(OURS[variant], *ops)
    model = meta_model(cfg)
    tables = count(model, (40, 64))
    assert_closed_form(tables, cfg, (40, 64))
    params = add(*tables.fixed.values(), *(cost for row in tables.sites for cost in row.values()))[1]
    assert params == num_params(model) and tables.space == space_of(model)


@pytest.mark.parametrize("width", ["300M", "1.3G", "3.8G"])
def test_closed_form_of_random_networks(width):
    """500 architectures each, at the paper's size."""
    cfg = config({"SHUFFLENET.WIDTH": width}, small=False)
    tables = configured_costs(cfg, (800, 1333))
    assert_closed_form(tables, cfg, (800, 1333))
    fixed, sites = panoptic_fpn(cfg, (800, 1333))
    rng = np.random.default_rng(3)
    for _ in range(500):
        architecture = tables.space.random(rng)
        names = architecture.names().items()
        assert tables.cost(architecture) == add(*fixed.values(), *(sites[s][op] for s, op in names))


@pytest.mark.parametrize("stride_in_1x1, macs", [(True, 3856), (False, 4087)])
def test_resnet_50(stride_in_1x1, macs):
    """The usual figures: 23.51 M parameters without the classifier; per 224 x 224 image."""
    options = {"META_ARCHITECTURE": "BackboneClassifier", "BACKBONE.NAME": "build_resnet_backbone"}
    options |= {"RESNETS.OUT_FEATURES": ["res5"], "RESNETS.STRIDE_IN_1X1": stride_in_1x1}
    options |= {"BACKBONE.FREEZE_AT": 0, "RESNETS.NORM": "BN"}
    cost = count(meta_model(config(options, small=False)), (224, 224)).fixed["backbone"]
    assert (round(cost.macs / 1e6), round(cost.params / 1e6, 2)) == (macs, 23.51)


# A short backbone leaves everything else as in the paper.
SHORT = {
    "SHUFFLENET.WIDTH": "custom",
    "SHUFFLENET.STEM_CHANNELS": 8,
    "SHUFFLENET.STAGE_CHANNELS": [16, 32, 48, 64],
    "SHUFFLENET.STAGE_REPEATS": [1, 1, 1, 1],
}


@pytest.mark.parametrize("levels", [4, 5])
@pytest.mark.parametrize("legacy", [False, True])
def test_published_heads_and_attention(levels, legacy):
    names = [f"p{i}" for i in range(2, 7)][-levels:]
    options = {**SHORT, "CROSS_ATTENTION.F2B_LEVELS": names, "CROSS_ATTENTION.LEGACY_RATIO": legacy}
    cfg = config(options, "NAS.SPACE.HEAD_OPS", ALL_HEAD_OPS, small=False)
    tables = configured_costs(cfg, (64, 64))
    params = {site: {op: cost.params for op, cost in row.items()} for site, row in rows(tables).items()}
    published = {  # 256 -> 256, 256 -> 128, 128 -> 128 channels, GroupNorm included
        "dwconv_3x3": (68864, 35712, 18048),
        "dwconv_5x5": (72960, 39808, 20096),
        "dfconv_3x3": (652827, 357531, 178971),
        "dfconv_5x5": (2119243, 1299659, 650059),
        "atconv_3x3": (590592, 295296, 147840),
        "atconv_5x5": (1639168, 819584, 409984),
        "conv_3x3": (590592, 295296, 147840),
    }
    for op, expected in published.items():
        assert tuple(params[site][op] for site in ("mask.3", "sem_seg.0", "sem_seg.2")) == expected
    assert tables.fixed["sem_seg_head"].params == 27702
    coco = {(4, False): 257048, (5, False): 283672, (4, True): 292031}
    ade20k = {(4, False): 269368, (5, False): 287800, (4, True): 304351}
    for name, mask, sem_seg, gates in (
        ("auto_panoptic_coco", 3435622, 1025638, coco),
        ("auto_panoptic_ade20k", 4960177, 2128689, ade20k),
    ):
        chosen = Architecture.load(resolve_architecture_path(name)).names()
        sums = dict.fromkeys(("backbone", "mask", "sem_seg", "attention"), 0)
        for site, op in chosen.items():
            sums[site.partition(".")[0]] += params[site][op] if site in params else 0
        assert (sums["mask"], sums["sem_seg"]) == (mask, sem_seg)
        assert sums["attention"] == gates.get((levels, legacy), sums["attention"])
    if not legacy:
        f2b = {4: [37024, 18576, 9352], 5: [45216, 22672, 11400]}[levels]
        assert list(params["attention.f2b.3"].values()) == f2b
        assert list(params["attention.b2f.4"].values()) == [49472, 24864, 12560]


def test_the_default_size_and_any_architecture_of_the_config(tmp_path):
    """Tables are those of the supernet, for a square of the size of evaluation."""
    cfg = make_cfg("INPUT.MIN_SIZE_TEST", 96)
    tables = configured_costs(cfg)
    assert_closed_form(tables, cfg, (96, 96))
    path = str(tmp_path / "a.json")
    tables.space.random(np.random.default_rng(0)).save(path)
    assert configured_costs(make_cfg("INPUT.MIN_SIZE_TEST", 96, "NAS.ARCHITECTURE", path)).to_json() == (
        tables.to_json()
    )


# ------------------------------------------------------------------ against what runs


def flops(run, model):
    """Half the operations that torch counts in the kernels: convolutions and matrix products."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run(model)
    assert counter.get_total_flops() % 2 == 0
    return counter.get_total_flops() // 2


def inferred_macs(model, seed=0):
    """Multiply-adds of a real inference of a 50 x 96 image; the model's limits become what there was."""
    regions, heads = {}, model.roi_heads
    hooks = [
        heads.box_head.register_forward_hook(lambda m, x, y: regions.update(proposals=len(x[0]))),
        heads.mask_head.deconv.register_forward_hook(lambda m, x, y: regions.update(detections=len(y))),
    ]
    macs = flops(lambda model: model([make_input(50, 96, seed=seed)]), model)
    for hook in hooks:
        hook.remove()
    assert regions["proposals"] and regions["detections"]
    model.proposal_generator.post_nms_topk[False] = regions["proposals"]
    heads.box_predictor.test_topk_per_image = regions["detections"]
    return macs


@pytest.mark.parametrize("case", DETECTRON2)
def test_detectron2s_parts(case):
    model = make_model(config(DETECTRON2[case])).eval()
    space = space_of(model)
    architecture = space.random(np.random.default_rng(0))
    apply_architecture(model, architecture)
    macs = inferred_macs(model)
    params = num_params(extract(model, architecture) if space.sites else model)
    assert count(model, (50, 96)).cost(architecture) == (macs, params)


def test_a_real_inference_and_extracted_networks():
    """Nothing runs that the tables leave out, nothing runs twice, with the regions that there really are."""
    model, rng = make_model(make_cfg()).eval(), np.random.default_rng(0)
    for seed in range(3):
        architecture = space_of(model).random(rng)
        apply_architecture(model, architecture)
        macs = inferred_macs(model, seed)
        cost = count(model, (50, 96)).cost(architecture)
        assert cost.macs == macs
        alone = extract(model, architecture)
        tables = count(alone, (50, 96))
        assert [len(row) for row in tables.sites] == [1] * len(tables.sites) == [1] * 18
        assert tables.cost(architecture) == cost and cost.params == num_params(alone)


def test_the_classifier():
    cfg = make_cfg("MODEL.META_ARCHITECTURE", "BackboneClassifier", "MODEL.CLASSIFIER.NUM_CLASSES", 7)
    tables = count(meta_model(cfg), (70, 64))
    model = make_model(cfg).eval()
    architecture = tables.space.random(np.random.default_rng(0))
    apply_architecture(model, architecture)
    image = [{"image": torch.zeros(3, 70, 64)}]
    assert flops(lambda model: model(image), model) == tables.cost(architecture).macs
    assert num_params(extract(model, architecture)) == tables.cost(architecture).params


def retina_net():
    cfg = model_zoo.get_config("COCO-Detection/retinanet_R_50_FPN_1x.yaml")
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
    return cfg


def panoptic_deeplab():
    from detectron2.projects.panoptic_deeplab import add_panoptic_deeplab_config

    cfg = get_cfg()
    add_panoptic_deeplab_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "PanopticDeepLab"
    cfg.MODEL.BACKBONE.NAME = "build_resnet_deeplab_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res5"]
    cfg.MODEL.RESNETS.NORM = "BN"
    cfg.MODEL.RESNETS.RES5_DILATION = 2
    for head, name in ((cfg.MODEL.SEM_SEG_HEAD, "Sem"), (cfg.MODEL.INS_EMBED_HEAD, "Ins")):
        head.NAME = {"Sem": "PanopticDeepLabSemSegHead", "Ins": "PanopticDeepLabInsEmbedHead"}[name]
        head.IN_FEATURES = ["res2", "res3", "res5"]
        head.PROJECT_FEATURES, head.PROJECT_CHANNELS = ["res2", "res3"], [16, 8]
        head.ASPP_CHANNELS, head.ASPP_DROPOUT, head.CONVS_DIM, head.HEAD_CHANNELS = 32, 0.1, 32, 16
        head.NORM, head.COMMON_STRIDE, head.NUM_CLASSES = "BN", 4, 5
    cfg.DATASETS.TRAIN = ("of_test_counting",)
    MetadataCatalog.get("of_test_counting").set(thing_dataset_id_to_contiguous_id={3: 3}, label_divisor=1000)
    return cfg


@pytest.mark.parametrize("make", [retina_net, panoptic_deeplab])
def test_models_whose_inference_depends_on_values(make):
    """No R-CNN, no dry run of their own: they are counted on the CPU; nothing is left out."""
    cfg = make()
    model = meta_model(cfg)
    cost = count(model, (64, 96)).cost([])
    cfg.MODEL.DEVICE = "cpu"
    real = build_model(cfg).eval()
    image = [{"image": torch.zeros(3, 64, 96), "height": 64, "width": 96}]
    assert cost == Cost(flops(lambda model: model(image), real), num_params(real))
    assert all(p.is_meta for p in model.parameters())


def test_cascades():
    """Three box heads, each on all proposals."""
    options = {**D2_HEADS, "ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True}
    heads = {}
    for name in ("StandardROIHeads", "CascadeROIHeads"):
        for mask in (True, False):
            cfg = config(options, {"ROI_HEADS.NAME": name, "MASK_ON": mask})
            heads[name, mask] = count(meta_model(cfg), (64, 64)).fixed["roi_heads"]
    for i in range(2):
        one = heads["StandardROIHeads", False][i]
        assert heads["CascadeROIHeads", False][i] == 3 * one
        assert heads["CascadeROIHeads", True][i] - 3 * one == heads["StandardROIHeads", True][i] - one > 0


def test_detectron2s_deformable_layers():
    """A 3x3 kernel and its offsets, 18 or 27 channels, in place of each 3x3 convolution of C3 to C5."""
    options = {**PANOPTIC_FPN, **R50, **D2_HEADS, "RESNETS.NUM_GROUPS": 1}
    plain = count(meta_model(config(options)), (64, 64)).fixed["backbone"]
    stages = [(level, 4 * 2 ** (level - 2), blocks) for level, blocks in ((3, 4), (4, 6), (5, 3))]
    for modulated, channels in ((False, 18), (True, 27)):
        deformable = {"RESNETS.DEFORM_ON_PER_STAGE": [False, True, True, True]}
        cfg = config(options, deformable, {"RESNETS.DEFORM_MODULATED": modulated})
        cost = count(meta_model(cfg), (64, 64)).fixed["backbone"]
        weights = [(level, blocks * 9 * mid * channels, blocks * channels) for level, mid, blocks in stages]
        assert cost.macs - plain.macs == sum(w * (64 >> level) ** 2 for level, w, _ in weights)
        assert cost.params - plain.params == sum(w + biases for _, w, biases in weights)
