"""Costs of whole networks: published numbers, enumeration, errors."""

import itertools
import statistics

import numpy as np
import pytest
from modeling_util import make_cfg

from auto_panoptic.errors import UserError
from auto_panoptic.space import (
    Architecture,
    ChoiceSite,
    CostTables,
    Network,
    SearchSpace,
    backbone_cost,
    cost_tables_from_config,
    network_cost_tables,
    resolve_architecture_path,
)
from auto_panoptic.space.detectron2_cost import resnet_cost
from auto_panoptic.space.network import Attention, MaskHead, ResNet, Rpn, SemSegHead
from auto_panoptic.space.network_cost import head_op_cost
from auto_panoptic.space.ops import op

SPACE = SearchSpace.default()
BACKBONE = SearchSpace(SPACE.sites[:40])
NAMES = {"COCO": "auto_panoptic_coco", "ADE": "auto_panoptic_ade20k", "DetNAS": "detnas_coco"}


def shipped(name):
    return Architecture.load(resolve_architecture_path(NAMES[name]))


# ---------------------------------------------------------------------------------------- published numbers


@pytest.mark.parametrize(
    "width, macs, params",
    [
        ("1.3G", (1016.0, 1219.2, 1534.8, 33.9), (8.26, 9.17, 11.37, 0.30)),
        ("3.8G", (3190.8, 3764.2, 4762.3, 105.4), (24.73, 27.43, 34.51, 0.98)),
    ],
)
def test_whole_backbone_space(width, macs, params):
    tables = network_cost_tables(BACKBONE, Network.backbone(width, classifier=True), (224, 224))
    found = [tables.minimum, tables.mean, tables.maximum, tables.standard_deviation]
    assert tuple(round(cost.macs / 1e6, 1) for cost in found) == macs
    assert tuple(round(cost.params / 1e6, 2) for cost in found) == params


@pytest.mark.parametrize(
    "width, name, macs, params, rounded",
    [
        ("1.3G", "COCO", 1152748128, 6825840, 1.2019),
        ("1.3G", "ADE", 1243855200, 7845360, 1.2930),
        ("1.3G", "DetNAS", 1269181536, 8415216, 1.3184),
        ("3.8G", "COCO", 3572432416, 21627126, 3.7205),
        ("3.8G", "ADE", 3842661536, 24951932, 3.9907),
        ("3.8G", "DetNAS", 3937832864, 26724428, 4.0859),
    ],
)
def test_published_backbones(width, name, macs, params, rounded):
    indices = shipped(name).indices()["backbone"]
    assert network_cost_tables(BACKBONE, Network.backbone(width), (224, 224)).cost(indices) == (macs, params)
    tables = network_cost_tables(BACKBONE, Network.backbone(width, classifier=True), (224, 224))
    assert round(tables.cost(indices).macs / 1e9, 4) == rounded


@pytest.mark.parametrize(
    "index, macs, params, with_classifier",
    [
        (0, 262705856, 1473488, 295842496),
        (1, 280518336, 1530576, 313654976),
        (2, 307237056, 1616208, 340373696),
        (3, 325689280, 2189424, 358825920),
    ],
)
def test_backbone_300m(index, macs, params, with_classifier):
    space = SearchSpace(SPACE.sites[:20])
    tables = network_cost_tables(space, Network.backbone("300M"), (224, 224))
    assert tables.cost([index] * 20) == (macs, params)
    tables = network_cost_tables(space, Network.backbone("300M", classifier=True), (224, 224))
    assert tables.cost([index] * 20).macs == with_classifier


def test_supernet_body():
    assert network_cost_tables(BACKBONE, Network.backbone("1.3G")).supernet_params == 28642008


@pytest.mark.parametrize(
    "name, params",
    [
        ("dwconv_3x3", (68864, 35712, 18048)),
        ("dwconv_5x5", (72960, 39808, 20096)),
        ("atconv_3x3", (590592, 295296, 147840)),
        ("atconv_5x5", (1639168, 819584, 409984)),
        ("dfconv_3x3", (652827, 357531, 178971)),
        ("dfconv_5x5", (2119243, 1299659, 650059)),
        ("conv_3x3", (590592, 295296, 147840)),
    ],
)
def test_head_operators(name, params):
    spec, channels = op(name), [(256, 256), (256, 128), (128, 128)]
    assert tuple(head_op_cost(spec, *c, 1).params for c in channels) == params
    # All weights but those of biases and GroupNorm act once per position.
    for c_in, c_out in channels:
        extra = {"dwconv": c_in + c_out, "dfconv": c_out + 3 * spec.kernel**2}.get(spec.kind, c_out)
        cost = head_op_cost(spec, c_in, c_out, 10)
        assert cost.macs == 10 * (cost.params - 2 * c_out - extra)


