"""Costs of whole networks, counted on built models: hooks on their layers, their parameters."""

import numpy as np
import pytest
import torch
from detectron2.modeling import META_ARCH_REGISTRY
from modeling_util import CONFIGS, make_cfg, make_input, make_model, num_params
from torch import nn

from auto_panoptic.config import HEAD_OPS
from auto_panoptic.errors import UserError
from auto_panoptic.modeling import apply_architecture, choice_blocks
from auto_panoptic.modeling.layers.head_ops import ModulatedDeformConv2d
from auto_panoptic.space import (
    Architecture,
    Cost,
    Network,
    SearchSpace,
    cost_tables_from_config,
    network_cost_tables,
    resolve_architecture_path,
)

SPACE = SearchSpace.default()


class Counter:
    """Multiply-adds of one image, counted from the tensors that pass through a model's layers."""

    def __init__(self, model):
        self.macs, self.hooks = 0, []
        for module in model.modules():
            if isinstance(module, nn.ConvTranspose2d):
                # Each input value meets all of its kernel: (out, k, k).
                self.hook(module, lambda m, x, y: x[0].numel() * m.weight[0].numel())
            elif isinstance(module, nn.Conv2d | nn.Linear | ModulatedDeformConv2d):
                # Each output value is a sum over (in / groups, k, k) or (in,).
                self.hook(module, lambda m, x, y: y.numel() * m.weight[0].numel())
        head = getattr(model, "sem_seg_head", None)
        self.head = head if hasattr(head, "classify") else None
        if self.head is not None:
            classify = self.head.classify
            self.head.classify = lambda *args: (
                self.add(self.classifier(self.head, args[0])),
                classify(*args),
            )[1]

    def hook(self, module, macs):
        self.hooks.append(module.register_forward_hook(lambda *args: self.add(macs(*args))))

    def add(self, macs):
        self.macs += macs

    def remove(self):
        for hook in self.hooks:
            hook.remove()
        if self.head is not None:
            del self.head.classify

    @staticmethod
    def classifier(head, features):
        """The predictor's weights, one slice per level, at every position of the level."""
        return head.predictor.weight.shape[0] * sum(features[name].numel() for name in head.in_features)


def build_on_meta(cfg):
    """The model of ``cfg`` without memory for its weights, and with the sizes of ``cfg``."""
    with torch.device("meta"):
        return META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg).eval()


def run(model, size, proposals, detections):
    """All layers once, with given numbers of regions, as inference runs them; returns the MACs."""
    counter = Counter(model)
    device = next(model.parameters()).device
    image = torch.zeros(1, 3, *size, device=device)
    if getattr(model, "attention", None) is not None:
        features, subnet_features, gates = model.attended_features(image)
        model.sem_seg_head.predict(subnet_features, gates)
    else:
        features = model.backbone(image)
        model.sem_seg_head(features)
    model.proposal_generator.rpn_head([features[f] for f in model.proposal_generator.in_features])
    heads, channels = model.roi_heads, features["p2"].shape[1]
    regions = torch.zeros(proposals, channels, *heads.box_pooler.output_size, device=device)
    heads.box_predictor(heads.box_head(regions))
    if heads.mask_on:
        regions = torch.zeros(detections, channels, *heads.mask_pooler.output_size, device=device)
        heads.mask_head.layers(regions)
    counter.remove()
    return counter.macs


def active_params(model):
    """Parameters without those of the candidates that are not on the path."""
    inactive = 0
    for block in choice_blocks(model).values():
        inactive += sum(num_params(c) for name, c in block.candidates.items() if name != block.active)
    return num_params(model) - inactive


# Files named Base-... may be halves to lay over others.
CONFIG_FILES = sorted(p for p in CONFIGS.glob("**/*.yaml") if not p.name.startswith("Base-"))


def resolvable(name):
    try:
        return bool(resolve_architecture_path(name))
    except UserError:
        return False


def fixed_cfg(cfg, architecture, path):
    architecture.save(path)
    cfg = cfg.clone()
    cfg.merge_from_list(["NAS.ARCHITECTURE", str(path)])
    return cfg


