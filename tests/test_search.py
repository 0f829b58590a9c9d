"""The search loop around a pure function: every candidate once, any interruption leaves the same result."""

import itertools
import json
import logging
import math
import re
import sys

import numpy as np
import pytest
from detectron2.config import get_cfg
from toy import toy_space

from auto_panoptic import add_auto_panoptic_config, progress
from auto_panoptic.errors import UserError
from auto_panoptic.explore import POLICY_REGISTRY, Ledger, Policy, Scoreboard, path_priority_candidates
from auto_panoptic.search import InProcess, Request, ledger_path, run_search
from auto_panoptic.search.header import search_policy
from auto_panoptic.search.selection import select_again
from auto_panoptic.space import Architecture, Cost, CostTables

SPACE = toy_space(backbone=4, head=2, inter=2)
FREE = {site.name: dict.fromkeys(site.names, Cost(0, 0)) for site in SPACE.sites}
CYCLES, MODELS = 3, 24
HEADER = {
    "space": SPACE.to_dict(),
    "seed": 0,
    "policy": "path_priority",
    "models_per_cycle": MODELS,
    "config": "0123",
    "weights": "4567",
    "versions": {"auto_panoptic": "test"},
}


def make_cfg(folder, cycles=CYCLES, models=MODELS, seed=0, policy="path_priority"):
    cfg = get_cfg()
    add_auto_panoptic_config(cfg)
    cfg.OUTPUT_DIR, cfg.NAS.SEED, cfg.NAS.POLICY = str(folder), seed, policy
    keys = POLICY_REGISTRY.of(policy).cycle_keys()
    cfg.merge_from_list([*itertools.chain(*zip(keys, (cycles, models), strict=True))])
    return cfg


UTILITIES = np.random.default_rng(0).normal(size=(len(SPACE.sites), 6))


def utility(architecture):
    """A pure function of the architecture: one fixed number per operator of every site, added up."""
    return 50 + float(
        sum(
            UTILITIES[i, site.names.index(name)]
            for i, (site, name) in enumerate(zip(architecture.space.sites, architecture.choices, strict=True))
        )
    )


class Evaluate:
    """Scores by :func:`utility`; remembers the calls, and fails where told to."""

    def __init__(self, nan=(), crash=(), kill_at=None, bootstrap=False):
        self.calls, self.nan, self.crash, self.kill_at = [], set(nan), set(crash), kill_at
        self.bootstrap = bootstrap

    def __call__(self, architecture):
        if len(self.calls) == self.kill_at:
            raise KeyboardInterrupt
        self.calls.append(architecture)
        if architecture in self.crash:
            raise RuntimeError("out of memory")
        pq = math.nan if architecture in self.nan else utility(architecture)
        metrics = {"PQ": pq, "SQ": 80.0}
        if self.bootstrap:
            rng = np.random.default_rng(abs(hash(architecture.choices)) % 2**32)
            metrics["bootstrap"] = (pq + 0.1 * rng.normal(size=64)).tolist()
        return metrics, {"evaluation": 0.5}


def candidates(cycles=CYCLES, models=MODELS, seed=0):
    return [a for cycle in range(cycles) for a in path_priority_candidates(SPACE, seed, cycle, models)]


def results(folder):
    names = ("scoreboard.json", "architecture.json")
    return {name: (folder / "search" / name).read_bytes() for name in names}


def search(folder, evaluate=None, resume=False, header=HEADER, space=SPACE, executor=None, **settings):
    evaluate = evaluate or Evaluate()
    kept = ("retry_failed", "costs", "request", "seconds")
    options = {key: settings.pop(key) for key in kept if key in settings}
    accept = settings.pop("accept", ())
    policy = search_policy(make_cfg(folder, **settings), space)
    with Ledger.open(ledger_path(folder), header, resume=resume, allow_changed=accept) as ledger:
        return run_search(policy, ledger, executor or InProcess(evaluate), **options), evaluate


