"""Ledger lines with a right checksum and a wrong content: another program's, or an older version's."""

import hashlib
import json

import pytest
from test_search import SPACE, Evaluate, search

from auto_panoptic.errors import UserError
from auto_panoptic.explore import Ledger
from auto_panoptic.search import ledger_path
from auto_panoptic.search.records import recorded_space


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    folder = tmp_path_factory.mktemp("search")
    search(folder, Evaluate(bootstrap=True), cycles=1)
    return [json.loads(line) for line in ledger_path(folder).read_text().splitlines()]


def sealed(line):
    line = {key: value for key, value in line.items() if key != "checksum"}
    text = json.dumps(line, sort_keys=True, separators=(",", ":"))
    return json.dumps({**line, "checksum": hashlib.sha256(text.encode()).hexdigest()})


WRONG = [  # (line, what is done to it, what is said)
    (1, lambda r: r.pop("space"), "it has no 'space'"),
    (1, lambda r: r.update(space=[1]), "search space: got list"),
    (1, lambda r: r.pop("weights"), "it has no 'weights'"),
    (1, lambda r: r.update(weights=None), "weights is None"),
    (1, lambda r: r.pop("policy"), "it has no 'policy'"),
    (1, lambda r: r.update(seed="0"), "seed is '0'"),
    (1, lambda r: r.update(versions=[]), "list indices"),
    (1, lambda r: r.update(policy_settings=3), "'int' object"),
    (3, lambda r: r.pop("metrics"), "it has no 'metrics'"),
    (3, lambda r: r.update(metrics=[]), "metrics are no mapping"),
    (3, lambda r: r["metrics"].pop("PQ"), "it has no 'PQ'"),
    (3, lambda r: r["metrics"].update(PQ="high"), "PQ is 'high'; expected percent"),
    (3, lambda r: r["metrics"].update(PQ=1e300), "PQ is 1e+300; expected percent"),
    (3, lambda r: r["metrics"].update(PQ=True), "PQ is True"),
    (3, lambda r: r["metrics"].update(bootstrap=[1.0]), "other bootstrap samples"),
    (3, lambda r: r["metrics"].update(bootstrap=["a"] * 64), "other bootstrap samples"),
    (4, lambda r: r.update(cycle={}), "cycle, index are [{}, "),
    (4, lambda r: r.update(cycle=-1), "cycle, index are [-1, "),
    (4, lambda r: r.update(index=10**6), "cycle, index are [0, 1000000]"),
    (4, lambda r: r.update(index=1.0), "cycle, index are [0, 1.0]"),
    (4, lambda r: r.update(architecture=""), "'str' object"),
    (4, lambda r: r["architecture"].update(backbone=[99] * 4), "has index 99"),
    (4, lambda r: r.update(status="okay"), "status is 'okay'; expected one of ok, failed"),
    (4, lambda r: r.pop("status"), "it has no 'status'"),
]  # fmt: skip


@pytest.mark.parametrize("number, change, problem", WRONG)
def test_a_line_that_no_search_wrote_is_named(tmp_path, lines, number, change, problem):
    header = {key: value for key, value in lines[0].items() if key not in ("format", "checksum")}
    header["policy_settings"] = {"models_per_cycle": 24}
    changed = json.loads(json.dumps([lines[0] | header, *lines[1:]]))
    change(changed[number - 1])
    path = ledger_path(tmp_path)
    path.parent.mkdir()
    path.write_text("".join(sealed(line) + "\n" for line in changed))
    text = f"{path}: line {number} is not as a search writes it ("
    with pytest.raises(UserError) as error:
        recorded_space(path, SPACE)
    assert str(error.value).startswith(text) and problem in str(error.value) and "\n" not in str(error.value)
    if number > 1:
        with pytest.raises(UserError) as error:
            search(tmp_path, resume=True, header=header, cycles=1)
        assert str(error.value).startswith(text)


def test_a_finished_search_says_so(tmp_path, caplog):
    for cycles, said in ((1, 0), (1, 1), (2, 1)):
        search(tmp_path, resume=True, cycles=cycles)
        assert caplog.text.count("Nothing is left to evaluate: the ledger holds all 24 candidates") == said


def test_the_remedy_works(tmp_path, lines):
    """Lines 3 and later are gone; the search makes them again."""
    path = ledger_path(tmp_path)
    path.parent.mkdir()
    path.write_text("".join(sealed(line) + "\n" for line in lines[:2]))
    search(tmp_path, Evaluate(bootstrap=True), resume=True, cycles=1)
    assert [r["architecture"] for r in Ledger(path).records] == [r["architecture"] for r in lines[1:]]
    recorded_space(path, SPACE)
