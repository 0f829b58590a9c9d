"""Published classifiers start the encoders of Panoptic-DeepLab: all but their last layer, by name."""

import sys

import pytest
import torch
from deeplab_util import FIXED, deeplab_cfg, scene
from detectron2.utils.events import EventStorage
from modeling_util import make_model
from test_deeplab_encoders import TINY, random_state

from auto_panoptic.errors import UserError
from auto_panoptic.modeling import meta_model
from auto_panoptic.modeling.counting import count
from auto_panoptic.modeling.fold import folded
from auto_panoptic.systems.panoptic_deeplab import HRNet, Xception71
from auto_panoptic.systems.panoptic_deeplab.hrnet import WIDTHS
from auto_panoptic.training import check_weights, load_weights
from auto_panoptic.training.weights import select_weights

TINY_KEYS = [
    *("MODEL.BACKBONE.NAME", "build_hrnet_backbone", "MODEL.HRNET.WIDTH", "custom"),
    *("MODEL.HRNET.CHANNELS", list(TINY["channels"]), "MODEL.HRNET.BOTTLENECK", TINY["bottleneck"]),
    *("MODEL.HRNET.BLOCKS", TINY["blocks"], "MODEL.HRNET.MODULES", list(TINY["modules"])),
    *("MODEL.HRNET.RAISED", list(TINY["raised"])),
]
HUB = "timm://hrnet_w48.ms_in1k"


@pytest.fixture
def published():
    """{name: weight} of a classifier on a tiny HRNet."""
    pytest.importorskip("timm")
    state = random_state(HRNet(**TINY, head="classification")).state_dict()
    return {**state, "classifier.weight": torch.ones(7, 2048), "classifier.bias": torch.ones(7)}


def write(state, path, how="zip"):
    if how == "safetensors":
        from safetensors.torch import save_file

        save_file({name: value.contiguous() for name, value in state.items()}, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=how == "zip")
    return str(path)


def assert_starts_from(model, state):
    own = model.backbone.state_dict()
    for name in own:
        assert torch.equal(own[name], state[name]), name


# ------------------------------------------------------------------ files


@pytest.mark.parametrize(
    "name, how",
    [("a.safetensors", "safetensors"), ("a.bin", "zip"), ("a.pth", "zip"), ("original.pth", "legacy")],
)
def test_every_weight_but_the_last_layers_is_used(tmp_path, published, name, how):
    path = write(published, tmp_path / name, how)
    cfg = deeplab_cfg(*TINY_KEYS)
    check_weights(cfg, path, to_train=True)
    model = make_model(cfg)
    head = model.sem_seg_head.predictor.weight.clone()
    load_weights(model, path, to_train=True, cfg=None)
    assert_starts_from(model, published)
    assert {*model.backbone.state_dict(), "classifier.weight", "classifier.bias"} == published.keys()
    assert torch.equal(model.sem_seg_head.predictor.weight, head)


@pytest.mark.parametrize(
    "keys, left_out",
    [
        (("MODEL.HRNET.HEAD", "none"), ("incre_modules", "downsamp_modules", "final_layer")),
        (("MODEL.HRNET.ASPP_INPUT", 1024), ("final_layer",)),
        (("MODEL.HRNET.ATROUS_LAST", True), ()),
    ],
)
def test_variants_leave_out_what_they_have_not(tmp_path, published, keys, left_out):
    path = write(published, tmp_path / "a.pth")
    model = make_model(deeplab_cfg(*TINY_KEYS, *keys))
    load_weights(model, path, to_train=True)
    assert_starts_from(model, published)
    rest = {name.partition(".")[0] for name in published.keys() - model.backbone.state_dict().keys()}
    assert rest == {"classifier", *left_out}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"stage4.0.fuse_layers.3.0.0.0.weight": None}, "lacks 'backbone.stage4.0.fuse_layers.3.0.0.0.w"),
        ({"final_layer.0.bias": torch.ones(3)}, r"another shape for 'backbone.final_layer.0.bias' \(\(3,\)"),
        ({"neck.weight": torch.ones(3)}, "holds the unknown 'backbone.neck.weight'"),
        ({"conv1.weight": torch.full((64, 3, 3, 3), torch.nan)}, "conv1.weight.*NaN"),
    ],
)
def test_a_classifier_is_strict(tmp_path, published, change, message):
    state = {k: v for k, v in {**published, **change}.items() if v is not None}
    path = write(state, tmp_path / "a.pth")
    with pytest.raises(UserError, match=message) as error:
        load_weights(make_model(deeplab_cfg(*TINY_KEYS)), path, to_train=True)
    assert "\n" not in str(error.value) and path in str(error.value)


