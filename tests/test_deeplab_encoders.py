"""The encoders of Panoptic-DeepLab: published numbers, strides, and the functions they are made of."""

import sys

import pytest
import torch
from detectron2.modeling import build_backbone
from modeling_util import make_cfg, num_params
from torch import nn

from auto_panoptic.errors import UserError
from auto_panoptic.modeling.counting import count
from auto_panoptic.read_config import read_config
from auto_panoptic.systems.panoptic_deeplab import AutoDeepLab, HRNet, Xception71
from auto_panoptic.systems.panoptic_deeplab.hrnet import WIDTHS
from auto_panoptic.training.unread import is_read
from auto_panoptic.validate import validate

TINY = {
    "channels": (8, 16, 24, 32),
    "bottleneck": 8,
    "blocks": 1,
    "modules": (1, 1, 2),
    "raised": (16, 32, 64, 128),
}
WIDER = {"channels": WIDTHS["wider"], "xception": True}


class Alone(nn.Module):
    """An encoder as something to count."""

    def __init__(self, encoder):
        super().__init__()
        self.backbone = encoder

    def dry_run(self, size):
        self.outputs = self.backbone(torch.zeros(1, 3, *size, device="meta"))


def on_meta(build, *args, **kwargs):
    with torch.device("meta"):
        return build(*args, **kwargs)


