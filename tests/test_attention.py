import pytest
import torch
import torch.nn.functional as F
from modeling_util import make_cfg, num_params

from auto_panoptic.modeling import Choices
from auto_panoptic.space import INTER_OPS, Architecture, ratio_op, resolve_architecture_path
from auto_panoptic.systems.panoptic_fpn.attention import AttentionGate, CrossAttention, upsampled_mean

FPN = {f"p{i}": 256 for i in (2, 3, 4, 5, 6)}
SEMANTIC = {f"p{i}": 128 for i in (2, 3, 4, 5)}
FOUR_LEVELS = ["p3", "p4", "p5", "p6"]


def build(names=None, f2b_levels=tuple(FPN), align_corners=True, legacy_ratio=False, ops=INTER_OPS):
    return CrossAttention(
        ops=ops,
        choices=Choices(names),
        foreground_channels=FPN,
        background_channels=SEMANTIC,
        f2b_levels=f2b_levels,
        align_corners=align_corners,
        legacy_ratio=legacy_ratio,
    )


def pyramid(channels, n=2, h=16, w=24, seed=0):
    """Levels p2 (h x w), p3 (half), ...; p6 subsamples p5 as a max-pool of stride 2 does."""
    generator = torch.Generator().manual_seed(seed)
    features = {}
    for name, c in channels.items():
        features[name] = torch.rand(n, c, h, w, generator=generator)
        h, w = -(-h // 2), -(-w // 2)
    return features


def reference_average(features, levels, align_corners):
    """The paper's way: resize every level to P2's size, concatenate, average over all pixels."""
    size = features["p2"].shape[-2:]
    options = {"size": size, "mode": "bilinear", "align_corners": align_corners}
    return torch.cat([F.interpolate(features[name], **options) for name in levels], dim=1).mean(dim=(2, 3))


@pytest.mark.parametrize("ratio, f2b, b2f", [(4, 32, 64), (8, 16, 32), (16, 8, 16), (6, 21, 42)])
def test_hidden_sizes(ratio, f2b, b2f):
    assert AttentionGate(1280, 128, ratio).reduce.out_features == f2b
    assert AttentionGate(512, 256, ratio).reduce.out_features == b2f


@pytest.mark.parametrize(
    "ratio, five_levels, four_levels, b2f",
    [(4, 45216, 37024, 49472), (8, 22672, 18576, 24864), (16, 11400, 9352, 12560)],
)
def test_params_of_one_gate(ratio, five_levels, four_levels, b2f):
    assert num_params(AttentionGate(1280, 128, ratio)) == five_levels
    assert num_params(AttentionGate(1024, 128, ratio)) == four_levels
    assert num_params(AttentionGate(512, 256, ratio)) == b2f


@pytest.mark.parametrize(
    "name, levels, legacy, params",
    [
        ("auto_panoptic_coco", list(FPN), False, 283672),
        ("auto_panoptic_coco", FOUR_LEVELS, False, 257048),
        ("auto_panoptic_ade20k", list(FPN), False, 287800),
        ("auto_panoptic_ade20k", FOUR_LEVELS, False, 269368),
        # The released code: four levels, and the ratio of "r16" read as 6.
        ("auto_panoptic_coco", FOUR_LEVELS, True, 292031),
        ("auto_panoptic_ade20k", FOUR_LEVELS, True, 304351),
        # With five levels each gate of f2b has 256 x 128 // r weights more.
        ("auto_panoptic_coco", list(FPN), True, 292031 + 256 * (21 + 32 + 32 + 32)),
    ],
)
def test_params_of_published_architectures(name, levels, legacy, params):
    architecture = Architecture.load(resolve_architecture_path(name))
    model = build(architecture.names(), levels, legacy_ratio=legacy)
    assert num_params(model) == params


def test_legacy_ratio_is_the_last_digit():
    attention = build(f2b_levels=FOUR_LEVELS, legacy_ratio=True)
    for layers, hidden in ((attention.f2b, [32, 16, 21]), (attention.b2f, [64, 32, 42])):
        for layer in layers:
            # The names, and with them architecture files, stay those of the paper.
            assert list(layer.candidates) == ["r4", "r8", "r16"]
            assert [gate.reduce.out_features for gate in layer.candidates.values()] == hidden
    for ratio, last in ((3, 3), (12, 2), (16, 6), (128, 8)):
        for legacy, divisor in ((False, ratio), (True, last)):
            gate = build(legacy_ratio=legacy, ops=[ratio_op(ratio)]).b2f[0].candidates[f"r{ratio}"]
            assert gate.reduce.out_features == 256 // divisor
    with pytest.raises(ValueError, match="reduction ratio 20: .* last digit"):
        build(legacy_ratio=True, ops=[ratio_op(20)])


def test_legacy_ratio_comes_from_the_config():
    cfg = make_cfg("MODEL.CROSS_ATTENTION.LEGACY_RATIO", True)
    shapes = {name: 64 for name in FPN}, {name: 64 for name in SEMANTIC}
    gate = CrossAttention(cfg, *shapes).f2b[0].candidates["r16"]
    assert gate.reduce.out_features == 64 // 6


def test_gate_by_hand():
    gate = AttentionGate(2, 4, 2)
    with torch.no_grad():
        gate.reduce.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        gate.reduce.bias.copy_(torch.tensor([0.0, 1.0]))
        gate.expand.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0]]))
        gate.expand.bias.copy_(torch.tensor([0.0, 0.0, 0.0, 2.0]))
    # hidden = ReLU([-3, 2 + 1]) = [0, 3]; before the gate [0, 3, 3, 2]
    expected = 1 - torch.sigmoid(torch.tensor([[0.0, 3.0, 3.0, 2.0]]))
    torch.testing.assert_close(gate(torch.tensor([[-3.0, 2.0]])), expected)