def test_a_classifier_is_not_evaluated(tmp_path, published):
    path = write(published, tmp_path / "a.safetensors", "safetensors")
    message = "holds a published classifier, of which only backbone. fits: train the model of this config"
    with pytest.raises(UserError, match=message):
        load_weights(make_model(deeplab_cfg(*TINY_KEYS)), path)


def test_a_damaged_file_of_safetensors(tmp_path, published):
    path = tmp_path / "a.safetensors"
    write(published, path, "safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="a.safetensors' cannot be read as a checkpoint"):
        load_weights(make_model(deeplab_cfg(*TINY_KEYS)), str(path), to_train=True)


def test_without_safetensors(tmp_path, published, monkeypatch):
    path = write(published, tmp_path / "a.safetensors", "safetensors")
    model = make_model(deeplab_cfg(*TINY_KEYS))
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(UserError, match="needs safetensors: pip install safetensors, .* extra 'deeplab'"):
        load_weights(model, path, to_train=True)


# ------------------------------------------------------------------ timm's hub


@pytest.fixture
def hub(tmp_path, published, monkeypatch):
    """Serve the tiny classifier as HUB; fail for other models."""
    import huggingface_hub

    path = write(published, tmp_path / "model.safetensors", "safetensors")

    def download(repository, file):
        assert file == "model.safetensors"
        if repository != "timm/hrnet_w48.ms_in1k":
            raise OSError(f"no connection to {repository}\nmore")
        return path

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return published


def test_a_name_of_the_hub(hub):
    cfg = deeplab_cfg(*TINY_KEYS)
    check_weights(cfg, HUB, to_train=True)
    model = make_model(cfg)
    load_weights(model, HUB, to_train=True)
    assert_starts_from(model, hub)


@pytest.mark.parametrize(
    "name, message",
    [
        ("timm://hrnet_w48", "is no name of timm's hub; expected one like timm://hrnet_w48.ms_in1k"),
        ("timm://../x.y", "is no name of timm's hub"),
        ("timm://hrnet_w48.other", "is no name of timm's hub"),
        ("timm://no_such_net.ms_in1k", "is no name of timm's hub"),
        ("timm://hrnet_w32.ms_in1k", "cannot be downloaded .no connection to timm/hrnet_w32.ms_in1k.; check"),
    ],
)
def test_other_names(hub, name, message):
    with pytest.raises(UserError, match=message) as error:
        load_weights(meta_model(deeplab_cfg(*TINY_KEYS)), name, to_train=True)
    assert "\n" not in str(error.value)


def test_the_hub_without_timm(monkeypatch):
    model = meta_model(deeplab_cfg(*FIXED))
    for module in [m for m in sys.modules if m.partition(".")[0] == "timm"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=f"'{HUB}' needs timm: pip install timm, or .* extra 'deeplab'"):
        load_weights(model, HUB, to_train=True)


# ------------------------------------------------------------------ timm's own networks


def test_timms_weights_of_w18_fit_strictly(tmp_path):
    timm = pytest.importorskip("timm")
    theirs = random_state(timm.create_model("hrnet_w18"))
    path = write(theirs.state_dict(), tmp_path / "hrnetv2_w18_imagenet_pretrained.pth", "legacy")
    cfg = deeplab_cfg("MODEL.BACKBONE.NAME", "build_hrnet_backbone", "MODEL.HRNET.WIDTH", 18)
    check_weights(cfg, path, to_train=True)
    wrong = deeplab_cfg("MODEL.BACKBONE.NAME", "build_hrnet_backbone", "MODEL.HRNET.WIDTH", 32)
    with pytest.raises(UserError, match="has another shape for 'backbone.*give the weights of this config"):
        check_weights(wrong, path, to_train=True)
    ours = HRNet(channels=WIDTHS[18], head="classification").eval()
    missing, unknown = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert missing == [] and unknown == ["classifier.weight", "classifier.bias"]
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(ours(x)["res5"], theirs.forward_features(x))


def test_xception_is_timms():
    timm = pytest.importorskip("timm")
    theirs = random_state(timm.create_model("xception71", output_stride=16))
    ours = Xception71().eval()
    model = torch.nn.Module()
    model.backbone = ours
    selected = select_weights(model, {"model": theirs.state_dict()}, "file", to_train=True)
    model.load_state_dict(selected)
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        features = ours(x)
        last, (_, *skips, _) = theirs.forward_intermediates(x, indices=[0, 1, 2, 4])
    expected = dict(zip(("res2", "res3"), skips, strict=True)) | {"res5": last}
    for name, y in expected.items():
        assert torch.equal(features[name], y) and y.std() > 0
        assert features[name].shape[-1] == 64 // ours.output_shape()[name].stride


# ------------------------------------------------------------------ in a network

ENCODERS = {
    "hrnet+": TINY_KEYS,
    "atrous": [*TINY_KEYS, "MODEL.HRNET.ATROUS_LAST", True],
    "wider+": [*TINY_KEYS, "MODEL.HRNET.BLOCK", "xception"],
    "separable": [*TINY_KEYS, "MODEL.HRNET.BLOCK", "xception", "MODEL.HRNET.SEPARABLE_FUSE", True],
    "auto_deeplab": ["MODEL.BACKBONE.NAME", "build_auto_deeplab_backbone", "MODEL.AUTO_DEEPLAB.FILTERS", 2],
    "auto_deeplab+": [
        *("MODEL.BACKBONE.NAME", "build_auto_deeplab_backbone", "MODEL.AUTO_DEEPLAB.FILTERS", 2),
        *("MODEL.AUTO_DEEPLAB.KEEP_LAST_STRIDE", False),
    ],
}


@pytest.mark.parametrize("options", ENCODERS.values(), ids=ENCODERS)
def test_an_encoder_trains_predicts_counts_and_folds(options):
    if "build_hrnet_backbone" in options:
        pytest.importorskip("timm")
    cfg = deeplab_cfg(*options)
    model = make_model(cfg)
    with EventStorage():
        losses = model([scene(seed=0), scene(seed=1)])
    sum(losses.values()).backward()
    lacking = [name for name, p in model.backbone.named_parameters() if p.grad is None]
    assert lacking == []
    model.eval()
    network = folded(model)
    left = {
        name for name, layer in network.backbone.named_modules() if isinstance(layer, torch.nn.BatchNorm2d)
    }
    if "build_hrnet_backbone" in options:
        assert left == {"bn1", "bn2"}  # of the stem: the forward beside it looks at sizes
    else:  # and so does an operator that halves its input first
        assert left == {f"{n}.2" for n, m in model.backbone.named_modules() if getattr(m, "stride", 0) == 2}
    with torch.no_grad():
        (result,), (other,) = model([scene()]), network([scene()])
    assert result["panoptic_seg"][0].shape == (64, 64)
    torch.testing.assert_close(result["sem_seg"], other["sem_seg"], atol=1e-4, rtol=1e-4)
    tables = count(meta_model(cfg), (64, 64))
    assert tables.fixed["backbone"].macs > 0
    assert tables.fixed["backbone"].params == sum(p.numel() for p in model.backbone.parameters())


def test_the_classifier_of_the_imagenet_stage_starts_a_bare_backbone(tmp_path):
    cfg = deeplab_cfg("MODEL.META_ARCHITECTURE", "BackboneClassifier", "MODEL.CLASSIFIER.NUM_CLASSES", 7)
    classifier = make_model(cfg, seed=1)
    data = {"model": classifier.state_dict(), "meta": {"meta_architecture": "BackboneClassifier"}}
    path = write(data, tmp_path / "classifier.pth")
    model = make_model(deeplab_cfg())
    check_weights(deeplab_cfg(), path, to_train=True)
    load_weights(model, path, to_train=True)
    theirs = classifier.backbone.bottom_up.state_dict()
    assert theirs.keys() == model.backbone.state_dict().keys()
    assert_starts_from(model, theirs)
