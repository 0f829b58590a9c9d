"""The whole pipeline through its commands; test_pipeline.py runs it here and in a second process."""

import hashlib
import json
import sys
from pathlib import Path

import torch
from toy import run_script, write_config

from auto_panoptic.explore import Ledger
from auto_panoptic.space import Architecture

RETRAIN = ("SOLVER.MAX_ITER", 40, "SOLVER.STEPS", "(30,)", "SOLVER.WARMUP_ITERS", 5, "SOLVER.BASE_LR", 0.02)


def run_pipeline(folder: Path, shapes: Path) -> dict:
    """Supernet, search, retraining, evaluation, below ``folder``; returns what they left."""
    base = write_config(folder / "supernet.yaml", shapes, SOLVER={"BASE_LR": 0.05})
    config = ("--config-file", base)
    supernet, retrained = folder / "supernet/model_final.pth", folder / "retrain/model_final.pth"
    architecture = folder / "search/architecture.json"

    run_script("train_net", *config, "OUTPUT_DIR", supernet.parent)
    search = ("--weights", supernet, "--cycles", 1, "--metrics", "pq,miou", "OUTPUT_DIR", folder)
    run_script("search_net", *config, *search)
    fixed = ("NAS.ARCHITECTURE", architecture, "MODEL.WEIGHTS")
    run_script("train_net", *config, *fixed, supernet, "OUTPUT_DIR", retrained.parent, *RETRAIN)
    evaluated = folder / "evaluated"
    run_script("train_net", *config, "--eval-only", *fixed, retrained, "OUTPUT_DIR", evaluated)
    return {
        "architecture": list(Architecture.load(architecture).choices),
        "scoreboard": (folder / "search/scoreboard.json").read_text(),
        "retrained": results(retrained.parent),
        "evaluated": results(evaluated),
        "weights": [bits(supernet), bits(retrained)],
        "scores": [record["metrics"] for record in Ledger(folder / "search/ledger.jsonl").records],
    }


def bits(checkpoint: Path) -> str:
    """A digest of all weights and statistics, to the last bit."""
    total = hashlib.sha256()
    for name, value in torch.load(checkpoint, weights_only=True)["model"].items():
        total.update(name.encode() + value.contiguous().numpy().tobytes())
    return total.hexdigest()


def results(folder: Path) -> dict:
    """The evaluation in a metrics.json, as text so that "nan" equals "nan"."""
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    tasks = ("panoptic_seg", "bbox", "segm", "sem_seg")
    return {k: repr(v) for line in lines for k, v in line.items() if k.partition("/")[0] in tasks}


if __name__ == "__main__":
    torch.set_num_threads(1)
    root, data = map(Path, sys.argv[1:])
    found = run_pipeline(root, data)
    (root / "found.json").write_text(json.dumps(found))
