"""Checkpoints appear whole or not at all; weights load by name, strictly, with errors that say what to do."""

import os

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from torch.utils._python_dispatch import TorchDispatchMode
from toy import make_config

from auto_panoptic.errors import UserError
from auto_panoptic.modeling import apply_architecture, choice_blocks
from auto_panoptic.modeling.extract import extract
from auto_panoptic.space import SearchSpace
from auto_panoptic.training import AtomicCheckpointer, check_weights, load_weights, weights


@pytest.fixture(scope="module")
def supernet(tmp_path_factory, shapes):
    """(config, model, path of its weights)"""
    folder = tmp_path_factory.mktemp("supernet")
    cfg = make_config(folder, shapes)
    torch.manual_seed(0)
    model = build_model(cfg)
    AtomicCheckpointer(model, str(folder)).save("model_final")
    return cfg, model, str(folder / "model_final.pth")


@pytest.fixture(scope="module")
def architecture(supernet):
    """An architecture whose choices differ from the first operator nearly everywhere."""
    return SearchSpace.from_config(supernet[0]).random(np.random.default_rng(5))


def damaged(path, folder, change):
    data = torch.load(path, weights_only=True)
    change(data["model"])
    result = str(folder / "damaged.pth")
    torch.save(data, result)
    return result


# ------------------------------------------------------------------ writing


def test_a_checkpoint_round_trips(tmp_path, supernet):
    cfg, model, path = supernet
    data = torch.load(path, weights_only=True)
    assert sorted(data["model"]) == sorted(model.state_dict())
    for key, value in model.state_dict().items():
        torch.testing.assert_close(data["model"][key], value, rtol=0, atol=0)
    assert data["space"] == SearchSpace.from_config(cfg).to_dict()
    torch.manual_seed(1)
    other = build_model(cfg)
    load_weights(other, path)
    for (name, ours), theirs in zip(other.state_dict().items(), model.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, msg=name)


class Interrupted(BaseException):
    pass


@pytest.mark.parametrize("error", [RuntimeError("broken"), Interrupted()])
def test_a_save_that_fails_half_way_leaves_the_old_file(tmp_path, monkeypatch, error):
    model = torch.nn.Linear(2, 2)
    checkpointer = AtomicCheckpointer(model, str(tmp_path))
    checkpointer.save("model")
    before = {f: (tmp_path / f).read_bytes() for f in os.listdir(tmp_path)}
    assert sorted(before) == ["checkpoints.jsonl", "last_checkpoint", "model.pth"]

    def half(data, stream):
        stream.write(b"half a file")
        raise error

    monkeypatch.setattr(torch, "save", half)
    with torch.no_grad():
        model.weight += 1
    for name in ("model", "model_0000001"):
        with pytest.raises(type(error)):
            checkpointer.save(name)
        assert {f: (tmp_path / f).read_bytes() for f in os.listdir(tmp_path)} == before


def test_a_pointer_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    checkpointer = AtomicCheckpointer(torch.nn.Linear(2, 2), str(tmp_path))
    checkpointer.save("first")
    replace = os.replace

    def killed(source, target):
        if target.endswith("last_checkpoint"):
            raise Interrupted
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(Interrupted):
        checkpointer.save("second")
    assert (tmp_path / "last_checkpoint").read_text() == "first.pth"
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "second.pth")


def test_the_name_appears_only_after_the_content_is_on_disk(tmp_path, monkeypatch):
    """Order of the system calls: the content, then what it must be, then the name, then the pointer."""
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append("fsync"), fsync(fd))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append(os.path.basename(b)), replace(a, b))[1])
    AtomicCheckpointer(torch.nn.Linear(2, 2), str(tmp_path)).save("model")
    manifest, pointer = ["fsync", "checkpoints.jsonl"], ["fsync", "last_checkpoint"]
    assert calls == ["fsync", *manifest, "model.pth", *pointer, "fsync"]


def test_processes_other_than_the_first_write_nothing(tmp_path):
    AtomicCheckpointer(torch.nn.Linear(2, 2), str(tmp_path), save_to_disk=False).save("model")
    assert os.listdir(tmp_path) == []


# ------------------------------------------------------------------ loading, strictly


def remove(key):
    return lambda weights: weights.pop(key)


def first_key(model, text):
    return next(key for key in model.state_dict() if text in key)


def test_missing_weights_are_named(tmp_path, supernet):
    cfg, model, path = supernet
    key = first_key(model, "sem_seg_head")
    bad = damaged(path, tmp_path, remove(key))
    for attempt in (lambda: check_weights(cfg, bad), lambda: load_weights(model, bad)):
        with pytest.raises(UserError) as error:
            attempt()
        assert str(error.value).startswith(f"MODEL.WEIGHTS: {bad!r} lacks {key!r}; ")
        assert "give the weights of this config" in str(error.value) and "\n" not in str(error.value)


def test_a_missing_operator_is_named(tmp_path, supernet):
    cfg, model, path = supernet
    key = first_key(model, "candidates.xception_3x3")
    with pytest.raises(UserError, match="lacks .*candidates.xception_3x3"):
        check_weights(cfg, damaged(path, tmp_path, remove(key)))


