"""The unified network on real annotated photographs, with and without mask head."""

import json
import math

import pytest
import yaml
from test_real_photos import entry, pytestmark  # noqa: F401  skipped where there are none
from toy import ROOT, run_script


def write_photos_config(folder, **model):
    """The quick network on the photographs with things and stuff, cropped and coloured as on Cityscapes."""
    content = {
        "_BASE_": str(ROOT / "configs/quick/unified_R18.yaml"),
        "MODEL": {"RPN": {"POST_NMS_TOPK_TEST": 20}, **model},
        "DATASETS": {
            "COCO_PANOPTIC": [entry("coco133", folder / "derived")],
            "TRAIN": ["photos_coco133"],
            "TEST": ["photos_coco133"],
        },
        "INPUT": {
            "MIN_SIZE_TRAIN": [96, 192],
            "MIN_SIZE_TRAIN_SAMPLING": "range",
            "MAX_SIZE_TRAIN": 400,
            "CROP": {"ENABLED": True, "AFTER_RESIZE": True, "TYPE": "absolute", "SIZE": [96, 128]},
            "COLOR_AUG_SSD": True,
        },
        "SOLVER": {"MAX_ITER": 2, "STEPS": [1], "WARMUP_ITERS": 1, "IMS_PER_BATCH": 2},
        "OUTPUT_DIR": str(folder / "output"),
    }
    path = folder / "photos.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize("masks", [True, False])
def test_trained_and_evaluated(masks, tmp_path, capsys, forget_data_sets):
    model = {} if masks else {"MASK_ON": False, "UNIFIED": {"POTENTIAL": "A"}}
    config = write_photos_config(tmp_path, **model)
    run_script("train_net", "--config-file", config)
    lines = [json.loads(x) for x in (tmp_path / "output/metrics.json").read_text().splitlines()]
    losses = next(line for line in lines if "total_loss" in line)
    assert ("loss_mask" in losses) == masks and losses["loss_panoptic"] > 0 and losses["loss_sem_seg"] > 0
    assert all(math.isfinite(value) for value in losses.values())
    trained = next(line for line in lines if "panoptic_seg/PQ" in line)

    weights = ("MODEL.WEIGHTS", tmp_path / "output/model_final.pth", "OUTPUT_DIR", tmp_path / "evaluated")
    capsys.readouterr()
    run_script("train_net", "--config-file", config, "--eval-only", "--confusion", *weights)
    assert "labelled things" in capsys.readouterr().out
    found = json.loads((tmp_path / "evaluated/metrics.json").read_text().splitlines()[-1])
    assert ("segm/AP" in found) == masks and {
        "bbox/AP",
        "sem_seg/mIoU",
        "panoptic_seg/IoU_st",
    } <= found.keys()
    assert all(found[f"panoptic_seg/{key}"] == trained[f"panoptic_seg/{key}"] for key in ("PQ", "SQ", "RQ"))
    for true in ("th", "st"):
        assert found[f"confusion/{true}_th"] + found[f"confusion/{true}_st"] == pytest.approx(100, abs=1e-9)
