import pytest
import torch
from torchvision.ops import deform_conv2d as torchvision_deform_conv2d

from auto_panoptic.modeling.layers import deform
from auto_panoptic.modeling.layers.deform import deform_conv2d


def make_inputs(n=3, c=5, h=7, w=9, d=4, k=3, padding=1, scale=1.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    ho, wo = h + 2 * padding - k + 1, w + 2 * padding - k + 1
    tensors = {
        "input": torch.randn(n, c, h, w, generator=generator, dtype=dtype),
        "offset": torch.randn(n, 2 * k * k, ho, wo, generator=generator, dtype=dtype) * scale,
        "weight": torch.randn(d, c, k, k, generator=generator, dtype=dtype) * 0.2,
        "bias": torch.randn(d, generator=generator, dtype=dtype),
        "mask": torch.rand(n, k * k, ho, wo, generator=generator, dtype=dtype),
    }
    return {name: t.requires_grad_() for name, t in tensors.items()}


def output_and_gradients(operator, tensors, padding):
    output = operator(**tensors, padding=padding)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=output.dtype)
    used = [t for t in tensors.values() if t is not None]
    return [output, *torch.autograd.grad(output, used, weights)]


def assert_equals_torchvision(tensors, padding):
    ours = output_and_gradients(deform_conv2d, tensors, padding)
    theirs = output_and_gradients(torchvision_deform_conv2d, tensors, padding)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    assert all(g.abs().max() > 0 for g in ours)


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("padding", [0, 1, 2, 3])
def test_equals_torchvision(k, padding):
    assert_equals_torchvision(make_inputs(k=k, padding=padding), padding)


@pytest.mark.parametrize("h, w", [(1, 1), (1, 8), (8, 1), (2, 2)])
def test_small_maps(h, w):
    assert_equals_torchvision(make_inputs(h=h, w=w), 1)


@pytest.mark.parametrize("scale", [0.0, 4.0, 1e3])
def test_zero_and_large_offsets(scale):
    # With zero offsets samples lie on pixels, some exactly one outside the image; the gradient there counts.
    tensors = make_inputs(scale=scale)
    if scale == 1e3:
        with torch.no_grad():
            tensors["offset"][0] = 0.5  # keep something inside
    assert_equals_torchvision(tensors, 1)


@pytest.mark.parametrize("value", [1e4, -1e4, 1e12, -1e12, float("inf"), -float("inf")])
def test_offsets_far_outside_give_the_bias(value):
    tensors = make_inputs()
    with torch.no_grad():
        tensors["offset"].fill_(value)
    output, *gradients = output_and_gradients(deform_conv2d, tensors, 1)
    assert torch.equal(output, tensors["bias"][:, None, None].expand_as(output))
    assert {name: bool(g.any()) for name, g in zip(tensors, gradients, strict=True)} == (
        {"input": False, "offset": False, "weight": False, "bias": True, "mask": False}
    )


def test_without_mask_and_bias():
    for names in (["mask"], ["bias"], ["mask", "bias"]):
        assert_equals_torchvision(make_inputs() | dict.fromkeys(names), 1)


@pytest.mark.parametrize("group", [1, 5000, 1 << 20])
@pytest.mark.parametrize("keep", [0, 1 << 23])
def test_grouping_of_images_changes_nothing(monkeypatch, group, keep):
    monkeypatch.setattr(deform, "GROUP_ELEMENTS", group)
    monkeypatch.setattr(deform, "KEEP_ELEMENTS", keep)
    # One image has 7 * 9 pixels * 9 taps * 4 channels = 2268 elements: groups of 1, 2 and all 5 images.
    assert_equals_torchvision(make_inputs(n=5), 1)


def test_memory_layout_of_the_inputs():
    tensors = make_inputs()
    swapped = {
        name: t.detach().to(memory_format=torch.channels_last) if t.dim() == 4 else t.detach()
        for name, t in tensors.items()
    }
    assert_equals_torchvision({name: t.requires_grad_() for name, t in swapped.items()}, 1)


