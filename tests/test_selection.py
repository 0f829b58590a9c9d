"""Selection with estimators, limits and verdicts; selecting anew from a ledger."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from modeling_util import make_cfg
from toy import ROOT, error_line, make_config, run_script, write_config

from auto_panoptic.errors import UserError
from auto_panoptic.explore import Ledger, Scoreboard, fair_cycle
from auto_panoptic.explore.selection import front, select
from auto_panoptic.modeling import counting
from auto_panoptic.modeling.counting import configured_costs
from auto_panoptic.search import Request, ledger_path, summary
from auto_panoptic.search import command as command_module
from auto_panoptic.search.arguments import asks_for_selection, rescore_parser, selection_request
from auto_panoptic.search.costs import origin, store_tables, stored_tables
from auto_panoptic.search.selection import select_again
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


def write_ledger(folder, space, cycles, retried=(), fitness="PQ"):
    """The ledger of a search with these outcomes; ``retried`` numbers failed once before."""
    header = {
        "space": space.to_dict(),
        "seed": 0,
        "policy": "path_priority",
        "config": "0123",
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


# ------------------------------------------------------------------ the command


@pytest.fixture
def toy(tmp_path, shapes):
    """(config file, its costs, options) of a finished search in tmp_path/output."""
    costs = configured_costs(make_config(tmp_path, shapes))
    write_ledger(tmp_path / "output", costs.space, evaluated(costs.space)[0])
    config = write_config(tmp_path / "toy.yaml", shapes)
    return config, costs, ("--config-file", config, "--rescore")


# Runs the command given as arguments; on stderr its CPU seconds and the heavy modules it imported.
TIMED = """
import sys, time, search_net
search_net.run()
print(time.process_time(), sorted({"torch", "detectron2"} & set(sys.modules)), file=sys.stderr)
"""
FILES = ("scoreboard.json", "architecture.json", "pareto.json")


def test_the_second_call_imports_no_framework(toy, tmp_path):
    """Also with options that change the costs; the files are the same to the byte."""
    _, _, command = toy
    folder = tmp_path / "output/search"
    for options in ((), ("MODEL.ROI_MASK_HEAD.CONV_DIM", "64")):
        arguments = [*map(str, command), "--estimator", "ridge", "--pareto", *options]
        run_script("search_net", *arguments)
        first = {name: (folder / name).read_bytes() for name in FILES}
        for name in FILES:
            (folder / name).unlink()
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        run = [sys.executable, "-c", TIMED, *arguments]
        result = subprocess.run(run, env=env, cwd=tmp_path, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        seconds, modules = result.stderr.splitlines()[-1].split(maxsplit=1)
        assert modules == "[]" and float(seconds) < 2
        assert {name: (folder / name).read_bytes() for name in FILES} == first
        assert result.stdout.splitlines()[-1] == f"report        {tmp_path}/output/search/report.html"
    assert len(json.loads((folder / "costs.json").read_text())) == 2


def test_a_search_stores_its_costs(toy, tmp_path, monkeypatch, caplog):
    """Damaged ones, or those of another config, are counted anew."""
    config, costs, command = toy
    folder = tmp_path / "output/search"
    counts = []
    count = configured_costs
    monkeypatch.setattr(counting, "configured_costs", lambda cfg: counts.append(1) or count(cfg))
    key, output_dir = origin(str(config), [])
    assert output_dir == str(tmp_path / "output")
    store_tables(folder, key, costs)
    run_script("search_net", *command)
    assert counts == [] and stored_tables(folder, key).to_json() == costs.to_json()
    content = (folder / "costs.json").read_text()
    entry = json.loads(content)[key]
    part = next(iter(entry["tables"]["fixed"]))
    halved = {**entry, "tables": {**entry["tables"], "fixed": {**entry["tables"]["fixed"], part: [1, 1]}}}
    entries = [json.dumps({key: changed}) for changed in (halved, {**entry, "sha256": "0"}, 1)]
    for damaged in ("{", "[]", "null", content.replace('"fixed"', '"fixes"'), *entries):
        (folder / "costs.json").write_text(damaged)
        caplog.clear()
        assert stored_tables(folder, key) is None
        assert caplog.messages == [
            f"{folder / 'costs.json'} was changed or is damaged: the costs are counted anew"
        ]
    caplog.clear()
    (folder / "costs.json").write_text(json.dumps({"other": entry}))
    assert stored_tables(folder, key) is None and not caplog.messages  # another config's are no damage
    assert stored_tables(folder, "other") is None and caplog.messages  # but under another name they are
    run_script("search_net", *command)
    assert counts == [1] and stored_tables(folder, key).to_json() == costs.to_json()
    run_script("search_net", *command)
    run_script("search_net", *command, "TEST.DETECTIONS_PER_IMAGE", 7)
    (tmp_path / "output").rename(tmp_path / "moved")
    run_script("search_net", *command, "OUTPUT_DIR", tmp_path / "moved")
    assert counts == [1, 1]


def test_the_origin_of_costs(tmp_path):
    """Every file and option counts but OUTPUT_DIR; modules of IMPORTS say more than the config does."""
    (tmp_path / "a.yaml").write_text("OUTPUT_DIR: a\nNAS:\n  CYCLES: 2\n")
    (tmp_path / "b.yaml").write_text("OUTPUT_DIR: b\n")
    path = tmp_path / "c.yaml"
    path.write_text("_BASE_: [a.yaml, b.yaml]\n")
    key, folder = origin(str(path), [])
    assert folder == "b"  # the last base counts most
    assert origin(str(path), ["OUTPUT_DIR", "d"]) == (key, "d")
    assert origin(str(path), ["NAS.SEED", "1"])[0] != key
    (tmp_path / "a.yaml").write_text("OUTPUT_DIR: a\nNAS:\n  CYCLES: 3\n")
    assert origin(str(path), [])[0] != key
    assert origin(str(path), ["IMPORTS", "[mine]"]) is None and origin(str(path), ["NAS.SEED"]) is None
    assert origin(str(tmp_path / "nowhere.yaml"), []) is None
    path.write_text("_BASE_: a.yaml\nIMPORTS: [mine]\n")
    assert origin(str(path), []) is None


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--max-params", "1k"), "smallest feasible value"),
        (
            ("MODEL.SEM_SEG_HEAD.NUM_LAYERS", 2),
            "another space than the config's .*sem_seg.1; give the config",
        ),
        (("OUTPUT_DIR", "elsewhere"), "cannot read the ledger"),
        (("NAS.SEED", 1, "--pareto"), "--pareto stands after KEY VALUE"),
        (("--accept", "weights"), "--accept continues a search: add --resume"),
        (("--retry-failed",), "--retry-failed continues a search: add --resume"),
        (("--resume", "--accept", "foo"), "--accept foo: expected one of config, content, data"),
        (("--max-macs", "3.5 giga"), "--max-macs: '3.5 giga': expected a positive number.*--help shows"),
    ],
)
def test_refusals(toy, tmp_path, capfd, arguments, message):
    """One line, and no file is touched."""
    before = {p.name: p.read_bytes() for p in (tmp_path / "output/search").glob("*.json*")}
    with pytest.raises(SystemExit) as end:
        run_script("search_net", *toy[2], *arguments)
    assert end.value.code == 2 and re.search(message, error_line(capfd))
    assert {p.name: p.read_bytes() for p in (tmp_path / "output/search").glob("*.json*")} == before


def test_not_while_a_search_is_writing(toy, tmp_path, capfd):
    path = ledger_path(tmp_path / "output")
    with Ledger.open(path, Ledger(path).header, resume=True), pytest.raises(SystemExit):
        run_script("search_net", *toy[2])
    assert "in use by another process" in capfd.readouterr().err
    assert not (tmp_path / "output/search/costs.json").exists()


def test_arguments():
    words = "--rescore --estimator mean --max-macs 3.5G --max-params 24M --pareto --num-gpus 8 --cycles 3"
    for parser in (rescore_parser(), command_module.parser()):
        args = parser.parse_args([*words.split(), "NAS.SEED", "1"])
        assert selection_request(args) == Request("mean", 3_500_000_000, 24_000_000, True)
        assert args.rescore and asks_for_selection(args) and args.opts == ["NAS.SEED", "1"]
        assert not asks_for_selection(parser.parse_args([]))
        assert parser.parse_args([]).config_file == "configs/supernet_coco.yaml"


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
