"""Selection with estimators, limits and verdicts; selecting anew from a ledger."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from modeling_util import make_cfg
from test_budget import random_tables

from auto_panoptic.errors import UserError
from auto_panoptic.explore import Ledger, Scoreboard, fair_cycle
from auto_panoptic.explore.controls import random_of_equal_cost
from auto_panoptic.explore.estimators import observations
from auto_panoptic.explore.selection import alternatives, front, ridge_posterior, select, within_limits
from auto_panoptic.modeling.counting import configured_costs
from auto_panoptic.search import Request, ledger_path, summary
from auto_panoptic.search.selection import select_again
from auto_panoptic.search.summary import over_random_line, selection_lines
from auto_panoptic.space import Architecture, Cost, CostTables, SearchSpace

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


def write_ledger(folder, space, cycles, retried=(), fitness="PQ", config="0123"):
    """The ledger of a search with these outcomes; ``retried`` numbers failed once before."""
    header = {
        "space": space.to_dict(),
        "seed": 0,
        "policy": "path_priority",
        "config": config,
        "weights": "4567",
        "versions": {"auto_panoptic": "test"},
        **({} if fitness == "PQ" else {"fitness": fitness}),
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
                metrics = {} if value is None else {"PQ": -value, fitness: value}
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


def check_alternatives(selection, costs):
    """Against all architectures of the space; returns {site: architecture}."""
    space = selection.architecture.space

    def total(architecture):
        row = [selection.scores[s][n] for s, n in architecture.names().items()]
        return -np.inf if None in row else sum(row)

    found = alternatives(selection, costs)
    every = [space.architecture(choice) for choice in itertools.product(*(s.names for s in space.sites))]
    allowed = [a for a in every if np.isfinite(total(a)) and within_limits(costs, a, selection.limits)]
    for site in space.sites:
        selected = selection.architecture[site.name]
        others = [total(a) for a in allowed if a[site.name] != selected]
        assert (site.name in found) == bool(others)
        if others:
            assert found[site.name] in allowed and found[site.name][site.name] != selected
            assert total(found[site.name]) == pytest.approx(max(others), abs=1e-9)
    totals = [total(a) for a in found.values()]
    assert totals == sorted(totals, reverse=True)
    return found


def test_alternatives_are_the_best_with_another_operator_of_a_site():
    """With and without limits; some operators without a score, some sites without another operator."""
    rng, missing, unlimited = np.random.default_rng(0), 0, 0
    for seed in range(60):
        costs = random_tables(rng)
        cycles, _ = evaluated(costs.space, cycles=2, seed=seed, fail=range(seed % 5))
        least, most = costs.minimum.macs, costs.maximum.macs
        limit = None if seed % 3 == 0 else int(least + rng.random() * (most - least))
        try:
            selection = select(costs.space, cycles, "ridge", costs, max_macs=limit)
        except UserError:  # no candidate, or only those with a score are beyond the limit
            continue
        found = check_alternatives(selection, costs)
        missing += len(found) < len(costs.space.sites)
        unlimited += limit is None and len(found) > 1
    assert missing > 5 and unlimited > 5


def test_lead_over_random_architectures_of_the_same_cost(model):
    """The selection's prediction less their mean, with the error of that contrast."""
    _, space, costs = model
    cycles, _ = evaluated(space, cycles=3)
    selection = select(space, cycles, "mean", costs)
    others = random_of_equal_cost(costs, selection.cost["macs"], 64, 0, [selection.architecture])
    posterior = ridge_posterior(space, observations(space, cycles))
    rows = [[site.index(name) for site, name in zip(space.sites, a.choices, strict=True)]
            for a in (selection.architecture, *others)]  # fmt: skip
    predicted = posterior.predicted(np.array(rows))
    over = selection.over_random
    assert over["lead"] == pytest.approx(predicted[0] - predicted[1:].mean())
    contrast = np.zeros(len(posterior.mean))
    for row, weight in zip(rows, [1] + [-1 / 64] * 64, strict=True):
        contrast[np.add(row, posterior.first[:-1])] += weight
    error = np.sqrt(contrast @ posterior.covariance() @ contrast)
    assert over["interval"] == pytest.approx(
        [over["lead"] - 1.96 * error, over["lead"] + 1.96 * error], rel=1e-3
    )
    assert selection.to_json()["over_random"] == over and select(space, cycles, "mean").over_random is None
    assert over["interval"][0] > 0  # the noise is small
    assert over_random_line(over).endswith("against random networks of its MACs")
    assert over_random_line(over) in selection_lines(selection)
    assert over_random_line({"lead": 0.0, "interval": [-1.0, 1.0]}).endswith(
        "another limit may leave more to decide"
    )
    few = SearchSpace(space.sites[:1])
    tables = CostTables(few, {}, {few.sites[0].name: {name: Cost(1, 1) for name in few.sites[0].names}})
    assert select(few, [[(few.architecture([0]), 1.0)]], "mean", tables).over_random is None


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