def ledger_of(folder):
    return Ledger(folder / "search/ledger.jsonl")


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Folder of an uninterrupted search."""
    folder = tmp_path_factory.mktemp("reference")
    search(folder)
    return folder


# ------------------------------------------------------------------ what a search does


def test_exactly_the_candidates_of_the_fair_cycles_are_evaluated(tmp_path):
    result, evaluate = search(tmp_path)
    assert evaluate.calls == candidates() and len(evaluate.calls) == CYCLES * MODELS
    assert (result.evaluated, result.failed) == (CYCLES * MODELS, 0)
    ledger = Ledger(tmp_path / "search/ledger.jsonl")
    assert [(r["cycle"], r["index"]) for r in ledger.records] == [
        (cycle, index) for cycle in range(CYCLES) for index in range(MODELS)
    ]
    for record, architecture in zip(ledger.records, evaluate.calls, strict=True):
        assert record["architecture"] == architecture.indices()
        assert record["metrics"] == {"PQ": utility(architecture), "SQ": 80.0}
        assert (record["status"], record["seconds"]) == ("ok", {"evaluation": 0.5})
    assert {k: ledger.header[k] for k in HEADER} == HEADER


def test_the_selection_follows_from_the_scores(tmp_path):
    """Scoreboard and architecture are those of an independent count over the evaluated models."""
    result, evaluate = search(tmp_path)
    points = {(site.name, name): 0.0 for site in SPACE.sites for name in site.names}
    for start in range(0, len(evaluate.calls), MODELS):
        cycle = sorted(evaluate.calls[start : start + MODELS], key=utility)
        for rank, architecture in enumerate(cycle):  # the worst gets 0, the best 23
            for place in architecture.names().items():
                points[place] += rank
    board = json.loads((tmp_path / "search/scoreboard.json").read_text())
    assert board["candidates"] == CYCLES * MODELS
    for site in SPACE.sites:
        best = max(site.names, key=lambda name: points[site.name, name])
        assert result.architecture[site.name].name == best
    text = json.dumps(board["sites"])
    for site in SPACE.sites:
        assert site.name in text
    assert sum(points.values()) == CYCLES * (MODELS * (MODELS - 1) // 2) * len(SPACE.sites)
    saved = Architecture.load(tmp_path / "search/architecture.json", SPACE)
    assert saved == result.architecture
    assert saved.provenance["evaluated"] == CYCLES * MODELS
    assert saved.provenance["best_candidate_PQ"] == max(map(utility, evaluate.calls))


def test_the_reference_scoreboard_selects_by_rounded_scores_also_when_resumed(tmp_path):
    """NAS.SCOREBOARD is in the header; both modes differ on a fitness that differs in the third decimal."""

    def barely(architecture):
        return {"PQ": 50 + 0.001 * utility(architecture), "SQ": 80.0}, {}

    folders = {mode: tmp_path / mode for mode in ("exact", "reference")}
    for mode, folder in folders.items():
        header = HEADER if mode == "exact" else {**HEADER, "scoreboard": mode}
        result, _ = search(folder, barely, header=header)
        cycles = [
            [(a, barely(a)[0]["PQ"]) for a in path_priority_candidates(SPACE, 0, c, MODELS)] for c in range(3)
        ]
        board = Scoreboard.of(SPACE, cycles, mode)
        assert result.architecture == board.select()
        assert json.loads((folder / "search/scoreboard.json").read_text())["sites"] == board.table()
        before = results(folder)
        search(folder, barely, header=header, resume=True)
        assert results(folder) == before
        with Ledger.open(ledger_path(folder), header, resume=True) as ledger:
            again = select_again(ledger, CostTables(SPACE, {}, FREE), Request())
        assert again.architecture == board.select()
    assert results(folders["exact"]) != results(folders["reference"])
    with pytest.raises(UserError, match="scoreboard: absent -> 'reference'"):
        search(folders["exact"], barely, header={**HEADER, "scoreboard": "reference"}, resume=True)


def test_a_policy_of_ones_own_is_one_class(tmp_path, monkeypatch):
    """Registered, it has its keys in every config and can be searched with."""

    class First(Policy):
        name, node, keys = "first", "FIRST", {"ROUNDS": 1, "MODELS": 4}

        def candidates(self, cycle, history=()):
            return [
                SPACE.architecture([cycle] + [0] * (len(SPACE.sites) - 2) + [i % 3])
                for i in range(self.models)
            ]

    monkeypatch.setitem(POLICY_REGISTRY, "first", First)
    with pytest.raises(ValueError, match="'random' is registered already"):
        POLICY_REGISTRY.register(type("Again", (First,), {"name": "random"}))
    result, evaluate = search(tmp_path, cycles=2, models=3, policy="first")
    assert [a.indices()["backbone"][0] for a in evaluate.calls] == [0, 0, 0, 1, 1, 1]
    assert result.architecture == max(evaluate.calls, key=utility)
    cfg = make_cfg(tmp_path, 0, 3, policy="first")
    with pytest.raises(UserError, match="NAS.FIRST.ROUNDS is 0; expected a whole number of at least 1"):
        search_policy(cfg, SPACE)
    cfg.NAS.FIRST.ROUNDS = 7
    POLICY_REGISTRY.add_config(cfg.NAS, type(cfg), clear=True)
    assert (cfg.NAS.FIRST, cfg.NAS.RANDOM, cfg.NAS.CYCLES) == ({}, {}, 0)


def test_the_cost_of_the_architecture_is_recorded(tmp_path):
    rows = {s.name: {name: Cost(10 * i, i) for i, name in enumerate(s.names)} for s in SPACE.sites}
    costs = CostTables(SPACE, {"stem": Cost(5, 7)}, rows)
    search(tmp_path, cycles=1, models=12, costs=costs)
    for record in Ledger(tmp_path / "search/ledger.jsonl").records:
        indices = sum(record["architecture"].values(), [])
        assert (record["macs"], record["params"]) == (5 + 10 * sum(indices), 7 + sum(indices))


def test_messages_stand_on_lines_of_their_own(tmp_path, capsys, monkeypatch):
    """Not behind the progress bar."""
    monkeypatch.setattr(progress, "is_terminal", lambda: True)
    package = logging.getLogger("auto_panoptic")
    handler = logging.StreamHandler(sys.stderr)
    package.addHandler(handler)
    try:
        search(tmp_path, Evaluate(crash=candidates()[1:2]), cycles=1)
    finally:
        package.removeHandler(handler)
    error = capsys.readouterr().err
    assert re.search(r"[\r\n]candidate failed: .*out of memory\n", error, re.S)


def test_the_selection_exists_from_the_first_candidate_on(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path, Evaluate(kill_at=1))
    board = json.loads((tmp_path / "search/scoreboard.json").read_text())
    assert board["candidates"] == 1
    assert Architecture.load(tmp_path / "search/architecture.json", SPACE)


# ------------------------------------------------------------------ interruptions


def interrupted(folder, kills, tear=False):
    """Run until done, killed after ``kills[i]`` evaluations of the i-th attempt; returns all evaluations."""
    calls = []
    for number, kill in enumerate([*kills, None]):
        evaluate = Evaluate(kill_at=kill)
        try:
            search(folder, evaluate, resume=number > 0)
        except KeyboardInterrupt:
            pass
        calls += evaluate.calls
        ledger = folder / "search/ledger.jsonl"
        if tear and kill is not None:
            torn = ledger.read_bytes()[:-25]  # the last record lost its end
            ledger.write_bytes(torn)
            calls.pop()
    return calls


@pytest.mark.parametrize("kills", [[0], [1], [11], [12], [37], [71], [5, 0, 20, 1, 1]])
def test_resumed_after_any_candidate_the_result_is_the_same(tmp_path, reference, kills):
    calls = interrupted(tmp_path, kills)
    assert calls == candidates()  # none twice, none left out
    assert results(tmp_path) == results(reference)
    ledgers = [(f / "search/ledger.jsonl").read_text() for f in (tmp_path, reference)]
    assert ledgers[0] == ledgers[1]


@pytest.mark.parametrize("kills", [[1], [13], [40, 3]])
def test_a_torn_ledger_line_costs_one_candidate(tmp_path, reference, kills):
    assert interrupted(tmp_path, kills, tear=True) == candidates()
    assert results(tmp_path) == results(reference)


def test_resuming_a_finished_search_evaluates_nothing(tmp_path, reference):
    search(tmp_path)
    for name in ("scoreboard.json", "architecture.json"):
        (tmp_path / "search" / name).unlink()
    _, evaluate = search(tmp_path, resume=True)
    assert evaluate.calls == []
    assert results(tmp_path) == results(reference)


def test_a_search_can_be_prolonged(tmp_path, reference):
    search(tmp_path, cycles=1)
    _, evaluate = search(tmp_path, resume=True)
    assert evaluate.calls == candidates()[MODELS:]
    assert results(tmp_path) == results(reference)


def test_a_finished_search_is_not_overwritten(tmp_path):
    search(tmp_path, cycles=1)
    before = results(tmp_path)
    evaluate = Evaluate()
    with pytest.raises(UserError, match="holds 24 evaluated candidates: continue with --resume"):
        search(tmp_path, evaluate, cycles=1)
    assert evaluate.calls == [] and results(tmp_path) == before


def test_another_search_is_not_resumed(tmp_path):
    search(tmp_path, cycles=1)
    evaluate = Evaluate()
    with pytest.raises(UserError, match="cannot resume, the search has changed .*weights"):
        search(tmp_path, evaluate, resume=True, header={**HEADER, "weights": "89ab"})
    assert evaluate.calls == []


# ------------------------------------------------------------------ bad input


def test_a_ledger_of_other_candidates_is_refused(tmp_path):
    """The header may agree and the candidates not, if the generator of random numbers changed."""
    search(tmp_path, cycles=1)
    evaluate = Evaluate()
    with pytest.raises(UserError, match="record 0 is not the architecture that the policy path_priority has"):
        search(tmp_path, evaluate, resume=True, cycles=1, seed=1)
    assert evaluate.calls == []


def test_a_header_difference_can_be_accepted_by_name(tmp_path, reference):
    search(tmp_path, cycles=1)
    changed = {**HEADER, "versions": {"auto_panoptic": "newer"}, "weights": "89ab"}
    with pytest.raises(UserError, match="versions.auto_panoptic: .test. -> .newer."):
        search(tmp_path, resume=True, header=changed, accept=["weights"])
    with pytest.raises(UserError, match="weights: .4567. -> .89ab."):
        search(tmp_path, resume=True, header=changed, accept=["versions"])
    _, evaluate = search(tmp_path, resume=True, header=changed, accept=["versions", "weights"])
    assert evaluate.calls == candidates()[MODELS:]
    assert ledger_of(tmp_path).header["versions"] == {"auto_panoptic": "test"}


@pytest.mark.parametrize("models, nearest", [(5, 12), (13, 12), (0, 12), (20, 24), (-12, 12)])
def test_models_per_cycle_must_be_a_multiple_of_the_cycle(tmp_path, models, nearest):
    evaluate = Evaluate()
    with pytest.raises(UserError, match=f"is {models}: expected a multiple of 12, .* e.g. {nearest}"):
        search(tmp_path, evaluate, models=models)
    assert evaluate.calls == [] and list(tmp_path.iterdir()) == []


def test_no_cycles_is_refused(tmp_path):
    with pytest.raises(UserError, match="NAS.CYCLES is 0; expected a whole number of at least 1"):
        search(tmp_path, cycles=0)
    assert list(tmp_path.iterdir()) == []
