"""Selection with estimators, limits and verdicts; selecting anew from a ledger."""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from modeling_util import make_cfg

from auto_panoptic.errors import UserError
from auto_panoptic.explore import Ledger, Scoreboard, fair_cycle
from auto_panoptic.explore.selection import front, select
from auto_panoptic.modeling.counting import configured_costs
from auto_panoptic.search.selecting import (
    add_selection_arguments,
    asks_for_selection,
    check_limits,
    rescore,
    selection_summary,
)
from auto_panoptic.space import Architecture, SearchSpace

TOOLS = Path(__file__).resolve().parents[1] / "tools"


@pytest.fixture(scope="module")
def model():
    """Config, space and costs of a small network with every kind of site."""
    cfg = make_cfg()
    return cfg, SearchSpace.from_config(cfg), configured_costs(cfg)


def evaluated(space, cycles=5, seed=0, noise=0.5, fail=()):
    """Fair cycles with additive fitness; those whose number is in ``fail`` failed."""
    rng = np.random.default_rng(seed)
    effects = {site.name: dict(zip(site.names, rng.normal(size=6), strict=False)) for site in space.sites}
    result, number = [], 0
    for cycle in range(cycles):
        pairs = []
        for a in fair_cycle(space, seed, cycle):
            value = 40 + sum(effects[s][n] for s, n in a.names().items()) + noise * rng.normal()
            pairs.append((a, None if number in fail else value))
            number += 1
        result.append(pairs)
    return result, effects


def write_ledger(folder, space, cycles, retried=()):
    """The ledger of a search with these outcomes; ``retried`` numbers failed once before."""
    header = {
        "space": space.to_dict(),
        "seed": 0,
        "policy": "path_priority",
        "config": "0123",
        "weights": "4567",
        "versions": {"auto_panoptic": "test"},
    }
    number = 0
    with Ledger.open(folder / "search/ledger.jsonl", header) as ledger:
        for cycle, pairs in enumerate(cycles):
            for index, (a, value) in reversed(list(enumerate(pairs))):  # workers return in any order
                place = {"cycle": cycle, "index": index, "architecture": a.indices()}
                if number in retried:
                    ledger.append(
                        {**place, "status": "failed", "metrics": {}, "seconds": {}, "error": "lost"}
                    )
                status = "failed" if value is None else "ok"
                metrics = {} if value is None else {"PQ": value}
                ledger.append({**place, "status": status, "metrics": metrics, "seconds": {}})
                number += 1


# ------------------------------------------------------------------ select


def test_without_limits_ranks_select_as_the_scoreboard(model):
    _, space, _ = model
    for seed in range(20):
        cycles, _ = evaluated(space, cycles=1 + seed % 3, seed=seed, fail=range(seed % 4))
        board = Scoreboard(space)
        for cycle in cycles:
            board.add_cycle([a for a, _ in cycle], [f for _, f in cycle])
        selection = select(space, cycles)
        assert selection.architecture == board.select()
        table = board.table()
        assert selection.scores == {s: {r["op"]: r["score"] for r in rows} for s, rows in table.items()}
        best = sum(max(r["score"] for r in rows) for rows in table.values())
        assert selection.score == selection.bound == best


@pytest.mark.parametrize("estimator", ["ranks", "mean", "ridge"])
def test_limits(model, estimator):
    """Loose limits change nothing; tight ones are kept, and give the best total score met by sampling."""
    _, space, costs = model
    cycles, _ = evaluated(space)
    free = select(space, cycles, estimator, costs)
    macs, params = costs.cost(free.architecture)
    same = select(space, cycles, estimator, costs, macs, params)
    assert same.architecture == free.architecture and same.cost == {"macs": macs, "params": params}
    tight = select(space, cycles, estimator, costs, max_macs=macs - 1, max_params=params)
    cost = costs.cost(tight.architecture)
    assert cost.macs < macs and cost.params <= params and tight.cost == cost._asdict()
    assert tight.score < free.score and tight.bound >= tight.score
    assert tight.score == pytest.approx(
        sum(tight.scores[s][n] for s, n in tight.architecture.names().items())
    )
    rng = np.random.default_rng(0)
    for _ in range(2000):  # change a few sites: none may be better
        names = tight.architecture.names()
        for i in rng.permutation(len(space.sites))[: rng.integers(1, 4)]:
            site = space.sites[i]
            names[site.name] = site.names[rng.integers(len(site.ops))]
        other = costs.cost(space.architecture(names))
        if other.macs < macs and other.params <= params:
            assert sum(tight.scores[s][n] for s, n in names.items()) <= tight.score + 1e-9
    with pytest.raises(UserError, match=f"smallest feasible value is {costs.minimum.macs}"):
        select(space, cycles, estimator, costs, max_macs=costs.minimum.macs - 1)


