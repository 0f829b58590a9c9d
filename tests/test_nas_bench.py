"""The benchmark of architectures: scores are the search's own, strata even, the table what was measured."""

import dataclasses
import itertools
import os
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.env import seed_all_rng
from toy import PREFIX, ROOT, answer_strongly, make_config, write_config

from auto_panoptic.bench import Benchmark, load, path_of
from auto_panoptic.errors import UserError
from auto_panoptic.evaluation import PanopticQuality
from auto_panoptic.explore import Ledger
from auto_panoptic.modeling.choice import ChoiceBlock
from auto_panoptic.search.candidate import CandidateEvaluator
from auto_panoptic.search.executors.in_process import InProcess
from auto_panoptic.space import Cost, CostTables, SearchSpace
from auto_panoptic.training import AutoPanopticTrainer, build_config, trainer
from auto_panoptic.training.checkpoint import AtomicCheckpointer

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools/nas_bench"))

import build  # noqa: E402
import jobs  # noqa: E402
import predictors  # noqa: E402
import regret  # noqa: E402
from build import Journal, strata  # noqa: E402
from jobs import AllScores, Standalone, Supernet, Trunk, Work  # noqa: E402
from scoring import METRICS, PathScorer  # noqa: E402
from table import make_table as table_of  # noqa: E402
from table import scored_by

SITES = (
    ("backbone.*", ("shuffle_3x3",)),
    ("backbone.3", ("skip", "xception_3x3")),
    ("mask.*", ("conv_3x3", "identity")),
    ("sem_seg.*", ("dwconv_3x3", "atconv_3x3")),
)


def _fingerprint(quality, overlap) -> dict:
    """Contributions of an image that tell its panoptic maps apart; no random network has a match."""
    text = repr((overlap.pairs, sorted(overlap.predicted.items())))
    row = [1, 0, 0, zlib.crc32(text.encode()) / 2**32]
    return {0: row, len(quality.categories) - 1: row}  # a thing and stuff