def test_the_reference_mode_rounds_and_takes_the_last_of_equal_ones(model):
    """Both modes select as their scoreboard does, and differently; the other estimators have no mode."""
    _, space, _ = model
    cycle = [(a, 50 + 0.001 * i) for i, a in enumerate(reversed(fair_cycle(space, 0, 0)))]
    chosen = {}
    for mode in ("exact", "reference"):
        board = Scoreboard(space, mode)
        board.add_cycle([a for a, _ in cycle], [f for _, f in cycle])
        selection = select(space, [cycle], mode=mode)
        assert selection.architecture == board.select()
        assert selection.scores == {s: {r["op"]: r["score"] for r in t} for s, t in board.table().items()}
        chosen[mode] = selection.architecture
    assert chosen["exact"] != chosen["reference"]
    assert (
        select(space, [cycle], "mean", mode="reference").architecture
        == select(space, [cycle], "mean").architecture
    )
    equal = [(a, 50.0) for a, _ in cycle]
    scores = select(space, [equal], mode="reference").scores
    last = {
        site.name: max(site.names, key=lambda n: (scores[site.name][n], site.index(n)))
        for site in space.sites
    }  # noqa: B023
    assert select(space, [equal], mode="reference").architecture.names() == last


def test_costs_of_another_space(model):
    _, space, costs = model
    cycles, _ = evaluated(space)
    other = make_cfg("MODEL.SEM_SEG_HEAD.NUM_LAYERS", 1)
    with pytest.raises(UserError, match="costs of another space: only in the first: sem_seg.1"):
        select(space, cycles, costs=configured_costs(other))
    with pytest.raises(ValueError, match="needs costs"):
        select(space, cycles, max_macs=1)


# ------------------------------------------------------------------ from a ledger


@pytest.fixture
def finished(model, tmp_path):
    """(ledger, cycles) of a finished search with a failed and a retried candidate."""
    _, space, _ = model
    cycles, _ = evaluated(space, fail={17})
    write_ledger(tmp_path, space, cycles, retried={30})
    path = ledger_path(tmp_path)
    with Ledger.open(path, Ledger(path).header, resume=True) as ledger:
        yield ledger, cycles


def test_the_last_record_of_every_candidate_counts(model, finished, tmp_path):
    _, space, costs = model
    ledger, cycles = finished
    before = ledger.path.read_bytes()
    for estimator in ("ridge", "mean", "ranks"):
        result = select_again(ledger, costs, Request(estimator))
        expected = select(space, cycles, estimator, costs)
        assert result.selection == expected and (result.evaluated, result.failed) == (59, 1)
        saved = Architecture.load(tmp_path / "search/architecture.json", space)
        assert saved == expected.architecture == result.architecture
        assert saved.provenance["estimator"] == estimator and saved.provenance["failed"] == 1
        assert saved.provenance["evaluated"] == 59 and saved.provenance["macs"] == costs.cost(saved).macs
        board = json.loads((tmp_path / "search/scoreboard.json").read_text())
        assert board["candidates"] == 60 and board["selection"] == json.loads(json.dumps(expected.to_json()))
        reference = Scoreboard(space)
        for cycle in cycles:
            reference.add_cycle([a for a, _ in cycle], [f for _, f in cycle])
        assert board["sites"] == reference.table()
    assert ledger.path.read_bytes() == before
    assert not (tmp_path / "search/pareto.json").exists()