@pytest.mark.parametrize(
    "name, classes, mask, sem_seg, classifier",
    [("COCO", 54, 3435622, 1025638, 27702), ("ADE", 51, 4960177, 2128689, 26163)],
)
def test_published_heads(name, classes, mask, sem_seg, classifier):
    tables = network_cost_tables(SPACE, Network(sem_seg=SemSegHead(num_classes=classes)))
    parts = tables.breakdown(shipped(name))
    assert tables.fixed["sem_seg"].params == classifier
    assert parts["sem_seg"].params == sem_seg + classifier
    assert parts["mask"].params == mask + 4 * 256 * 256 + 256 + 256 * 80 + 80


FOUR, FIVE = (3, 4, 5, 6), (2, 3, 4, 5, 6)


@pytest.mark.parametrize(
    "name, levels, legacy, params",
    [
        ("COCO", FIVE, False, 283672),
        ("COCO", FOUR, False, 257048),
        ("ADE", FIVE, False, 287800),
        ("ADE", FOUR, False, 269368),
        ("COCO", FOUR, True, 292031),
        ("ADE", FOUR, True, 304351),
    ],
)
def test_published_attention(name, levels, legacy, params):
    tables = network_cost_tables(SPACE, Network(attention=Attention(levels, legacy)))
    attention = tables.breakdown(shipped(name))["attention"]
    assert attention.params == params


@pytest.mark.parametrize(
    "ratio, five, four, b2f", [(4, 45216, 37024, 49472), (8, 22672, 18576, 24864), (16, 11400, 9352, 12560)]
)
def test_attention_gates(ratio, five, four, b2f):
    for levels, f2b in ((FIVE, five), (FOUR, four)):
        tables = network_cost_tables(SPACE, Network(attention=Attention(levels)))
        rows = {site.name: row for site, row in zip(SPACE.sites, tables.sites, strict=True)}
        assert rows["attention.f2b.3"][f"r{ratio}"].params == f2b
        assert rows["attention.b2f.4"][f"r{ratio}"].params == b2f
        assert rows["attention.b2f.0"][f"r{ratio}"].macs == 2 * 256 // ratio * (512 + 256) // 2


# ------------------------------------------------------------------------------------------------ the tables


def test_moments_by_enumeration():
    network = Network(
        width=Network.backbone("300M").width,
        mask=MaskHead(num_layers=0),
        sem_seg=SemSegHead(num_layers=2),
        attention=None,
    )
    sites = [ChoiceSite(f"backbone.{i}", ("shuffle_3x3",)) for i in range(20)]
    sites[4] = ChoiceSite("backbone.4", ("shuffle_3x3", "shuffle_7x7", "xception_3x3"))
    sites[5] = ChoiceSite("backbone.5", ("xception_3x3", "shuffle_5x5"))
    sites += [
        ChoiceSite(f"sem_seg.{i}", ("dwconv_3x3", "dfconv_3x3", "atconv_5x5", "conv_3x3")) for i in (0, 1)
    ]
    space = SearchSpace(tuple(sites))
    tables = network_cost_tables(space, network, (64, 64))
    costs = [
        tables.cost(space.architecture(choices))
        for choices in itertools.product(*(s.names for s in space.sites))
    ]
    assert len(costs) == space.cardinality == 96
    for i in range(2):
        values = [cost[i] for cost in costs]
        assert (tables.minimum[i], tables.maximum[i]) == (min(values), max(values))
        assert tables.mean[i] == statistics.mean(map(float, values))
        assert tables.standard_deviation[i] == pytest.approx(statistics.pstdev(values), rel=1e-12)
    assert (tables.minimum.macs, tables.minimum.params) == tuple(map(min, zip(*costs, strict=True)))


def test_every_form_of_an_architecture():
    tables = network_cost_tables(SPACE, Network())
    architecture = SPACE.random(np.random.default_rng(4))
    lists = architecture.indices()
    flat = [site.index(name) for site, name in zip(SPACE.sites, architecture.choices, strict=True)]
    forms = [lists, {**lists, "head": np.array(lists["head"])}, flat, tuple(flat), np.array(flat)]
    flipped = SearchSpace.from_dict({site: ops[::-1] for site, ops in reversed(SPACE.to_dict().items())})
    forms += [flipped.architecture(architecture), SearchSpace.from_dict(SPACE.to_dict()).architecture(flat)]
    expected = tables.cost(architecture)
    assert [tables.cost(form) for form in forms] == [expected] * len(forms)
    assert [tables.breakdown(form) for form in (flat, lists)] == [tables.breakdown(architecture)] * 2
    reversed_tables = CostTables(
        flipped, tables.fixed, {site.name: row for site, row in zip(SPACE.sites, tables.sites, strict=True)}
    )
    assert reversed_tables.cost(architecture) == expected
    assert (
        reversed_tables.cost(
            [len(site.ops) - 1 - site.index(architecture[site.name].name) for site in SPACE.sites][::-1]
        )
        == expected
    )
    assert reversed_tables.cost(flipped.architecture(architecture).indices()) == expected