def test_scores_are_those_of_the_search(tmp_path, shapes, monkeypatch):
    monkeypatch.setattr(PanopticQuality, "_match", _fingerprint)
    options = ("MODEL.CROSS_ATTENTION.ENABLED", False, "NAS.SPACE.SITES", SITES)
    cfg = make_config(tmp_path, shapes, *options)
    torch.manual_seed(0)
    supernet = build_model(cfg)
    answer_strongly(supernet)
    AtomicCheckpointer(supernet, str(tmp_path)).save("model_final")
    scorer, space = PathScorer(cfg), SearchSpace.from_config(cfg)
    rows = space.cardinality // 2
    found = [scorer(str(tmp_path / "model_final.pth"), number) for number in range(2)]
    evaluate = CandidateEvaluator(cfg, supernet)
    different = set()
    for number in range(space.cardinality):
        metrics, _ = evaluate(path_of(space, number))
        for name in METRICS:
            assert found[number // rows][name][number % rows] == pytest.approx(metrics[name], abs=1e-6), name
        different.add(metrics["PQ"])
    some = scorer.scores(str(tmp_path / "model_final.pth"), [space.cardinality - 2, 1, rows + 1])
    for name in METRICS:
        whole = np.concatenate([part[name] for part in found])
        assert some[name] == whole[[space.cardinality - 2, 1, rows + 1]].tolist(), name
    assert len(different) > rows  # every part of the network plays its part


def test_a_path_is_trained_from_what_all_share_without_the_file_that_its_config_names(
    tmp_path, shapes, monkeypatch
):
    sites = {"CROSS_ATTENTION": {"ENABLED": False}}, {"SPACE": {"SITES": [[s, list(o)] for s, o in SITES]}}
    supernet = write_config(tmp_path / "supernet.yaml", shapes, MODEL=sites[0], NAS=sites[1])
    nas = {**sites[1], "ARCHITECTURE": str(tmp_path / "none.json")}
    trained = write_config(tmp_path / "trained.yaml", shapes, MODEL=sites[0], NAS=nas)
    monkeypatch.setattr(jobs, "TRUNK_OPTIONS", ("SOLVER.MAX_ITER", 2, "SOLVER.STEPS", "(1,)"))
    work, trunk = Work(str(supernet), str(trained), tmp_path / "out"), Trunk(0)
    work(trunk)
    learned = torch.load(trunk.supernet.weights(tmp_path / "out"), weights_only=True)["model"]
    start = torch.load(trunk.weights(tmp_path / "out"), weights_only=True)["model"]
    cfg = build_config(str(supernet), ["SEED", str(trunk.supernet.seed)])
    seed_all_rng(cfg.SEED)
    net = AutoPanopticTrainer.build_model(cfg)
    initial = net.state_dict()
    many = [b for b in net.modules() if isinstance(b, ChoiceBlock) and len(b.ops) > 1]
    parts = [name + "." for name, module in net.named_modules() if module in many]
    searched = {k for k in start if k.startswith(tuple(parts))}
    assert learned.keys() == start.keys() and len(many) == 3
    for name, value in start.items():
        assert torch.equal(value, (initial if name in searched else learned)[name]), name
    loaded, load = [], trainer.load_weights
    monkeypatch.setattr(
        trainer,
        "load_weights",
        lambda model, path, **other: loaded.append(path) or load(model, path, **other),
    )
    results, _ = work(Standalone(5, 0, 2))
    assert np.isfinite(results["PQ"]) and results["counts"] and not any(tmp_path.glob("out/trained/*"))
    assert loaded == [trunk.weights(tmp_path / "out")]


def test_strata_are_even():
    rng = np.random.default_rng(1)
    macs, scores = rng.integers(1, 1000, 4096), rng.normal(size=4096)
    chosen = strata(scores, macs, 128)
    assert len(set(chosen)) == 128 and strata(scores, macs, 32) == chosen[:32]
    quarter = np.argsort(np.argsort(macs, kind="stable"), kind="stable") // 1024
    assert np.bincount(quarter[chosen]).tolist() == [32] * 4
    for q in range(4):
        inside = np.flatnonzero(quarter == q)
        rank = np.argsort(np.argsort(scores[inside], kind="stable"), kind="stable") // 256
        picked = np.isin(inside, chosen)
        assert np.bincount(rank[picked]).tolist() == [8] * 4


SPACE = SearchSpace.from_dict(
    {"a.0": ["conv_3x3"], "a.1": ["conv_3x3", "identity"], "b.0": ["r4", "r8", "r16"]}
)


def test_numbers_of_paths():
    table = make_table([[[]]], [0])
    assert [table.path(n).choices[1:] for n in (0, 2, 5)] == [
        ("conv_3x3", "r4"), ("conv_3x3", "r16"), ("identity", "r16")
    ]  # fmt: skip
    assert [table.number(table.path(n)) for n in range(6)] == list(range(6))
    assert table.choices.tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]


def make_table(counts, paths) -> Benchmark:
    """``counts[place][seed]``: rows of (image, class, TP, FP, FN, IoU)."""
    seeds = len(counts[0])
    numbers, ious = np.zeros((3, 3, 2, len(paths) * seeds), np.uint8), np.zeros((3, 2, len(paths) * seeds))
    for network, found in enumerate(found for row in counts for found in row):
        for image, category, *row, iou in found:
            numbers[:, image, category, network], ious[image, category, network] = row, iou
    categories = [{"id": 3, "isthing": 1, "name": "cat"}, {"id": 5, "isthing": 0, "name": "sky"}]
    quality = {"PQ": np.zeros((len(paths), seeds), np.float32)}
    return Benchmark(
        space=SPACE,
        macs=np.arange(6),
        params=np.arange(6) + 10,
        supernet={"PQ": np.arange(12, dtype=np.float32).reshape(2, 6)},
        paths=np.array(paths, np.int32),
        trained=quality,
        seconds=np.ones_like(quality["PQ"]),
        counts=numbers,
        iou=(ious * 4096).astype(np.uint16),
        provenance={"categories": categories, "images": [11, 12, 13]},
    )


