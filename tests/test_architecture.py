import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auto_panoptic import files
from auto_panoptic.errors import UserError
from auto_panoptic.space import (
    Architecture,
    SearchSpace,
    load_names,
    resolve_architecture_path,
)

SPACE = SearchSpace.default()
# Published genotypes in words: 3, 5, 7 = shuffle block with that kernel, X = xception.
DECODED = {
    "auto_panoptic_coco": (
        "X 7 3 7 5 X 7 3  5 X 5 X X 3 3 5  3 3 5 3 7 X 7 7 5 3 5 X 5 7 7 5  5 7 3 7 3 7 X 3",
        "atconv_3x3 dwconv_5x5 dfconv_3x3 dfconv_5x5",
        "dfconv_3x3 dfconv_5x5 dwconv_3x3",
        "16 4 4 4",
        "8 8 8 16 4",
    ),
    "auto_panoptic_ade20k": (
        "5 7 X 5 5 7 5 7  3 X 7 7 5 X 5 X  5 X X 7 5 3 3 7 5 X 7 3 5 5 3 X  3 X 3 X X 5 X X",
        "dfconv_3x3 dwconv_3x3 dfconv_5x5 dfconv_5x5",
        "dfconv_5x5 dfconv_3x3 dfconv_5x5",
        "16 4 8 8",
        "4 4 8 4 16",
    ),
}
INDICES = {
    "auto_panoptic_coco": {
        "backbone": "3202132013133001001023221013122112020230",
        "head": "4123230",
        "inter": "200011120",
    },
    "auto_panoptic_ade20k": {
        "backbone": "1231121203221313133210021320110303033133",
        "head": "2033323",
        "inter": "201100102",
    },
    "detnas_coco": {
        "backbone": "0031210203123320211320222131033313333333",
        "head": "4123230",
        "inter": "200011120",
    },
}
BACKBONE = {"3": "shuffle_3x3", "5": "shuffle_5x5", "7": "shuffle_7x7", "X": "xception_3x3"}


def lists(name):
    return {group: [int(i) for i in digits] for group, digits in INDICES[name].items()}


def assert_decodes(arch, name):
    backbone, mask, sem_seg, f2b, b2f = (text.split() for text in DECODED[name])
    expected = {f"backbone.{i}": BACKBONE[k] for i, k in enumerate(backbone)}
    expected |= {f"mask.{i}": o for i, o in enumerate(mask)} | {
        f"sem_seg.{i}": o for i, o in enumerate(sem_seg)
    }
    expected |= {f"attention.f2b.{i}": f"r{r}" for i, r in enumerate(f2b)}
    expected |= {f"attention.b2f.{i}": f"r{r}" for i, r in enumerate(b2f)}
    assert len(expected) == 56 and arch.names() == expected


@pytest.mark.parametrize("name", INDICES)
def test_shipped_files(name):
    arch = Architecture.load(resolve_architecture_path(name))
    assert arch.space == SPACE and arch.indices() == lists(name)
    assert arch.provenance["source"]
    if name in DECODED:
        assert_decodes(arch, name)


@pytest.mark.parametrize("seed", range(5))
def test_shipped_random_architectures(seed):
    arch = Architecture.load(resolve_architecture_path(f"random_{seed}"))
    assert arch == SPACE.random(np.random.default_rng(seed))
    assert arch.provenance["seed"] == seed and "default_rng(seed)" in arch.provenance["source"]


def test_shipped_plain_architecture():
    """The published network with an ordinary convolution at all seven head sites, and no other to choose."""
    arch = Architecture.load(resolve_architecture_path("auto_panoptic_coco_plain"))
    published = lists("auto_panoptic_coco")
    assert arch.indices() == {**published, "head": [0] * 7}
    heads = {site.name: ["conv_3x3"] for site in SPACE.group("head")}
    assert arch.space == SearchSpace.from_dict({**SPACE.to_dict(), **heads})
    assert [arch[site.name].name for site in arch.space.group("head")] == ["conv_3x3"] * 7