def test_backbone_part_equals_backbone_cost():
    tables = network_cost_tables(SPACE, Network(), (800, 1344))
    for seed in range(5):
        architecture = SPACE.random(np.random.default_rng(seed))
        assert tables.breakdown(architecture)["backbone"] == backbone_cost(architecture, size=(800, 1344))


@pytest.mark.parametrize(
    "choice, message",
    [
        ([0] * 55, "55 choices for 56 sites"),
        ([0] * 55 + [3], "site 'attention.b2f.4' has index 3: expected 0..2"),
        ([-1] + [0] * 55, "site 'backbone.0' has index -1"),
        ([0.0] + [0] * 55, "site 'backbone.0' has index 0.0"),
        ([True] + [0] * 55, "site 'backbone.0' has index True"),
        ({"backbone": [0] * 40, "head": [0] * 6, "inter": [0] * 9}, "'head' has 6 indices: expected 7"),
        ({"backbone": [0] * 40, "head": [0] * 7, "inter": [0] * 9, "x": []}, "unknown index list 'x'"),
        ({"backbone": [0] * 40, "head": [6] * 7, "inter": [0] * 9}, "site 'mask.0' has index 6"),
        (BACKBONE.architecture([0] * 40), "site 'mask.0' has no operator"),
    ],
)
def test_cost_of_no_architecture(choice, message):
    with pytest.raises(UserError, match=message):
        network_cost_tables(SPACE, Network()).cost(choice)


def test_space_of_another_network():
    with pytest.raises(UserError, match="only in the second: mask.0, .*from one config"):
        network_cost_tables(SPACE, Network.backbone())
    with pytest.raises(UserError, match="only in the first: attention.b2f.0, attention.b2f.1"):
        network_cost_tables(SearchSpace(SPACE.sites[:51]), Network())
    with pytest.raises(UserError, match="only in the second: attention.b2f.4;"):
        network_cost_tables(SPACE, Network(rpn=Rpn(levels=(2, 3, 4, 5))))
    wrong = SearchSpace.from_dict({**SPACE.to_dict(), "mask.2": ["r4"]})
    with pytest.raises(UserError, match="site 'mask.2' has operators of 'inter': expected those of 'head'"):
        network_cost_tables(wrong, Network())


R50 = ["MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone"]


@pytest.mark.parametrize(
    "options, message",
    [
        (["MODEL.BACKBONE.NAME", "build_retinanet_resnet_fpn_backbone"], "MODEL.BACKBONE.NAME is 'build_ret"),
        (["MODEL.META_ARCHITECTURE", "RetinaNet"], "MODEL.META_ARCHITECTURE is 'RetinaNet'.*AutoPanopticFPN"),
        (["MODEL.ROI_HEADS.NAME", "CascadeROIHeads"], "MODEL.ROI_HEADS.NAME is 'CascadeROIHeads'"),
        (["MODEL.ROI_BOX_HEAD.NAME", "MyHead"], "MODEL.ROI_BOX_HEAD.NAME is"),
        (["MODEL.ROI_MASK_HEAD.NAME", "MyHead"], "ROI_MASK_HEAD.NAME is .*MaskRCNNConvUpsampleHead"),
        (["MODEL.SEM_SEG_HEAD.NAME", "MyHead"], "SEM_SEG_HEAD.NAME is"),
        ([*R50, "MODEL.RESNETS.DEFORM_ON_PER_STAGE", [False, True, True, True]], "DEFORM_ON_PER_STAGE"),
        ([*R50, "MODEL.RESNETS.RES5_DILATION", 2], "RES5_DILATION"),
        (["MODEL.CROSS_ATTENTION.F2B_LEVELS", ["res", "p3"]], "feature 'res': expected names such as p2"),
    ],
)
def test_parts_whose_cost_is_unknown(options, message):
    with pytest.raises(UserError, match=message):
        cost_tables_from_config(make_cfg(*options))


@pytest.mark.parametrize("stride_in_1x1, macs", [(True, 3856), (False, 4087)])
def test_resnet_50(stride_in_1x1, macs):
    """The usual figures: 23.51 M parameters without the classifier; per 224 x 224 image."""
    resnet = ResNet(norm="BN", freeze_at=0, stride_in_1x1=stride_in_1x1)
    cost = resnet_cost(resnet, (224, 224))
    assert (round(cost.macs / 1e6), round(cost.params / 1e6, 2)) == (macs, 23.51)
    if not stride_in_1x1:
        assert round(resnet_cost(resnet, (800, 800)).macs / 1e9, 1) == 52.1