def test_another_shape_is_named(tmp_path, supernet):
    cfg, model, path = supernet
    key = first_key(model, "roi_heads.box_predictor.cls_score.weight")
    shape = tuple(model.state_dict()[key].shape)
    bad = damaged(path, tmp_path, lambda weights: weights.update({key: torch.zeros(3, shape[1])}))
    message = f"has another shape for '{key}' ((3, {shape[1]}) instead of {shape}); "
    with pytest.raises(UserError) as error:
        check_weights(cfg, bad)
    assert message in str(error.value)


def test_unknown_weights_are_named(tmp_path, supernet):
    cfg, _, path = supernet
    extra = {"roi_heads.extra.weight": torch.ones(1), "x": torch.ones(1)}
    bad = damaged(path, tmp_path, lambda weights: weights.update(extra))
    with pytest.raises(UserError, match="holds the unknown 'roi_heads.extra.weight' and 1 more"):
        check_weights(cfg, bad)


def test_weights_of_another_space_are_refused(tmp_path, shapes, supernet):
    """A supernet with one operator more, or one layer more, is not this file's supernet."""
    path = supernet[2]
    deeper = make_config(tmp_path, shapes, "MODEL.SEM_SEG_HEAD.NUM_LAYERS", 2)
    with pytest.raises(UserError, match=r"another search space \(first\).*only in the second: sem_seg.1;"):
        check_weights(deeper, path)
    wider = make_config(tmp_path, shapes, "NAS.SPACE.HEAD_OPS", ["conv_3x3", "dwconv_3x3"])
    with pytest.raises(UserError, match="operators of mask.0, sem_seg.0 differ, e.g. mask.0: dwconv_3x3, .*"):
        check_weights(wider, path)


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "no file '.*nothing.pth'; give the path of a checkpoint"),
        (b"", "cannot be read as a checkpoint"),
        (b"not a checkpoint at all", "cannot be read as a checkpoint"),
        ({"model": {}}, "holds no model weights"),
        ({"model": {"a": "text"}}, "holds no model weights"),
        ([1, 2], "holds no model weights"),
    ],
)
def test_files_that_are_no_checkpoints(tmp_path, supernet, content, message):
    path = tmp_path / "nothing.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(UserError, match=message) as error:
        check_weights(supernet[0], str(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.99])
def test_a_truncated_checkpoint_is_refused(tmp_path, supernet, share):
    data = open(supernet[2], "rb").read()
    path = tmp_path / "short.pth"
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(UserError, match="cannot be read as a checkpoint"):
        check_weights(supernet[0], str(path))


def test_a_pickle_is_never_executed(tmp_path, supernet):
    class Malicious:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save({"model": {"a": Malicious()}}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match="cannot be read as a checkpoint"):
        check_weights(supernet[0], str(tmp_path / "evil.pth"))
    assert not (tmp_path / "executed").exists()


# ------------------------------------------------------------------ a path out of a supernet


def test_a_fixed_model_takes_its_path_from_the_supernet(tmp_path, shapes, supernet, architecture):
    _, model, path = supernet
    architecture.save(tmp_path / "architecture.json")
    cfg = make_config(tmp_path, shapes, "NAS.ARCHITECTURE", tmp_path / "architecture.json")
    check_weights(cfg, path)
    torch.manual_seed(9)
    fixed = build_model(cfg)
    load_weights(fixed, path)
    expected = extract(model, architecture).state_dict()
    assert fixed.state_dict().keys() == expected.keys()
    for key, value in fixed.state_dict().items():
        torch.testing.assert_close(value, expected[key], rtol=0, atol=0)
    assert {site: block.active for site, block in choice_blocks(fixed).items()} == architecture.names()

    image = [{"image": torch.rand(3, 64, 64) * 255}]
    apply_architecture(model, architecture)
    with torch.no_grad():
        ours, theirs = fixed.eval()(image), model.eval()(image)
    torch.testing.assert_close(ours[0]["sem_seg"], theirs[0]["sem_seg"], rtol=1e-5, atol=1e-5)


def test_a_fixed_models_weights_do_not_make_a_supernet(tmp_path, shapes, supernet, architecture):
    architecture.save(tmp_path / "architecture.json")
    cfg = make_config(tmp_path, shapes, "NAS.ARCHITECTURE", tmp_path / "architecture.json")
    AtomicCheckpointer(build_model(cfg), str(tmp_path)).save("fixed")
    with pytest.raises(UserError, match="holds a fixed model, this config builds a supernet; set NAS.ARCH"):
        check_weights(supernet[0], str(tmp_path / "fixed.pth"))


class _Allocated(TorchDispatchMode):
    """Counts the elements of new tensors that hold memory."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.device.type != "meta":
            self.elements += result.numel()
        return result


def test_checking_weights_allocates_no_model(supernet, monkeypatch):
    cfg, model, path = supernet
    data = weights.read_checkpoint(path)
    monkeypatch.setattr(weights, "read_checkpoint", lambda path: data)
    size = sum(parameter.numel() for parameter in model.parameters())
    with _Allocated() as watch:
        check_weights(cfg, path)
    assert watch.elements < size / 20
    with _Allocated() as watch:  # the measure sees a model that is really built
        build_model(cfg)
    assert watch.elements > size
