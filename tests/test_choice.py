"""ChoiceBlock, apply_architecture and extract."""

import numpy as np
import pytest
import torch
from modeling_util import (
    assert_same_outputs,
    inference,
    make_cfg,
    make_input,
    make_model,
    num_params,
    training_losses,
)
from torch import nn

from auto_panoptic.errors import UserError
from auto_panoptic.modeling import ChoiceBlock, apply_architecture, choice_blocks
from auto_panoptic.modeling.extract import extract
from auto_panoptic.space import SearchSpace


class Times(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(float(factor)))

    def forward(self, x, plus=0):
        return x * self.factor + plus


def random_architecture(cfg, seed=0):
    return SearchSpace.from_config(cfg).random(np.random.default_rng(seed))


@pytest.fixture
def cfg():
    return make_cfg()


@pytest.fixture
def supernet(cfg):
    return make_model(cfg)


def test_first_candidate_is_active_until_another_is_selected():
    block = ChoiceBlock("mask.0", {"dwconv_5x5": Times(2), "dwconv_3x3": Times(3)})
    assert (block.site, block.active) == ("mask.0", "dwconv_5x5")
    assert [spec.kernel for spec in block.ops] == [5, 3]
    assert block(torch.tensor(5.0)) == 10
    block.select("dwconv_3x3")
    assert block.active == "dwconv_3x3"
    assert block(torch.tensor(5.0), 1) == 16
    assert list(block.state_dict()) == ["candidates.dwconv_5x5.factor", "candidates.dwconv_3x3.factor"]


def test_only_the_active_candidate_gets_gradients():
    block = ChoiceBlock("mask.0", {"r4": Times(2), "r8": Times(3)})
    block.select("r8")
    block(torch.tensor(5.0)).backward()
    assert block.candidates["r4"].factor.grad is None
    assert block.candidates["r8"].factor.grad == 5


def test_block_errors():
    with pytest.raises(ValueError, match="'mask.0' has no operator"):
        ChoiceBlock("mask.0", {})
    with pytest.raises(UserError, match="unknown operator 'a'"):
        ChoiceBlock("mask.0", {"a": Times(2)})
    block = ChoiceBlock("mask.0", {"r4": Times(2)})
    with pytest.raises(UserError, match=r"'mask.0' has no operator 'c'; this model holds \['r4'\]"):
        block.select("c")
    with pytest.raises(ValueError, match="two blocks of the model claim the site 'mask.0'"):
        choice_blocks(nn.ModuleList([block, ChoiceBlock("mask.0", {"r4": Times(2)})]))


def test_sites_of_the_model_are_those_of_the_space(cfg, supernet):
    space = SearchSpace.from_config(cfg)
    blocks = choice_blocks(supernet)
    assert set(blocks) == {site.name for site in space.sites}
    for site in space.sites:
        assert list(blocks[site.name].candidates) == list(site.names)


def test_apply_architecture(cfg, supernet):
    for seed in (0, 1):
        architecture = random_architecture(cfg, seed)
        apply_architecture(supernet, architecture)
        assert {site: b.active for site, b in choice_blocks(supernet).items()} == architecture.names()


def test_apply_architecture_of_another_space_changes_nothing(cfg, supernet):
    before = {site: block.active for site, block in choice_blocks(supernet).items()}
    other = random_architecture(make_cfg("MODEL.ROI_MASK_HEAD.NUM_CONV", 3))
    with pytest.raises(UserError, match="the model has no mask.2"):
        apply_architecture(supernet, other)
    other = random_architecture(make_cfg("MODEL.CROSS_ATTENTION.ENABLED", False))
    with pytest.raises(UserError, match="says nothing about attention.f2b.0,.* and 6 more"):
        apply_architecture(supernet, other)
    # The unknown operator is at the last site; the first ones must not have been switched by then.
    other = random_architecture(make_cfg("MODEL.CROSS_ATTENTION.RATIOS", [32]), seed=3)
    with pytest.raises(UserError, match="has no operator 'r32'"):
        apply_architecture(supernet, other)
    assert {site: block.active for site, block in choice_blocks(supernet).items()} == before


def test_gradients_reach_exactly_the_path(cfg, supernet):
    architecture = random_architecture(cfg)
    apply_architecture(supernet, architecture)
    sum(training_losses(supernet, [make_input()]).values()).backward()
    others = {
        id(p)
        for site, block in choice_blocks(supernet).items()
        for name, candidate in block.candidates.items()
        if name != architecture[site].name
        for p in candidate.parameters()
    }
    for name, parameter in supernet.named_parameters():
        assert (parameter.grad is None) == (id(parameter) in others), name


