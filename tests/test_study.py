"""Studies: differences over seeds and images, and trainings that are read in several ways."""

import json
import math
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from toy import dataset_entries

from auto_panoptic.analyze import costs_of
from auto_panoptic.errors import UserError
from auto_panoptic.evaluation import PanopticQuality
from auto_panoptic.explore.controls import random_of_equal_cost
from auto_panoptic.modeling import meta_model
from auto_panoptic.modeling.choice import configured_space
from auto_panoptic.modeling.counting import configured_costs
from auto_panoptic.space import Architecture
from auto_panoptic.training import build_config

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools/studies"))

import equal_cost  # noqa: E402
import panoptic_deeplab  # noqa: E402
import unified  # noqa: E402
from study import difference  # noqa: E402

CATEGORIES = [{"id": 1, "isthing": 1}, {"id": 2, "isthing": 0}]


def record(hits, misses=0, miou=0.0):
    """``hits`` images with a perfect thing, ``misses`` with a missed one."""
    images = [[i, [0], [[1, 0, 0, 1.0]]] for i in range(hits)]
    images += [[hits + i, [0], [[0, 0, 1, 0.0]]] for i in range(misses)]
    made = {"categories": CATEGORIES, "images": images}
    results = {"PQ": PanopticQuality.of_record(made).compute()["PQ"]}
    return {**made, "results": {"panoptic_seg": results, "sem_seg": {"mIoU": miou}}}


def test_equal_results_differ_by_nothing():
    records = [record(6, 2), record(5, 3), record(7, 1)]
    assert difference(records, records, "PQ") == (0.0, 0.0, 3)


def test_interval_of_a_metric_is_students():
    first, second = ([record(1, miou=x) for x in values] for values in ((3, 5, 7), (1, 2, 3)))
    mean, half, count = difference(first, second, "mIoU")  # 2, 3, 4: standard deviation 1
    assert (mean, count) == (3.0, 3)
    assert half == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)  # t of 2 degrees of freedom


def test_interval_of_panoptic_quality_holds_the_images_noise():
    """All seeds alike: only the images vary. PQ is hits / (hits + misses / 2)."""
    first, second = [record(300, 100)] * 3, [record(400)] * 3
    mean, half, _ = difference(first, second, "PQ")
    assert mean == pytest.approx(100 * (300 / 350 - 1))
    share = np.random.default_rng(5).binomial(400, 0.75, 20000) / 400
    noise = np.std(100 * share / (share + (1 - share) / 2))
    assert half == pytest.approx(1.96 * noise, rel=0.1)


def test_one_seed_decides_nothing():
    assert difference([record(3)], [record(1, 2)], "PQ")[1] == math.inf


@pytest.mark.parametrize("study", [panoptic_deeplab.STUDY, unified.STUDY], ids=lambda study: study.name)
def test_shipped_studies_train_what_their_configs_have(study):
    for name in {**study.trainings, **study.readings}:
        training, options = study.read(name)
        config, common = study.trainings[training]
        opts = [*common, *options, "NAS.ARCHITECTURE", ""]  # what a search wrote is not there
        cfg = build_config(str(ROOT / config), [str(x) for x in opts])
        if training != "searched":  # without its architecture a supernet
            assert configured_space(cfg).cycle_length == 1  # a step is one mini-batch
        assert cfg.SOLVER.MAX_ITER in (300, 450, 600) and cfg.DATASETS.TEST == ("shapes_panoptic_val",)
    named = {name for pair in study.comparisons for name in pair[:2]}
    assert named <= {**study.trainings, **study.readings}.keys()


@pytest.mark.parametrize(
    ("first", "second", "macs"),
    [
        ("HRNet+", "ShuffleNet, wide", 141_000_000),
        ("panoptic_deeplab, 0.47 G", "auto_panoptic, 0.47 G", 464_000_000),
        ("panoptic_deeplab, 0.47 G", "unified, 0.47 G", 466_000_000),
    ],
)
def test_networks_compared_at_equal_macs_have_them(first, second, macs):
    costs = []
    for name in (first, second):
        config, options = panoptic_deeplab.STUDY.trainings[name]
        tables = configured_costs(build_config(str(ROOT / config), [str(x) for x in options]), (128, 160))
        costs.append(tables.cost(tables.space.architecture([0] * len(tables.space.sites))).macs)
    assert costs == pytest.approx([macs] * 2, rel=0.03)


def test_longer_trainings_differ_in_their_steps_alone():
    """In the same proportions; a Panoptic-FPN has as many images as a supernet and its path have together."""

    def solver(config, *options):
        return build_config(str(ROOT / config), ["NAS.ARCHITECTURE", "", *map(str, options)]).SOLVER

    supernet = build_config(str(ROOT / equal_cost.SUPERNET), [])
    images = supernet.SOLVER.MAX_ITER * 4 * supernet.SOLVER.IMS_PER_BATCH  # a fair cycle is 4 mini-batches
    short, long = (solver(equal_cost.RETRAIN, *more) for more in ((), equal_cost.LONGER))
    fpns = [baseline for _, _, baseline, _ in equal_cost.COSTS.values()]
    for fpn in fpns:
        first, second = solver(fpn), solver(fpn, *equal_cost.FPN_LONGER)
        assert first.MAX_ITER == long.MAX_ITER == 3 * short.MAX_ITER
        assert second.MAX_ITER * second.IMS_PER_BATCH == long.MAX_ITER * long.IMS_PER_BATCH + images
        assert second.STEPS == tuple(round(s * second.MAX_ITER / first.MAX_ITER) for s in first.STEPS)
    assert long.STEPS == tuple(3 * step for step in short.STEPS)
    trained = equal_cost.STUDY.trainings
    for name in trained:
        if " steps" not in name:
            config, options = trained[name]
            more = equal_cost.FPN_LONGER if config in fpns else equal_cost.LONGER
            assert trained[equal_cost.longer(name)] == (config, (*options, *more))
    assert all({first, second} < {*trained} for first, second, _ in equal_cost.STUDY.comparisons)