def test_a_table_is_read_as_written(tmp_path):
    counts = [
        [[(0, 0, 1, 0, 1, 0.75), (1, 1, 1, 0, 0, 0.5)], [(2, 1, 0, 1, 0, 0.0)]],
        [[], [(0, 1, 2, 0, 0, 1.5)]],
    ]
    table = make_table(counts, [4, 1])
    table.save(tmp_path / "small.npz")
    read = load(tmp_path / "small.npz")
    assert read.space == SPACE and read.provenance == table.provenance
    for name in ("macs", "params", "paths", "seconds", "counts", "iou"):
        assert np.array_equal(getattr(read, name), getattr(table, name)), name
    assert read.supernet["PQ"].tolist() == table.supernet["PQ"].tolist()
    quality = read.quality(0, 0)
    assert quality.num_images == 3
    assert quality.compute()["PQ"] == pytest.approx(100 * (0.75 / 1.5 + 0.5) / 2)
    assert read.quality(1, 1).compute()["PQ"] == 75
    assert isinstance(quality, PanopticQuality) and read.quality(1, 0).num_images == 3


def test_a_table_of_trainings(tmp_path, shapes):
    make_config(tmp_path, shapes)
    rows = [[("a", [0, 8], [[1, 0, 2, 0.75], [2, 1, 0, 1.25]])], [("b", [3], [[0, 0, 1, 0.0]])], []]
    trained = [
        [{"PQ": float(i), "seconds": 2.0, "counts": c} for i, c in enumerate(r)] for r in (rows, rows[::-1])
    ]
    about = (SPACE, (np.arange(6), np.arange(6)), [dict.fromkeys(METRICS, np.arange(6))], [4, 1])
    made = table_of(*about, trained, scored_by([f"{PREFIX}_val"]))
    assert made.provenance["images"] == ["a", "b"] and made.trained["PQ"].tolist() == [[0, 1, 2]] * 2
    for place, seed, found in (0, 0, rows[0]), (0, 1, rows[1]), (1, 0, []), (1, 2, rows[0]):
        images = made.quality(place, seed).record()["images"]
        assert [tuple(row) for row in images if row[1]] == found and len(images) == 2
    trained[0][0]["counts"] = [("a", [0], [[20, 0, 0, 16.5]])]
    with pytest.raises(UserError, match="too many segments"):
        table_of(*about, trained, scored_by([f"{PREFIX}_val"]))


def test_unknown_and_damaged_tables(tmp_path):
    with pytest.raises(UserError, match="no benchmark 'shapes'"):
        load("shapes")
    make_table([[[]]], [0]).save(tmp_path / "a.npz")
    data = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="damaged"):
        load(tmp_path / "a.npz")


def test_a_journal_computes_nothing_twice(tmp_path):
    calls = []

    def work(job):
        calls.append(job.key)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return {"PQ": float(job.backbone)}, {"all": 1.0}

    jobs = [AllScores(Supernet("base", (), 0), number) for number in range(4)]
    with pytest.raises(KeyboardInterrupt), Ledger.open(tmp_path / "j.jsonl", {"a": 1}, resume=True) as ledger:
        Journal(ledger).do(InProcess(work), jobs, "scores")
    with Ledger.open(tmp_path / "j.jsonl", {"a": 1}, resume=True) as ledger:
        results = Journal(ledger).do(InProcess(work), jobs, "scores")
    assert [r["PQ"] for r in results] == [0, 1, 2, 3]
    assert calls == [jobs[i].key for i in (0, 1, 2, 2, 3)]


def test_a_table_is_extended(tmp_path, monkeypatch):
    """Its results are in the journal as if they had been computed there, those that are there are kept."""
    space = SearchSpace.from_dict({"backbone.0": ["skip", "xception_3x3"], "mask.0": ["r4", "r8", "r16"]})
    counts = [
        [[(0, 0, 1, 0, 1, 0.75), (1, 1, 1, 0, 0, 0.5)], [(2, 1, 0, 1, 0, 0.0)]],
        [[(0, 1, 2, 0, 0, 1.5)], [(1, 1, 2, 0, 0, 1.5)]],
    ]
    table = dataclasses.replace(make_table(counts, [4, 1]), space=space)
    table.trained["PQ"][:] = [[70, 71], [50, 51.25]]
    table.provenance["steps"] = 30
    monkeypatch.setattr(build, "space_and_costs", lambda: (space, None, None))
    with Ledger.open(tmp_path / "j.jsonl", {"a": 1}, resume=True) as ledger:
        journal = Journal(ledger)
        journal.add("supernet base 1", {"status": "ok", "metrics": {"own": 1}, "seconds": {"all": 5.0}})
        build.take_over(table, journal, 30)
    with Ledger.open(tmp_path / "j.jsonl", {"a": 1}, resume=True) as ledger:
        journal = Journal(ledger)
        build.take_over(table, journal, 30)
        assert len(ledger.records) == 2 + 2 * 2 + 2 * 2  # supernets, their backbones, paths x seeds
        with pytest.raises(UserError, match="--extend: its trainings have 30 steps, --steps is 40"):
            build.take_over(table, journal, 40)
        with pytest.raises(UserError, match="--extend: of another space"):
            build.take_over(make_table(counts, [4, 1]), journal, 30)
    assert journal.results["supernet base 1"] == {"own": 1, "seconds": 5.0}
    scores = [journal.results[f"scores base 1 {number}"]["PQ"] for number in range(2)]
    assert np.concatenate(scores).tolist() == table.supernet["PQ"][1].tolist()
    trained = journal.results["trained 1 1 30"]
    assert (trained["PQ"], trained["seconds"]) == (51.25, 1.0)
    again = PanopticQuality.of_record({**table.provenance, "images": trained["counts"]})
    assert again.record() == table.quality(1, 1).record()


