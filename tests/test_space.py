import numpy as np
import pytest
from fvcore.common.config import CfgNode as CN

from auto_panoptic.config import add_auto_panoptic_config
from auto_panoptic.errors import UserError
from auto_panoptic.space import (
    BACKBONE_OPS,
    HEAD_OPS,
    INTER_OPS,
    WIDTHS,
    ChoiceSite,
    OpSpec,
    SearchSpace,
    Width,
    configured_ops,
    op,
    ratio_op,
    width_from_config,
)


def make_cfg(*opts):
    """The keys that the space reads, without detectron2."""
    cfg = CN({"DATASETS": {}, "TEST": {}, "INPUT": {}, "SOLVER": {"AMP": {}}})
    cfg.MODEL = CN({"META_ARCHITECTURE": "AutoPanopticFPN", "MASK_ON": True, "PANOPTIC_FPN": {"COMBINE": {}}})
    cfg.MODEL.BACKBONE = CN({"NAME": "build_shufflenet_fpn_backbone"})
    cfg.MODEL.ROI_MASK_HEAD = CN({"NAME": "SearchableMaskHead", "NUM_CONV": 4})
    cfg.MODEL.SEM_SEG_HEAD = CN({"NAME": "SearchableSemSegFPNHead", "IN_FEATURES": ["p2", "p3", "p4", "p5"]})
    cfg.MODEL.RPN = CN({"IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"]})
    add_auto_panoptic_config(cfg)
    cfg.merge_from_list(list(opts))
    return cfg


def test_default_space_is_the_papers():
    space = SearchSpace.default()
    assert space.cardinality == 6661157435730850509060737951858688 == 4**40 * 6**7 * 3**9
    assert space.cycle_length == 12
    assert [len(space.group(g)) for g in ("backbone", "head", "inter")] == [40, 7, 9]
    names = [site.name for site in space.sites]
    assert names == (
        [f"backbone.{i}" for i in range(40)]
        + [f"mask.{i}" for i in range(4)]
        + [f"sem_seg.{i}" for i in range(3)]
        + [f"attention.f2b.{i}" for i in range(4)]
        + [f"attention.b2f.{i}" for i in range(5)]
    )


def test_operators_in_published_order_with_attributes():
    def rows(ops):
        return [(o.name, o.kind, o.kernel, o.ratio) for o in ops]

    assert rows(BACKBONE_OPS) == [
        ("shuffle_3x3", "shuffle", 3, 0),
        ("shuffle_5x5", "shuffle", 5, 0),
        ("shuffle_7x7", "shuffle", 7, 0),
        ("xception_3x3", "xception", 3, 0),
    ]
    assert rows(HEAD_OPS) == [
        ("dwconv_3x3", "dwconv", 3, 0),
        ("dwconv_5x5", "dwconv", 5, 0),
        ("dfconv_3x3", "dfconv", 3, 0),
        ("dfconv_5x5", "dfconv", 5, 0),
        ("atconv_3x3", "atconv", 3, 0),
        ("atconv_5x5", "atconv", 5, 0),
    ]
    assert rows(INTER_OPS) == [("r4", "se", 0, 4), ("r8", "se", 0, 8), ("r16", "se", 0, 16)]
    assert op("r16") == INTER_OPS[2] and op("r16").ratio == 16
    assert op("r6") == ratio_op(6) == OpSpec("r6", "se", ratio=6)
    assert op("conv_3x3") == OpSpec("conv_3x3", "conv", kernel=3)


@pytest.mark.parametrize(
    "name", ["", "r", "r0", "r04", "r-4", "r4.0", "r٤", "conv", "Shuffle_3x3", None, 3, ["r4"]]
)
def test_unknown_operator_lists_the_known(name):
    with pytest.raises(
        UserError, match=r"unknown operator .*shuffle_3x3.*atconv_5x5.*r16.*conv_3x3.*r<ratio>"
    ):
        op(name)


@pytest.mark.parametrize("ratio", [0, -1, 4.0, "4", True])
def test_bad_ratio(ratio):
    with pytest.raises(UserError, match="reduction ratio"):
        ratio_op(ratio)


def test_site_rejects_bad_domains():
    for ops, message in [
        ((), "has no operator"),
        (("r4", "r4"), "twice"),
        (("r4", "conv_3x3"), "mixes operators"),
        ("r4", "expected a list"),
        (4, "expected a list"),
        (("r4", 8), "unknown operator 8"),
    ]:
        with pytest.raises(UserError, match=message):
            ChoiceSite("attention.f2b.0", ops)
    with pytest.raises(UserError, match="site name"):
        ChoiceSite("", ("r4",))
    assert ChoiceSite("a", ["r4", "r8"]) == ChoiceSite("a", INTER_OPS[:2])


