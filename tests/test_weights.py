"""A checkpoint says what it holds; weights for another network are refused by naming the difference."""

import os

import pytest
import torch
from detectron2.modeling import build_model
from torch.utils._python_dispatch import TorchDispatchMode
from toy import make_config

from auto_panoptic.errors import UserError
from auto_panoptic.modeling import apply_architecture, choice_blocks
from auto_panoptic.modeling.extract import extract
from auto_panoptic.space import Architecture, SearchSpace
from auto_panoptic.training import AtomicCheckpointer, check_weights, load_weights, weights
from auto_panoptic.training.weights import model_meta

CLASSIFIER = ("MODEL.CLASSIFIER.NUM_CLASSES", 7)
WIDTH = {"stem": 8, "channels": [16, 24, 32, 48], "repeats": [1, 1, 2, 1]}


@pytest.fixture(scope="module")
def saved(tmp_path_factory, shapes):
    """Function of config options: (config, model, path of its weights), each built once."""
    done = {}

    def get(*options):
        if options not in done:
            folder = tmp_path_factory.mktemp("saved")
            cfg = make_config(folder, shapes, *options)
            if options[:2] == CLASSIFIER:
                cfg.defrost()
                cfg.MODEL.META_ARCHITECTURE = "BackboneClassifier"
            torch.manual_seed(len(done))
            model = build_model(cfg)
            AtomicCheckpointer(model, str(folder)).save("model_final")
            done[options] = cfg, model, str(folder / "model_final.pth")
        return done[options]

    return get


@pytest.fixture(scope="module")
def files(tmp_path_factory, shapes):
    """Two architecture files that differ at three sites."""
    folder = tmp_path_factory.mktemp("architectures")
    space = SearchSpace.from_config(make_config(folder, shapes))
    first = space.architecture([0] * len(space.sites))
    names = first.names() | {"backbone.1": "shuffle_7x7", "mask.0": "atconv_3x3", "attention.b2f.0": "r16"}
    first.save(folder / "first.json")
    space.architecture(names).save(folder / "second.json")
    return folder / "first.json", folder / "second.json"


def fixed(path):
    return ("NAS.ARCHITECTURE", str(path))


def refusal(cfg, path, **options):
    """The message with which checking and loading refuse ``path``."""
    with pytest.raises(UserError) as checked:
        check_weights(cfg, path, **options)
    model = build_model(cfg)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UserError) as loaded:
        load_weights(model, path, **options)
    assert str(checked.value) == str(loaded.value) and "\n" not in str(loaded.value)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    subject, _, message = str(loaded.value).partition(f"MODEL.WEIGHTS: {path!r} ")
    assert not subject
    return message


def changed(path, folder, change):
    """A copy of a checkpoint after ``change`` of its content."""
    data = torch.load(path, weights_only=True)
    change(data)
    torch.save(data, folder / "changed.pth")
    return str(folder / "changed.pth")


# ------------------------------------------------------------------ what a checkpoint says


def test_a_supernet_says_what_it_is(saved):
    cfg, _, path = saved()
    data = torch.load(path, weights_only=True)
    assert data["space"] == SearchSpace.from_config(cfg).to_dict()
    assert data["meta"] == {
        "meta_architecture": "AutoPanopticFPN",
        "architecture": None,
        "width": WIDTH,
        "shuffle_method": 1,
        "pixel_mean": cfg.MODEL.PIXEL_MEAN,
        "pixel_std": cfg.MODEL.PIXEL_STD,
    }


def test_a_fixed_model_says_its_architecture(saved, files):
    _, _, path = saved(*fixed(files[1]))
    architecture = torch.load(path, weights_only=True)["meta"]["architecture"]
    assert architecture["mask.0"] == "atconv_3x3" and architecture["backbone.0"] == "shuffle_3x3"


def test_a_model_of_other_parts_says_so():
    assert model_meta(torch.nn.Linear(1, 1)) == {
        "meta_architecture": "Linear",
        "architecture": None,
        "pixel_mean": None,
        "pixel_std": None,
    }


def test_a_checkpoint_round_trips(saved):
    cfg, model, path = saved()
    data = torch.load(path, weights_only=True)["model"]
    other = build_model(cfg)
    load_weights(other, path)
    assert sorted(data) == sorted(model.state_dict())
    for name, value in model.state_dict().items():
        torch.testing.assert_close(data[name], value, rtol=0, atol=0, msg=name)
        torch.testing.assert_close(other.state_dict()[name], value, rtol=0, atol=0, msg=name)