def test_running_statistics_change_only_on_the_path(cfg, supernet):
    architecture = random_architecture(cfg)
    apply_architecture(supernet, architecture)
    before = {name: buffer.clone() for name, buffer in supernet.named_buffers()}
    training_losses(supernet, [make_input()])
    changed = {name for name, b in supernet.named_buffers() if not torch.equal(b, before[name])}
    blocks = "backbone.bottom_up.blocks"
    sites = {f"{blocks}.{i}.candidates.{architecture[f'backbone.{i}'].name}" for i in range(5)}
    expected = {
        name
        for name in before
        if name.startswith("backbone") and ("stem" in name or any(name.startswith(f"{s}.") for s in sites))
    }
    assert changed == expected and len(expected) > 20


def test_extract_copies_only_the_path(cfg, supernet, monkeypatch):
    architecture = random_architecture(cfg)
    active = {site: block.active for site, block in choice_blocks(supernet).items()}
    sum(training_losses(supernet, [make_input()]).values()).backward()

    def refuse(self, memo):
        raise AssertionError("a candidate that is not on the path was copied")

    for site, block in choice_blocks(supernet).items():
        for name, candidate in block.candidates.items():
            if name != architecture[site].name:
                monkeypatch.setattr(candidate, "__deepcopy__", refuse.__get__(candidate), raising=False)
    fixed = extract(supernet, architecture)

    assert {site: list(b.candidates) for site, b in choice_blocks(fixed).items()} == {
        site: [name] for site, name in architecture.names().items()
    }
    source = supernet.state_dict()
    assert set(fixed.state_dict()) < set(source)
    for name, value in fixed.state_dict().items():
        assert torch.equal(value, source[name])
        assert value.data_ptr() != source[name].data_ptr()
    assert all(p.grad is None for p in fixed.parameters())
    assert fixed.training
    # The supernet is as it was.
    assert {site: block.active for site, block in choice_blocks(supernet).items()} == active
    assert {len(b.candidates) for b in choice_blocks(supernet).values()} == {3, 4, 6}


def test_extract_keeps_the_mode(cfg, supernet):
    fixed = extract(supernet.eval(), random_architecture(cfg))
    assert not any(module.training for module in fixed.modules())


def test_extract_errors(supernet):
    with pytest.raises(UserError, match="the model has no mask.2"):
        extract(supernet, random_architecture(make_cfg("MODEL.ROI_MASK_HEAD.NUM_CONV", 3)))
    with pytest.raises(UserError, match="has no operator 'r32'"):
        extract(supernet, random_architecture(make_cfg("MODEL.CROSS_ATTENTION.RATIOS", [32])))


def check_supernet_equals_fixed(cfg, tmp_path, seed, inputs):
    supernet = make_model(cfg)
    architecture = random_architecture(cfg, seed)
    apply_architecture(supernet, architecture)
    # Offsets of deformable layers and running statistics away from their first values.
    generator = torch.Generator().manual_seed(7)
    for name, parameter in supernet.named_parameters():
        if "offset_mask" in name:
            parameter.data.normal_(0, 0.05, generator=generator)
    training_losses(supernet, inputs)
    extracted = extract(supernet, architecture)

    architecture.save(tmp_path / "architecture.json")
    cfg = cfg.clone()
    cfg.merge_from_list(["NAS.ARCHITECTURE", str(tmp_path / "architecture.json")])
    fixed = make_model(cfg, seed=99)
    fixed.load_state_dict(extracted.state_dict(), strict=True)
    assert num_params(fixed) == num_params(extracted) < num_params(supernet)

    reference = inference(supernet, inputs)
    assert_same_outputs(inference(extracted, inputs), reference)
    assert_same_outputs(inference(fixed, inputs), reference)
    losses = training_losses(supernet, inputs)
    for model in (extracted, fixed):
        other = training_losses(model, inputs)
        assert other.keys() == losses.keys()
        for name in losses:
            torch.testing.assert_close(other[name], losses[name], atol=1e-5, rtol=1e-5)
    apply_architecture(fixed, architecture)
    with pytest.raises(UserError, match="runs only its own architecture"):
        apply_architecture(fixed, random_architecture(make_cfg_like(cfg), seed + 1))


def make_cfg_like(cfg):
    cfg = cfg.clone()
    cfg.merge_from_list(["NAS.ARCHITECTURE", ""])
    return cfg


@pytest.mark.parametrize("seed", range(3))
def test_supernet_path_equals_extracted_and_fixed(cfg, tmp_path, seed):
    inputs = [make_input(), make_input(40, 64, boxes=((5, 5, 30, 30),), seed=1)]
    check_supernet_equals_fixed(cfg, tmp_path, seed, inputs)


@pytest.mark.slow
def test_supernet_path_equals_extracted_and_fixed_in_the_full_space(tmp_path):
    check_supernet_equals_fixed(make_cfg(small=False), tmp_path, 0, [make_input(sem_classes=54)])