def test_hand_crafted_architecture():
    """The backbone of DetNAS under the published heads and attention."""
    arch, coco = (
        Architecture.load(resolve_architecture_path(name)).indices()
        for name in ("detnas_coco", "auto_panoptic_coco")
    )
    detnas = "0,0,3,1,2,1,0,2,0,3,1,2,3,3,2,0,2,1,1,3,2,0,2,2,2,1,3,1,0,3,3,3,1,3,3,3,3,3,3,3"
    assert arch == {**coco, "backbone": [int(i) for i in detnas.split(",")]}


def test_shipped_files_are_as_written(tmp_path):
    paths = sorted(resolve_architecture_path("detnas_coco").parent.glob("*.json"))
    assert len(paths) == 9
    for path in paths:
        Architecture.load(path).save(tmp_path / path.name)
        assert (tmp_path / path.name).read_text() == path.read_text()


@pytest.mark.parametrize("name", DECODED)
def test_published_format(name, tmp_path):
    path = tmp_path / "published.json"
    path.write_text(json.dumps([lists(name)]))
    arch = Architecture.load(path)
    assert arch.space == SPACE
    assert_decodes(arch, name)
    arch.save(tmp_path / "ours.json")
    again = Architecture.load(tmp_path / "ours.json")
    assert again == arch and [again.indices()] == json.loads(path.read_text())


def test_published_indices_keep_the_published_order_in_another_space(tmp_path):
    """Indices mean the published operators whatever the order of the model's domains."""
    path = tmp_path / "published.json"
    path.write_text(json.dumps([lists("auto_panoptic_coco")]))
    flipped = SearchSpace.from_dict({site: ops[::-1] for site, ops in SPACE.to_dict().items()})
    arch = Architecture.load(path, flipped)
    assert arch.space == flipped
    assert_decodes(arch, "auto_panoptic_coco")
    assert arch.indices()["backbone"] == [3 - i for i in lists("auto_panoptic_coco")["backbone"]]


def test_access_and_equality():
    arch = Architecture.from_indices(SPACE, lists("auto_panoptic_coco"))
    assert arch["mask.2"].kind == "dfconv" and arch["mask.2"].kernel == 3
    assert arch["attention.f2b.0"].ratio == 16
    same = SPACE.architecture(arch.names())
    assert same == arch and hash(same) == hash(arch)
    assert Architecture(SPACE, arch.choices, {"PQ": 44.8}) == arch
    assert SPACE.architecture(arch) == arch
    assert SPACE.architecture(list(arch.choices)) == arch
    assert SPACE.architecture(np.concatenate([np.array(v) for v in arch.indices().values()])) == arch
    assert SPACE.random(np.random.default_rng(0)) != arch
    with pytest.raises(UserError, match="no site 'mask.9'"):
        arch["mask.9"]


def test_random_round_trip(tmp_path):
    rng = np.random.default_rng(1)
    for i in range(20):
        arch = SPACE.random(rng)
        assert Architecture.from_indices(SPACE, arch.indices()) == arch
        arch.save(tmp_path / f"{i}.json")
        assert (
            Architecture.load(tmp_path / f"{i}.json")
            == Architecture.load(tmp_path / f"{i}.json", SPACE)
            == arch
        )


def test_save_is_stable_atomic_and_keeps_provenance(tmp_path):
    arch = Architecture.from_indices(SPACE, lists("detnas_coco"), {"seed": 3, "name": "é"})
    path = tmp_path / "new" / "architecture.json"
    arch.save(path)
    first = path.read_bytes()
    arch.save(path)
    assert path.read_bytes() == first and os.listdir(path.parent) == ["architecture.json"]
    assert list(json.loads(first)) == ["space", "sites", "backbone", "head", "inter", "provenance"]
    assert Architecture.load(path).provenance == {"seed": 3, "name": "é"}


