"""The architecture file of a whole network serves a model that has only some of its parts."""

import json

import numpy as np
import pytest
from test_architecture import SPACE, lists, own

from auto_panoptic.errors import UserError
from auto_panoptic.space import Architecture, SearchSpace


def sub_space(*parts):
    return SearchSpace(tuple(site for site in SPACE.sites if site.part in parts))


@pytest.mark.parametrize("form", ["ours", "published", "sites only"])
@pytest.mark.parametrize(
    "parts",
    ["backbone", "mask sem_seg", "sem_seg attention", "sem_seg", "attention", "backbone attention", ""],
)
def test_a_larger_file_serves_a_model_with_fewer_parts(parts, form, tmp_path):
    path = tmp_path / "a.json"
    whole = Architecture.from_indices(SPACE, lists("auto_panoptic_coco"), {"from": "paper"})
    content = own(provenance={"from": "paper"})
    if form == "published":
        content = [whole.indices()]
    elif form == "sites only":
        for key in ("space", "backbone", "head", "inter"):
            content.pop(key)
    path.write_text(json.dumps(content))
    space = sub_space(*parts.split())
    arch = Architecture.load(path, space)
    assert arch.space == space
    assert arch.names() == {n: o for n, o in whole.names().items() if n.split(".")[0] in parts.split()}
    assert arch.provenance == ({} if form == "published" else {"from": "paper"})


def test_a_larger_file_must_still_fit_the_parts_there_are(tmp_path):
    path = tmp_path / "a.json"
    Architecture.from_indices(SPACE, lists("auto_panoptic_coco")).save(path)
    backbone = sub_space("backbone")
    short = SearchSpace(backbone.sites[:20])
    with pytest.raises(UserError, match="another search space.*: only in the second: backbone.20, "):
        Architecture.load(path, short)
    narrow = SearchSpace.from_dict({**backbone.to_dict(), "backbone.0": ["shuffle_3x3"]})
    with pytest.raises(
        UserError, match="'backbone.0' has operator 'xception_3x3': expected one of shuffle_3x3"
    ):
        Architecture.load(path, narrow)
    # The file of a smaller model does not serve a larger one.
    backbone.random(np.random.default_rng(0)).save(path)
    with pytest.raises(UserError, match="another search space.*: only in the first: mask.0, "):
        Architecture.load(path, SPACE)
    # Nor is the left-out rest read carelessly.
    for bad in ({"mask.0": "conv7x7"}, {"": "r4"}, {"backbone.40": "shuffle_3x3"}):
        path.write_text(json.dumps({"sites": {**own()["sites"], **bad}}))
        with pytest.raises(UserError, match="conv7x7|site name ''|only in the second: backbone.40;"):
            Architecture.load(path, backbone)


def test_an_architecture_without_sites_round_trips(tmp_path):
    arch = Architecture(SearchSpace(()), (), {"seed": 1})
    arch.save(tmp_path / "a.json")
    loaded = Architecture.load(tmp_path / "a.json")
    assert loaded == arch and loaded.provenance == {"seed": 1}
    with pytest.raises(UserError, match="another search space"):
        Architecture.load(tmp_path / "a.json", SPACE)