def test_zero_second_layer_gives_one_half():
    attention = build()
    for parameter in (p for name, p in attention.named_parameters() if ".expand." in name):
        torch.nn.init.zeros_(parameter)
    features = pyramid(FPN)
    gates = attention.background_to_foreground(pyramid(SEMANTIC))
    assert all(torch.equal(gate, torch.full((2, 256), 0.5)) for gate in gates.values())
    scaled = attention.apply_gates(features, gates)
    for name in FPN:
        assert torch.equal(scaled[name], 1.5 * features[name])


def test_gates_lie_between_0_and_1():
    attention = build()
    for scale in (1, 100):
        features = {name: x * scale for name, x in pyramid(FPN).items()}
        for gate in attention.foreground_to_background(features).values():
            assert gate.shape == (2, 128)
            assert 0 <= gate.min() and gate.max() <= 1
            assert 0 < gate.mean() < 1


def test_levels_of_the_gates():
    attention = build()
    f2b = attention.foreground_to_background(pyramid(FPN))
    b2f = attention.background_to_foreground(pyramid(SEMANTIC))
    assert {name: tuple(gate.shape) for name, gate in f2b.items()} == dict.fromkeys(SEMANTIC, (2, 128))
    assert {name: tuple(gate.shape) for name, gate in b2f.items()} == dict.fromkeys(FPN, (2, 256))
    # The i-th site of a direction scales its i-th level.
    attention.b2f[3].select("r16")
    changed = attention.background_to_foreground(pyramid(SEMANTIC))
    assert [name for name in FPN if not torch.equal(changed[name], b2f[name])] == ["p5"]


@pytest.mark.parametrize("levels, changes", [(list(FPN), True), (FOUR_LEVELS, False)])
def test_which_levels_f2b_reads(levels, changes):
    attention = build(f2b_levels=levels)
    features = pyramid(FPN)
    before = attention.foreground_to_background(features)
    features["p2"] = features["p2"] + 1
    after = attention.foreground_to_background(features)
    for name in SEMANTIC:
        assert torch.equal(before[name], after[name]) == (not changes)
    features["p6"] = features["p6"] + 1
    for name, gate in attention.foreground_to_background(features).items():
        assert not torch.equal(gate, after[name])


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("h, w", [(16, 24), (24, 8), (56, 40)])
def test_average_equals_resizing_and_concatenating(h, w, align_corners):
    attention = build(align_corners=align_corners)
    features, semantic = pyramid(FPN, h=h, w=w), pyramid(SEMANTIC, h=h, w=w)
    z = reference_average(features, FPN, align_corners)
    for i, (_, gate) in enumerate(attention.foreground_to_background(features).items()):
        torch.testing.assert_close(gate, attention.f2b[i](z), atol=1e-6, rtol=1e-6)
    z = reference_average(semantic, SEMANTIC, align_corners)
    for i, (_, gate) in enumerate(attention.background_to_foreground(semantic).items()):
        torch.testing.assert_close(gate, attention.b2f[i](z), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("size", [(2, 3), (4, 6), (7, 5), (1, 1), (9, 2)])
def test_upsampled_mean(size, align_corners):
    x = torch.randn(2, 3, 2, 3, dtype=torch.float64, requires_grad=True)
    expected = F.interpolate(x, size=size, mode="bilinear", align_corners=align_corners).mean(dim=(2, 3))
    ours = upsampled_mean(x, size, align_corners)
    torch.testing.assert_close(ours, expected, atol=1e-12, rtol=1e-12)
    weights = torch.randn(2, 3, dtype=torch.float64)
    (a,) = torch.autograd.grad(ours, x, weights)
    (b,) = torch.autograd.grad(expected, x, weights)
    torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)


def test_upsampled_mean_by_hand():
    # Corners aligned, 3 -> 5 rows: [a, (a + b) / 2, b, (b + c) / 2, c], mean .3 a + .4 b + .3 c.
    x = torch.tensor([[[[1.0], [10.0], [100.0]]]])
    assert upsampled_mean(x, (5, 1)).item() == pytest.approx(0.3 + 4 + 30)
    # Not aligned, 3 -> 4 rows: [a, .375 a + .625 b, .625 b + .375 c, c].
    assert upsampled_mean(x, (4, 1), align_corners=False).item() == pytest.approx((1.375 + 12.5 + 137.5) / 4)


def test_unknown_level():
    with pytest.raises(ValueError, match=r"f2b reads are \['p2', 'p7'\]"):
        build(f2b_levels=["p2", "p7"])
    with pytest.raises(ValueError, match="at least one of"):
        build(f2b_levels=[])


def test_ratio_without_hidden_unit():
    with pytest.raises(ValueError, match="reduction ratio 200 leaves no hidden unit"):
        AttentionGate(512, 128, 200)