def test_verdicts(model):
    """An operator that is far better is decided for; one that is worse never is."""
    _, space, costs = model
    rng = np.random.default_rng(0)
    site = space.sites[-1]  # the gates: the ratio 4 costs most, so a limit can forbid it
    cycles = [
        [(a, 40 + 10 * (a[site.name].name == "r4") + rng.normal()) for a in fair_cycle(space, 0, c)]
        for c in range(5)
    ]
    for estimator in ("ranks", "mean", "ridge"):
        selection = select(space, cycles, estimator)
        verdict = selection.verdicts[site.name]
        assert verdict["selected"] == "r4" and verdict["decided"]
        low, high = verdict["interval"]
        assert 8 < low < verdict["difference"] < high < 12
        assert verdict["rival"] in ("r8", "r16")
        assert selection.decided <= 4  # the others are all equal
    forced = select(space, cycles, "ranks", costs, max_params=costs.minimum.params).verdicts[site.name]
    assert (forced["selected"], forced["rival"], forced["decided"]) == ("r16", "r4", False)
    assert forced["interval"][1] < -8


def test_too_few_candidates_for_an_interval(model):
    _, space, _ = model
    cycles, _ = evaluated(space, cycles=1)
    verdicts = select(space, cycles).verdicts
    assert all(v["interval"] is not None for v in verdicts.values())
    half = select(space, [cycles[0][:3]]).verdicts
    assert all(
        v["interval"] is None and not v["decided"] for s, v in half.items() if len(space.site(s).ops) > 3
    )


def test_disagreements_name_the_choice_of_every_estimator(model):
    _, space, _ = model
    cycles, _ = evaluated(space, noise=3.0)
    chosen = {name: select(space, cycles, name).architecture.names() for name in ("ranks", "mean", "ridge")}
    expected = {
        site.name: {name: chosen[name][site.name] for name in chosen}
        for site in space.sites
        if len({chosen[name][site.name] for name in chosen}) > 1
    }
    assert select(space, cycles).disagreements == expected and 0 < len(expected) < len(space.sites)


def test_ties_go_to_higher_mean_then_lower_index(model):
    _, space, _ = model
    cycle = [(a, 50.0) for a in fair_cycle(space, 0, 0)]
    for estimator in ("ranks", "mean", "ridge"):
        assert set(sum(select(space, [cycle], estimator).architecture.indices().values(), [])) == {0}


def test_costs_of_another_space(model):
    _, space, costs = model
    cycles, _ = evaluated(space)
    other = make_cfg("MODEL.SEM_SEG_HEAD.NUM_LAYERS", 1)
    with pytest.raises(UserError, match="costs of another space: only in the first: sem_seg.1"):
        select(space, cycles, costs=configured_costs(other))
    with pytest.raises(ValueError, match="needs costs"):
        select(space, cycles, max_macs=1)


# ------------------------------------------------------------------ rescore


@pytest.fixture
def finished(model, tmp_path):
    """(config, cycles) of a finished search with a failed and a retried candidate."""
    cfg, space, _ = model
    cycles, _ = evaluated(space, fail={17})
    write_ledger(tmp_path, space, cycles, retried={30})
    cfg = cfg.clone()
    cfg.OUTPUT_DIR = str(tmp_path)
    return cfg, cycles


def test_rescore_selects_from_the_last_record_of_every_candidate(model, finished, tmp_path):
    _, space, costs = model
    cfg, cycles = finished
    ledger = (tmp_path / "search/ledger.jsonl").read_bytes()
    for estimator in ("ridge", "mean", "ranks"):
        selection = rescore(cfg, estimator)
        expected = select(space, cycles, estimator, costs)
        assert selection == expected
        saved = Architecture.load(tmp_path / "search/architecture.json", space)
        assert saved == expected.architecture
        assert saved.provenance["estimator"] == estimator and saved.provenance["failed"] == 1
        assert saved.provenance["evaluated"] == 59 and saved.provenance["macs"] == costs.cost(saved).macs
        board = json.loads((tmp_path / "search/scoreboard.json").read_text())
        assert board["candidates"] == 60 and board["selection"] == json.loads(json.dumps(expected.to_json()))
        reference = Scoreboard(space)
        for cycle in cycles:
            reference.add_cycle([a for a, _ in cycle], [f for _, f in cycle])
        assert board["sites"] == reference.table()
    assert (tmp_path / "search/ledger.jsonl").read_bytes() == ledger
    assert not (tmp_path / "search/pareto.json").exists()