def test_scores_alone_are_a_table(tmp_path, monkeypatch, shapes):
    """No path is trained; trainings of any length may be added."""
    make_config(tmp_path, shapes)
    space = SearchSpace.from_dict({"backbone.0": ["skip", "xception_3x3"], "mask.0": ["r4", "r8", "r16"]})
    scores = [dict.fromkeys(METRICS, np.arange(6) + seed) for seed in range(2)]
    costs = (np.arange(6), np.arange(6))
    made = table_of(space, costs, scores, [], [], {"steps": 30, **scored_by([f"{PREFIX}_val"])})
    made.save(tmp_path / "a.npz")
    read = load(tmp_path / "a.npz")
    assert read.supernet["PQ"].tolist() == [[0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 6]]
    assert len(read.paths) == read.trained["PQ"].size == 0 and read.counts.size == 0
    monkeypatch.setattr(build, "space_and_costs", lambda: (space, None, None))
    with Ledger.open(tmp_path / "j.jsonl", {"a": 1}, resume=True) as ledger:
        build.take_over(read, Journal(ledger), 40)
        assert len(ledger.records) == 2 + 2 * 2
    with pytest.raises(UserError, match="has 0 trained paths, the truth needs at least 4"):
        monkeypatch.setattr(sys, "argv", ["predictors.py", "--table", str(tmp_path / "a.npz")])
        predictors.main()


def test_the_shipped_table_is_of_the_shipped_space():
    bench = load("shapes4096")
    space, macs, params = build.space_and_costs()
    assert bench.space == space and space.cardinality == 4096
    assert np.array_equal(bench.macs, macs) and np.array_equal(bench.params, params)
    assert {*bench.supernet} == {*METRICS} and bench.supernet["PQ"].shape == (3, 4096)
    quality = bench.supernet["PQ"]
    assert ((quality > 40) & (quality < 75)).all() and np.corrcoef(quality).min() > 0.7
    assert (build.ROOT / "auto_panoptic/bench/shapes4096.npz").stat().st_size <= 4e6


def test_the_shipped_truth():
    """Paths are the first of the strata, counts give the qualities, and seeds do not decide."""
    bench = load("shapes4096")
    scores, (paths, seeds) = bench.supernet["PQ"].mean(axis=0), bench.trained["PQ"].shape
    assert (paths, seeds) == (128, 3)
    assert bench.paths.tolist() == strata(scores, bench.macs, paths)
    images = bench.provenance["images_of"].values()
    for place, seed in itertools.product(range(paths), range(seeds)):
        record = bench.quality(place, seed).record()
        parts = [[row for row in record["images"] if row[0] in own] for own in map(set, images)]
        found = [PanopticQuality.of_record(record | {"images": part}).compute()["PQ"] for part in parts]
        assert np.mean(found) == pytest.approx(bench.trained["PQ"][place, seed], abs=1e-3)
    assert predictors.reliability(predictors.truth_of(bench)).mean >= 0.5


