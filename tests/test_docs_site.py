"""The reference has every option and key, and the pages build without a broken link or anchor."""

import argparse
import re
import sys

import pytest
from toy import ROOT

from auto_panoptic.validate import defaults

sys.path.insert(0, str(ROOT / "tools/docs"))
import commands  # noqa: E402
import pages  # noqa: E402
import reference  # noqa: E402


@pytest.fixture(scope="module")
def page():
    return reference.reference()


@pytest.mark.parametrize("words", commands.commands(), ids=" ".join)
def test_every_option_is_in_the_reference(words, page):
    sections = dict(re.findall(r"^## `python (.*?)`\n(.*?)(?=^## )", page, re.M | re.S))
    actions = [a for a in commands.parser_of(words)._actions if a.help != argparse.SUPPRESS]
    kinds = [a.choices.values() for a in actions if isinstance(a, argparse._SubParsersAction)]
    actions += [a for parsers in kinds for parser in parsers for a in parser._actions]
    section = sections.get(" ".join(words), "")
    options = {name for action in actions for name in action.option_strings} - {"-h", "--help"}
    assert {name for name in options if f"`{name}`" not in section} == set()


def test_the_commands_are_those_that_people_type():
    found = {" ".join(words) for words in commands.commands()}
    assert {"train_net.py", "search_net.py", "demo.py", "datasets/prepare_nas_split.py"} <= found
    assert {"-m auto_panoptic.report", "-m auto_panoptic.data.check", "-m auto_panoptic.doctor"} <= found


def test_every_key_is_in_the_reference(page):
    page = page.partition("## Keys of Auto-Panoptic")[2]
    rows = re.findall(r"^\| `([A-Z][\w.]+)` \|", page, re.M)
    assert sorted(rows) == sorted(defaults())


def test_our_keys_have_a_meaning(page):
    """Taken from the comment above them. Of Detectron2's projects some have none."""
    ours = page.partition("## Keys of Auto-Panoptic")[2].partition("## Keys of Detectron2")[0]
    table = re.findall(r"^\| `([A-Z][\w.]+)` \|.*\| (.*?) ?\|$", ours, re.M)
    shared = re.compile(
        r"INPUT\.|SOLVER\.POLY|MODEL\.(SEM_SEG_HEAD|INS_EMBED_HEAD|PANOPTIC_DEEPLAB|RESNETS)\."
    )
    assert len(table) > 100
    assert [key for key, meaning in table if not meaning and not shared.match(key)] == []
    meanings = dict(table)
    assert meanings["NAS.SEED"] == "Seed of the fair cycles, in supernet training and in the search."
    assert meanings["MODEL.HRNET.BLOCK"] == "See `MODEL.HRNET.CHANNELS`."
    assert meanings["NAS.RANDOM.CYCLES"].startswith("Policy `random`: Uniformly random models")


def test_a_table_has_one_column_for_each_heading(page):
    """No text of the code breaks a row."""
    widths = {len(re.findall(r"(?<!\\)\|", row)) for row in page.splitlines() if row.startswith("|")}
    assert widths == {4, 5}


def test_texts_from_elsewhere_keep_their_links():
    zoo = pages.text_of("model_zoo.md")
    assert "`configs/auto_panoptic_coco.yaml`" in zoo and "](configs" not in zoo
    assert "[CHANGELOG.md](changelog.md)" in pages.text_of("contributing.md")


def test_the_site_builds_strictly(tmp_path):
    """MkDocs checks links and anchors; a warning is an error. Nothing is asked of other servers."""
    pytest.importorskip("material")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path)))
    html = {path.name: path.read_text() for path in tmp_path.glob("*.html")}
    named = set(re.findall(r"\w+\.md", (ROOT / "mkdocs.yml").read_text()))
    assert {name.replace(".md", ".html") for name in named} <= html.keys()
    for text in html.values():
        fetched = re.findall(r'<(?:script|img|link)[^>]*(?:src|href)="(https?://[^"]+)', text)
        assert [url for url in fetched if "canonical" not in url] == []
    assert "<svg viewBox" in html["concepts.html"]
