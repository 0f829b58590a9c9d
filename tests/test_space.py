import numpy as np
import pytest

from auto_panoptic.errors import UserError
from auto_panoptic.space import (
    BACKBONE_OPS,
    HEAD_OPS,
    INTER_OPS,
    ChoiceSite,
    OpSpec,
    SearchSpace,
    domain,
    op,
    ratio_op,
    register_ops,
)
from auto_panoptic.space import ops as registry


def test_default_space_is_the_papers():
    space = SearchSpace.default()
    assert space.cardinality == 6661157435730850509060737951858688 == 4**40 * 6**7 * 3**9
    assert space.cycle_length == 12
    assert [len(space.group(g)) for g in ("backbone", "head", "inter")] == [40, 7, 9]
    names = [site.name for site in space.sites]
    assert names == (
        [f"backbone.{i}" for i in range(40)]
        + [f"mask.{i}" for i in range(4)]
        + [f"sem_seg.{i}" for i in range(3)]
        + [f"attention.f2b.{i}" for i in range(4)]
        + [f"attention.b2f.{i}" for i in range(5)]
    )


def test_operators_in_published_order_with_attributes():
    def rows(ops):
        return [(o.name, o.kind, o.kernel, o.ratio) for o in ops]

    assert rows(BACKBONE_OPS) == [
        ("shuffle_3x3", "shuffle", 3, 0),
        ("shuffle_5x5", "shuffle", 5, 0),
        ("shuffle_7x7", "shuffle", 7, 0),
        ("xception_3x3", "xception", 3, 0),
    ]
    assert rows(HEAD_OPS) == [
        ("dwconv_3x3", "dwconv", 3, 0),
        ("dwconv_5x5", "dwconv", 5, 0),
        ("dfconv_3x3", "dfconv", 3, 0),
        ("dfconv_5x5", "dfconv", 5, 0),
        ("atconv_3x3", "atconv", 3, 0),
        ("atconv_5x5", "atconv", 5, 0),
    ]
    assert rows(INTER_OPS) == [("r4", "se", 0, 4), ("r8", "se", 0, 8), ("r16", "se", 0, 16)]
    assert op("r16") == INTER_OPS[2] and op("r16").ratio == 16
    assert op("r6") == ratio_op(6) == OpSpec("r6", "se", "inter", ratio=6)
    assert op("conv_3x3") == OpSpec("conv_3x3", "conv", "head", kernel=3)


@pytest.mark.parametrize(
    "name", ["", "r", "r0", "r04", "r-4", "r4.0", "r٤", "conv", "Shuffle_3x3", None, 3, ["r4"]]
)
def test_unknown_operator_lists_the_known(name):
    with pytest.raises(
        UserError, match=r"unknown operator .*shuffle_3x3.*atconv_5x5.*r16.*conv_3x3.*r<ratio>"
    ):
        op(name)


def test_registering_operators(monkeypatch):
    monkeypatch.setattr(registry, "_BY_NAME", dict(registry._BY_NAME))
    pool = OpSpec("mean_3x3", "pool", "decoder", kernel=3)
    register_ops(pool, op("dwconv_3x3"))
    assert op("mean_3x3") == pool
    for other in (OpSpec("dwconv_3x3", "dwconv", "decoder", kernel=3), OpSpec("r8", "pool", "head")):
        with pytest.raises(UserError, match=f"operator '{other.name}' is registered already"):
            register_ops(other)

    # Its choices are an index list of their own, after the published ones; in files too.
    space = SearchSpace((ChoiceSite("pool.0", (pool,)), ChoiceSite("mask.0", HEAD_OPS)))
    assert space.groups == ("backbone", "head", "inter", "decoder")
    architecture = space.architecture({"head": [2], "decoder": [0]})
    assert architecture.names() == {"pool.0": "mean_3x3", "mask.0": "dfconv_3x3"}
    assert architecture.indices() == {"backbone": [], "head": [2], "inter": [], "decoder": [0]}
    assert SearchSpace.from_dict(space.to_dict()) == space


