"""Affinity propagation: rows, a loop over pairs of pixels, chunks, and what it is for."""

import math

import pytest
import torch
from torch.nn import functional as F

from auto_panoptic.systems.unified import affinity as module
from auto_panoptic.systems.unified import propagate
from auto_panoptic.systems.unified.affinity import NORMALISATIONS, DenseAffinity, affinity


def random_case(channels=4, dim=6, height=5, width=7, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    potential = torch.rand(channels, height, width, generator=generator, dtype=dtype)
    features = torch.randn(dim, height, width, generator=generator, dtype=dtype)
    return potential, features


def literal_propagation(potential, features, normalise):
    """P, one pair of pixels after the other."""
    (channels, height, width), dim = potential.shape, len(features)
    pixels = [(y, x) for y in range(height) for x in range(width)]
    out = torch.zeros_like(potential)
    for y, x in pixels:
        row = {}
        for v, u in pixels:
            product = sum(
                features[d, y, x].item() * features[d, v, u].item() for d in range(dim)
            ) / math.sqrt(dim)
            row[v, u] = math.exp(product) if normalise == "softmax" else 1 / (1 + math.exp(-product))
        total = sum(row.values())
        for c in range(channels):
            out[c, y, x] = sum(a * potential[c, v, u].item() for (v, u), a in row.items()) / total
    return out


@pytest.mark.parametrize("normalise", NORMALISATIONS)
def test_it_is_the_literal_one(normalise):
    potential, features = random_case(channels=2, height=4, width=5)
    expected = literal_propagation(potential, features, normalise)
    spread = propagate(potential, features, residual=False, normalise=normalise)
    torch.testing.assert_close(spread, expected, rtol=0, atol=1e-13)
    spread = propagate(potential, features, normalise=normalise)
    torch.testing.assert_close(spread, potential + expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("normalise", NORMALISATIONS)
def test_rows_sum_to_one(normalise):
    _, features = random_case(dtype=torch.float32)
    rows = affinity(features.flatten(1).t(), features.flatten(1), normalise)
    assert rows.shape == (35, 35) and (rows >= 0).all()
    torch.testing.assert_close(rows.sum(dim=1), torch.ones(35))
    ones = torch.ones(3, 5, 7)
    torch.testing.assert_close(propagate(ones, features, residual=False, normalise=normalise), ones)


def test_identity_affinity_gives_the_potential_back():
    potential, _ = random_case()
    features = 100 * torch.eye(35, dtype=torch.float64).view(35, 5, 7)  # every pixel resembles itself alone
    torch.testing.assert_close(propagate(potential, features, residual=False), potential, rtol=0, atol=1e-12)
    torch.testing.assert_close(propagate(potential, features), 2 * potential, rtol=0, atol=1e-12)


@pytest.mark.parametrize("normalise", NORMALISATIONS)
@pytest.mark.parametrize("residual", [True, False])
def test_chunked_equals_dense_with_its_gradients(normalise, residual):
    potential, features = random_case(dtype=torch.float32)

    def run(chunk, grad=True):
        inputs = [x.clone().requires_grad_(grad) for x in (potential, features)]
        output = propagate(*inputs, residual, chunk, normalise)
        return (output, *torch.autograd.grad(output.square().sum(), inputs)) if grad else output

    dense = run(35)
    for chunk in (1, 8, 34, 1000, None):
        for ours, theirs in zip(run(chunk), dense, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(run(chunk, grad=False), dense[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("normalise", NORMALISATIONS)
def test_gradients(normalise):
    inputs = [x.requires_grad_() for x in random_case(height=2, width=3)]
    assert torch.autograd.gradcheck(lambda *x: propagate(*x, True, 4, normalise), inputs)


def test_a_pixel_outside_the_box_joins_the_instance_that_it_resembles():
    """A row of six pixels: the box of a car covers 1 to 3, pixel 4 is its bumper, 0 and 5 are road."""
    road = torch.tensor([0.8, 0.1, 0.1, 0.1, 0.4, 0.8])
    car = torch.tensor([0.0, 0.9, 0.9, 0.9, 0.0, 0.0])
    potential = torch.stack([road, car])[:, None]
    features = torch.tensor([[1.0, 0, 0, 0, 0, 1], [0, 1, 1, 1, 1, 0]])[:, None] * 6
    assert potential.argmax(dim=0).tolist() == [[0, 1, 1, 1, 0, 0]]
    assert propagate(potential, features).argmax(dim=0).tolist() == [[0, 1, 1, 1, 1, 0]]
    assert propagate(potential, 0 * features).argmax(dim=0).tolist() == [[0, 1, 1, 1, 0, 0]]


def test_memory_is_that_of_a_few_rows(monkeypatch):
    """Nothing that autograd keeps has the size of A, and a few of its rows are computed at a time."""
    potential, features = (x.requires_grad_() for x in random_case(height=16, width=16))
    monkeypatch.setattr(module, "_ROWS", 4)
    monkeypatch.setattr(module, "_CPU_ENTRIES", 6 * 256)
    computed, kept, rows_of = [], [], module._rows

    def rows(queries, features, normalise, buffers):
        computed.append((len(queries), buffers.untyped_storage().nbytes() // 8))
        return rows_of(queries, features, normalise, buffers)

    monkeypatch.setattr(module, "_rows", rows)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (kept.append(x.numel()), x)[1], lambda x: x):
        output = propagate(potential, features)
    assert computed == [(6, 2 * 6 * 256)] * 42 + [(4, 2 * 6 * 256)]
    assert max(kept) == 256 * 6
    computed.clear()
    output.sum().backward()  # computes them again
    assert computed == [(6, 3 * 6 * 256)] * 42 + [(4, 3 * 6 * 256)]
    monkeypatch.setattr(module, "_ROWS", 64)
    computed.clear()
    propagate(potential, features)
    assert [m for m, _ in computed] == [64] * 4


def test_sixteen_bits_are_spread_in_thirty_two():
    potential, features = random_case(dtype=torch.float32)
    halves = [x.bfloat16().requires_grad_() for x in (potential, features)]
    singles = [x.detach().float().requires_grad_() for x in halves]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        spread = propagate(*halves)
        gradients = torch.autograd.grad(spread.square().sum(), halves)
    expected = propagate(*singles)
    assert spread.dtype == torch.float32 and torch.equal(spread, expected)
    for ours, theirs in zip(gradients, torch.autograd.grad(expected.square().sum(), singles), strict=True):
        assert torch.equal(ours, theirs.bfloat16())


@pytest.mark.parametrize(
    "options, match",
    [
        ({"chunk": 0}, "chunk is 0; expected a whole number of at least 1"),
        ({"chunk": 2.5}, "chunk is 2.5; expected a whole number"),
        ({"normalise": "none"}, "normalise is 'none'; expected one of softmax, sigmoid"),
    ],
)
def test_what_cannot_be_is_refused(options, match):
    with pytest.raises(ValueError, match=match):
        propagate(*random_case(), **options)


def test_sizes_that_differ_are_refused():
    potential, features = random_case()
    with pytest.raises(ValueError, match=r"potential \(C, h, w\) and features \(D, h, w\), got"):
        propagate(potential[:, 1:], features)
    with pytest.raises(ValueError, match="normalise is 'relu'"):
        DenseAffinity(normalise="relu")


# ------------------------------------------------------------------ at the stride of the features


def test_the_layer_averages_spreads_and_resizes():
    potential, _ = random_case(channels=3, height=8, width=12)
    _, features = random_case(height=4, width=6)
    pooled = potential.view(3, 4, 2, 6, 2).mean(dim=(2, 4))
    spread = propagate(pooled, features, residual=False)
    resized = F.interpolate(spread[None], scale_factor=2, mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(DenseAffinity()(potential, features), potential + resized)
    torch.testing.assert_close(DenseAffinity(residual=False)(potential, features), resized)
    same = DenseAffinity(normalise="sigmoid")(pooled, features)
    torch.testing.assert_close(same, propagate(pooled, features, normalise="sigmoid"))


def test_multiply_adds_are_those_of_both_products():
    layer = DenseAffinity().to("meta")
    inputs = torch.zeros(7, 8, 12, device="meta"), torch.zeros(16, 4, 6, device="meta")
    output = layer(*inputs)
    assert output.is_meta and output.shape == (7, 8, 12)
    assert layer.macs(inputs, output) == 24 * 24 * (16 + 7)