def test_regret_of_searches_of_a_table():
    """Four sites that add up: the rules that fit effects find the best path, within so many evaluations."""
    space = SearchSpace.from_dict(
        {f"a.{i}": ["conv_3x3", "identity", "dwconv_3x3", "atconv_3x3"] for i in range(4)}
    )
    rng = np.random.default_rng(3)
    choices = np.stack(np.unravel_index(np.arange(256), [4] * 4), axis=1)
    scores = np.stack([rng.normal(size=(4, 4))[np.arange(4), choices].sum(axis=1) for _ in range(2)])
    empty = np.zeros(0)
    bench = Benchmark(space, empty, empty, {"PQ": scores}, empty, {}, empty, empty, empty, {})
    rows = regret.summary(bench, regret.run(bench, [32, 60], 3))
    assert rows["posterior, best"][60] == {"regret": 0.0, "half": 0.0, "top": 1.0}
    assert rows["path_priority, ridge"][60]["regret"] < 0.1 < rows["random, best"][32]["regret"]
    true = regret.lookup(space, scores[1])
    assert true(np.array([[0, 0, 0, 1], [3, 3, 3, 3]])).tolist() == [scores[1, 1], scores[1, 255]]
    ops = dict(zip(space.sites[0].names, [Cost(n, 0) for n in (9, 2, 4, 8)], strict=True))
    costs = CostTables(space, {}, {site.name: ops for site in space.sites})
    bench = dataclasses.replace(bench, macs=np.array([9, 2, 4, 8])[choices].sum(axis=1))
    found = regret.run_within(bench, costs, 18, [32], 2)
    assert found.keys() == {"posterior, told the limit", "posterior, not told"}
    within = bench.macs <= 18
    rows = regret.summary(bench, found, within)
    assert rows["posterior, told the limit"][32]["regret"] == pytest.approx(0, abs=1e-9)
    for cells in found.values():
        assert np.isin(cells[32], scores[:, within]).all()


def test_what_is_left_of_a_score_when_trained():
    """Trained PQ is 3 x the first supernet's score; the second's, the same less 6, says as much."""
    table = make_table([[[], []]] * 4, [0, 1, 2, 5])
    table.trained["PQ"][:] = 3 * table.paths[:, None] + np.array([1, 7])
    assert regret.slopes(table) == pytest.approx(np.array([[3, 1], [3, 1]]))
    table.trained["PQ"][3] = table.trained["PQ"][0]
    assert (regret.slopes(table)[:, 1] < 1).all()


def trained_again(table, number, found, tmp_path, monkeypatch):
    """What ``build.rebuild`` computes where path n has the PQ ``found[n]``."""
    done = []

    def work(job):
        done.append(job)
        return {} if isinstance(job, Trunk) else {"PQ": found[job.path]}, {"all": 1.0}

    monkeypatch.setattr(build, "space_and_costs", lambda: (SPACE, None, None))
    with Ledger.open(tmp_path / "j.jsonl", {"a": 1}, resume=True) as ledger:
        build.rebuild(table, number, Journal(ledger), InProcess(work))
    return done


def test_entries_are_made_again(tmp_path, monkeypatch, capsys):
    table = make_table([[[], []]] * 4, [5, 1, 0, 2])  # multiply-adds are the numbers of the paths
    table.trained["PQ"][:] = [[70, 71], [50, 51], [40, 41], [60, 61]]  # standard deviation sqrt(1 / 2)
    table.provenance["steps"] = 30
    close = {5: 73.5, 2: 56.5, 0: 40.0, 1: 0.0}
    done = trained_again(table, 3, close, tmp_path / "a", monkeypatch)
    assert done == [Trunk(0), *(Standalone(path, 0, 30) for path in (0, 2, 5))]
    shown = capsys.readouterr().out
    assert "0.71" in shown and "+3.50" in shown
    with pytest.raises(SystemExit, match="differs by more than 5"):
        trained_again(table, 4, close, tmp_path / "b", monkeypatch)
    with pytest.raises(UserError, match="--rebuild is 5; the table has 4"):
        trained_again(table, 5, close, tmp_path / "c", monkeypatch)


@pytest.mark.slow
def test_entries_of_the_shipped_table_are_made_again(tmp_path):
    command = [sys.executable, "tools/nas_bench/build.py", "--rebuild", "4", "--table", "shapes4096"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, "--output", tmp_path], cwd=ROOT, env=environment, check=True)