def macs(encoder, size):
    """Multiply-adds of an image; outputs must have the shapes that the encoder states."""
    model = Alone(encoder)
    total = count(model, size).fixed["backbone"].macs
    for name, shape in encoder.output_shape().items():
        sides = tuple(-(-side // shape.stride) for side in size)
        assert model.outputs[name].shape == (1, shape.channels, *sides)
    assert model.outputs.keys() == encoder.output_shape().keys()
    return total


def random_state(model, seed=0):
    """Weights and statistics of a network that is not at its initialisation."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                value.copy_(torch.randn(value.shape, generator=generator) * 0.1)
                if name.endswith(("running_var", "weight")) and value.ndim == 1:
                    value.add_(1).abs_()
    return model.eval()


def strides_of(encoder):
    return {name: shape.stride for name, shape in encoder.output_shape().items()}


def trace(encoder, modules, side=64):
    """Strides of the outputs of ``modules``, in a run of an image of ``side`` pixels."""
    sides = []
    hooks = [m.register_forward_hook(lambda _, inputs, out: sides.append(out.shape[-1])) for m in modules]
    with torch.no_grad():
        encoder(torch.zeros(1, 3, side, side, device=next(encoder.parameters()).device))
    for hook in hooks:
        hook.remove()
    return [side // width for width in sides]


# ------------------------------------------------------------------ HRNet


@pytest.mark.parametrize("width, total", [(18, 21299004), (32, 41232680), (48, 77469864)])
def test_hrnet_has_the_published_weights(width, total):
    timm = pytest.importorskip("timm")
    ours = on_meta(HRNet, channels=WIDTHS[width], head="classification")
    theirs = on_meta(timm.create_model, f"hrnet_w{width}")
    assert num_params(theirs) == total == num_params(ours) + 2048 * 1000 + 1000
    names = {name: value.shape for name, value in theirs.state_dict().items()}
    assert len(names) == 1956
    assert {name: value.shape for name, value in ours.state_dict().items()} == {
        name: shape for name, shape in names.items() if not name.startswith("classifier.")
    }


def test_the_parts_of_w48():
    pytest.importorskip("timm")
    plus = on_meta(HRNet, head="classification")
    parts = [num_params(part) for part in (plus.incre_modules, plus.downsamp_modules, plus.final_layer)]
    assert parts == [1793920, 6198528, 2103296]
    assert num_params(on_meta(HRNet)) == num_params(on_meta(HRNet, head="concat")) == 65325120
    assert num_params(plus) == 65325120 + sum(parts)
    assert num_params(on_meta(HRNet, head="classification", final_layer=False)) == 65325120 + sum(parts[:2])


def test_wider_is_smaller():
    pytest.importorskip("timm")
    size = 1024, 2048
    trunk, wider = on_meta(HRNet), on_meta(HRNet, **WIDER)
    assert macs(trunk, size) == 677772263424 and macs(wider, size) == 636073541632
    assert num_params(wider) == 48959936
    assert [shape.channels for shape in wider.output_shape().values()] == [64, 256, 384, 384]
    separable = on_meta(HRNet, **WIDER, separable_fuse=True)
    assert num_params(separable) == 29990272 and macs(separable, size) == 465427103744


def test_atrous_costs_more_with_the_same_weights():
    pytest.importorskip("timm")
    plus = on_meta(HRNet, head="classification")
    atrous = on_meta(HRNet, head="classification", atrous_last=True)
    assert {k: v.shape for k, v in plus.state_dict().items()} == {
        k: v.shape for k, v in atrous.state_dict().items()
    }
    assert macs(atrous, (512, 512)) > macs(plus, (512, 512))
    assert strides_of(plus) == {"res2": 4, "res3": 8, "res4": 16, "res5": 32}
    assert strides_of(atrous) == {"res2": 4, "res3": 8, "res4": 16, "res5": 16}


@pytest.mark.parametrize("head", ["none", "classification"])
@pytest.mark.parametrize("atrous", [False, True])
@pytest.mark.parametrize("xception", [False, True])
def test_strides_within_hrnet(head, atrous, xception):
    pytest.importorskip("timm")
    net = random_state(HRNet(**TINY, head=head, atrous_last=atrous, xception=xception))
    last = 16 if atrous else 32
    for module in net.stage4:
        assert trace(net, module.branches) == [4, 8, 16, last]
        rows = [f for row in module.fuse_layers for f in row]
        paths = trace(net, rows)
        down = [8, 16, 16, last, last, last]  # of finer branches, to branches 2, 3, 3, 4, 4, 4
        assert [paths[i] for i in (4, 8, 9, 12, 13, 14)] == down
    if head == "classification":
        assert trace(net, [*net.downsamp_modules, net.final_layer]) == [8, 16, last, last]
    dilated = {c for c in net.modules() if isinstance(c, nn.Conv2d) and c.dilation == (2, 2)}
    branch = [c for module in net.stage4 for c in module.branches[3].modules() if isinstance(c, nn.Conv2d)]
    assert dilated == ({c for c in branch if c.kernel_size == (3, 3)} if atrous else set())


@pytest.mark.parametrize("raised", [False, True])
def test_hrnet_plus_is_timms(raised):
    """Its head tensor is timm's ``forward_features``, its skips are timm's features, both kinds."""
    timm = pytest.importorskip("timm")
    theirs = random_state(timm.create_model("hrnet_w18_small"))
    options = {"channels": (16, 32, 64, 128), "bottleneck": 32, "blocks": 2, "modules": (1, 1, 1)}
    ours = HRNet(**options, head="classification", raised_skips=raised).eval()
    missing, unknown = ours.load_state_dict(theirs.state_dict(), strict=False)
    # The small network has basic modules of two blocks, but one bottleneck in stage 1.
    assert missing and all(name.startswith("layer1.1.") for name in missing)
    assert unknown == ["classifier.weight", "classifier.bias"]
    ours.layer1 = ours.layer1[:1]
    x = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        mine, features = ours(x), theirs.forward_features(x)
        maps = theirs.stages(theirs.act2(theirs.bn2(theirs.conv2(theirs.act1(theirs.bn1(theirs.conv1(x)))))))
        if raised:
            maps = [layer(y) for layer, y in zip(theirs.incre_modules, maps, strict=True)]
    assert torch.equal(mine["res5"], features) and features.std() > 0
    for name, y in zip(("res2", "res3", "res4"), maps, strict=False):
        assert torch.equal(mine[name], y)


def test_atrous_is_hrnet_plus_with_its_dilation_undone():
    pytest.importorskip("timm")
    plus = random_state(HRNet(**TINY, head="classification"))
    atrous = HRNet(**TINY, head="classification", atrous_last=True).eval()
    atrous.load_state_dict(plus.state_dict())
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert atrous(x)["res5"].shape[-1] == 2 * plus(x)["res5"].shape[-1]
        assert not torch.allclose(atrous(x)["res2"], plus(x)["res2"])
        chains = [atrous.transition3[3], atrous.downsamp_modules[2]]
        for module in atrous.stage4:
            chains += list(module.fuse_layers[3])[:3]
            for layer in module.branches[3].modules():
                if isinstance(layer, nn.Conv2d):
                    layer.dilation, layer.padding = (1, 1), (1, 1)
        for chain in chains:
            [c for c in chain.modules() if isinstance(c, nn.Conv2d)][-1].stride = (2, 2)
        for name, y in plus(x).items():
            assert torch.equal(atrous(x)[name], y)


def test_the_concatenated_map():
    pytest.importorskip("timm")
    trunk = random_state(HRNet(**TINY))
    concat = HRNet(**TINY, head="concat").eval()
    concat.load_state_dict(trunk.state_dict())
    assert {k: (v.channels, v.stride) for k, v in concat.output_shape().items()} == {"concat": (80, 4)}
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole, maps = concat(x)["concat"], trunk(x)
    assert torch.equal(whole[:, :8], maps["res2"])
    coarse = whole[0, 48:, :2, :2]  # the corner of a map that is resized eightfold repeats its first pixel
    assert torch.allclose(coarse, maps["res5"][0, :, :1, :1].expand_as(coarse), atol=1e-6)


@pytest.mark.parametrize("upsample", ["nearest", "bilinear"])
def test_images_of_any_size(upsample):
    pytest.importorskip("timm")
    net = random_state(HRNet(**TINY, head="classification", fuse_upsample=upsample))
    with torch.no_grad():
        shapes = [y.shape[-2:] for y in net(torch.zeros(1, 3, 65, 97)).values()]
    assert shapes == [(17, 25), (9, 13), (5, 7), (3, 4)]


def test_upsampling_is_a_choice():
    pytest.importorskip("timm")
    nets = [random_state(HRNet(**TINY, fuse_upsample=kind)) for kind in ("nearest", "bilinear")]
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        first, second = (net(x)["res2"] for net in nets)
    assert not torch.allclose(first, second)


# ------------------------------------------------------------------ Xception-71 and Auto-DeepLab


def test_xception_71():
    timm = pytest.importorskip("timm")
    net = on_meta(Xception71)
    assert num_params(net) == 40289736
    assert num_params(on_meta(timm.create_model, "xception71")) == 40289736 + 2048 * 1000 + 1000
    assert macs(net, (1025, 2049)) == 470414758536
    shapes = {k: (v.channels, v.stride) for k, v in net.output_shape().items()}
    assert shapes == {"res2": (256, 4), "res3": (728, 8), "res5": (2048, 16)}


@pytest.mark.parametrize("filters, total", [(20, 7030832), (32, 17612096), (48, 39222656)])
def test_auto_deeplab_follows_its_levels(filters, total):
    base, plus = (on_meta(AutoDeepLab, filters=filters, keep_last_stride=keep) for keep in (True, False))
    assert num_params(base) == num_params(plus) == total
    assert trace(base, base.cells) == [4, 4, 4, 8, 16, 8, 16, 16, 32, 32, 16, 8]
    assert trace(plus, plus.cells) == [4, 4, 4, 8, 16, 8, 16, 16, 16, 16, 16, 8]
    assert macs(plus, (128, 128)) > macs(base, (128, 128))
    for net in (base, plus):
        shapes = {k: (v.channels, v.stride) for k, v in net.output_shape().items()}
        channels = [5 * filters, 10 * filters, 20 * filters, 10 * filters]
        assert shapes == dict(zip(shapes, zip(channels, (4, 8, 16, 8), strict=True), strict=True))


def test_auto_deeplab_runs_on_any_size():
    net = random_state(AutoDeepLab(filters=2))
    with torch.no_grad():
        outputs = net(torch.randn(1, 3, 65, 97, generator=torch.Generator().manual_seed(0)))
    assert [y.shape[-2:] for y in outputs.values()] == [(17, 25), (9, 13), (5, 7), (9, 13)]
    assert (outputs["res5"] >= 0).all() and (outputs["res3"] < 0).any()


def test_a_cell_of_auto_deeplab():
    """The second block reads the output before the last and the last; dilation is 2 but where it halves."""
    net = AutoDeepLab(filters=2)
    halving, other = net.cells[3], net.cells[7]
    assert [c.dilation for c in other.modules() if isinstance(c, nn.Conv2d) and c.groups == 1].count(
        (2, 2)
    ) == 3
    assert {c.dilation for c in halving.modules() if isinstance(c, nn.Conv2d)} == {(1, 1), (2, 2)}
    dense = [
        c for c in halving.modules() if isinstance(c, nn.Conv2d) and c.kernel_size != (1, 1) and c.groups == 1
    ]
    assert [c.dilation for c in dense] == [(1, 1), (1, 1), (2, 2)]  # the last one reads the third block


# ------------------------------------------------------------------ built by a config


@pytest.mark.parametrize(
    "options, shapes",
    [
        ((), {"res2": (48, 4), "res3": (96, 8), "res4": (192, 16), "res5": (2048, 32)}),
        (("WIDTH", 18, "ATROUS_LAST", True), {"res2": (18, 4), "res5": (2048, 16)}),
        (("WIDTH", "wider", "HEAD", "none"), {"res2": (64, 4), "res3": (256, 8), "res5": (384, 32)}),
        (("SKIPS", "raised", "ASPP_INPUT", 1024), {"res2": (128, 4), "res4": (512, 16), "res5": (1024, 32)}),
        (("HEAD", "concat"), {"concat": (720, 4)}),
        (
            ("WIDTH", "custom", "CHANNELS", [4, 8, 12, 16], "RAISED", [8, 8, 8, 8], "BLOCK", "xception"),
            {"res2": (4, 4), "res3": (8, 8), "res4": (12, 16), "res5": (2048, 32)},
        ),
    ],
)
def test_keys_of_hrnet(options, shapes):
    pytest.importorskip("timm")
    keys = [f"MODEL.HRNET.{v}" if i % 2 == 0 else v for i, v in enumerate(options)]
    cfg = make_cfg("MODEL.BACKBONE.NAME", "build_hrnet_backbone", *keys)
    net = on_meta(build_backbone, cfg)
    found = {k: (v.channels, v.stride) for k, v in net.output_shape().items()}
    assert shapes.items() <= found.items()
    assert not any(isinstance(m, nn.SyncBatchNorm) for m in net.modules())  # this is a CPU


@pytest.mark.parametrize("name", ["hrnet", "xception71", "auto_deeplab"])
def test_shared_statistics_are_the_same_function(name):
    """On a GPU; in evaluation mode synchronised BatchNorm runs on a CPU, too."""
    if name != "auto_deeplab":
        pytest.importorskip("timm")
    cfg = make_cfg("MODEL.BACKBONE.NAME", f"build_{name}_backbone", "MODEL.HRNET.WIDTH", 18)
    alone = random_state(build_backbone(cfg))
    cfg.MODEL.DEVICE = "cuda"
    shared = build_backbone(cfg).eval()
    norms = [m for m in shared.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert norms and all(isinstance(m, nn.SyncBatchNorm) for m in norms)
    shared.load_state_dict(alone.state_dict())
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = alone(x)
        for key, y in shared(x).items():
            assert torch.equal(y, expected[key])


@pytest.mark.parametrize("name", ["build_hrnet_backbone", "build_xception71_backbone"])
def test_without_timm_one_line_names_the_extra(name, monkeypatch):
    for module in [m for m in sys.modules if m.partition(".")[0] == "timm"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=f"NAME is '{name}', which needs timm: pip install timm.*'deeplab'"):
        build_backbone(make_cfg("MODEL.BACKBONE.NAME", name))


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("MODEL.HRNET.WIDTH", 20, "WIDTH is 20; expected None or one of 18, 32, 48, wider, custom"),
        ("MODEL.HRNET.HEAD", "plus", "expected one of none, concat, classification"),
        ("MODEL.HRNET.FUSE_UPSAMPLE", "cubic", "expected one of nearest, bilinear"),
        ("MODEL.HRNET.SKIPS", "both", "expected one of trunk, raised"),
        ("MODEL.HRNET.ASPP_INPUT", 512, "expected one of 2048, 1024"),
        ("MODEL.HRNET.CHANNELS", [1, 2, 3], "expected 4 times"),
        ("MODEL.HRNET.RAISED", [6, 8, 8, 8], "a multiple of 4"),
        ("MODEL.AUTO_DEEPLAB.FILTERS", 0, "expected a whole number of at least 1"),
        ("MODEL.XCEPTION.NORM", "GN", "expected one of BN, SyncBN"),
    ],
)
def test_settings_of_encoders(key, value, message):
    with pytest.raises(UserError, match=message):
        validate(make_cfg(key, value))


def test_a_checkpoint_of_another_setting_is_refused():
    net, other = AutoDeepLab(filters=1), AutoDeepLab(filters=1, keep_last_stride=False)
    net.check_weights_meta(net.weights_meta())
    net.check_weights_meta({})
    with pytest.raises(ValueError, match="a backbone with .*KEEP_LAST_STRIDE False, this config has True"):
        net.check_weights_meta(other.weights_meta())


@pytest.mark.parametrize("width, other", [(48, "wider"), ("wider", 18)])
def test_a_width_is_a_number_or_a_name(tmp_path, width, other):
    (tmp_path / "c.yaml").write_text(f"MODEL: {{HRNET: {{WIDTH: {width}}}}}")
    path = str(tmp_path / "c.yaml")
    assert read_config(path).MODEL.HRNET.WIDTH == width
    assert read_config(path, ["MODEL.HRNET.WIDTH", str(other)]).MODEL.HRNET.WIDTH == other
    with pytest.raises(UserError, match="WIDTH is 4; expected None or one of 18"):
        read_config(path, ["MODEL.HRNET.WIDTH", "4"])


@pytest.mark.parametrize(
    "key, needs",
    [
        ("SEPARABLE_FUSE", ("WIDTH", "wider")),
        ("CHANNELS", ("WIDTH", "custom")),
        ("RAISED", ("WIDTH", "custom")),
        ("SKIPS", ("HEAD", "classification")),
        ("ASPP_INPUT", ("HEAD", "classification")),
    ],
)
def test_keys_that_do_not_act_are_not_read(key, needs):
    pytest.importorskip("timm")
    for options in (("WIDTH", 18, "HEAD", "none"), needs):
        keys = [f"MODEL.HRNET.{v}" if i % 2 == 0 else v for i, v in enumerate(options)]
        cfg = make_cfg("MODEL.BACKBONE.NAME", "build_hrnet_backbone", *keys)
        cfg.MODEL.META_ARCHITECTURE = "BackboneClassifier"
        assert is_read(cfg, f"MODEL.HRNET.{key}") == (options is needs)