# ------------------------------------------------------------------ the difference is named


@pytest.mark.parametrize(
    "part, change, message",
    [
        ("sem_seg_head", "remove", "lacks {name!r}; it belongs to another network, search space, width or"),
        ("candidates.xception_3x3", "remove", "lacks {name!r} and 0 more"),
        (
            "box_predictor.cls_score.weight",
            "shape",
            "has another shape for {name!r} ((3, 128) instead of (8, 128)",
        ),
        (
            "sem_seg_head",
            "add",
            "holds the unknown 'roi_heads.extra.weight' and 1 more; it belongs to another",
        ),
    ],
)
def test_other_names_and_shapes(saved, tmp_path, part, change, message):
    cfg, model, path = saved()
    name = next(key for key in model.state_dict() if part in key)

    def changes(data):
        if change == "remove":
            data["model"].pop(name)
        elif change == "shape":
            data["model"][name] = torch.zeros(3, 128)
        else:
            data["model"] |= {"roi_heads.extra.weight": torch.ones(1), "x": torch.ones(1)}

    expected = message.format(name=name).replace(" and 0 more", "")
    assert refusal(cfg, changed(path, tmp_path, changes)).startswith(expected)


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "no file '.*nothing.pth'; give the path of a checkpoint"),
        (b"", "cannot be read as a checkpoint"),
        (b"not a checkpoint at all", r"read as a checkpoint \(it is no file of torch, or holds other"),
        ({"model": {}}, "holds no model weights"),
        ({"model": {"a": "text"}}, "holds no model weights"),
        ([1, 2], "holds no model weights"),
        (0.0, "cannot be read as a checkpoint"),
        (0.3, r"is cut off, or damaged at its end \(\d+ bytes\); give an intact copy"),
        (0.99, r"is cut off, or damaged at its end \(\d+ bytes\); give an intact copy"),
    ],
)
def test_files_that_are_no_checkpoints(tmp_path, saved, content, message):
    """Among them a share of one."""
    cfg, _, whole = saved()
    path = tmp_path / "nothing.pth"
    if isinstance(content, float):
        with open(whole, "rb") as stream:
            content = stream.read()[: int(content * os.path.getsize(whole))]
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(UserError, match=message) as error:
        check_weights(cfg, str(path))
    assert "\n" not in str(error.value)


def test_another_width(saved, shapes, tmp_path):
    _, _, path = saved()
    cfg = make_config(tmp_path, shapes, "MODEL.SHUFFLENET.STAGE_CHANNELS", [16, 24, 32, 64])
    assert refusal(cfg, path) == (
        "holds a backbone of width custom (stem 8, channels [16, 24, 32, 48], repeats [1, 1, 2, 1]), this "
        "config builds custom (stem 8, channels [16, 24, 32, 64], repeats [1, 1, 2, 1]) "
        "(MODEL.SHUFFLENET.WIDTH); set it as there, or give other weights"
    )


def test_published_widths_have_names(saved, shapes, tmp_path):
    cfg, _, path = saved()
    width = {"stem": 48, "channels": [96, 240, 480, 960], "repeats": [8, 8, 16, 8]}
    wide = changed(path, tmp_path, lambda data: data["meta"].update(width=width))
    assert refusal(cfg, wide).startswith(
        "holds a backbone of width 1.3G, this config builds custom (stem 8, "
    )


def test_another_space(saved, shapes, tmp_path):
    _, _, path = saved()
    cfg = make_config(tmp_path, shapes, "NAS.SPACE.BACKBONE_OPS", ["shuffle_3x3", "xception_3x3"])
    check_weights(cfg, path)  # a part of the operators is there
    small = saved("NAS.SPACE.BACKBONE_OPS", ("shuffle_3x3", "xception_3x3"))[2]
    assert refusal(saved()[0], small) == (
        "holds another search space (first) than this config builds (second): operators of backbone.0, "
        "backbone.1, backbone.2 and 2 more differ, e.g. backbone.0: shuffle_3x3, xception_3x3 / shuffle_3x3, "
        "shuffle_5x5, shuffle_7x7, xception_3x3; give the weights of this config, or change the config"
    )