def test_plain_convolution_is_the_special_case():
    tensors = make_inputs(scale=0)
    tensors["mask"] = torch.ones_like(tensors["mask"])
    expected = torch.nn.functional.conv2d(tensors["input"], tensors["weight"], tensors["bias"], padding=1)
    torch.testing.assert_close(deform_conv2d(**tensors, padding=1), expected, atol=1e-5, rtol=1e-5)


def test_gradcheck():
    tensors = make_inputs(n=2, c=2, h=4, w=3, d=2, scale=0.7, dtype=torch.float64)
    arguments = [tensors[name] for name in ("input", "offset", "weight", "bias", "mask")]
    assert torch.autograd.gradcheck(lambda x, o, w, b, m: deform_conv2d(x, o, w, b, 1, m), arguments)


def test_second_backward_pass_gives_the_same():
    tensors = make_inputs()
    output = deform_conv2d(**tensors, padding=1).sum()
    first = torch.autograd.grad(output, list(tensors.values()), retain_graph=True)
    second = torch.autograd.grad(output, list(tensors.values()))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


def test_zero_batch():
    tensors = make_inputs(n=0)
    output = deform_conv2d(**tensors, padding=1)
    assert output.shape == (0, 4, 7, 9)
    gradients = torch.autograd.grad(output.sum(), list(tensors.values()))
    for gradient, tensor in zip(gradients, tensors.values(), strict=True):
        assert torch.equal(gradient, torch.zeros_like(tensor))


def test_half_precision_inputs():
    tensors = make_inputs()
    output = deform_conv2d(**{name: t.bfloat16() for name, t in tensors.items()}, padding=1)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), deform_conv2d(**tensors, padding=1), atol=0.1, rtol=0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = deform_conv2d(**tensors | {"input": tensors["input"].bfloat16()}, padding=1)
    torch.testing.assert_close(mixed.float(), deform_conv2d(**tensors, padding=1), atol=0.1, rtol=0.1)


def test_not_a_number_stays_visible():
    tensors = make_inputs()
    with torch.no_grad():
        tensors["offset"][0, 0, 2, 2] = float("nan")
    output = deform_conv2d(**tensors, padding=1)
    assert output[0, :, 2, 2].isnan().all()
    assert output.isnan().sum() == 4


@pytest.mark.parametrize("name", ["offset", "mask"])
def test_wrong_shapes(name):
    tensors = make_inputs()
    with pytest.raises(ValueError, match=r"need offset \(3, 18, 7, 9\) and mask \(3, 9, 7, 9\)"):
        deform_conv2d(**tensors | {name: tensors[name][:, :-1]}, padding=1)


@pytest.mark.parametrize("images, groups", [(2.9, [2, 1]), (1.0, [1, 1, 1]), (0.1, [1, 1, 1]), (3.0, [3])])
@pytest.mark.parametrize("masked", [True, False])
def test_torchvision_gets_no_more_columns_than_it_can_count(monkeypatch, images, groups, masked):
    """What runs on a GPU, here with torchvision's operator of the CPU; a limit of so many images' columns."""
    called = []

    def spy(x, *arguments, **options):
        called.append(len(x))
        return torchvision_deform_conv2d(x, *arguments, **options)

    monkeypatch.setattr(deform, "torchvision_deform_conv2d", spy)
    monkeypatch.setattr(deform, "COLUMN_ELEMENTS", int(images * 5 * 9 * 7 * 9))
    tensors = make_inputs() | ({} if masked else {"mask": None})
    ours = output_and_gradients(deform._by_torchvision, tensors, 1)
    assert called == groups
    theirs = output_and_gradients(torchvision_deform_conv2d, tensors, 1)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("k", [3, 5])
def test_cpu_equals_cuda(k):
    tensors = make_inputs(k=k)
    ours = output_and_gradients(deform_conv2d, tensors, 1)
    on_cuda = {name: t.detach().cuda().requires_grad_() for name, t in tensors.items()}
    weights = torch.randn(ours[0].shape, generator=torch.Generator().manual_seed(1)).cuda()
    output = deform_conv2d(**on_cuda, padding=1)
    theirs = [output, *torch.autograd.grad(output, list(on_cuda.values()), weights)]
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b.cpu(), atol=1e-4, rtol=1e-4)
