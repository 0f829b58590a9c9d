"""The pictures of a report: of the selected network only, embedded, few enough, and none that are damaged."""

import json
import re
import shutil

import pytest
from report_util import Page, add_pictures, make_search, words
from toy import make_config

from auto_panoptic.errors import UserError
from auto_panoptic.report import pictures as module
from auto_panoptic.report import write_report
from auto_panoptic.search import pictures as search_module
from auto_panoptic.search.executors.in_process import InProcess
from auto_panoptic.search.pictures import search_pictures


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    folder = tmp_path_factory.mktemp("searched")
    add_pictures(folder / "search/pictures_scenes", make_search(folder, cycles=1).architecture.names())
    return folder


@pytest.fixture
def world(searched, tmp_path):
    """A copy of the search, and its operators."""
    shutil.copytree(searched / "search", tmp_path / "world/search")
    sites = json.loads((tmp_path / "world/search/architecture.json").read_text())["sites"]
    return tmp_path / "world", sites


def test_the_best_and_the_worst_are_embedded(world):
    folder, _ = world
    html = write_report(folder).read_text()
    page = Page(html)
    text = words(page.text["pictures"])
    assert "The path of the supernet, on scenes" in text and "was not trained on its own" in text
    assert "best 1: PQ 100.0 image 0" in text and "worst 1: PQ 0.0 image 1" in text
    assert "missed invented taken for another border" in text
    images = [link for link in page.links if link.startswith("data:image")]
    assert len(images) == 2 * 4 + 4 + 2  # panels, mistakes, classes
    assert len({len(link) for link in images}) > 4
    assert "#pictures" in page.links
    alternatives = re.findall(r'<img src="data:[^"]+" alt="([^"]*)">', html)
    assert alternatives[:4] == [
        f"{t} of image 0" for t in ("Photo", "Ground truth", "Prediction", "Differences")
    ]


def test_a_network_trained_from_it_comes_first(world, tmp_path):
    """One below OUTPUT_DIR is found by itself, another is named; an architecture may have further sites."""
    folder, sites = world
    add_pictures(folder / "retrain/inference/pictures_val", sites, {"PQ": 67.728})
    add_pictures(tmp_path / "elsewhere/inference/pictures_val", sites | {"other.0": "x"}, {"PQ": 1.5})
    text = words(Page(write_report(folder).read_text()).text["pictures"])
    assert text.index("The network trained in retrain, on scenes: PQ 67.73") < text.index("The path of the")
    text = words(Page(write_report(folder, trained=[tmp_path / "elsewhere"]).read_text()).text["pictures"])
    assert text.index("trained in elsewhere, on scenes: PQ 1.50") < text.index("trained in retrain")


def test_pictures_of_another_network_are_not_shown(world, tmp_path):
    folder, sites = world
    site = next(iter(sites))
    add_pictures(folder / "search/pictures_scenes", sites | {site: "another"})
    add_pictures(folder / "retrain/inference/pictures_val", sites | {site: "another"})
    add_pictures(folder / "fixed/inference/pictures_val", None)
    assert "pictures" not in Page(write_report(folder).read_text()).text
    for trained in (folder / "retrain", tmp_path / "nothing"):
        with pytest.raises(
            UserError, match="--trained .*: no evaluation of the selected architecture has left"
        ):
            write_report(folder, trained=[trained])


@pytest.mark.parametrize("damage", [
    lambda folder: (folder / "best_1_truth.png").write_bytes(b"<svg onload=alert(1)>"),
    lambda folder: (folder / "worst_1_photo.jpg").unlink(),
    lambda folder: (folder / "pictures.json").write_text("{"),
    lambda folder: (folder / "pictures.json").write_text("[]"),
    lambda folder: _replace(folder, '"best 1"', '"../best 1"'),
    lambda folder: _replace(folder, '"PQ": 100.0', '"PQ": "much"'),
    lambda folder: _replace(folder, '"classes"', '"lasses"'),
])  # fmt: skip
def test_damaged_pictures_are_left_out(world, caplog, damage):
    folder, _ = world
    damage(folder / "search/pictures_scenes")
    assert "pictures" not in Page(write_report(folder).read_text()).text
    assert "its pictures are left out" in caplog.text


def _replace(folder, old, new):
    path = folder / "pictures.json"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def test_so_many_pictures_that_the_page_stays_small(world, monkeypatch):
    """Of each set the best and the worst come before the second best."""
    folder, sites = world
    for place in ("search/pictures_scenes", "retrain/inference/pictures_val"):
        add_pictures(folder / place, sites, number=6)
    shown = re.compile(r"(?:best|worst) \d(?=: PQ)")
    whole = Page(write_report(folder).read_text()).text["pictures"]
    assert len(shown.findall(whole)) == 12
    size = sum(f.stat().st_size for f in (folder / "search/pictures_scenes").glob("*_1_*"))
    monkeypatch.setattr(module, "MOST_BYTES", 2 * size + 1000)
    few = Page(write_report(folder).read_text()).text["pictures"]
    assert shown.findall(few) == ["best 1", "worst 1"] * 2


def test_a_search_that_fails_to_draw_has_its_results(tmp_path, shapes, caplog, monkeypatch):
    """A warning; with TEST.PICTURES 0 nothing is even asked for."""
    cfg = make_config(tmp_path, shapes)
    executor = InProcess(lambda _: pytest.fail("no candidate"))
    search_pictures(cfg, executor, None, tmp_path)
    assert "no pictures: AttributeError" in caplog.text
    none = make_config(tmp_path, shapes, "TEST.PICTURES", 0)
    monkeypatch.setattr(executor, "ask", lambda *_: pytest.fail("asked"))
    search_pictures(none, executor, None, tmp_path)
    monkeypatch.setattr(search_module, "write_pictures", lambda *_: pytest.fail("written"))
    monkeypatch.setattr(executor, "ask", lambda *_: None)  # no worker at hand
    search_pictures(cfg, executor, None, tmp_path)