@pytest.mark.parametrize("cost", equal_cost.COSTS)
def test_a_panoptic_fpn_costs_what_the_search_may_spend(cost):
    """As it is named, and amid the networks of the space at that width."""
    options, limit, baseline, _ = equal_cost.COSTS[cost]
    macs, _ = costs_of(meta_model(build_config(str(ROOT / baseline), [])).eval(), (128, 128))[""]
    assert macs / 1e9 == pytest.approx(float(cost.removesuffix(" G")), abs=0.01)
    assert macs / 1e6 == pytest.approx(float(limit.removesuffix("M")), rel=0.01)
    costs = configured_costs(build_config(str(ROOT / equal_cost.SUPERNET), [str(x) for x in options]))
    drawn = random_of_equal_cost(costs, macs, 8, seed=0)
    assert all(costs.cost(each).macs == pytest.approx(macs, rel=0.02) for each in drawn)


def test_every_seed_has_a_supernet_and_a_random_network_of_its_own(tmp_path, monkeypatch):
    """Four supernets serve six seeds; a second call leaves all as it is, and a failure is told."""
    space = configured_costs(build_config(str(ROOT / equal_cost.SUPERNET), [])).space
    commands = []

    def logged(log, script, *arguments, code=0):
        commands.append(arguments)
        if script.endswith("search_net.py"):
            finals = "--finals" in arguments
            found = space.architecture([len(site.ops) // (2 if finals else 3) for site in space.sites])
            found.save(log.parent / "search/architecture.json")
            if finals:
                (log.parent / "search/finals.json").write_text("{}")
        return code

    monkeypatch.setattr(equal_cost, "logged", logged)
    for _ in range(2):
        equal_cost.prepare(tmp_path, range(6), ["random, 0.31 G, 1200 steps", "panoptic_fpn, 0.67 G"], 1)
        assert len(commands) == 8  # two for each supernet of one width
    for _ in range(2):
        equal_cost.prepare(tmp_path, range(6), ["best of finals, 0.31 G"], 1)
        assert len(commands) == 12 and all("--finals" in command for command in commands[8:])
    drawn = [tmp_path / f"searches/0.31G/random_{seed}.json" for seed in range(6)]
    for seed in range(6):
        place = equal_cost.seed_folder("0.31 G", seed, tmp_path)
        found = Architecture.load(f"{place}/selected.json")
        assert found != Architecture.load(f"{place}/search/architecture.json")
        assert os.path.realpath(place) == str(tmp_path / f"searches/0.31G/{seed % 4}")
        assert Architecture.load(drawn[seed]) != found
    assert Architecture.load(drawn[0]) != Architecture.load(drawn[4])
    monkeypatch.setattr(equal_cost, "logged", partial(logged, code=3))
    with pytest.raises(UserError, match="train_net.py ended with exit code 3, see "):
        equal_cost.prepare(tmp_path, range(1), ["found, 1.32 G"], 1)


STUDY = """
import sys
sys.path.insert(0, {tools!r})
from study import Study, main
OPTIONS = {options!r}
STUDY = Study(
    "toy",
    trainings={{"fpn": ("configs/quick/panoptic_fpn.yaml", OPTIONS)}},
    readings={{"trimmed": ("fpn", ("TEST.STUFF_AREA", 100000))}},
    comparisons=[("trimmed", "fpn", ("PQ_st",))],
)
sys.exit(main(STUDY))
"""


@pytest.mark.slow
def test_trainings_are_run_once_and_read_in_every_way(shapes, tmp_path):
    options = ["DATASETS.COCO_PANOPTIC", str(dataset_entries(shapes)), "SOLVER.MAX_ITER", "2"]
    options += ["DATASETS.TRAIN", "('toy_panoptic_train',)", "DATASETS.TEST", "('toy_panoptic_val',)"]
    options += ["SOLVER.STEPS", "(1,)", "SOLVER.WARMUP_ITERS", "0", "TEST.METRICS", "['pq']"]
    script = tmp_path / "toy_study.py"
    script.write_text(STUDY.format(tools=str(ROOT / "tools/studies"), options=options))
    command = [sys.executable, str(script), "--output", str(tmp_path / "out"), "--seeds", "2"]

    def call(*flags, code=0):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run([*command, *flags], capture_output=True, text=True, env=environment)
        assert done.returncode == code, done.stdout + done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    first = call()
    assert {name: found["seeds"] for name, found in first["results"].items()} == {"fpn": 2, "trimmed": 2}
    assert first["results"]["trimmed"]["PQ_st"] == 0  # all stuff became void
    assert first["differences"]["trimmed - fpn: PQ_st"]["verdict"] in ("undecided", "below")
    trained = tmp_path / "out/fpn/seed_1/trained.json"
    before = trained.stat().st_mtime_ns
    (tmp_path / "out/fpn/seed_0/trimmed.json").unlink()
    assert call() == first and trained.stat().st_mtime_ns == before
    assert call("--report") == first
    script.write_text(STUDY.format(tools=str(ROOT / "tools/studies"), options=[*options, "SEED", "7"]))
    assert call(code=1) == first  # what is there, and a failure: it was trained otherwise
    assert "its training was another one" in (tmp_path / "out/fpn/seed_0.log").read_text()
    assert trained.stat().st_mtime_ns == before