def test_a_part_that_the_model_lacks(saved):
    cfg, *_ = saved("MODEL.CROSS_ATTENTION.ENABLED", False)
    message = refusal(cfg, saved()[2])
    assert "only in the first: attention.f2b.0, attention.f2b.1, attention.f2b.2 and 6 more;" in message
    message = refusal(saved()[0], saved("MODEL.CROSS_ATTENTION.ENABLED", False)[2])
    assert "only in the second: attention.f2b.0, attention.f2b.1, attention.f2b.2 and 6 more;" in message


def test_another_architecture(saved, files):
    first, second = (saved(*fixed(file)) for file in files)
    assert refusal(first[0], second[2]) == (
        "holds another architecture: backbone.1 is shuffle_7x7 there, shuffle_3x3 here, mask.0 is atconv_3x3 "
        "there, dwconv_3x3 here, attention.b2f.0 is r16 there, r4 here; set NAS.ARCHITECTURE to the file of "
        "that one"
    )


def test_more_differing_sites_are_counted(saved, files, shapes, tmp_path):
    space = SearchSpace.from_config(saved()[0])
    space.architecture([-1 + len(site.ops) for site in space.sites]).save(tmp_path / "last.json")
    cfg = make_config(tmp_path, shapes, *fixed(tmp_path / "last.json"))
    message = refusal(cfg, saved(*fixed(files[0]))[2])
    assert f" and {len(space.sites) - 3} more sites differ; " in message


def test_a_fixed_model_is_no_supernet(saved, files):
    assert refusal(saved()[0], saved(*fixed(files[0]))[2]) == (
        "holds a fixed model, this config builds a supernet; set NAS.ARCHITECTURE to the file of its "
        "architecture, or give the weights of a supernet"
    )


def test_a_fixed_model_takes_its_path_from_a_supernet(saved, files):
    cfg, *_ = saved(*fixed(files[1]))
    _, model, path = saved()
    check_weights(cfg, path)
    ours = build_model(cfg)
    load_weights(ours, path)
    architecture = Architecture.load(files[1])
    expected = extract(model, architecture).state_dict()
    assert ours.state_dict().keys() == expected.keys()
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0, msg=name)
    assert {site: block.active for site, block in choice_blocks(ours).items()} == architecture.names()
    apply_architecture(model, architecture)
    image = [{"image": torch.rand(3, 64, 64) * 255}]
    with torch.no_grad():
        (found,), (wanted,) = ours.eval()(image), model.eval()(image)
    torch.testing.assert_close(found["sem_seg"], wanted["sem_seg"], rtol=1e-5, atol=1e-5)


def test_a_fixed_model_without_a_layer_takes_its_path(saved, shapes, tmp_path):
    domains = (("mask.0", ("conv_3x3", "identity")), ("backbone.3", ("shuffle_3x3", "skip")))
    sites = ("NAS.SPACE.SITES", domains)
    supernet_cfg, model, path = saved(*sites)
    space = SearchSpace.from_config(supernet_cfg)
    names = space.architecture([0] * len(space.sites)).names() | {"mask.0": "identity", "backbone.3": "skip"}
    space.architecture(names).save(tmp_path / "shallow.json")
    cfg = make_config(tmp_path, shapes, *sites, *fixed(tmp_path / "shallow.json"))
    check_weights(cfg, path)
    ours = build_model(cfg)
    load_weights(ours, path)
    expected = extract(model, space.architecture(names)).state_dict()
    assert ours.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in ours.state_dict().items())


@pytest.mark.parametrize(
    "key, value", [("PIXEL_MEAN", [0.0, 0.0, 0.0]), ("PIXEL_STD", [57.375, 57.12, 58.395])]
)
def test_what_shapes_do_not_show(saved, shapes, tmp_path, key, value):
    """Weights that would load, and be wrong."""
    base, _, path = saved()
    cfg = make_config(tmp_path, shapes, f"MODEL.{key}", value)
    assert refusal(cfg, path) == (
        f"was trained with MODEL.{key} {base.MODEL[key]}, this config has {value}; set MODEL.{key} as there"
    )


