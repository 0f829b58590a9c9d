"""Real annotated photographs: registered, trained on, scored, and the main job from start to end."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from toy import make_config

from auto_panoptic.data import register_coco_panoptic
from auto_panoptic.data.check import run_check
from auto_panoptic.data.check.sets import find_data_set
from auto_panoptic.data.formats.findings import ERROR
from auto_panoptic.data.formats.panoptic_png import read_labels, read_panoptic, write_panoptic
from auto_panoptic.evaluation import PanopticQualityEvaluator
from auto_panoptic.explore import Ledger
from auto_panoptic.space import Architecture
from auto_panoptic.training import AutoPanopticTrainer

ROOT = Path(__file__).resolve().parents[1]
PHOTOS = Path(os.getenv("AUTO_PANOPTIC_PHOTOS", Path(__file__).parents[2] / "shared" / "data"))

pytestmark = pytest.mark.skipif(
    not (PHOTOS / "coco133").is_dir(), reason="annotated photographs are not here"
)
# Set -> numbers of things, of stuff classes, of images.
SETS = {
    "coco133": (80, 53, 4),
    "cityscapes19": (8, 11, 1),
    "ade150": (100, 50, 4),
    "voc20bg": (20, 1, 3),
    "tinycoco80_train": (80, 0, 50),
    "camvid11": (3, 8, 15),
}
sets = pytest.mark.parametrize("name", SETS)


def entry(name, derived):
    """A user's entry of DATASETS.COCO_PANOPTIC; both sets get the 133 classes of coco133."""
    folder = PHOTOS / name
    return {
        "name": f"photos_{name}",
        "panoptic_json": str(folder / "panoptic.json"),
        "panoptic_root": str(folder / "panoptic"),
        "image_root": str(folder / "images"),
        "categories": str(PHOTOS / "coco133" / "panoptic.json"),
        "derived_root": str(derived),
    }


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """The quick model on the photographs: 4 with all 133 classes, 50 with things only."""
    folder = tmp_path_factory.mktemp("photos")
    content = {
        "_BASE_": str(ROOT / "configs/quick/supernet.yaml"),
        "DATASETS": {
            "COCO_PANOPTIC": [entry(name, folder / "derived") for name in ("coco133", "tinycoco80_train")],
            "TRAIN": ["photos_coco133", "photos_tinycoco80_train"],
            "TEST": ["photos_coco133"],
            "SEARCH": ["photos_coco133"],
        },
        "SOLVER": {"MAX_ITER": 2, "STEPS": [1], "WARMUP_ITERS": 1, "IMS_PER_BATCH": 2},
        "NAS": {
            "POLICY": "path_priority",
            "CYCLES": 1,
            "BN_RECALIBRATION": {"NUM_IMAGES": 16, "BATCH_SIZE": 4},
        },
        "OUTPUT_DIR": str(folder / "supernet"),
    }
    path = folder / "photos.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def command(script, *arguments):
    result = subprocess.run(
        [sys.executable, str(ROOT / script), *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout


@pytest.mark.slow
def test_supernet_search_retraining_and_evaluation(config):
    folder = config.parent
    sources = {path: path.stat().st_mtime_ns for path in PHOTOS.glob("*/**/*")}
    arguments = ("--config-file", config)
    weights, architecture = folder / "supernet/model_final.pth", folder / "search/architecture.json"

    command("train_net.py", *arguments)
    out = command("search_net.py", *arguments, "--weights", weights, "OUTPUT_DIR", folder)
    records = Ledger(folder / "search/ledger.jsonl").records
    assert [(r["cycle"], r["index"], r["status"]) for r in records] == [(0, i, "ok") for i in range(12)]
    assert all(0 <= r["metrics"]["PQ"] <= 100 for r in records)
    assert "Selected from 12 candidates" in out and str(architecture) in out
    assert len(Architecture.load(architecture).choices) == len(Architecture.load(architecture).space.sites)

    fixed = ("NAS.ARCHITECTURE", architecture, "MODEL.WEIGHTS", weights, "OUTPUT_DIR", folder / "retrain")
    schedule = ("SOLVER.MAX_ITER", 4, "SOLVER.STEPS", "(3,)")
    out = command("train_net.py", *arguments, *fixed, *schedule)
    assert re.search(r"\| +all +\|", out) and "box AP" in out
    evaluated = folder / "evaluated"
    fixed = ("NAS.ARCHITECTURE", architecture, "MODEL.WEIGHTS", folder / "retrain/model_final.pth")
    command("train_net.py", *arguments, "--eval-only", *fixed, "OUTPUT_DIR", evaluated)

    found = {}
    for name in ("retrain", "evaluated"):
        lines = (folder / name / "metrics.json").read_text().splitlines()
        found[name] = {k: v for line in map(json.loads, lines) for k, v in line.items() if "/" in k}
    assert {"bbox/AP", "segm/AP", "sem_seg/mIoU"} <= found["evaluated"].keys()
    for key in ("PQ", "SQ", "RQ", "PQ_th", "PQ_st"):
        value = found["evaluated"][f"panoptic_seg/{key}"]
        assert 0 <= value <= 100 and found["retrain"][f"panoptic_seg/{key}"] == value
    losses = [json.loads(line) for line in (folder / "supernet/metrics.json").read_text().splitlines()]
    assert all(math.isfinite(line["total_loss"]) for line in losses if "total_loss" in line)
    assert {path: path.stat().st_mtime_ns for path in PHOTOS.glob("*/**/*")} == sources  # untouched


# ------------------------------------------------------------------ every set


def register(name, derived):
    """Register a set with the categories of its own."""
    folder = PHOTOS / name
    paths = (folder / "panoptic.json", folder / "panoptic", folder / "images")
    register_coco_panoptic(name, *map(str, paths), derived_root=str(derived), show_ids=False)


@sets
def test_registered(name, tmp_path, forget_data_sets):
    """Class counts, and labels that agree with the panoptic PNGs pixel by pixel."""
    register(name, tmp_path)
    metadata, (things, stuff, images) = MetadataCatalog.get(f"{name}_separated"), SETS[name]
    assert (len(metadata.thing_classes), len(metadata.stuff_classes)) == (things, stuff + 1)
    records = DatasetCatalog.get(f"{name}_separated")
    assert len(records) == images
    report = run_check(find_data_set(name), processes=1, progress=False)
    assert (report.number(ERROR), report.done) == (0, images)
    for record in records[:4]:
        ids = read_panoptic(record["pan_seg_file_name"])
        labels = np.full(ids.shape, 255)
        for segment in record["segments_info"]:
            labels[ids == segment["id"]] = 0 if segment["isthing"] else segment["category_id"]
        np.testing.assert_array_equal(read_labels(record["sem_seg_file_name"])[0], labels)
        expected = [s["category_id"] for s in record["segments_info"] if s["isthing"]]
        assert [a["category_id"] for a in record["annotations"]] == expected


def train_steps(name, folder, iterations):
    """Losses of fair cycles of the tiny supernet on one set."""
    register(name, folder)
    datasets = {"TRAIN": [name], "TEST": [], "SEARCH": [], "COCO_PANOPTIC": []}
    solver = {"MAX_ITER": iterations, "STEPS": []}
    trainer = AutoPanopticTrainer(make_config(folder, folder, DATASETS=datasets, SOLVER=solver))
    trainer.resume_or_load(resume=False)
    losses = []
    trainer.model.register_forward_hook(
        lambda model, inputs, output: losses.append(sum(output.values()).item())
    )
    trainer.train()
    assert len(losses) == 12 * iterations
    assert all(math.isfinite(loss) and loss > 0 for loss in losses)
    assert all(value.isfinite().all() for value in trainer.model.state_dict().values())


def test_train_a_step(tmp_path, forget_data_sets):
    train_steps("tinycoco80_train", tmp_path, 1)  # no stuff class, everything else void, crowds


@pytest.mark.slow
@sets
def test_train_some_steps(name, tmp_path, forget_data_sets):
    train_steps(name, tmp_path, 4)


def perturbed(ids, segments, others):
    """A prediction with faults: moved, every fifth segment missing, every seventh of another class."""
    moved = np.roll(ids, (4, 7), (0, 1))
    kept = [dict(s) for i, s in enumerate(segments) if i % 5 != 4 and (moved == s["id"]).any()]
    for segment in kept[6::7]:
        segment["category_id"] = (segment["category_id"] + 1) % others if segment["isthing"] else 1
    return np.where(np.isin(moved, [s["id"] for s in kept]), moved, 0), kept


def score(name, change, folder):
    """Our results for changed ground truth, and what panopticapi needs to score the same."""
    evaluator = PanopticQualityEvaluator(name, distributed=False)
    metadata = MetadataCatalog.get(name)
    to_json = {
        kind: {v: k for k, v in metadata.get(f"{kind}_dataset_id_to_contiguous_id").items()}
        for kind in ("thing", "stuff")
    }
    predictions = {}
    for record in DatasetCatalog.get(name):
        segments = [s for s in record["segments_info"] if not s["iscrowd"]]
        ids = read_panoptic(record["pan_seg_file_name"])
        ids, segments = change(np.where(np.isin(ids, [s["id"] for s in segments]), ids, 0), segments)
        evaluator.process([record], [{"panoptic_seg": (torch.from_numpy(ids), segments)}])
        file_name = f"{record['image_id']}.png"
        write_panoptic(str(folder / file_name), ids)
        info = [
            {**s, "category_id": to_json["thing" if s["isthing"] else "stuff"][s["category_id"]]}
            for s in segments
        ]
        entry = {"image_id": record["image_id"], "file_name": file_name, "segments_info": info}
        predictions[record["image_id"]] = entry
    return evaluator.evaluate()["panoptic_seg"], predictions


@sets
def test_ground_truth_against_itself_scores_100(name, tmp_path, forget_data_sets):
    register(name, tmp_path)
    (tmp_path / "predicted").mkdir()
    results, _ = score(name, lambda ids, segments: (ids, segments), tmp_path / "predicted")
    blocks = ["", "_th", "_st"] if SETS[name][1] else ["", "_th"]
    for key in (measure + block for measure in ("PQ", "SQ", "RQ") for block in blocks):
        assert results[key] == pytest.approx(100, abs=1e-12), key
    assert SETS[name][1] or math.isnan(results["PQ_st"])


@sets
def test_a_perturbed_copy_scores_as_in_panopticapi(name, tmp_path, forget_data_sets):
    pq = pytest.importorskip("panopticapi.evaluation")
    register(name, tmp_path)
    (tmp_path / "predicted").mkdir()
    classes = SETS[name][0]
    results, predictions = score(name, lambda *p: perturbed(*p, classes), tmp_path / "predicted")
    content = json.loads((PHOTOS / name / "panoptic.json").read_text())
    categories = {c["id"]: c for c in content["categories"]}
    pairs = [(truth, predictions[truth["image_id"]]) for truth in content["annotations"]]
    folders = (str(PHOTOS / name / "panoptic"), str(tmp_path / "predicted"))
    counts = pq.pq_compute_single_core(0, pairs, *folders, categories)
    assert 5 < results["PQ"] < 95
    for block, isthing in (("", None), ("_th", True), ("_st", False)):
        try:
            expected, _ = counts.pq_average(categories, isthing)
        except ZeroDivisionError:  # panopticapi has no value for a set without stuff
            assert block == "_st" and math.isnan(results["PQ_st"])
            continue
        for ours, theirs in (("PQ", "pq"), ("SQ", "sq"), ("RQ", "rq")):
            assert results[ours + block] == pytest.approx(100 * expected[theirs], abs=1e-9, rel=0), (
                ours + block
            )


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["coco133", "cityscapes19", "ade150", "voc20bg", "camvid11", "tinycoco80_train"]
)
def test_real_truth_against_itself(name, tmp_path):
    folder = PHOTOS / name
    arguments = (str(folder / "panoptic.json"), str(folder / "panoptic"), str(folder / "images"))
    register_coco_panoptic(name, *arguments, derived_root=str(tmp_path))
    try:
        evaluator = PanopticQualityEvaluator(name)
        for record in DatasetCatalog.get(name):
            pred = read_panoptic(record["pan_seg_file_name"])
            output = {"panoptic_seg": (torch.as_tensor(pred), record["segments_info"])}
            evaluator.process([record], [output])
        results = evaluator.evaluate()["panoptic_seg"]
        assert results["PQ"] == results["PQ_th"] == 100.0
        stuff = any(not c["isthing"] for c in json.loads(Path(arguments[0]).read_text())["categories"])
        assert results["PQ_st"] == 100.0 if stuff else np.isnan(results["PQ_st"])
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
