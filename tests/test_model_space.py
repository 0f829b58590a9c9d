"""The search space is what the built model holds, in its order; NAS.ARCHITECTURE fixes it in a new model."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import META_ARCH_REGISTRY
from modeling_util import make_cfg

from auto_panoptic import files
from auto_panoptic.errors import UserError
from auto_panoptic.modeling import Choices, choice_blocks, configured_space, meta_model, space_of
from auto_panoptic.modeling.extract import extract
from auto_panoptic.space import Architecture, SearchSpace, op, resolve_architecture_path

R50 = [
    *("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone"),
    *("MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"]),
]
D2_MASK = ["MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead"]
D2_SEM_SEG = ["MODEL.SEM_SEG_HEAD.NAME", "SemSegFPNHead"]
WHOLE = make_cfg()
SPACE = configured_space(WHOLE)


def test_the_paper():
    assert configured_space(make_cfg(small=False)) == SearchSpace.default()


@pytest.mark.parametrize(
    "options, counts",
    [
        (["MODEL.SHUFFLENET.STAGE_REPEATS", [1, 2, 3, 1]], (7, 4, 9)),
        (["MODEL.MASK_ON", False], (5, 2, 9)),
        (["MODEL.ROI_MASK_HEAD.NUM_CONV", 3, "MODEL.SEM_SEG_HEAD.NUM_LAYERS", 1], (5, 4, 9)),
        (["MODEL.CROSS_ATTENTION.ENABLED", False], (5, 4, 0)),
        (["MODEL.SEM_SEG_HEAD.IN_FEATURES", ["p2"]], (5, 4, 6)),
    ],
)
def test_numbers_of_sites(options, counts):
    space = configured_space(make_cfg(*options))
    assert tuple(len(space.group(g)) for g in ("backbone", "head", "inter")) == counts


def test_domains():
    cfg = make_cfg(
        *("NAS.SPACE.BACKBONE_OPS", ["xception_3x3", "shuffle_5x5"]),
        *("NAS.SPACE.HEAD_OPS", ["conv_3x3"]),
        *("MODEL.CROSS_ATTENTION.RATIOS", [4, 8, 6]),
    )
    space = SearchSpace.from_config(cfg)
    assert space.site("backbone.4").names == ("xception_3x3", "shuffle_5x5")
    assert space.site("mask.0").names == space.site("sem_seg.1").names == ("conv_3x3",)
    assert [o.ratio for o in space.site("attention.b2f.4").ops] == [4, 8, 6]
    assert space.cycle_length == 6


def test_operators_of_single_sites():
    sites = [["mask.*", ["conv_3x3", "identity"]], ["mask.1", ["atconv_3x3"]], ["backbone.3", ["skip"]]]
    space = configured_space(make_cfg("NAS.SPACE.SITES", sites))
    names = {site.name: site.names for site in space.sites}
    others = {site.name: site.names for site in SPACE.sites}
    changed = {"mask.0": ("conv_3x3", "identity"), "mask.1": ("atconv_3x3",), "backbone.3": ("skip",)}
    assert names == others | changed


@pytest.mark.parametrize(
    "sites, message",
    [
        ([["mask.7", ["conv_3x3"]]], "NAS.SPACE.SITES has 'mask.7', which fits no site of this model"),
        ([["mask.0", ["shuffle_3x3"]]], "site 'mask.0', has 'shuffle_3x3': expected head operators"),
        ([["mask.0", []]], "expected at least one operator"),
        ([["mask.0", ["conv_3x3", "conv_3x3"]]], "each once"),
        ([["mask.0"]], "expected pairs such as"),
        ([["mask.0", "conv_3x3"]], "expected pairs such as"),
        (["mask.0", "conv_3x3"], "expected pairs such as"),
        ([["backbone.0", ["skip"]]], "a block of stride 2 cannot be skipped"),
    ],
)
def test_operators_of_single_sites_are_refused(sites, message):
    with pytest.raises(UserError, match=re.escape(message)):
        configured_space(make_cfg("NAS.SPACE.SITES", sites))


def meta(name):
    return ["MODEL.META_ARCHITECTURE", name]


@pytest.mark.parametrize(
    "options, parts",
    [
        ([], "backbone mask sem_seg attention"),
        (R50, "mask sem_seg attention"),
        (D2_MASK, "backbone sem_seg attention"),
        # Detectron2's own meta-architecture has no attention, whatever the key says.
        (meta("PanopticFPN"), "backbone mask sem_seg"),
        (meta("PanopticFPN") + D2_SEM_SEG, "backbone mask"),
        (meta("PanopticFPN") + R50 + D2_MASK + D2_SEM_SEG, ""),
        (meta("GeneralizedRCNN"), "backbone mask"),
        (meta("SemanticSegmentor"), "backbone sem_seg"),
        (meta("BackboneClassifier"), "backbone"),
        (meta("BackboneClassifier") + ["MODEL.BACKBONE.NAME", "build_resnet_backbone"], ""),
    ],
)
def test_a_fixed_model_has_the_parts_that_are_searched(options, parts, tmp_path):
    """A file of the whole network serves it, and its space is that of its supernet."""
    sites = tuple(s for s in SPACE.sites if s.part in parts.split())
    assert configured_space(make_cfg(*options)) == SearchSpace(sites)
    architecture = SPACE.random(np.random.default_rng(0))
    architecture.save(tmp_path / "a.json")
    model = meta_model(make_cfg("NAS.ARCHITECTURE", str(tmp_path / "a.json"), *options))
    assert space_of(model) == SearchSpace(sites)
    assert {site: list(block.candidates) for site, block in choice_blocks(model).items()} == {
        site.name: [architecture[site.name].name] for site in sites
    }


def test_an_extracted_model_keeps_its_space():
    supernet = meta_model(WHOLE)
    assert space_of(extract(supernet, SPACE.random(np.random.default_rng(0)))) == SPACE


def test_the_model_on_the_meta_device_draws_no_random_number():
    before = torch.random.get_rng_state()
    model = meta_model(WHOLE)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(p.is_meta for p in model.parameters())
    assert WHOLE.MODEL.DEVICE == "cpu"


READINGS = [torch.Tensor.item, float, bool, torch.Tensor.numpy, torch.Tensor.cpu]


class ReadsValues(torch.nn.Module):
    """As vision transformers do: drop rates that are items of a tensor."""

    def __init__(self, cfg):
        super().__init__()
        READINGS[cfg.SEED](torch.ones(()))
        self.gate = Choices.from_config(cfg)("gate", [op("r4"), op("r8")], lambda _: torch.nn.Linear(1, 1))


@pytest.mark.parametrize("reading", range(len(READINGS)))
def test_a_model_that_reads_values_is_built_all_the_same(reading, monkeypatch):
    monkeypatch.setitem(META_ARCH_REGISTRY._obj_map, "ReadsValues", ReadsValues)
    before = torch.random.get_rng_state()
    model = meta_model(make_cfg(*meta("ReadsValues"), "SEED", reading))
    assert space_of(model).to_dict() == {"gate": ["r4", "r8"]}
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    "options, message",
    [
        (["NAS.SPACE.HEAD_OPS", ["shuffle_3x3"]], "NAS.SPACE.HEAD_OPS has 'shuffle_3x3': expected head op"),
        (["NAS.SPACE.BACKBONE_OPS", []], "NAS.SPACE.BACKBONE_OPS is .*at least one"),
        (
            ["MODEL.SHUFFLENET.WIDTH", "2G"],
            "MODEL.SHUFFLENET.WIDTH is '2G'; expected one of 300M, 1.3G, 3.8G",
        ),
        (["MODEL.CROSS_ATTENTION.RATIOS", [0]], "reduction ratio 0"),
        (
            ["MODEL.SHUFFLENET.STAGE_CHANNELS", [16, 32, 33, 64]],
            "cannot be built: a stride-2 block cannot go from 32 to 33 channels; they must be even",
        ),
        (["MODEL.SHUFFLENET.STAGE_REPEATS", [8, 8, 16]], "cannot be built: .* shorter than"),
        (["MODEL.ROI_MASK_HEAD.CONV_DIM", 48], "cannot be built: .*GroupNorm needs a multiple of 32"),
        (["MODEL.RPN.IN_FEATURES", ["p2"]], "cannot be built: "),
        (meta("Nothing"), "cannot be built: .*Nothing"),
        (["MODEL.DEVICE", "abacus"], "cannot be built: .*device"),
    ],
)
def test_a_model_that_cannot_be_built_is_one_line(options, message):
    with pytest.raises(UserError, match=message) as error:
        configured_space(make_cfg(*options))
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------ the file of a fixed model


def save(path, **changes):
    """An architecture file of SPACE, its sites changed; None removes one."""
    names = {**SPACE.architecture([0] * len(SPACE.sites)).names(), **changes}
    path.write_text(json.dumps({"sites": {site: name for site, name in names.items() if name}}))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"mask.1": None}, "another search space: it says nothing about site 'mask.1'"),
        ({"mask.1": "r4"}, "site 'mask.1' has operator 'r4': expected one of dwconv_3x3"),
        ({"backbone.5": "shuffle_3x3"}, r"it has 6 sites backbone.\*, this model 5"),
        ({"attention.b2f.5": "r4"}, r"it has 6 sites attention.b2f.\*, this model 5"),
    ],
)
def test_a_file_of_another_space_is_refused(changes, message, tmp_path):
    save(tmp_path / "a.json", **changes)
    with pytest.raises(UserError, match=f"a.json: .*{message}"):
        meta_model(make_cfg("NAS.ARCHITECTURE", str(tmp_path / "a.json")))


def test_a_published_file_fits_any_width():
    architecture = Architecture.load(resolve_architecture_path("auto_panoptic_coco"))
    options = ("NAS.ARCHITECTURE", "auto_panoptic_coco", "MODEL.SHUFFLENET.WIDTH")
    blocks = choice_blocks(meta_model(make_cfg(*options, "3.8G", small=False)))
    assert {site: list(block.candidates) for site, block in blocks.items()} == {
        site: [name] for site, name in architecture.names().items()
    }
    with pytest.raises(UserError, match="auto_panoptic_coco.json: an architecture of another search space"):
        meta_model(make_cfg(*options, "300M", small=False))


def test_the_file_is_read_once_for_a_model(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    save(path)
    reads = []
    monkeypatch.setattr(files, "read_bytes", lambda p: reads.append(p) or Path(p).read_bytes())
    meta_model(make_cfg("NAS.ARCHITECTURE", str(path)))
    assert reads == [path]


def test_choices_of_single_sites():
    ops = (op("r4"), op("r8"))
    block = Choices()("gate", ops, lambda spec: torch.nn.Linear(1, spec.ratio))
    assert list(block.candidates) == ["r4", "r8"] and block.ops == ops and block.active == "r4"
    block = Choices({"gate": "r8", "other": "r4"})("gate", ops, lambda spec: torch.nn.Linear(1, spec.ratio))
    assert list(block.candidates) == ["r8"] and block.ops == ops
    with pytest.raises(UserError, match="site 'gate' has no operator"):
        Choices()("gate", (), torch.nn.Identity)