def test_another_shuffle_method(saved, shapes, tmp_path):
    """Of a checkpoint of today, which says it twice, and of an earlier one, which says it in its meta."""
    cfg = make_config(tmp_path, shapes, "MODEL.SHUFFLENET.SHUFFLE_METHOD", 2)
    old = changed(
        saved()[2],
        tmp_path,
        lambda data: [data["model"].pop(k) for k in list(data["model"]) if "extra_state" in k],
    )
    for path in (saved()[2], old):
        assert refusal(cfg, path) == (
            "holds a backbone with MODEL.SHUFFLENET.SHUFFLE_METHOD 1, this config has 2; set it as there, or "
            "give other weights"
        )
    mute = changed(saved()[2], tmp_path, lambda data: data["meta"].pop("shuffle_method"))
    assert "trained with shuffle method [1], this model has [2]" in refusal(cfg, mute)


@pytest.mark.parametrize(
    "options, message",
    [
        (["MODEL.SHUFFLENET.SHUFFLE_METHOD", "2"], r"shuffle method [1], this model has [2]"),
        (
            ["MODEL.CROSS_ATTENTION.F2B_LEVELS", "['p2','p3','p4','p5']"],
            "f2b levels [1, 2, 3, 4], this model has [0, 1, 2, 3]",
        ),
    ],
)
def test_layers_know_what_their_weights_do_not_show(saved, shapes, tmp_path, options, message):
    """In weights without a description too: the layers check them when they are loaded."""
    four_levels = ("MODEL.CROSS_ATTENTION.F2B_LEVELS", "['p3','p4','p5','p6']")
    _, _, path = saved(*four_levels)
    bare = changed(path, tmp_path, lambda data: [data.pop(key) for key in ("meta", "space", "settings")])
    cfg = make_config(tmp_path, shapes, *four_levels, *options)
    assert f"the weights were trained with {message}" in refusal(cfg, bare)

    def of_old(data):
        data["model"] = {k: v for k, v in data["model"].items() if not k.endswith("_extra_state")}

    check_weights(cfg, changed(bare, tmp_path, of_old))


@pytest.mark.parametrize("freeze_at", [(0, 3), (3, 0)])
def test_weights_of_a_frozen_backbone(saved, shapes, tmp_path, freeze_at):
    """Its BatchNorm layers have no counter."""
    _, model, path = saved("MODEL.BACKBONE.FREEZE_AT", freeze_at[0])
    cfg = make_config(tmp_path, shapes, "MODEL.BACKBONE.FREEZE_AT", freeze_at[1])
    check_weights(cfg, path)
    other = build_model(cfg)
    load_weights(other, path)
    theirs = model.state_dict()
    for name, value in other.state_dict().items():
        assert name.endswith("num_batches_tracked") or torch.equal(value, theirs[name])


def test_a_checkpoint_that_says_nothing_loads_by_names(saved, tmp_path):
    cfg, model, path = saved()

    def bare(data):
        for key in ("meta", "space", "settings"):
            data.pop(key)

    bare_path = changed(path, tmp_path, bare)
    check_weights(cfg, bare_path)
    other = build_model(cfg)
    load_weights(other, bare_path)
    for ours, theirs in zip(other.state_dict().values(), model.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    check_weights(cfg, str(tmp_path / "weights.pth"))


def test_other_names_name_the_architectures(saved, tmp_path):
    def foreign(data):
        data["meta"]["meta_architecture"] = "PanopticFPN"
        data["model"]["sem_seg_head.extra"] = torch.ones(1)

    message = refusal(saved()[0], changed(saved()[2], tmp_path, foreign))
    assert message.startswith(
        "holds the unknown 'sem_seg_head.extra' (it is a PanopticFPN, the config's a AutoPanopticFPN); it "
    )


class _Allocated(TorchDispatchMode):
    """Counts the elements of new tensors that hold memory."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        given = {arg.untyped_storage()._cdata for arg in args if isinstance(arg, torch.Tensor)}
        if isinstance(result, torch.Tensor) and result.device.type != "meta":
            self.elements += result.numel() if result.untyped_storage()._cdata not in given else 0
        return result


def test_checking_weights_allocates_no_model(saved, monkeypatch):
    cfg, model, path = saved()
    data = weights.read_checkpoint(path)
    monkeypatch.setattr(weights, "read_checkpoint", lambda path, **_: data)
    size = sum(parameter.numel() for parameter in model.parameters())
    with _Allocated() as watch:
        check_weights(cfg, path)
    assert watch.elements < size / 20
    with _Allocated() as watch:  # the measure sees a model that is really built
        build_model(cfg)
    assert watch.elements > size
