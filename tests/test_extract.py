"""A stand-alone network computes what its path computes in the supernet."""

import numpy as np
import pytest
import torch
from modeling_util import assert_same_outputs, inference, make_cfg, make_input, make_model, num_params
from torch import nn

from auto_panoptic.modeling import apply_architecture, choice_blocks
from auto_panoptic.modeling.counting import configured_costs
from auto_panoptic.modeling.extract import extract
from auto_panoptic.space import SearchSpace


def disturb(model, seed=0):
    """Move statistics, norms and deformable offsets away from their neutral first values, in place."""
    generator = torch.Generator().manual_seed(seed)

    def random(tensor):
        return torch.rand(tensor.shape, generator=generator)

    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(random(module.running_mean) - 0.5)
            module.running_var.copy_(random(module.running_var) + 0.5)
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
            module.weight.data.copy_(random(module.weight) + 0.5)
            module.bias.data.copy_(random(module.bias) - 0.5)
        if name.endswith("offset_mask"):
            module.weight.data.copy_(0.1 * (random(module.weight) - 0.5))
            module.bias.data.copy_(random(module.bias) - 0.5)
    return model


def results(model, inputs):
    """Features F', S and gates, and the outputs of inference."""
    model.eval()
    with torch.no_grad():
        features = model.attended_features(model.preprocess_image(inputs).tensor)
    return features, inference(model, inputs)


def check(cfg, supernet, architecture, inputs, path, tolerance=1e-5):
    apply_architecture(supernet, architecture)
    features, outputs = results(supernet, inputs)
    # Which path the supernet has at the moment must not matter.
    for block in choice_blocks(supernet).values():
        block.select(next(name for name in block.candidates if name != block.active))
    extracted = extract(supernet, architecture)

    architecture.save(path)
    cfg = cfg.clone()
    cfg.merge_from_list(["NAS.ARCHITECTURE", str(path)])
    fixed = make_model(cfg, seed=99)
    fixed.load_state_dict(extracted.state_dict(), strict=True)
    assert list(fixed.state_dict()) == list(extracted.state_dict())
    assert num_params(extracted) == configured_costs(cfg).cost(architecture).params
    for model in (extracted, fixed):
        found, found_outputs = results(model, inputs)
        for theirs, ours in zip(features, found, strict=True):
            assert list(theirs) == list(ours)
            for name in theirs:
                torch.testing.assert_close(ours[name], theirs[name], atol=tolerance, rtol=tolerance)
        assert_same_outputs(found_outputs, outputs, tolerance)
    return outputs


def test_many_small_networks(tmp_path):
    cfg = make_cfg()
    supernet, space = disturb(make_model(cfg)), SearchSpace.from_config(cfg)
    inputs = [make_input(), make_input(40, 64, boxes=((5, 5, 30, 30),), seed=1)]
    rng = np.random.default_rng(11)
    logits = []
    for _ in range(12):
        outputs = check(cfg, supernet, space.random(rng), inputs, tmp_path / "architecture.json")
        assert sum(len(y["instances"]) for y in outputs) > 0
        logits.append(outputs[0]["sem_seg"])
    # The paths do differ, by far more than the tolerance.
    assert min((a - b).abs().max() for a, b in zip(logits, logits[1:], strict=False)) > 1e-2


@pytest.mark.slow
def test_networks_of_the_papers_width(tmp_path):
    cfg = make_cfg("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "TEST.DETECTIONS_PER_IMAGE", 10, small=False)
    assert SearchSpace.from_config(cfg) == SearchSpace.default()
    supernet = disturb(make_model(cfg))
    rng = np.random.default_rng(12)
    for _ in range(3):
        architecture = SearchSpace.default().random(rng)
        outputs = check(cfg, supernet, architecture, [make_input(sem_classes=54)], tmp_path / "a.json")
        assert len(outputs[0]["instances"]) == 10
