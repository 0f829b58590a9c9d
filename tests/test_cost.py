"""Tables of costs, and the published costs of the paper's backbone."""

import itertools
import json

import numpy as np
import pytest
from closed_form_costs import WIDTHS as FORMULAS
from closed_form_costs import add, backbone

from auto_panoptic.errors import UserError
from auto_panoptic.modeling.backbones.widths import Width
from auto_panoptic.space import (
    Architecture,
    ChoiceSite,
    Cost,
    CostTables,
    SearchSpace,
    backbone_cost,
    resolve_architecture_path,
)
from auto_panoptic.systems.panoptic_fpn.published import _backbone_tables

SPACE = SearchSpace.default()
BACKBONE = SearchSpace(SPACE.sites[:40])
NAMES = {"COCO": "auto_panoptic_coco", "ADE": "auto_panoptic_ade20k", "DetNAS": "detnas_coco"}


def shipped(name):
    return Architecture.load(resolve_architecture_path(NAMES[name]))


def made_up(space, seed=0):
    """Tables of a space with random entries."""
    rng = np.random.default_rng(seed)

    def cost():
        return Cost(*(int(v) for v in rng.integers(10**9, size=2)))

    return CostTables(
        space, {"a": cost(), "b": cost()}, {s.name: {op: cost() for op in s.names} for s in space.sites}
    )


# ------------------------------------------------------------------ the paper's backbone


@pytest.mark.parametrize(
    "width, indices, macs, params, with_classifier",
    [
        ("300M", [0] * 20, 262705856, 1473488, "0.295842496"),
        ("300M", [1] * 20, 280518336, 1530576, "0.313654976"),
        ("300M", [2] * 20, 307237056, 1616208, "0.340373696"),
        ("300M", [3] * 20, 325689280, 2189424, "0.358825920"),
        ("1.3G", [0] * 40, 1036681632, 6244464, "1.0859"),
        ("1.3G", [3] * 40, 1391231520, 9359208, "1.4404"),
        ("1.3G", "COCO", 1152748128, 6825840, "1.2019"),
        ("1.3G", "ADE", 1243855200, 7845360, "1.2930"),
        ("1.3G", "DetNAS", 1269181536, 8415216, "1.3184"),
        ("3.8G", "COCO", 3572432416, 21627126, "3.7205"),
        ("3.8G", "ADE", 3842661536, 24951932, "3.9907"),
        ("3.8G", "DetNAS", 3937832864, 26724428, "4.0859"),
    ],
)
def test_published_backbones(width, indices, macs, params, with_classifier):
    forms = [indices, np.array(indices)]
    if isinstance(indices, str):
        architecture = shipped(indices)
        lists = architecture.indices()
        forms = [architecture, lists, lists["backbone"], np.array(lists["backbone"])]
        flipped = SearchSpace.from_dict({site: ops[::-1] for site, ops in SPACE.to_dict().items()})
        forms += [flipped.architecture(architecture), [architecture[f"backbone.{i}"] for i in range(40)]]
    for form in forms:
        assert backbone_cost(form, width) == (macs, params)
    digits = len(with_classifier.partition(".")[2])
    assert f"{backbone_cost(forms[0], width, classifier=True).macs / 1e9:.{digits}f}" == with_classifier


@pytest.mark.parametrize(
    "width, macs, params, supernet",
    [
        ("1.3G", (1016.0, 1534.8), (8.26, 11.37), 28642008),
        ("3.8G", (3190.8, 4762.3), (24.73, 34.51), 90826770),
    ],
)
def test_whole_backbone_space(width, macs, params, supernet):
    """With classifier: least and most; without: all operators together."""
    formula = FORMULAS[width]
    tables = _backbone_tables(Width(*formula), (224, 224))
    found = [tables.minimum, tables.maximum]
    assert tuple(round(cost.macs / 1e6, 1) for cost in found) == macs
    assert tuple(round(cost.params / 1e6, 2) for cost in found) == params
    stem, rows, classifier = backbone(formula, (224, 224))
    assert tables.fixed == {"backbone": stem, "classifier": classifier} and list(tables.sites) == rows
    assert add(stem, *(cost for row in rows for cost in row.values()))[1] == supernet


def test_tiny_network_by_hand():
    """Stem 2, stages 4, 8, 10, 12, one shuffle 3x3 block each, image 7 x 33: sizes halve rounding up."""
    width = Width(2, (4, 8, 10, 12), (1, 1, 1, 1))
    # 7x33 -> 4x17 after the stem -> 2x9 -> 1x5 -> 1x3 -> 1x2.
    macs = 27 * 2 * 68
    for c_in, c_out, before, after in [(2, 4, 68, 18), (4, 8, 18, 5), (8, 10, 5, 3), (10, 12, 3, 2)]:
        mid = c_out // 2
        macs += c_in * mid * before + 9 * mid * after + mid * (c_out - c_in) * after
        macs += 9 * c_in * after + c_in * c_in * after
    cost = backbone_cost([0] * 4, width, size=(7, 33))
    assert cost == (macs, backbone_cost([0] * 4, width).params)
    with_classifier = backbone_cost([0] * 4, width, size=(7, 33), classifier=True)
    assert with_classifier.macs == macs + 12 * 1024 * 2 + 1024 * 1000