def test_limits_and_front(model, finished, tmp_path):
    _, space, costs = model
    ledger, cycles = finished
    limit = int(0.7 * costs.minimum.macs + 0.3 * costs.maximum.macs)
    result = select_again(ledger, costs, Request("ridge", max_macs=limit, pareto=True))
    selection = result.selection
    points = json.loads((tmp_path / "search/pareto.json").read_text())
    assert len(points) == len(front(space, cycles, "ridge", costs)) > 10
    for before, after in zip(points, points[1:], strict=False):
        assert before["macs"] < after["macs"] and before["score"] < after["score"]
    for point in points:
        architecture = Architecture.from_indices(space, point["architecture"])
        assert (point["macs"], point["params"]) == costs.cost(architecture)
    best = [p for p in points if p["macs"] <= limit][-1]
    assert selection.architecture.indices() == best["architecture"]
    text = summary(result)
    assert f"macs <= {limit:,}" in text
    assert f"{selection.decided} of {len(space.sites)} sites are decided" in text
    for site in selection.disagreements:
        assert site in text


def test_sites_with_nothing_to_choose_are_none_of_the_decided():
    space = SearchSpace.from_dict({"a.0": ["conv_3x3"], "a.1": ["conv_3x3", "identity"]})
    for better, decided in ((0, 0), (9, 1)):
        rng = np.random.default_rng(0)
        pairs = [(space.architecture([0, i % 2]), better * (i % 2) + rng.normal()) for i in range(12)]
        found = select(space, [pairs], "ridge", adaptive=True)
        assert found.decided == decided
        assert f"{decided} of 1 sites are decided" in "\n".join(selection_lines(found))


def test_another_fitness_ranks(model, tmp_path):
    """A search by mIoU: PQ of the records plays no part, nor has a failed candidate a score."""
    _, space, costs = model
    cycles, _ = evaluated(space, fail={3})
    write_ledger(tmp_path, space, cycles, fitness="mIoU")
    with Ledger.open(ledger_path(tmp_path), Ledger(ledger_path(tmp_path)).header, resume=True) as ledger:
        result = select_again(ledger, costs, Request())
    assert result.architecture == select(space, cycles).architecture and result.noise is None
    assert result.architecture.choices != select(space, [[(a, -(f or 0)) for a, f in c] for c in cycles])
    best = max(f for cycle in cycles for _, f in cycle if f is not None)
    saved = Architecture.load(tmp_path / "search/architecture.json")
    assert saved.provenance["best_candidate_mIoU"] == best


# ------------------------------------------------------------------ simulation


def test_simulated_searches_run_and_order_the_estimators():
    command = [sys.executable, TOOLS / "simulate_search.py", "--seeds", "12", "--budgets", "60", "240"]
    command += ["--searches", "published", "posterior"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    figures = json.loads(done.stdout.splitlines()[-1])
    rules = {name: {b: v["mean"] for b, v in row.items()} for name, row in figures["rules"].items()}
    ranks, mean, ridge = (rules[f"path_priority, {name}"] for name in ("ranks", "mean", "ridge"))
    assert ranks["240"] < mean["240"] < ridge["240"]
    assert rules["random, best"]["240"] < ranks["240"]
    assert all(row["240"] > row["60"] for row in rules.values())
    assert rules["random, best"]["240"] < rules["evolution, best"]["240"] < ridge["240"]
    assert rules["posterior, ridge"]["240"] > ridge["240"] + 1
