"""TorchScript and ONNX of a network's heads, for images of any size; layers that have another form there."""

import io
import warnings

import pytest
import torch
from detectron2.export import TracingAdapter
from detectron2.modeling import build_model
from toy import answer_strongly, make_config

from auto_panoptic.modeling.backbones.shufflenet import shuffle_split
from auto_panoptic.modeling.layers.deform import deform_conv2d
from auto_panoptic.space import SearchSpace
from auto_panoptic.systems.panoptic_fpn.attention import upsampled_mean

SIZES = [(64, 96), (96, 64), (64, 64), (70, 90), (96, 96), (61, 43), (128, 40)]

pytestmark = pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")


def heads(model, inputs):
    """What merging starts from."""
    detections, logits = model.inference(inputs, do_postprocess=False)
    return [{"instances": detections[0], "sem_seg": logits[0]}]


@pytest.fixture(scope="module")
def network(tmp_path_factory, shapes):
    """A network with deformable layers and both ratios of the attention, ready to be traced."""
    folder = tmp_path_factory.mktemp("export")
    cfg = make_config(folder, shapes)
    space = SearchSpace.from_config(cfg)
    path = folder / "architecture.json"
    space.architecture([min(i % 2 + 2, len(site.ops) - 1) for i, site in enumerate(space.sites)]).save(path)
    torch.manual_seed(0)
    model = build_model(make_config(folder, shapes, "NAS.ARCHITECTURE", path)).eval().requires_grad_(False)
    answer_strongly(model)
    return TracingAdapter(model, [{"image": image(SIZES[0])}], heads, allow_non_tensor=True).eval()


def image(size):
    generator = torch.Generator().manual_seed(sum(size))
    return torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8)


def assert_equal(found, expected):
    assert len(found) == len(expected) == 6 and len(expected[0])
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.as_tensor(a), b, rtol=1e-3, atol=1e-3)


def test_torchscript_of_the_heads(network):
    """Saved and loaded it equals eager on every size, though it was traced on one."""
    with torch.no_grad():
        traced = torch.jit.trace(network, (image(SIZES[0]),), check_trace=False)
        file = io.BytesIO()
        torch.jit.save(traced, file)
        file.seek(0)
        loaded = torch.jit.load(file)
        for size in SIZES:
            assert_equal(loaded(image(size)), network(image(size)))


@pytest.mark.slow
def test_onnx_of_the_heads(network, tmp_path):
    pytest.importorskip("onnx")
    path = tmp_path / "heads.onnx"
    axes = {"image": {1: "height", 2: "width"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {"opset_version": 17, "dynamo": False, "input_names": ["image"], "dynamic_axes": axes}
        torch.onnx.export(network, (image(SIZES[0]),), str(path), **options)
    assert path.stat().st_size > 10**5
    session = pytest.importorskip("onnxruntime").InferenceSession(str(path))
    for size in SIZES:
        with torch.no_grad():
            expected = network(image(size))
        assert_equal(session.run(None, {"image": image(size).numpy()}), expected)


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("masked", [True, False])
def test_deformable_convolution_while_tracing(kernel, masked):
    """Equal to the eager one for other sizes, offsets far outside and for no image at all."""
    torch.manual_seed(kernel)
    weight, bias, pad = torch.randn(6, 4, kernel, kernel), torch.randn(6), kernel // 2

    def layer(x, offset, mask):
        return deform_conv2d(x, offset, weight, bias, padding=pad, mask=mask if masked else None)

    def inputs(n, h, w):
        offset = 4 * torch.randn(n, 2 * kernel**2, h, w)
        return torch.randn(n, 4, h, w), offset, torch.rand(n, kernel**2, h, w)

    traced = torch.jit.trace(layer, inputs(2, 7, 9), check_trace=False)
    for sizes in ((2, 7, 9), (1, 5, 4), (3, 12, 6), (1, 1, 1), (2, 1, 5), (0, 7, 9)):
        example = inputs(*sizes)
        torch.testing.assert_close(traced(*example), layer(*example), rtol=1e-4, atol=1e-4)


def test_average_of_a_resized_map_while_tracing():
    def mean(x, y):
        return upsampled_mean(x, y.shape[-2:])

    def maps(h, w, times):
        return torch.randn(2, 3, h, w), torch.zeros(2, 1, h * times, w * times)

    traced = torch.jit.trace(mean, maps(4, 6, 2), check_trace=False)
    for example in (maps(4, 6, 2), maps(5, 3, 2), maps(2, 9, 4), maps(4, 4, 1)):
        torch.testing.assert_close(traced(*example), mean(*example), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", [1, 2])
def test_shuffle_in_an_onnx_export_is_the_same(monkeypatch, method):
    x = torch.randn(2, 8, 3, 5)
    usual = shuffle_split(x, method)
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    for a, b in zip(shuffle_split(x, method), usual, strict=True):
        assert torch.equal(a, b)


def test_nothing_changes_while_nothing_is_traced(monkeypatch):
    """The forms for tracing are not taken otherwise, so results stay bit for bit."""
    called = []
    monkeypatch.setattr("auto_panoptic.modeling.layers.deform._traced", lambda *_: called.append(1))
    deform_conv2d(torch.randn(1, 2, 4, 4), torch.randn(1, 18, 4, 4), torch.randn(3, 2, 3, 3), padding=1)
    assert not called
