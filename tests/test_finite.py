"""What tells numbers from NaN and infinity."""

import pytest
import torch

from auto_panoptic.modeling.finite import finite_problem, total_norm

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