def test_space_without_sites():
    space = SearchSpace(())
    assert (space.cardinality, space.cycle_length, space.parts) == (1, 1, ())
    assert SearchSpace.from_dict(space.to_dict()) == space
    assert space.random(np.random.default_rng(0)).names() == {}
    assert space.difference(SearchSpace.default()).startswith("only in the second: backbone.0, ")
    with pytest.raises(UserError, match="no site 'mask.0' in the search space: it has none"):
        space.site("mask.0")


def test_space_rejects_repeated_sites():
    with pytest.raises(UserError, match="'a' twice"):
        SearchSpace((ChoiceSite("a", INTER_OPS), ChoiceSite("a", HEAD_OPS)))
    with pytest.raises(UserError, match="no site 'mask.4' in the search space: it has backbone.0..39"):
        SearchSpace.default().site("mask.4")


def test_spaces_are_values():
    a, b = SearchSpace.default(), SearchSpace.default()
    assert a == b and hash(a) == hash(b) and a.fingerprint == b.fingerprint and a.difference(b) == ""
    assert SearchSpace.from_dict(a.to_dict()) == a
    reordered = dict(a.to_dict(), **{"mask.1": a.to_dict()["mask.1"][::-1]})
    c = SearchSpace.from_dict(reordered)
    assert c != a and c.fingerprint != a.fingerprint
    assert c.difference(a).startswith("operators of mask.1 differ, e.g. mask.1: atconv_5x5, ")
    assert a.fingerprint == "346a4725bed1"  # written in files: must not change


def test_difference_names_missing_sites():
    a = SearchSpace.default()
    b = SearchSpace(a.sites[:-9])
    assert a.difference(b) == (
        "only in the first: attention.f2b.0, attention.f2b.1, attention.f2b.2 and 6 more"
    )
    assert b.difference(a) == a.difference(b).replace("first", "second")
    assert SearchSpace(a.sites[::-1]).difference(a) == "the sites are the same but in another order"


def test_random_is_uniform_and_reproducible():
    space = SearchSpace.default()
    draws = [space.random(np.random.default_rng(7)) for _ in range(2)]
    assert draws[0] == draws[1]
    rng = np.random.default_rng(0)
    counts = np.zeros(6, dtype=int)
    for _ in range(600):
        counts[space.random(rng).indices()["head"][3]] += 1
    # Binomial(600, 1/6): mean 100, standard deviation 9.1; five of them.
    assert counts.sum() == 600 and abs(counts - 100).max() < 46


def test_from_config_default_is_the_papers_space():
    assert SearchSpace.from_config(make_cfg()) == SearchSpace.default()


@pytest.mark.parametrize(
    "opts, counts",
    [
        (["MODEL.SHUFFLENET.WIDTH", "300M"], (20, 7, 9)),
        (["MODEL.SHUFFLENET.WIDTH", "3.8G"], (40, 7, 9)),
        (["MODEL.SHUFFLENET.WIDTH", "custom", "MODEL.SHUFFLENET.STAGE_REPEATS", [1, 2, 3, 1]], (7, 7, 9)),
        (["MODEL.MASK_ON", False], (40, 3, 9)),
        (["MODEL.ROI_MASK_HEAD.NUM_CONV", 2, "MODEL.SEM_SEG_HEAD.NUM_LAYERS", 1], (40, 3, 9)),
        (["MODEL.CROSS_ATTENTION.ENABLED", False], (40, 7, 0)),
        (["MODEL.RPN.IN_FEATURES", ["p2", "p3"], "MODEL.SEM_SEG_HEAD.IN_FEATURES", ["p2"]], (40, 7, 3)),
    ],
)
def test_from_config_counts_sites(opts, counts):
    space = SearchSpace.from_config(make_cfg(*opts))
    assert tuple(len(space.group(g)) for g in ("backbone", "head", "inter")) == counts


def test_from_config_domains():
    cfg = make_cfg(
        *("NAS.SPACE.BACKBONE_OPS", ["xception_3x3", "shuffle_5x5"]),
        *("NAS.SPACE.HEAD_OPS", ["conv_3x3"]),
        *("MODEL.CROSS_ATTENTION.RATIOS", [4, 8, 6]),
    )
    space = SearchSpace.from_config(cfg)
    assert space.site("backbone.7").names == ("xception_3x3", "shuffle_5x5")
    assert space.site("mask.0").names == space.site("sem_seg.2").names == ("conv_3x3",)
    assert [o.ratio for o in space.site("attention.b2f.4").ops] == [4, 8, 6]
    assert space.cycle_length == 6
    assert configured_ops(cfg) == {site.name: site.ops for site in space.sites}