@pytest.mark.parametrize(
    "arguments, message",
    [
        (([0] * 39,), "39 backbone operators: this width has 40 blocks"),
        (([0] * 40, "300M"), "40 backbone operators: this width has 20 blocks"),
        (([4] * 40,), r"site 'backbone.0' has index 4: expected 0..3"),
        (([0.0] * 40,), "index 0.0: expected an integer"),
        (([0] * 40, "2G"), "width is '2G'; expected one of 300M, 1.3G, 3.8G"),
        (([0] * 40, "1.3G", (0, 224)), "image size"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        backbone_cost(*arguments)


# ------------------------------------------------------------------ the tables


def test_extremes_by_enumeration():
    ops = (
        ["shuffle_3x3"],
        ["shuffle_3x3", "shuffle_7x7", "xception_3x3"],
        ["r4", "r8"],
        ["conv_3x3", "dwconv_3x3"],
    )
    space = SearchSpace(tuple(ChoiceSite(f"part.{i}", tuple(names)) for i, names in enumerate(ops)))
    tables = made_up(space)
    costs = [
        tables.cost(space.architecture(choices))
        for choices in itertools.product(*(s.names for s in space.sites))
    ]
    assert len(costs) == space.cardinality == 12
    for i in range(2):
        values = [cost[i] for cost in costs]
        assert (tables.minimum[i], tables.maximum[i]) == (min(values), max(values))


def test_every_form_of_an_architecture():
    tables = made_up(SPACE)
    architecture = SPACE.random(np.random.default_rng(4))
    lists = architecture.indices()
    flat = [site.index(name) for site, name in zip(SPACE.sites, architecture.choices, strict=True)]
    forms = [lists, {**lists, "head": np.array(lists["head"])}, flat, tuple(flat), np.array(flat)]
    flipped = SearchSpace.from_dict({site: ops[::-1] for site, ops in reversed(SPACE.to_dict().items())})
    forms += [flipped.architecture(architecture), SearchSpace.from_dict(SPACE.to_dict()).architecture(flat)]
    rows = dict(zip((site.name for site in SPACE.sites), tables.sites, strict=True))
    expected = add(*tables.fixed.values(), *(rows[s][op] for s, op in architecture.names().items()))
    assert [tables.cost(form) for form in (architecture, *forms)] == [expected] * (len(forms) + 1)
    turned = CostTables(flipped, tables.fixed, rows)
    forms = [architecture, flipped.architecture(architecture).indices()]
    forms += [[len(site.ops) - 1 - i for site, i in zip(SPACE.sites, flat, strict=True)][::-1]]
    assert [turned.cost(form) for form in forms] == [expected] * 3


@pytest.mark.parametrize(
    "choice, message",
    [
        ([0] * 55, "55 choices for 56 sites"),
        ([0] * 55 + [3], "site 'attention.b2f.4' has index 3: expected 0..2"),
        ([-1] + [0] * 55, "site 'backbone.0' has index -1"),
        ([0.0] + [0] * 55, "site 'backbone.0' has index 0.0"),
        ([True] + [0] * 55, "site 'backbone.0' has index True"),
        ({"backbone": [0] * 40, "head": [0] * 6, "inter": [0] * 9}, "'head' has 6 indices: expected 7"),
        ({"backbone": [0] * 40, "head": [0] * 7, "inter": [0] * 9, "x": []}, "unknown index list 'x'"),
        ({"backbone": [0] * 40, "head": [6] * 7, "inter": [0] * 9}, "site 'mask.0' has index 6"),
        (BACKBONE.architecture([0] * 40), "site 'mask.0' has no operator"),
    ],
)
def test_cost_of_no_architecture(choice, message):
    with pytest.raises(UserError, match=message):
        made_up(SPACE).cost(choice)


def test_json():
    """A round trip through text; what is not of that form is refused."""
    tables = made_up(SPACE)
    again = CostTables.from_json(json.loads(json.dumps(tables.to_json())))
    assert (again.space, again.fixed, again.sites) == (tables.space, tables.fixed, tables.sites)
    broken = [[], {"fixed": {}}, {"fixed": {"a": [1]}, "sites": {}}, {"fixed": {"a": [1, 2.0]}, "sites": {}}]
    rows = [{"dwconv_3x3": [True, 1]}, {"dwconv_3x3": [-1, 1]}, {"nothing": [1, 1]}, {}, 3]
    broken += [{"fixed": {}, "sites": {"mask.0": row}} for row in rows]
    for content in broken:
        with pytest.raises(ValueError):
            CostTables.from_json(content)
