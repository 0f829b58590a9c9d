"""Other classes than those of the weights: their layers start anew, all others are loaded."""

import logging

import pytest
import torch
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from toy import make_config, own_messages

from auto_panoptic.errors import UserError
from auto_panoptic.modeling import configured_space
from auto_panoptic.training import AtomicCheckpointer, check_run, check_weights, load_weights
from auto_panoptic.training.weights import class_layers

ANEW = ("MODEL.WEIGHTS_CLASS_LAYERS", "anew")
BOX, MASK = "roi_heads.box_predictor", "roi_heads.mask_head.predictor"
LAYERS = f"{BOX}.bbox_pred, {BOX}.cls_score, {MASK}, sem_seg_head.predictor"


def of(layers):
    return [f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]


@META_ARCH_REGISTRY.register()
class HeadsOfItsOwn(torch.nn.Module):
    """A head per class, and a table whose name says nothing of classes."""

    def __init__(self, cfg):
        super().__init__()
        classes = cfg.MODEL.ROI_HEADS.NUM_CLASSES
        self.trunk = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(3))
        self.heads = torch.nn.ModuleList(torch.nn.Linear(2, 1) for _ in range(classes))
        self.table = torch.nn.Parameter(torch.zeros(classes, 2))


def save(folder, model):
    AtomicCheckpointer(model, str(folder)).save("model_final")
    return str(folder / "model_final.pth")


def without(cfg, things=None, labels=None):
    """The config of a data set with other classes."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = things or cfg.MODEL.ROI_HEADS.NUM_CLASSES
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = labels or cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    return cfg


@pytest.mark.parametrize(
    "options, layers",
    [
        ((), [f"{BOX}.cls_score", f"{BOX}.bbox_pred", MASK, "sem_seg_head.predictor"]),
        (
            ("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True, "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", True),
            [f"{BOX}.cls_score", "sem_seg_head.predictor"],
        ),
    ],
)
def test_class_layers_of_the_panoptic_model(tmp_path, shapes, options, layers):
    cfg = make_config(tmp_path, shapes, *options)
    assert sorted(class_layers(cfg)) == sorted(of(layers))


def test_class_layers_of_others(tmp_path, shapes):
    cfg = without(make_config(tmp_path, shapes), things=2)
    cfg.MODEL.META_ARCHITECTURE = "BackboneClassifier"
    assert class_layers(cfg) == of(["classifier.fc"])
    cfg.MODEL.META_ARCHITECTURE = "HeadsOfItsOwn"
    assert class_layers(cfg) == ["table", *of(["heads.0", "heads.1"])]
    cfg.MODEL.META_ARCHITECTURE = "PanopticFPN"
    cfg.MODEL.ROI_HEADS.NAME = "CascadeROIHeads"
    cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = True
    found = class_layers(cfg)
    assert {f"{BOX}.{stage}.cls_score.weight" for stage in range(3)} <= set(found)
    assert not any("bbox_pred" in name for name in found)


@pytest.mark.parametrize("things", [2, None])
@pytest.mark.parametrize("fixed", [False, True])
def test_class_layers_start_anew(tmp_path, shapes, caplog, things, fixed):
    """Of other counts, and of as many other classes; from a supernet into a supernet, or a path of it."""
    there = make_config(tmp_path, shapes)
    path = save(tmp_path, build_model(there))
    cfg = without(make_config(tmp_path, shapes, *ANEW), things)
    if fixed:
        space = configured_space(cfg)
        space.architecture([0] * len(space.sites)).save(tmp_path / "architecture.json")
        cfg.NAS.ARCHITECTURE = str(tmp_path / "architecture.json")
    check_weights(cfg, path, to_train=True)
    model = build_model(cfg)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with caplog.at_level(logging.INFO):
        load_weights(model, path, to_train=True, cfg=cfg)
    assert own_messages(caplog)[-2:] == [
        f"Of other classes than {path}, these layers start anew: {LAYERS}",
        f"Loaded {path}",
    ]
    stored = torch.load(path, weights_only=True)["model"]
    anew = class_layers(cfg)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, (before if name in anew else stored)[name], rtol=0, atol=0)


def test_everything_else_is_strict(tmp_path, shapes):
    there = make_config(tmp_path, shapes)
    path = save(tmp_path, build_model(there))
    data = torch.load(path, weights_only=True)
    data["model"].pop("roi_heads.mask_head.deconv.bias")
    torch.save(data, path)
    cfg = without(make_config(tmp_path, shapes, *ANEW), things=2)
    with pytest.raises(UserError, match="lacks 'roi_heads.mask_head.deconv.bias'; it belongs to another"):
        check_weights(cfg, path, to_train=True)


def test_the_remedy_is_said_where_a_training_starts(tmp_path, shapes):
    there = make_config(tmp_path, shapes)
    path = save(tmp_path, build_model(there))
    cfg = without(there, things=2)
    message = f"has another shape for '{BOX}.cls_score.weight' ((8, 128) instead of (3, 128)) and 5 more; "
    remedy = f"to start {LAYERS} anew and load the rest, add {' '.join(ANEW)}"
    for attempt in (
        lambda: check_weights(cfg, path, to_train=True),
        lambda: load_weights(build_model(cfg), path, to_train=True, cfg=cfg),
    ):
        with pytest.raises(UserError) as error:
            attempt()
        assert str(error.value) == f"MODEL.WEIGHTS: {path!r} {message}{remedy}"
    cfg.merge_from_list(ANEW)
    check_weights(cfg, path, to_train=True)


def test_refused_where_it_has_nothing_to_act_on(tmp_path, shapes):
    cfg = make_config(tmp_path, shapes, *ANEW)
    end = f"add {ANEW[0]} strict$"
    with pytest.raises(UserError, match=f"is 'anew', but without MODEL.WEIGHTS all layers start anew: {end}"):
        check_run(cfg)
    with pytest.raises(UserError, match=f"is 'anew', but what is scored must have learned .*: {end}"):
        check_weights(cfg, "any.pth")
    cfg = without(cfg)
    cfg.MODEL.META_ARCHITECTURE = "TinyToy"
    META_ARCH_REGISTRY._obj_map.setdefault("TinyToy", lambda cfg: torch.nn.Linear(1, 1))
    with pytest.raises(UserError, match=f"no layer of this config's network depends on a NUM_CLASSES: {end}"):
        check_weights(cfg, "any.pth", to_train=True)


def test_as_many_classes_of_other_names(tmp_path, shapes):
    """Where the weights say their classes."""
    cfg = make_config(tmp_path, shapes)
    AtomicCheckpointer(build_model(cfg), str(tmp_path), cfg=cfg).save("model_final")
    path = str(tmp_path / "model_final.pth")
    data = torch.load(path, weights_only=True)
    data["classes"]["things"][0][1] = "boat"
    torch.save(data, path)
    with pytest.raises(UserError, match="have different thing classes .*'boat'") as error:
        check_weights(cfg, path, to_train=True)
    assert str(error.value).endswith(f"; to start {LAYERS} anew and load the rest, add {' '.join(ANEW)}")
    with pytest.raises(UserError, match="different thing classes") as error:
        check_weights(cfg, path)
    assert ANEW[0] not in str(error.value)
    cfg = without(cfg)
    cfg.merge_from_list(ANEW)
    check_weights(cfg, path, to_train=True)
