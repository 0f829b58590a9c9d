"""Panoptic-DeepLab on real annotated photographs, of COCO's format and of Cityscapes'."""

import json
import math

import pytest
import yaml
from test_real_photos import PHOTOS, entry, pytestmark  # noqa: F401  skipped where there are none
from toy import ROOT, run_script

SETS = {"coco133": "instance", "cityscapes19": "panoptic"}  # and what centres are made of


def write_config(folder, name):
    """The quick network on the photographs, resized and cropped as on Cityscapes."""
    categories = str(PHOTOS / name / "panoptic.json")
    content = {
        "_BASE_": str(ROOT / "configs/quick/panoptic_deeplab.yaml"),
        "DATASETS": {
            "COCO_PANOPTIC": [{**entry(name, folder / "derived"), "categories": categories}],
            "TRAIN": [f"photos_{name}"],
            "TEST": [f"photos_{name}"],
        },
        "MODEL": {"PANOPTIC_DEEPLAB": {"GT_SOURCE": SETS[name], "CENTER_THRESHOLD": 0.0}},
        "INPUT": {
            "MIN_SIZE_TRAIN": [96, 192],
            "MIN_SIZE_TRAIN_SAMPLING": "range",
            "MAX_SIZE_TRAIN": 400,
            "CROP": {"ENABLED": True, "TYPE": "absolute", "SIZE": [96, 128]},
        },
        "SOLVER": {"MAX_ITER": 3, "WARMUP_ITERS": 1, "IMS_PER_BATCH": 2},
        "OUTPUT_DIR": str(folder / "output"),
    }
    path = folder / "photos.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize("name", SETS)
def test_trained_and_evaluated(name, tmp_path, forget_data_sets):
    run_script("train_net", "--config-file", write_config(tmp_path, name))
    lines = [json.loads(x) for x in (tmp_path / "output/metrics.json").read_text().splitlines()]
    losses = next(line for line in lines if "total_loss" in line)
    assert all(losses[f"loss_{kind}"] > 0 for kind in ("sem_seg", "center", "offset"))
    assert all(math.isfinite(value) for value in losses.values())
    found = lines[-1]
    assert all(0 <= found[f"panoptic_seg/{key}"] <= 100 for key in ("PQ", "SQ_th", "RQ_st"))
    assert {"segm/AP", "sem_seg/mIoU"} <= found.keys()
