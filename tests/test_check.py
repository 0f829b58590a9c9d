"""The data checker names every damage, and nothing that is whole."""

import json
import os
from pathlib import Path

import pytest
from check_corpus import Corpus, flags, serious
from check_instance_damages import DAMAGES, NOTES
from toy import ROOT

from auto_panoptic.data.check import Report, check_data_set, format_report, main
from auto_panoptic.data.formats.findings import KINDS, SEVERITIES, Finding

PHOTOS = Path(os.getenv("AUTO_PANOPTIC_PHOTOS", ROOT.parent / "shared" / "data"))


@pytest.fixture(scope="module")
def damaged(shapes, tmp_path_factory):
    """The corpus with every damage done to an image of its own, and the findings."""
    corpus = Corpus(
        tmp_path_factory.mktemp("corpus"), shapes, copies=-(-(len(DAMAGES) + len(NOTES) + 8) // 20)
    )
    # Turning must change the size; the same images may serve several times.
    items = [item for item in corpus.items if item.size[0] != item.size[1]] + [
        item for item in corpus.items if item.size[0] == item.size[1]
    ]
    found = {}
    for name, (function, where, kinds) in DAMAGES.items():
        found[name] = (items.pop(0), where, kinds)
        function(found[name][0])
    noted = {}
    for kind, function in NOTES.items():
        noted[kind] = items.pop(0)
        function(noted[kind])
    findings = check_data_set(processes=1, **corpus.write())
    return corpus, found, noted, items, findings


def of_item(findings, item) -> list:
    """Findings that concern an image, by id or by its files."""
    files = {str(item.image), str(item.png), str(item.semantic)}
    return [f for f in findings if f.image_id in item.ids or f.file in files]


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named(damaged, name):
    corpus, found, _, _, findings = damaged
    item, where, kinds = found[name]
    paths = {**corpus.paths, "image": item.image, "png": item.png, "semantic": item.semantic}
    path = str(paths.get(where) or paths[f"{where}_json"])
    concerned = of_item(findings, item)
    assert [f for f in concerned if f.kind == kinds[0] and f.file == path], concerned
    assert {f.kind for f in serious(concerned)} == set(kinds)


@pytest.mark.parametrize("kind", NOTES)
def test_what_is_allowed_is_a_note(damaged, kind):
    _, _, noted, _, findings = damaged
    concerned = of_item(findings, noted[kind])
    assert [f.kind for f in concerned] == [kind]


def test_whole_files_are_not_accused(damaged):
    _, found, _, whole, findings = damaged
    assert len(DAMAGES) >= 50 and len(whole) >= 8
    assert [f for item in whole for f in of_item(findings, item)] == []
    # Nothing is said that belongs to no damage.
    mine = [f for item, _, _ in found.values() for f in of_item(findings, item)]
    assert [f for f in serious(findings) if f not in mine] == []


def test_full_list_exit_code_and_json(damaged, tmp_path, capsys):
    corpus, found, _, _, findings = damaged
    with pytest.raises(SystemExit) as end:
        main([*flags(corpus.paths), "--processes", "2", "--json", str(tmp_path / "found.json")])
    assert end.value.code == 2
    out = capsys.readouterr().out
    errors = [f for f in findings if f.severity == "error"]
    assert len(errors) > 80 and all(f"  {f.line()}\n" in out for f in errors)
    (record,) = json.loads((tmp_path / "found.json").read_text())["data_sets"]
    # In the same order with two processes as with one.
    assert [(r["kind"], r["file"], r["what"]) for r in record["findings"]] == [
        (f.kind, f.file, f.what) for f in findings
    ]
    assert record["errors"] == len(errors) and all(r["remedy"] for r in record["findings"])
    assert record["checked"] == record["total"] > record["images"] >= len(corpus.items) - 1


def test_errors_are_never_cut_short():
    errors = [Finding("image-missing", f"{i}.jpg", i, "gone") for i in range(50)]
    notes = [Finding("no-object", f"{i}.png", i, "stuff only") for i in range(50)]
    text = format_report(Report("set", errors + notes))
    assert all(f"  {error.line()}\n" in text for error in errors)
    assert text.count("stuff only") == 3 and "... and 47 more" in text
    assert format_report(Report("set", notes), all_lines=True).count("stuff only") == 50


def test_every_kind_has_a_remedy():
    assert all(severity in SEVERITIES and len(remedy) > 15 for severity, remedy in KINDS.values())