@pytest.mark.parametrize(
    "names, message",
    [
        (["shuffle_3x3"], "KEY has 'shuffle_3x3': expected head operators among dwconv_3x3, .*conv_3x3"),
        (["nothing"], "KEY has 'nothing'"),
        ([3], "KEY has 3"),
        ([], "KEY is .*at least one"),
        (["conv_3x3"] * 2, "KEY is .*each once"),
    ],
)
def test_a_domain_holds_operators_of_its_group(names, message):
    with pytest.raises(UserError, match=message):
        domain(names, "head", "KEY")
    assert domain(["conv_3x3", "dwconv_3x3"], "head", "KEY") == (op("conv_3x3"), op("dwconv_3x3"))


@pytest.mark.parametrize("ratio", [0, -1, 4.0, "4", True])
def test_bad_ratio(ratio):
    with pytest.raises(UserError, match="reduction ratio"):
        ratio_op(ratio)


def test_site_rejects_bad_domains():
    for ops, message in [
        ((), "has no operator"),
        (("r4", "r4"), "twice"),
        (("r4", "conv_3x3"), "mixes operators"),
        ("r4", "expected a list"),
        (4, "expected a list"),
        (("r4", 8), "unknown operator 8"),
    ]:
        with pytest.raises(UserError, match=message):
            ChoiceSite("attention.f2b.0", ops)
    with pytest.raises(UserError, match="site name"):
        ChoiceSite("", ("r4",))
    assert ChoiceSite("a", ["r4", "r8"]) == ChoiceSite("a", INTER_OPS[:2])


def test_space_without_sites():
    space = SearchSpace(())
    assert (space.cardinality, space.cycle_length, space.parts) == (1, 1, ())
    assert SearchSpace.from_dict(space.to_dict()) == space
    assert space.random(np.random.default_rng(0)).names() == {}
    assert space.difference(SearchSpace.default()).startswith("only in the second: backbone.0, ")
    with pytest.raises(UserError, match="no site 'mask.0' in the search space: it has none"):
        space.site("mask.0")


def test_space_rejects_repeated_sites():
    with pytest.raises(UserError, match="'a' twice"):
        SearchSpace((ChoiceSite("a", INTER_OPS), ChoiceSite("a", HEAD_OPS)))
    with pytest.raises(UserError, match="no site 'mask.4' in the search space: it has backbone.0..39"):
        SearchSpace.default().site("mask.4")


def test_spaces_are_values():
    a, b = SearchSpace.default(), SearchSpace.default()
    assert a == b and hash(a) == hash(b) and a.fingerprint == b.fingerprint and a.difference(b) == ""
    assert SearchSpace.from_dict(a.to_dict()) == a
    reordered = dict(a.to_dict(), **{"mask.1": a.to_dict()["mask.1"][::-1]})
    c = SearchSpace.from_dict(reordered)
    assert c != a and c.fingerprint != a.fingerprint
    assert c.difference(a).startswith("operators of mask.1 differ, e.g. mask.1: atconv_5x5, ")
    assert a.fingerprint == "346a4725bed1"  # written in files: must not change


def test_difference_names_missing_sites():
    a = SearchSpace.default()
    b = SearchSpace(a.sites[:-9])
    assert a.difference(b) == (
        "only in the first: attention.f2b.0, attention.f2b.1, attention.f2b.2 and 6 more"
    )
    assert b.difference(a) == a.difference(b).replace("first", "second")
    assert SearchSpace(a.sites[::-1]).difference(a) == "the sites are the same but in another order"


def test_random_is_uniform_and_reproducible():
    space = SearchSpace.default()
    draws = [space.random(np.random.default_rng(7)) for _ in range(2)]
    assert draws[0] == draws[1]
    rng = np.random.default_rng(0)
    counts = np.zeros(6, dtype=int)
    for _ in range(600):
        counts[space.random(rng).indices()["head"][3]] += 1
    # Binomial(600, 1/6): mean 100, standard deviation 9.1; five of them.
    assert counts.sum() == 600 and abs(counts - 100).max() < 46
