import numpy as np
import pytest

from auto_panoptic.errors import UserError
from auto_panoptic.space import Architecture, SearchSpace, Width, backbone_cost, resolve_architecture_path
from auto_panoptic.space.cost import cost_table, supernet_params

NAMES = {"COCO": "auto_panoptic_coco", "ADE": "auto_panoptic_ade20k", "DetNAS": "detnas_coco"}


def shipped(name):
    return Architecture.load(resolve_architecture_path(NAMES[name]))


@pytest.mark.parametrize(
    "index, macs, params, with_classifier",
    [
        (0, 262705856, 1473488, 295842496),
        (1, 280518336, 1530576, 313654976),
        (2, 307237056, 1616208, 340373696),
        (3, 325689280, 2189424, 358825920),
    ],
)
def test_300m(index, macs, params, with_classifier):
    assert backbone_cost([index] * 20, "300M") == (macs, params)
    assert backbone_cost([index] * 20, "300M", classifier=True).macs == with_classifier


@pytest.mark.parametrize(
    "width, name, macs, params, rounded",
    [
        ("1.3G", "COCO", 1152748128, 6825840, 1.2019),
        ("1.3G", "ADE", 1243855200, 7845360, 1.2930),
        ("1.3G", "DetNAS", 1269181536, 8415216, 1.3184),
        ("3.8G", "COCO", 3572432416, 21627126, 3.7205),
        ("3.8G", "ADE", 3842661536, 24951932, 3.9907),
        ("3.8G", "DetNAS", 3937832864, 26724428, 4.0859),
    ],
)
def test_published_genotypes(width, name, macs, params, rounded):
    arch = shipped(name)
    for indices in (arch, arch.indices(), arch.indices()["backbone"], np.array(arch.indices()["backbone"])):
        assert backbone_cost(indices, width) == (macs, params)
    assert round(backbone_cost(arch, width, classifier=True).macs / 1e9, 4) == rounded


@pytest.mark.parametrize(
    "index, macs, params, rounded", [(0, 1036681632, 6244464, 1.0859), (3, 1391231520, 9359208, 1.4404)]
)
def test_uniform_1_3g(index, macs, params, rounded):
    assert backbone_cost([index] * 40) == (macs, params)
    assert round(backbone_cost([index] * 40, classifier=True).macs / 1e9, 4) == rounded


def test_supernet_body():
    assert supernet_params("1.3G") == 28642008
    # Every operator of every block once, and the stem once: 3 * 3 * 3 * 48 + 48 + 2 * 48 = 1440.
    uniform = [backbone_cost([i] * 40).params for i in range(4)]
    assert sum(uniform) - 3 * 1440 == 28642008


def test_cost_is_additive():
    table = cost_table("3.8G")
    base = backbone_cost([0] * 40, "3.8G")
    for layer in (0, 1, 8, 20, 39):
        indices = [0] * 40
        indices[layer] = 3
        extra = [
            a - b for a, b in zip(table[layer]["xception_3x3"], table[layer]["shuffle_3x3"], strict=True)
        ]
        assert backbone_cost(indices, "3.8G") == (base.macs + extra[0], base.params + extra[1])


def test_tiny_network_by_hand():
    """Stem 2, stages 4, 8, 10, 12, one shuffle 3x3 block each, image 7 x 33: sizes halve rounding up."""
    width = Width(2, (4, 8, 10, 12), (1, 1, 1, 1))
    # 7x33 -> 4x17 after the stem -> 2x9 -> 1x5 -> 1x3 -> 1x2.
    macs = 27 * 2 * 68
    for c_in, c_out, before, after in [(2, 4, 68, 18), (4, 8, 18, 5), (8, 10, 5, 3), (10, 12, 3, 2)]:
        mid = c_out // 2
        macs += c_in * mid * before + 9 * mid * after + mid * (c_out - c_in) * after
        macs += 9 * c_in * after + c_in * c_in * after
    assert backbone_cost([0, 0, 0, 0], width, size=(7, 33)).macs == macs
    assert backbone_cost([0, 0, 0, 0], width, size=(224, 224)).params == (
        backbone_cost([0, 0, 0, 0], width, size=(7, 33)).params
    )
    with_classifier = backbone_cost([0, 0, 0, 0], width, size=(7, 33), classifier=True)
    assert with_classifier.macs == macs + 12 * 1024 * 2 + 1024 * 1000


def test_size_scales_macs_exactly_when_divisible_by_32():
    assert backbone_cost([3] * 40, size=(448, 672)).macs == 6 * backbone_cost([3] * 40).macs


def test_published_order_whatever_the_space():
    space = SearchSpace.default()
    flipped = SearchSpace.from_dict({site: ops[::-1] for site, ops in space.to_dict().items()})
    arch = shipped("COCO")
    assert backbone_cost(flipped.architecture(arch)) == backbone_cost(arch)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (([0] * 39,), "39 backbone operators: this width has 40 blocks"),
        (([0] * 40, "300M"), "40 backbone operators: this width has 20 blocks"),
        (([4] * 40,), r"site 'backbone.0' has index 4: expected 0..3"),
        (([0.0] * 40,), "index 0.0: expected an integer"),
        (([0] * 40, "2G"), "unknown backbone width '2G': expected one of 300M, 1.3G, 3.8G"),
        (([0] * 40, "1.3G", (0, 224)), "image size"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(UserError, match=message):
        backbone_cost(*arguments)