R50 = ["MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone"]
D2_MASK = ["MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead"]
D2_SEM_SEG = ["MODEL.SEM_SEG_HEAD.NAME", "SemSegFPNHead"]
NO_ATTENTION = ["MODEL.CROSS_ATTENTION.ENABLED", False]


def meta(name):
    return ["MODEL.META_ARCHITECTURE", name]


@pytest.mark.parametrize(
    "opts, parts",
    [
        ([], "backbone mask sem_seg attention"),
        (R50, "mask sem_seg attention"),
        (["MODEL.BACKBONE.NAME", "build_shufflenet_backbone"], "backbone mask sem_seg attention"),
        (D2_MASK, "backbone sem_seg attention"),
        (["MODEL.MASK_ON", False], "backbone sem_seg attention"),
        (NO_ATTENTION, "backbone mask sem_seg"),
        # Detectron2's own meta-architecture has no attention, whatever the key says.
        (meta("PanopticFPN"), "backbone mask sem_seg"),
        (meta("PanopticFPN") + D2_SEM_SEG, "backbone mask"),
        (meta("PanopticFPN") + D2_MASK + D2_SEM_SEG, "backbone"),
        (meta("PanopticFPN") + R50 + D2_MASK + D2_SEM_SEG, ""),
        (meta("GeneralizedRCNN"), "backbone mask"),
        (meta("SemanticSegmentor"), "backbone sem_seg"),
        (meta("BackboneClassifier"), "backbone"),
        (meta("BackboneClassifier") + ["MODEL.BACKBONE.NAME", "build_shufflenet_backbone"], "backbone"),
        (meta("BackboneClassifier") + ["MODEL.BACKBONE.NAME", "build_resnet_backbone"], ""),
    ],
)
def test_from_config_holds_the_parts_that_are_ours(opts, parts):
    space = SearchSpace.from_config(make_cfg(*opts))
    assert space.parts == tuple(parts.split())
    assert space.sites == tuple(
        s for s in SearchSpace.default().sites if s.name.split(".")[0] in parts.split()
    )
    assert space.cardinality > 1 or space == SearchSpace(())


@pytest.mark.parametrize(
    "opts, message",
    [
        (
            ["NAS.SPACE.HEAD_OPS", ["shuffle_3x3"]],
            "NAS.SPACE.HEAD_OPS has 'shuffle_3x3': expected head operators",
        ),
        (["NAS.SPACE.BACKBONE_OPS", []], "NAS.SPACE.BACKBONE_OPS is .*at least one"),
        (["NAS.SPACE.BACKBONE_OPS", ["shuffle_3x3"] * 2], "NAS.SPACE.BACKBONE_OPS is .*each once"),
        (
            ["MODEL.SHUFFLENET.WIDTH", "2G"],
            "MODEL.SHUFFLENET.WIDTH is '2G': expected one of 300M, 1.3G, 3.8G",
        ),
        (["MODEL.CROSS_ATTENTION.RATIOS", [0]], "reduction ratio 0"),
        (
            ["MODEL.SHUFFLENET.WIDTH", "custom", "MODEL.SHUFFLENET.STAGE_CHANNELS", [96, 240, 481, 960]],
            r"STAGE_CHANNELS\[2\] is 481: expected an even number greater than the 240",
        ),
        (
            ["MODEL.SHUFFLENET.WIDTH", "custom", "MODEL.SHUFFLENET.STAGE_REPEATS", [8, 8, 16]],
            r"STAGE_REPEATS is \[8, 8, 16\]: expected four integers",
        ),
    ],
)
def test_from_config_errors(opts, message):
    with pytest.raises(UserError, match=message):
        SearchSpace.from_config(make_cfg(*opts))


def test_widths():
    assert WIDTHS["1.3G"] == Width(48, (96, 240, 480, 960), (8, 8, 16, 8), 1024)
    assert WIDTHS["3.8G"] == Width(72, (172, 432, 864, 1728), (8, 8, 16, 8), 1728)
    assert WIDTHS["300M"] == Width(16, (64, 160, 320, 640), (4, 4, 8, 4), 1024)
    cfg = make_cfg(
        *("MODEL.SHUFFLENET.WIDTH", "custom", "MODEL.SHUFFLENET.STEM_CHANNELS", 8),
        *(
            "MODEL.SHUFFLENET.STAGE_CHANNELS",
            [16, 32, 64, 96],
            "MODEL.SHUFFLENET.STAGE_REPEATS",
            [1, 1, 2, 1],
        ),
    )
    width = width_from_config(cfg)
    assert width == Width(8, (16, 32, 64, 96), (1, 1, 2, 1)) and width.num_layers == 5
    assert width.blocks() == [(8, 16, 2), (16, 32, 2), (32, 64, 2), (64, 64, 1), (64, 96, 2)]
