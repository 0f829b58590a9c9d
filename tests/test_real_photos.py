"""The main job from start to end on real annotated photographs, through the commands of the README."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from auto_panoptic.explore import Ledger
from auto_panoptic.space import Architecture

ROOT = Path(__file__).resolve().parents[1]
PHOTOS = Path(os.getenv("AUTO_PANOPTIC_PHOTOS", Path(__file__).parents[2] / "shared" / "data"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (PHOTOS / "coco133").is_dir(), reason="annotated photographs are not here"),
]


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
        "NAS": {"CYCLES": 1, "BN_RECALIBRATION": {"NUM_IMAGES": 16, "BATCH_SIZE": 4}},
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
