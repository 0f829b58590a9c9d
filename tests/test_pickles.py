"""A pickle is read for its numbers only, or where --trust-pickle names it: nothing in it runs otherwise."""

import collections
import importlib.util
import os
import pickle

import numpy as np
import pytest
import torch
from test_weights import refusal, saved  # noqa: F401
from test_weights_catalogue import TINY, TinyResNet
from toy import ROOT, make_config

import train_net
from auto_panoptic.errors import UserError
from auto_panoptic.search import command
from auto_panoptic.training import check_weights, load_weights, zoo
from auto_panoptic.training.zoo import read_numbers

spec = importlib.util.spec_from_file_location("convert_pickle", ROOT / "tools/convert_pickle.py")
convert_pickle = importlib.util.module_from_spec(spec)
spec.loader.exec_module(convert_pickle)


class Calling:
    """Unpickled, it calls a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.fixture
def untrusted(monkeypatch):
    monkeypatch.setenv("AUTO_PANOPTIC_TRUSTED_PICKLE", "")


def content(**more):
    source = TinyResNet(None).backbone.bottom_up
    weights = {
        name: value.numpy() for name, value in source.state_dict().items() if "num_batches" not in name
    }
    return {"model": weights | more, "__author__": "test", "matching_heuristics": True}


def write(path, content, protocol=None):
    path.write_bytes(pickle.dumps(content, protocol))
    return str(path)


@pytest.mark.parametrize("protocol", range(6))
def test_numbers(tmp_path, protocol):
    arrays = {
        "float": np.arange(6, dtype=np.float32).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big endian": np.arange(3, dtype=">i4"),
        "half": np.ones((2, 0), np.float16),
        "scalar": np.float64(0.5),
        "bool": np.array([True, False]),
    }
    data = collections.OrderedDict(model=arrays, text="é", list=[1, (2.5, None)])
    found = read_numbers(write(tmp_path / "a.pkl", data, protocol))
    assert (found["text"], found["list"]) == ("é", [1, (2.5, None)])
    for name, value in arrays.items():
        np.testing.assert_array_equal(found["model"][name].values, value)
        assert found["model"][name].values.dtype == value.dtype.newbyteorder("=")


@pytest.mark.parametrize(
    "value, reason",
    [
        (Calling(os.mkdir, "executed"), "it names posix.mkdir, which would run as code"),
        (Calling(eval, "__import__('os').mkdir('executed')"), "it names builtins.eval, which would run"),
        (Calling(getattr, "text", "upper"), "it names builtins.getattr, which would run as code"),
        (np.array([{}]), "it holds values of type 'O8'"),
        (np.zeros(2, "f4,i4"), "it holds values of type 'V8'"),
        (torch.zeros(2), "it names torch._utils._rebuild_tensor_v2, which would run as code"),
        (collections.Counter, "it names collections.Counter, which would run as code"),
    ],
)
def test_nothing_else_is_read(tmp_path, monkeypatch, value, reason):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(pickle.UnpicklingError) as error:
        read_numbers(write(tmp_path / "a.pkl", {"model": {"x": value}}))
    assert str(error.value).startswith(reason)
    assert not (tmp_path / "executed").exists()


def test_a_pickle_is_refused_and_its_remedy_works(tmp_path, shapes, untrusted, capsys):
    source, target = tmp_path / "R-18.pkl", tmp_path / "R-18.pth"
    data = content()
    cfg = make_config(tmp_path, shapes, *TINY)
    with pytest.raises(UserError) as error:
        check_weights(cfg, write(source, data), to_train=True)
    command = f"python tools/convert_pickle.py {source} {target}"
    assert command in str(error.value) and "--trust-pickle" in str(error.value)
    convert_pickle.convert(source, target)
    assert capsys.readouterr().out.strip().endswith(f"MODEL.WEIGHTS {target}")
    check_weights(cfg, str(target), to_train=True)
    model = TinyResNet(None)
    load_weights(model, str(target), to_train=True)
    for name, value in data["model"].items():
        np.testing.assert_array_equal(model.backbone.bottom_up.state_dict()[name].numpy(), value)
    with pytest.raises(UserError, match="expected a new file"):
        convert_pickle.convert(source, target)


def test_the_converter_refuses_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "evil.pkl"
    write(source, content(x=Calling(os.mkdir, "executed")))
    with pytest.raises(UserError, match="evil.pkl: not converted: it names posix.mkdir, which would run as"):
        convert_pickle.convert(source, tmp_path / "out.pth")
    assert os.listdir() == ["evil.pkl"]


def test_names_of_caffe2(tmp_path):
    blobs = {"conv1_w": np.ones((2, 3), np.float32), "conv1_w_momentum": np.ones(1), "lr": "none"}
    data = zoo.zoo_content(read_numbers(write(tmp_path / "a.pkl", {"blobs": blobs, "cfg": "text"}, 2)))
    assert list(data["model"]) == ["conv1_w"]
    assert (data["__author__"], data["matching_heuristics"]) == ("Caffe2", True)


def test_a_trusted_pickle_is_read(tmp_path, shapes, untrusted, caplog, monkeypatch):
    """By the flag for this file, not for others."""
    monkeypatch.chdir(tmp_path)
    paths = [write(tmp_path / f"{name}.pkl", content(x=Calling(os.makedirs, name))) for name in "ab"]
    zoo.trust_pickle(paths[0])
    assert f"--trust-pickle: reading a pickle runs code in it: {paths[0]}" in caplog.messages
    cfg = make_config(tmp_path, shapes, *TINY)
    with pytest.raises(UserError, match="b.pkl' is a pickle, and reading one runs code in it"):
        check_weights(cfg, paths[1], to_train=True)
    model = TinyResNet(None)
    data = content()
    write(tmp_path / "a.pkl", data)
    load_weights(model, paths[0], to_train=True)
    assert not os.path.exists("b")
    name, value = next(iter(data["model"].items()))
    np.testing.assert_array_equal(model.backbone.bottom_up.state_dict()[name].numpy(), value)


@pytest.mark.parametrize("path", ["model_final.pth", ""])
def test_the_flag_is_for_pickles(path, untrusted):
    with pytest.raises(UserError, match=f"for weights in a pickle, {path!r} is no .pkl: leave it"):
        zoo.trust_pickle(path)


def test_commands_have_the_flag():
    assert "--trust-pickle" in command.parser().format_help()
    assert "--trust-pickle" in (ROOT / "train_net.py").read_text() and train_net.trust_pickle


def test_a_name_of_the_catalogue_runs_no_code(tmp_path, monkeypatch, shapes, untrusted):
    """Also what lies in the cache of downloads, in which others may write."""
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "R-18.pkl", content(x=Calling(os.mkdir, "executed")))
    monkeypatch.setattr(type(zoo.PathManager), "get_local_path", lambda *_, **__: path)
    name = "detectron2://ImageNetPretrained/test/R-18.pkl"
    with pytest.raises(UserError) as error:
        check_weights(make_config(tmp_path, shapes, *TINY), name, to_train=True)
    assert str(error.value) == (
        f"MODEL.WEIGHTS: {name!r} cannot be read (it names posix.mkdir, which would run as code); if you "
        "trust it, add --trust-pickle: reading a pickle runs code in it"
    )
    assert not os.path.exists("executed")


def test_what_may_be_given_instead_of_a_pickle(tmp_path, saved):  # noqa: F811
    (tmp_path / "weights.pkl").write_bytes(b"any")
    message = refusal(saved()[0], str(tmp_path / "weights.pkl"), to_train=True)
    assert message.startswith("is a pickle, and reading one runs code in it; take the numbers out of it with")
    assert refusal(saved()[0], "https://a.org/m.pth") == "is no file; download it and give its path"
    with pytest.raises(
        UserError, match="is no name of Detectron2's catalogue; expected one like detectron2://I"
    ):
        load_weights(torch.nn.Linear(1, 1), "detectron2://../R-50.pkl")