def test_rescore_with_limits_and_front(model, finished, tmp_path):
    _, space, costs = model
    cfg, cycles = finished
    limit = int(0.7 * costs.minimum.macs + 0.3 * costs.maximum.macs)
    selection = rescore(cfg, "ridge", max_macs=limit, pareto=True)
    points = json.loads((tmp_path / "search/pareto.json").read_text())
    assert len(points) == len(front(space, cycles, "ridge", costs)) > 10
    for before, after in zip(points, points[1:], strict=False):
        assert before["macs"] < after["macs"] and before["score"] < after["score"]
    for point in points:
        architecture = Architecture.from_indices(space, point["architecture"])
        assert (point["macs"], point["params"]) == costs.cost(architecture)
    best = [p for p in points if p["macs"] <= limit][-1]
    assert selection.architecture.indices() == best["architecture"]
    text = selection_summary(selection, tmp_path / "search")
    assert (
        f"macs <= {limit:,}" in text
        and f"{selection.decided} of {len(space.sites)} sites are decided" in text
    )
    for site in selection.disagreements:
        assert site in text


def test_rescore_takes_under_a_second_on_the_whole_space(tmp_path, monkeypatch):
    """Beside the costs, which are counted once."""
    cfg = make_cfg(small=False)
    space = SearchSpace.from_config(cfg)
    assert len(space.sites) == 56
    cycles, _ = evaluated(space)
    write_ledger(tmp_path, space, cycles)
    cfg.OUTPUT_DIR = str(tmp_path)
    tables = configured_costs(cfg)
    mean = tables.mean
    monkeypatch.setattr("auto_panoptic.modeling.counting.configured_costs", lambda _: tables)
    start = time.process_time()
    rescore(cfg, "ridge", int(mean.macs), int(mean.params), pareto=True)
    seconds = time.process_time() - start
    print(f"rescore with two limits and the front: {seconds:.2f} s CPU")
    assert seconds < 1


def test_rescore_refusals(model, finished, tmp_path):
    cfg, _ = finished
    files = {p.name: p.read_bytes() for p in (tmp_path / "search").glob("*.json*[!k]")}  # not the lock
    with pytest.raises(UserError, match="smallest feasible value"):
        rescore(cfg, max_params=1000)
    other = make_cfg("MODEL.SEM_SEG_HEAD.NUM_LAYERS", 1)
    other.OUTPUT_DIR = cfg.OUTPUT_DIR
    with pytest.raises(UserError, match="another space than the config's .*sem_seg.1; give the config"):
        rescore(other)
    ledger = Ledger(tmp_path / "search/ledger.jsonl")
    with Ledger.open(ledger.path, ledger.header, resume=True):
        with pytest.raises(UserError, match="in use|another process"):
            rescore(cfg)
    assert {p.name: p.read_bytes() for p in (tmp_path / "search").glob("*.json*[!k]")} == files
    cfg.OUTPUT_DIR = str(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="cannot read the ledger"):
        rescore(cfg)


# ------------------------------------------------------------------ arguments, simulation


def parse(*arguments):
    parser = argparse.ArgumentParser()
    add_selection_arguments(parser)
    return parser.parse_args(arguments)


def test_arguments(model, capsys):
    args = parse("--rescore", "--estimator", "mean", "--max-macs", "3.5G", "--max-params", "24M", "--pareto")
    assert (args.max_macs, args.max_params, args.estimator) == (3_500_000_000, 24_000_000, "mean")
    assert args.rescore and args.pareto and asks_for_selection(args)
    assert not asks_for_selection(parse())
    with pytest.raises(SystemExit) as exit:
        parse("--max-macs", "3.5 giga")
    assert exit.value.code == 2 and "expected a positive number" in capsys.readouterr().err
    cfg = model[0]
    check_limits(cfg, parse())
    check_limits(cfg, parse("--max-macs", "3000G"))
    with pytest.raises(UserError, match="smallest feasible value"):
        check_limits(cfg, parse("--max-macs", "1k"))


def test_simulated_searches_run_and_order_the_estimators():
    command = [sys.executable, TOOLS / "simulate_search.py", "--seeds", "12", "--budgets", "60", "240"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    figures = json.loads(done.stdout.splitlines()[-1])
    rules = {name: {b: v["mean"] for b, v in row.items()} for name, row in figures["rules"].items()}
    ranks, mean, ridge = (rules[f"path_priority, {name}"] for name in ("ranks", "mean", "ridge"))
    assert ranks["240"] < mean["240"] < ridge["240"]
    assert rules["random, best"]["240"] < ranks["240"]
    assert all(row["240"] > row["60"] for row in rules.values())
    assert rules["random, best"]["240"] < rules["evolution, best"]["240"] < ridge["240"]
