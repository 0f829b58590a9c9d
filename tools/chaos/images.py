"""Photographs, PNGs and records of images that are damaged, each in another way."""

from __future__ import annotations

from check_corpus import Corpus
from check_instance_damages import DAMAGES
from toy import make_shapes

from auto_panoptic.data.check import check_data_set

from .report import Outcome, Plan


def images(plan: Plan) -> Outcome:
    """The check names every one of them, with its file, in one go, and accuses no other."""
    names = list(DAMAGES)[:: plan.number(1, 8)]
    outcome = Outcome(f"a data set with {len(names)} images damaged in as many ways, checked")
    copies = -(-(len(names) + 8) // 20)
    corpus = Corpus(plan.folder / "corpus", make_shapes(plan.folder), copies=copies)
    # Turning must change the size: those that are not square first.
    items = sorted(corpus.items, key=lambda item: item.size[0] == item.size[1])
    found = {}
    for name in names:
        function, where, kinds = DAMAGES[name]
        found[name] = (items.pop(0), where, kinds)
        function(found[name][0])
    findings = check_data_set(processes=1, **corpus.write())

    def of(item) -> list:
        files = {str(item.image), str(item.png), str(item.semantic)}
        return [f for f in findings if f.image_id in item.ids or f.file in files]

    for name, (item, where, kinds) in found.items():
        outcome.count += 1
        paths = {**corpus.paths, "image": item.image, "png": item.png, "semantic": item.semantic}
        path = str(paths.get(where) or paths[f"{where}_json"])
        named = [f for f in of(item) if f.kind == kinds[0] and f.file == path]
        outcome.expect(named, f"{name}: {kinds[0]} in {path} is not named: {[f.line() for f in of(item)]}")
    accused = [f.line() for item in items for f in of(item)]
    outcome.expect(not accused, f"whole files are accused: {accused[:2]}")
    outcome.numbers = {"findings": len(findings), "whole": len(items)}
    return outcome
