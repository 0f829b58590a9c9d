"""Weights that are no numbers are neither trained from nor scored, whatever command reads them."""

import pytest
import torch
from detectron2.modeling import build_model
from toy import make_config

from auto_panoptic.errors import UserError
from auto_panoptic.training import AtomicCheckpointer, check_weights, load_weights


@pytest.fixture(scope="module")
def saved(tmp_path_factory, shapes):
    """(config, model, path of its weights)"""
    folder = tmp_path_factory.mktemp("saved")
    cfg = make_config(folder, shapes)
    model = build_model(cfg)
    AtomicCheckpointer(model, str(folder)).save("model_final", iteration=1)
    return cfg, model, str(folder / "model_final.pth")


def damaged(path, folder, part, values):
    """(path of a copy whose first weight with ``part`` in its name begins with ``values``, that name)"""
    data = torch.load(path, weights_only=True)
    name = next(name for name in data["model"] if part in name)
    tensor = data["model"][name] = data["model"][name].to(torch.as_tensor(values).dtype)
    tensor.view(-1)[: len(values)] = torch.as_tensor(values)
    torch.save(data, folder / "model_final.pth")
    return str(folder / "model_final.pth"), name, tensor.numel()


@pytest.mark.parametrize(
    "part, values, count",
    [
        ("box_predictor.cls_score.weight", [float("nan")] * 3, 3),
        ("bottom_up.stem.0.weight", [float("inf")], 1),
        ("running_var", [1.0, float("-inf")], 1),
        ("candidates.shuffle_7x7.", [float("nan")], 1),
        ("fpn_output", torch.tensor([1e300], dtype=torch.float64), 1),  # infinite in the model's format
    ],
)
@pytest.mark.parametrize("to_train", [False, True])
def test_not_finite(saved, tmp_path, part, values, count, to_train):
    cfg, model, path = saved
    bad, name, size = damaged(path, tmp_path, part, values)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for attempt in (check_weights, lambda _, bad, to_train: load_weights(model, bad, to_train=to_train)):
        with pytest.raises(UserError) as error:
            attempt(cfg, bad, to_train=to_train)
        assert str(error.value) == (
            f"MODEL.WEIGHTS: {bad!r}: {name} holds {count} of {size} values that are NaN or infinite; its "
            "training has diverged: give an earlier checkpoint"
        )
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)


def test_operators_that_are_not_loaded_do_not_count(saved, tmp_path, shapes):
    """Nor do whole numbers."""
    bad, *_ = damaged(saved[2], tmp_path, "candidates.shuffle_7x7.", [float("nan")])
    cfg = make_config(tmp_path, shapes, "NAS.SPACE.BACKBONE_OPS", ["shuffle_3x3", "xception_3x3"])
    check_weights(cfg, bad)