R50 = [
    *("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone", "MODEL.RESNETS.DEPTH", 50),
    *("MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"], "MODEL.RESNETS.RES2_OUT_CHANNELS", 16),
    *(
        "MODEL.RESNETS.STEM_OUT_CHANNELS",
        8,
        "MODEL.RESNETS.WIDTH_PER_GROUP",
        4,
        "MODEL.RESNETS.NUM_GROUPS",
        2,
    ),
]
D2_MASK = ["MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead"]
D2_BOX = ["MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead"]
D2_SEM_SEG = ["MODEL.SEM_SEG_HEAD.NAME", "SemSegFPNHead", "MODEL.CROSS_ATTENTION.ENABLED", False]
DETECTRON2 = {
    "heads": D2_MASK + D2_BOX + D2_SEM_SEG,
    "heads with convolutions": [
        *(D2_MASK + D2_BOX + D2_SEM_SEG),
        *(
            "MODEL.ROI_BOX_HEAD.NUM_CONV",
            2,
            "MODEL.ROI_BOX_HEAD.CONV_DIM",
            32,
            "MODEL.ROI_BOX_HEAD.NORM",
            "GN",
        ),
        *("MODEL.ROI_MASK_HEAD.NORM", "BN", "MODEL.SEM_SEG_HEAD.NORM", ""),
    ],
    "R50": R50,
    "R50 stride in 3x3, BN, frozen": [
        *R50,
        *("MODEL.RESNETS.STRIDE_IN_1X1", False, "MODEL.RESNETS.NORM", "BN", "MODEL.BACKBONE.FREEZE_AT", 3),
    ],
    "R18": [
        *R50,
        "MODEL.RESNETS.DEPTH",
        18,
        "MODEL.RESNETS.NUM_GROUPS",
        1,
        "MODEL.RESNETS.RES2_OUT_CHANNELS",
        64,
    ],
    "all": ["MODEL.META_ARCHITECTURE", "PanopticFPN"] + R50 + D2_MASK + D2_BOX + D2_SEM_SEG,
    "D2 mask head": D2_MASK,
}
VARIANTS = {
    "plain": [],
    "four levels": ["FPN.NORM", "", "CROSS_ATTENTION.F2B_LEVELS", ["p3", "p4", "p5", "p6"]],
    "agnostic": ["ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True, "ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", True],
    "legacy": ["CROSS_ATTENTION.LEGACY_RATIO", True, "CROSS_ATTENTION.RATIOS", [4, 16]],
    "no attention": ["CROSS_ATTENTION.ENABLED", False, "ANCHOR_GENERATOR.ASPECT_RATIOS", [[1.0, 2.0]]],
    "no mask": ["MASK_ON", False, "ROI_BOX_HEAD.NUM_FC", 1],
    "panoptic fpn": ["META_ARCHITECTURE", "PanopticFPN", "SEM_SEG_HEAD.IN_FEATURES", ["p2", "p3", "p4"]],
    "depths": ["ROI_MASK_HEAD.NUM_CONV", 0, "SEM_SEG_HEAD.NUM_LAYERS", 3, "RPN.CONV_DIMS", [-1, 32]],
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_hooks_and_parameters_of_random_networks(variant, tmp_path):
    """26 random architectures of each of 8 networks: 208 in all."""
    options = [f"MODEL.{option}" if i % 2 == 0 else option for i, option in enumerate(VARIANTS[variant])]
    cfg = make_cfg("NAS.SPACE.HEAD_OPS", [*HEAD_OPS, "conv_3x3"], *options)
    space, rng = SearchSpace.from_config(cfg), np.random.default_rng(3)
    tables = network_cost_tables(space, Network.from_config(cfg), (40, 64), proposals=11, detections=3)
    supernet = make_model(cfg).eval()
    assert num_params(supernet) == tables.supernet_params
    seen = set()
    for i in range(26):
        architecture = space.random(rng)
        apply_architecture(supernet, architecture)
        with torch.no_grad():
            macs = run(supernet, (64, 64), proposals=11, detections=3)
        expected = Cost(macs, active_params(supernet))
        assert tables.cost(architecture) == expected
        assert sum(tables.breakdown(architecture).values(), Cost(0, 0)) == expected
        if i < 3:
            fixed = build_on_meta(fixed_cfg(cfg, architecture, tmp_path / "a.json"))
            assert num_params(fixed) == expected.params
        seen.add(expected)
    assert len(seen) > 20


@pytest.mark.parametrize("case", DETECTRON2)
def test_hooks_and_parameters_with_detectron2s_parts(case):
    cfg = make_cfg(*DETECTRON2[case])
    tables = network_cost_tables(
        SearchSpace.from_config(cfg), Network.from_config(cfg), (40, 96), proposals=7, detections=2
    )
    supernet = make_model(cfg).eval()
    assert num_params(supernet) == tables.supernet_params
    for seed in range(3):
        architecture = tables.space.random(np.random.default_rng(seed))
        apply_architecture(supernet, architecture)
        with torch.no_grad():
            macs = run(supernet, (64, 96), proposals=7, detections=2)
        assert tables.cost(architecture) == Cost(macs, active_params(supernet))


@pytest.mark.parametrize("width", ["1.3G", "3.8G"])
def test_hooks_and_parameters_at_the_papers_size(width, tmp_path):
    cfg = make_cfg("MODEL.SHUFFLENET.WIDTH", width, small=False)
    tables = cost_tables_from_config(cfg, size=(800, 1333))
    architecture = SPACE.random(np.random.default_rng(1))
    model = build_on_meta(fixed_cfg(cfg, architecture, tmp_path / "a.json"))
    macs = run(model, (800, 1344), proposals=1000, detections=100)
    assert tables.cost(architecture) == (macs, num_params(model))


@pytest.mark.slow
@pytest.mark.parametrize("path", CONFIG_FILES, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_parameters_of_every_shipped_config(path):
    cfg = make_cfg(config=path, small=False)
    name = cfg.NAS.ARCHITECTURE
    if name and not resolvable(name):
        cfg.NAS.ARCHITECTURE = name = ""  # a file that a search is yet to write
    tables = cost_tables_from_config(cfg)
    params = tables.supernet_params
    if name:
        params = tables.cost(Architecture.load(resolve_architecture_path(name), tables.space)).params
    assert params == num_params(build_on_meta(cfg))


def test_hooks_of_a_real_inference():
    """End to end on the CPU: nothing runs that the tables leave out, nothing runs twice."""
    cfg = make_cfg()
    model, space = make_model(cfg).eval(), SearchSpace.from_config(cfg)
    counter = Counter(model)
    regions = {}
    model.roi_heads.box_head.register_forward_hook(lambda m, x, y: regions.update(proposals=len(x[0])))
    deconv = model.roi_heads.mask_head.deconv
    deconv.register_forward_hook(lambda m, x, y: regions.update(detections=len(y)))
    rng = np.random.default_rng(0)
    for seed in range(3):
        architecture = space.random(rng)
        apply_architecture(model, architecture)
        counter.macs = 0
        with torch.no_grad():
            model([make_input(50, 96, seed=seed)])
        assert regions["proposals"] and regions["detections"]
        tables = network_cost_tables(space, Network.from_config(cfg), (50, 96), **regions)
        assert counter.macs == tables.cost(architecture).macs


def test_classifier_network():
    cfg = make_cfg("MODEL.META_ARCHITECTURE", "BackboneClassifier", "MODEL.CLASSIFIER.NUM_CLASSES", 7)
    assert cost_tables_from_config(cfg).mean == cost_tables_from_config(cfg, size=(224, 224)).mean
    tables = cost_tables_from_config(cfg, size=(70, 64))
    model = build_on_meta(cfg)
    assert num_params(model) == tables.supernet_params
    counter = Counter(model)
    architecture = tables.space.random(np.random.default_rng(0))
    apply_architecture(model, architecture)
    model.classifier(model.backbone["bottom_up"](torch.empty(1, 3, 70, 64, device="meta"))["res5"])
    assert counter.macs == tables.cost(architecture).macs
