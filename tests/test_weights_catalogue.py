"""Detectron2's catalogue: its names give weights, and no other pickle is read."""

import pickle

import pytest
import torch
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.backbone import BasicStem, ResNet
from toy import make_config

from auto_panoptic.errors import UserError
from auto_panoptic.training import check_weights, load_weights, zoo


@META_ARCH_REGISTRY.register()
class TinyResNet(torch.nn.Module):
    """Names and layers of a Detectron2 model with a ResNet under an FPN."""

    def __init__(self, cfg):
        super().__init__()
        self.backbone = torch.nn.Module()
        blocks = ResNet.make_default_stages(18, norm="BN")[:1]
        self.backbone.bottom_up = ResNet(BasicStem(3, 64, norm="BN"), blocks)
        self.roi_heads = torch.nn.Linear(2, 2)


NAME = "detectron2://ImageNetPretrained/test/R-18.pkl"
TINY = ("MODEL.META_ARCHITECTURE", "TinyResNet")


@pytest.fixture
def catalogue(tmp_path, monkeypatch):
    """Serve NAME from a file in the format of the catalogue; yields (its weights, function to write them)."""
    source = TinyResNet(None).backbone.bottom_up
    content = {name: value.numpy() for name, value in source.state_dict().items()}
    content = {name: value for name, value in content.items() if "num_batches" not in name}

    def write(weights):
        data = {"model": weights, "__author__": "test", "matching_heuristics": True}
        (tmp_path / "R-18.pkl").write_bytes(pickle.dumps(data))

    def resolve(manager, path, *args, **kwargs):
        if path == NAME:
            return str(tmp_path / "R-18.pkl")
        if path.startswith("detectron2://"):
            raise OSError(f"404 {path}\nmore")
        return path

    monkeypatch.setattr(type(zoo.PathManager), "get_local_path", resolve)
    write(content)
    return content, write


def test_the_catalogue_gives_a_backbone(catalogue, shapes, tmp_path):
    cfg = make_config(tmp_path, shapes, *TINY)
    check_weights(cfg, NAME, to_train=True)
    model = TinyResNet(None)
    before = model.roi_heads.weight.clone()
    load_weights(model, NAME, to_train=True)
    state = model.backbone.bottom_up.state_dict()
    for name, value in catalogue[0].items():
        torch.testing.assert_close(state[name], torch.from_numpy(value), rtol=0, atol=0)
    torch.testing.assert_close(model.roi_heads.weight, before, rtol=0, atol=0)


def test_missing_weights_of_the_catalogue_are_an_error(catalogue):
    content, write = catalogue
    name = "res2.0.conv1.weight"
    write({key: value for key, value in content.items() if key != name})
    with pytest.raises(UserError, match=f"'{NAME}' lacks 'backbone.bottom_up.{name}'; it belongs to another"):
        load_weights(TinyResNet(None), NAME, to_train=True)
    write(content | {name: content[name][:3]})
    with pytest.raises(UserError, match=f"lacks 'backbone.bottom_up.{name}'; it belongs"):
        load_weights(TinyResNet(None), NAME, to_train=True)


def test_a_backbone_of_the_catalogue_is_not_evaluated(catalogue):
    with pytest.raises(UserError, match="lacks 'roi_heads.weight' and 1 more; it belongs to another network"):
        load_weights(TinyResNet(None), NAME)


def test_unknown_names_of_the_catalogue(catalogue, shapes, tmp_path):
    name = "detectron2://nowhere.pkl"
    for attempt in (
        lambda: check_weights(make_config(tmp_path, shapes, *TINY), name),
        lambda: load_weights(TinyResNet(None), name),
    ):
        with pytest.raises(UserError) as error:
            attempt()
        assert str(error.value) == (
            f"MODEL.WEIGHTS: {name!r} cannot be downloaded (404 {name}); check the name and the network"
        )


SCHEMES = ["", "file://", "catalog://", "https://example.org", "detectron2:///", "DETECTRON2://../.."]
SCHEMES += ["detectron2://../../..", "detectron2://a/../../../..", "detectron2://./../.."]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("suffix", [".pkl", ".pth", ""])
def test_other_pickles_are_never_read(tmp_path, monkeypatch, shapes, scheme, suffix):
    """Neither by path nor by a name that leads out of the cache of the catalogue."""

    class Malicious:
        def __reduce__(self):
            return (tmp_path / "executed").mkdir, ()

    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache/of/models"))
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(pickle.dumps({"model": Malicious()}))
    out = "/".join([".."] * 20) if ".." in scheme else ""
    name = f"{scheme}{out}{path}"
    cfg = make_config(tmp_path, shapes, *TINY)
    for attempt in (
        lambda: check_weights(cfg, name, to_train=True),
        lambda: load_weights(TinyResNet(None), name, to_train=True),
    ):
        with pytest.raises(UserError, match="MODEL.WEIGHTS: ") as error:
            attempt()
        assert "\n" not in str(error.value)
    assert not (tmp_path / "executed").exists()