def test_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "architecture.json"
    Architecture.from_indices(SPACE, lists("detnas_coco")).save(path)
    before = path.read_bytes()

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="architecture.json: cannot write.*No space left"):
        Architecture.from_indices(SPACE, lists("auto_panoptic_coco")).save(path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["architecture.json"]


def test_hand_written_sites_suffice(tmp_path):
    names = Architecture.from_indices(SPACE, lists("auto_panoptic_coco")).names()
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"sites": names}))
    assert_decodes(Architecture.load(path, SPACE), "auto_panoptic_coco")
    assert load_names(path) == names
    with pytest.raises(UserError, match="mine.json: states no 'space'"):
        Architecture.load(path)  # which other operators the sites have cannot be known
    path.write_text(json.dumps({"sites": dict(reversed(names.items()))}))
    assert_decodes(Architecture.load(path, SPACE), "auto_panoptic_coco")


def test_sites_and_index_lists_without_a_space(tmp_path):
    path = tmp_path / "mine.json"
    content = own()
    del content["space"]
    path.write_text(json.dumps(content))
    for read in (load_names, Architecture.load, lambda path: Architecture.load(path, SPACE)):
        with pytest.raises(UserError, match="mine.json: holds index lists but no 'space'"):
            read(path)


def test_names_are_read_once_for_each_version_of_the_file(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    first, second = (SPACE.random(np.random.default_rng(i)) for i in range(2))
    reads = []
    monkeypatch.setattr(files, "read_bytes", lambda path: reads.append(path) or Path(path).read_bytes())
    first.save(path)
    assert load_names(path) == load_names(str(path)) == first.names() and len(reads) == 1
    second.save(path)
    assert load_names(path) == second.names() and len(reads) == 2


def own(**changes):
    arch = Architecture.from_indices(SPACE, lists("auto_panoptic_coco"))
    content = {"space": SPACE.to_dict(), "sites": arch.names(), **arch.indices(), "provenance": {}}
    return {**content, **changes}


def with_site(site, value):
    return own(sites={**own()["sites"], site: value})


BAD = {
    "not JSON": ("{", "not valid JSON"),
    "nothing": ("", "not valid JSON"),
    "deep": ("[" * 100000, "not valid JSON"),
    "key twice": ('{"sites": {}, "sites": {}}', "key 'sites' occurs twice"),
    "number": ("7", "holds a int"),
    "two architectures": (json.dumps([lists("detnas_coco")] * 2), "a list of 2 entries"),
    "empty list": ("[]", "a list of 0 entries"),
    "empty object": ("{}", "no 'sites' and no index lists"),
    "unknown key": (
        json.dumps(own(paths=[])),
        "unknown key 'paths': expected space, sites, backbone, head, inter",
    ),
    "wrong operator": (
        json.dumps(with_site("mask.3", "conv7x7")),
        "site 'mask.3' has operator 'conv7x7': expected one of dwconv_3x3, dwconv_5x5, dfconv_3x3",
    ),
    "operator of another part": (json.dumps(with_site("mask.3", "r4")), "site 'mask.3' has operator 'r4'"),
    "index as name": (json.dumps(with_site("mask.3", 2)), "site 'mask.3' has 2: expected the name"),
    "extra site": (json.dumps(with_site("mask.4", "dwconv_3x3")), "no site 'mask.4'"),
    "site missing": (
        json.dumps(own(sites={k: v for k, v in own()["sites"].items() if k != "sem_seg.1"})),
        "site 'sem_seg.1' has no operator: expected one of dwconv_3x3",
    ),
    "indices disagree": (
        json.dumps(own(head=[0, 1, 2, 3, 2, 3, 0])),
        "'head' is .* but 'sites' names operators",
    ),
    "head too short": (
        json.dumps([dict(lists("detnas_coco"), head=[0] * 6)]),
        "'head' has 6 indices: expected 7",
    ),
    "head missing": (
        json.dumps([{k: v for k, v in lists("detnas_coco").items() if k != "head"}]),
        "'head' has 0 indices: expected 7",
    ),
    "index too large": (
        json.dumps([dict(lists("detnas_coco"), inter=[3] * 9)]),
        r"site 'attention.f2b.0' has index 3: expected 0..2 \(r4, r8, r16\)",
    ),
    "negative": (json.dumps([dict(lists("detnas_coco"), inter=[-1] * 9)]), "has index -1: expected 0..2"),
    "float": (
        json.dumps([dict(lists("detnas_coco"), inter=[1.0] * 9)]),
        "has index 1.0: expected an integer 0..2",
    ),
    "bool": (
        json.dumps([dict(lists("detnas_coco"), inter=[True] * 9)]),
        "has index True: expected an integer",
    ),
    "string": (
        json.dumps([dict(lists("detnas_coco"), inter="000000000")]),
        "'inter' is '000000000': expected a list",
    ),
    "null": (json.dumps([dict(lists("detnas_coco"), inter=None)]), "'inter' is None: expected a list"),
    "space is a list": (json.dumps(own(space=[])), "search space: got list"),
    "provenance": (json.dumps(own(provenance=[])), "'provenance' is .*: expected an object"),
}


@pytest.mark.parametrize("case", BAD)
def test_malformed_files(case, tmp_path):
    text, message = BAD[case]
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(UserError, match=f"bad.json: .*{message}") as error:
        Architecture.load(path)
    assert "\n" not in str(error.value)


def test_unreadable_files(tmp_path):
    with pytest.raises(
        UserError, match="none.json: cannot read the architecture file: there is no such file"
    ):
        Architecture.load(tmp_path / "none.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="binary.json: the architecture file is not valid JSON"):
        Architecture.load(tmp_path / "binary.json")
    with pytest.raises(UserError, match="cannot read"):
        Architecture.load(tmp_path)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 9)
    | st.floats()
    | st.sampled_from(["r4", "dwconv_3x3", "", "mask.0"]),
    lambda inner: (
        st.lists(inner, max_size=9)
        | st.dictionaries(
            st.sampled_from(["space", "sites", "backbone", "head", "inter", "mask.0", "x"]), inner
        )
    ),
    max_leaves=20,
)


