"""The finals in the report: every number is that of finals.json, and those of another search stay out."""

import json

import pytest
from report_util import Page, make_search, words
from test_finals import REQUEST, Train, hold
from test_search import utility

from auto_panoptic.explore import Ledger
from auto_panoptic.report.page import write_report
from auto_panoptic.search import Request, ledger_path
from auto_panoptic.space import Architecture


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finals")
    result = make_search(folder, request=Request("ridge"))
    found = (result, Ledger(ledger_path(folder)))
    hold(
        folder, found, Train(worth=lambda architecture: 100 - utility(architecture))
    )  # not the selection wins
    return folder


@pytest.fixture(scope="module")
def content(folder):
    return json.loads((folder / "search/finals.json").read_text())


def read(folder):
    return Page(write_report(folder).read_text())


def test_every_training_stands_in_the_table(folder, content):
    page = read(folder)
    rows = {row[0]: row[1:] for row in page.tables["finalists"][1:]}
    assert len(rows) == len(content["finalists"]) + REQUEST.controls
    for entry in (*content["finalists"], *content["controls"]):
        macs, params, trained = rows[", ".join(entry["roles"])]
        assert (int(macs), int(params)) == (entry["macs"], entry["params"])
        said = [f"{t['steps']}/{t['seed']}: {t['PQ']:.2f}" for t in entry["trained"]]
        assert words(trained) == ", ".join(said)
    over = content["over_random"]
    assert f"{over['mean']:+.1f} PQ [{over['low']:+.1f}, {over['high']:+.1f}]" in page.text["finals"]
    whole = [t["PQ"] for e in (*content["finalists"], *content["controls"]) for t in e["trained"]
             if t["steps"] == REQUEST.steps]  # fmt: skip
    tips = [tip for tip in page.tips if f": PQ {whole[0]:.2f}" in tip]
    assert tips and all(any(f"PQ {score:.2f}," in tip for tip in page.tips) for score in whole)
    assert (folder / "search/figures/finals.svg").is_file()


@pytest.mark.parametrize(
    "start, said", [("", "Trained from scratch for 8"), ("ab12", "Trained from weights ab12")]
)
def test_what_the_trainings_started_from_is_said(folder, content, tmp_path, start, said):
    make_search(tmp_path, request=Request("ridge"))
    (tmp_path / "search/finals.json").write_text(json.dumps({**content, "start": start}))
    page = read(tmp_path)
    assert any(said in text for text in page.text.values())
    assert f"on their own, {said.split(' ', 1)[1].split(' for')[0]}." in page.text["finals"]


def test_the_drawn_network_is_the_best_of_the_finals(folder, content):
    page = read(folder)
    assert "The best of the finals" in page.text["architecture"]
    winner = Architecture.load(folder / "search/architecture.json")
    assert winner.indices() == content["winner"] != content["finalists"][0]["architecture"]
    rows = page.tables[None]
    assert all([site, name] in rows for site, name in winner.names().items())


@pytest.mark.parametrize("change", ["other selection", "damaged", "no finalists"])
def test_finals_of_another_search_are_not_shown(folder, content, tmp_path, change):
    make_search(tmp_path, request=Request("ridge"))
    other = json.loads(json.dumps(content))
    if change == "other selection":
        other["finalists"][0] = other["controls"][0]
    other["finalists"] = [] if change == "no finalists" else other["finalists"]
    text = json.dumps(other)
    (tmp_path / "search/finals.json").write_text(text[:100] if change == "damaged" else text)
    assert "finals" not in read(tmp_path).text
