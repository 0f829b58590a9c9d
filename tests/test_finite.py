"""What tells numbers from NaN and infinity."""

import contextlib

import pytest
import torch
from modeling_util import inference, make_cfg, make_input, make_model

from auto_panoptic.errors import Diverged
from auto_panoptic.modeling.finite import finite_outputs, finite_problem, total_norm
from auto_panoptic.modeling.searchable import panoptic_only

NAN, INF = float("nan"), float("inf")


def some(dtype=torch.float32):
    return {"a": torch.ones(3, 4).to(dtype), "count": torch.tensor(3), "empty": torch.ones(0), "note": "text"}


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_the_first_tensor_and_the_number_of_values_are_named(value, dtype):
    tensors = {**some(dtype), "b": torch.ones(5, dtype=dtype), "c": torch.full((2,), value)}
    tensors["b"][1:3] = value
    assert finite_problem(tensors) == "b holds 2 of 5 values that are NaN or infinite"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float8_e4m3fn])
def test_sound_tensors_have_no_problem(dtype):
    assert finite_problem(some(dtype)) == "" == finite_problem({})
    largest = torch.finfo(dtype).max  # its square is infinite, it is not
    assert finite_problem({"a": torch.tensor([largest, -largest]).to(dtype)}) == ""


def test_parameters_and_meta_tensors():
    layer = torch.nn.Linear(2, 2)
    assert finite_problem(dict(layer.named_parameters())) == ""
    assert finite_problem({"m": torch.ones(2, device="meta")}) == ""


def test_infinity_does_not_cancel():
    assert not torch.isfinite(total_norm([torch.tensor([INF]), torch.tensor([-INF])]))
    assert total_norm([torch.tensor([3.0]), torch.tensor([4.0])]) == 7.0


# ------------------------------------------------------------------ outputs


@pytest.fixture(scope="module")
def model():
    model = make_model(make_cfg())
    model.combine_instances_score_thresh = 0.0  # all detections get a mask
    return model


@contextlib.contextmanager
def spoiled(model, name, value):
    """One weight is ``value`` within the block."""
    weight = model.get_parameter(name).data
    before = weight.clone()
    weight.view(-1)[0] = value
    try:
        yield
    finally:
        weight.copy_(before)


PLACES = {
    "backbone.bottom_up.stem.0.weight": "backbone",
    "proposal_generator.rpn_head.anchor_deltas.weight": "proposal_generator.rpn_head",
    "roi_heads.box_predictor.cls_score.weight": "roi_heads.box_predictor",
    "roi_heads.box_predictor.bbox_pred.bias": "roi_heads.box_predictor",
    "roi_heads.mask_head.predictor.weight": "roi_heads",
    "sem_seg_head.predictor.weight": "sem_seg_head.predictor",
}


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("lean", [panoptic_only, lambda _: contextlib.nullcontext()], ids=["lean", "whole"])
@pytest.mark.parametrize("weight", PLACES)
def test_what_choosing_segments_would_hide_is_found(model, weight, lean, value):
    inputs = [{**make_input(), "file_name": "a.png"}, {**make_input(seed=1), "image_id": 7}]
    with spoiled(model, weight, value), lean(model):
        expected = f"NaN or infinity in the network's {PLACES[weight]}.*, on images a.png, 7"
        with pytest.raises(Diverged, match=expected):
            with finite_outputs(model):
                inference(model, inputs)
        with pytest.raises(Diverged, match="images a.png, 7$"):
            with finite_outputs(model, shared=True):
                inference(model, inputs)
                second = inference(model, inputs)
        assert len(second) == 2


def test_a_sound_network_is_left_as_it_is(model):
    inputs = [make_input()]
    plain = inference(model, inputs)[0]["sem_seg"]
    with finite_outputs(model), panoptic_only(model):
        inference(model, inputs)
    with finite_outputs(model):
        assert torch.equal(inference(model, inputs)[0]["sem_seg"], plain)
    assert not any(module._forward_hooks for module in model.modules())


def test_minus_infinity_masks_and_is_allowed():
    class Masked(torch.nn.Module):
        def forward(self, batch):
            return [{"logits": torch.tensor([-INF, self.value])}]

    model = Masked()
    for model.value, expected in ((1.0, contextlib.nullcontext()), (NAN, pytest.raises(Diverged))):
        with expected, finite_outputs(model):
            model([{}])