@settings(max_examples=150, deadline=None)
@given(content=JSON, key=st.sampled_from(["space", "sites", "backbone", "head", "inter", "provenance", None]))
def test_any_json_loads_or_is_a_user_error(content, key, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps(content if key is None else own(**{key: content})))
    for space in (None, SPACE):
        try:
            arch = Architecture.load(path, space)
        except UserError as error:
            assert str(path) in str(error)
        else:
            assert isinstance(arch, Architecture) and (space is None or arch.space == space)


def test_wrong_space_names_sites_values_and_remedy(tmp_path):
    path = tmp_path / "a.json"
    Architecture.from_indices(SPACE, lists("auto_panoptic_coco")).save(path)
    without_b2f = SearchSpace(SPACE.sites[:51])
    with pytest.raises(UserError, match="a.json: .*another search space.*attention.b2f.0.*use the config"):
        Architecture.load(path, without_b2f)
    narrow = SearchSpace.from_dict({**SPACE.to_dict(), "backbone.0": ["shuffle_3x3", "shuffle_5x5"]})
    with pytest.raises(
        UserError, match="site 'backbone.0' has operator 'xception_3x3': expected one of shuffle_3x3, "
    ):
        Architecture.load(path, narrow)
    narrow = SearchSpace.from_dict({**SPACE.to_dict(), "backbone.0": ["shuffle_3x3", "xception_3x3"]})
    assert_decodes(Architecture.load(path, narrow), "auto_panoptic_coco")


def test_resolve_architecture_path(tmp_path):
    repository = Path(__file__).resolve().parents[1]
    expected = repository / "configs" / "architectures" / "detnas_coco.json"
    assert resolve_architecture_path("detnas_coco") == expected
    assert resolve_architecture_path(str(expected)) == expected
    with pytest.raises(
        UserError, match=r"no architecture file 'x/y.json'.*auto_panoptic_ade20k.*detnas_coco"
    ):
        resolve_architecture_path("x/y.json")


def test_a_text_is_no_path_however_long():
    """The name of a file may be too long for the system to look for."""
    with pytest.raises(UserError, match="no architecture file"):
        resolve_architecture_path("json:" + "x" * 5000)
