"""A classifier's weights: those of its backbone in a network, and itself."""

import logging

import pytest
import torch
from detectron2.modeling import build_model
from test_weights import CLASSIFIER, changed, files, fixed, refusal, saved  # noqa: F401
from toy import make_config

from auto_panoptic.errors import UserError
from auto_panoptic.training import check_weights, load_weights


def backbone_weights(state):
    return {name: value for name, value in state.items() if name.startswith("backbone.bottom_up.")}


@pytest.mark.parametrize("architecture", [False, True])
def test_a_classifier_gives_its_backbone(saved, files, caplog, architecture):  # noqa: F811
    """To a supernet, and a path of it to a fixed model; nothing else moves."""
    options = fixed(files[1]) if architecture else ()
    cfg, *_ = saved(*options)
    _, classifier, path = saved(*CLASSIFIER)
    check_weights(cfg, path, to_train=True)
    model = build_model(cfg)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with caplog.at_level(logging.INFO):
        load_weights(model, path, to_train=True)
    own, theirs = backbone_weights(model.state_dict()), classifier.state_dict()
    assert len(own) > 30
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, theirs[name] if name in own else before[name], rtol=0, atol=0)
    rest = sum(name not in own and not name.endswith("_extra_state") for name in before)
    assert f"holds a part only: the other {rest} weights stay as initialised" in caplog.text


def test_the_backbone_of_a_classifier_is_strict(saved, tmp_path):  # noqa: F811
    path = saved(*CLASSIFIER)[2]
    name = next(name for name in saved()[1].state_dict() if "bottom_up" in name and "candidates" in name)
    bad = changed(path, tmp_path, lambda data: data["model"].pop(name))
    assert refusal(saved()[0], bad, to_train=True).startswith(f"lacks {name!r} (it is a BackboneClassifier, ")
    extra = {"backbone.bottom_up.extra": torch.ones(1)}
    bad = changed(path, tmp_path, lambda data: data["model"].update(extra))
    assert refusal(saved()[0], bad, to_train=True).startswith("holds the unknown 'backbone.bottom_up.extra'")


def test_the_backbone_of_a_classifier_has_the_same_space_and_width(saved, shapes, tmp_path):  # noqa: F811
    path = saved(*CLASSIFIER)[2]
    cfg = make_config(tmp_path, shapes, "MODEL.SHUFFLENET.STEM_CHANNELS", 12)
    assert refusal(cfg, path, to_train=True).startswith("holds a backbone of width custom (stem 8, ")
    small = saved(*CLASSIFIER, "NAS.SPACE.BACKBONE_OPS", ("shuffle_3x3",))[2]
    assert "holds a fixed model, this config builds a supernet" in refusal(saved()[0], small, to_train=True)
    cfg = make_config(tmp_path, shapes, "MODEL.PIXEL_MEAN", [0.0, 0.0, 0.0])
    assert "was trained with MODEL.PIXEL_MEAN" in refusal(cfg, path, to_train=True)


def test_a_classifier_is_not_evaluated_as_a_detection_model(saved):  # noqa: F811
    assert refusal(saved()[0], saved(*CLASSIFIER)[2]).startswith(
        "holds a BackboneClassifier, of which only backbone.bottom_up. fits: train the model"
    )


def test_a_classifier_loads_as_what_it_is(saved):  # noqa: F811
    cfg, classifier, path = saved(*CLASSIFIER)
    check_weights(cfg, path)
    other = build_model(cfg)
    load_weights(other, path)
    for ours, theirs in zip(other.state_dict().values(), classifier.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_a_detection_model_is_no_classifier(saved):  # noqa: F811
    message = refusal(saved(*CLASSIFIER)[0], saved()[2], to_train=True)
    assert "only in the first: mask.0, sem_seg.0, attention.f2b.0" in message


def test_a_classifier_needs_our_backbone(saved):  # noqa: F811
    with pytest.raises(
        UserError, match="holds a BackboneClassifier, whose backbone.bottom_up. this config's model has not"
    ):
        load_weights(torch.nn.Linear(1, 1), saved(*CLASSIFIER)[2], to_train=True)
