"""What the quickstart says of the found network: beside a random one and a baseline of equal cost."""

import json
import sys

import numpy as np
import pytest
from toy import ROOT

from auto_panoptic.analyze import costs_of
from auto_panoptic.compare import Run
from auto_panoptic.evaluation import PanopticQuality
from auto_panoptic.modeling import meta_model
from auto_panoptic.modeling.counting import configured_costs
from auto_panoptic.space import Architecture
from auto_panoptic.training import build_config

sys.path.insert(0, str(ROOT / "tools"))

import quickstart  # noqa: E402

CATEGORIES = [{"id": 1, "isthing": 1, "name": "cat"}]


def run_of(name, hits):
    """A network that finds the only object of image i, with an IoU of 0.8, where ``hits[i]``."""
    images = [[i, [0], [[1, 0, 0, 0.8] if hit else [0, 0, 1, 0.0]]] for i, hit in enumerate(hits)]
    quality = PanopticQuality.of_record({"categories": CATEGORIES, "images": images})
    return Run(name, 340_000_000, 2_000_000, quality)


@pytest.mark.parametrize(
    "others, said",
    [((15, 5), ("better", "better")), ((40, 31), ("worse", "not shown to be better or worse"))],
)
def test_the_last_table_says_what_the_search_is_worth(tmp_path, monkeypatch, capsys, others, said):
    rng = np.random.default_rng(0)
    runs = {"found": 31, "random": others[0], "baseline": others[1]}
    drawn = {name: run_of(name, rng.permutation(40) < hits) for name, hits in runs.items()}
    monkeypatch.setattr(quickstart, "read_run", lambda folder, name: drawn[name])
    rows = quickstart.what_it_is_worth(dict.fromkeys(runs, tmp_path))
    out = capsys.readouterr().out
    assert [row["name"] for row in rows] == ["found", "random", "baseline"] and json.dumps(rows)
    for word, name in zip(said, ("random", "baseline"), strict=True):
        (line,) = [line for line in out.splitlines() if f" than {name}: " in line]
        assert line.startswith(f"the found network is {word} ")


def test_the_random_network_costs_as_much(tmp_path):
    cfg = build_config(str(ROOT / quickstart.SUPERNET), [])
    costs = configured_costs(cfg)
    least = [min(row, key=lambda name: row[name].macs) for row in costs.sites]
    found = costs.space.architecture(
        [site.index(n) for site, n in zip(costs.space.sites, least, strict=True)]
    )
    found.save(tmp_path / "found.json")
    drawn = Architecture.load(quickstart.random_architecture(tmp_path, tmp_path / "found.json"))
    assert drawn != found and drawn.space == found.space
    assert costs.cost(drawn).macs == pytest.approx(costs.cost(found).macs, rel=0.02)
    again = Architecture.load(quickstart.random_architecture(tmp_path, tmp_path / "found.json"))
    assert again == drawn


def test_a_network_of_another_supernet_is_trained_anew(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    weights, folder, found = tmp_path / "model_final.pth", tmp_path / "retrain", tmp_path / "found.json"
    space = configured_costs(build_config(quickstart.SUPERNET, [])).space
    space.architecture([0] * len(space.sites)).save(found)

    def stage():
        return quickstart.training("found", folder, quickstart.RETRAIN, found, weights)

    weights.write_text("those of a supernet")
    stage().mark(done=True)
    assert stage().done and stage().command[-2:] == ["MODEL.WEIGHTS", str(weights)]
    weights.write_text("others")
    assert not stage().begun and not folder.exists()


def test_the_baseline_costs_as_much_as_the_search_may_spend():
    limit = int(quickstart.SEARCH[quickstart.SEARCH.index("--max-macs") + 1].removesuffix("M")) * 1e6
    cfg = build_config(str(ROOT / quickstart.BASELINE), [])
    macs, _ = costs_of(meta_model(cfg).eval(), (128, 128))[""]
    assert macs == pytest.approx(limit, rel=0.02)
