"""Detectron2's Panoptic-FPN, by its name in the model zoo, in our trainer, evaluators and mergings."""

import json
import math

import pytest
from detectron2 import model_zoo
from toy import PREFIX, dataset_entries, run_script

from auto_panoptic.errors import UserError
from auto_panoptic.modeling.fusion import METHODS
from auto_panoptic.training import build_config

ZOO = "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml"
METHOD = "MODEL.PANOPTIC_FPN.COMBINE.METHOD"
OURS = ("MODEL.META_ARCHITECTURE", "AutoPanopticFPN", "MODEL.CROSS_ATTENTION.ENABLED", "False")
OURS += ("MODEL.PANOPTIC_FPN.COMBINE.INSTANCE_AREA_LIMIT", "4")
# The network with fewer channels, on the images of the tiny data set.
SMALL = {
    "MODEL.DEVICE": "cpu",
    "MODEL.WEIGHTS": "",
    # Untrained residual blocks without normalisation multiply their input by hundreds.
    "MODEL.PIXEL_STD": [5000.0] * 3,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 16,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
    "MODEL.FPN.OUT_CHANNELS": 32,
    "MODEL.ANCHOR_GENERATOR.SIZES": [[8], [16], [32], [64], [128]],
    "MODEL.ROI_BOX_HEAD.FC_DIM": 32,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 16,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
    "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT": 20,
    "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH": 0.0,
    "INPUT.MIN_SIZE_TRAIN": [64],
    "INPUT.MIN_SIZE_TEST": 64,
    "INPUT.MAX_SIZE_TRAIN": 96,
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.MAX_ITER": 2,
    "SOLVER.BASE_LR": 0.001,
    "TEST.DETECTIONS_PER_IMAGE": 5,
    "SEED": 1,
    "DATASETS.TRAIN": [f"{PREFIX}_nas_train"],
    "DATASETS.TEST": [f"{PREFIX}_val"],
}


def run(shapes, folder, *options):
    """Run ``train_net.py`` with the config of the model zoo; returns the last line of its metrics.json."""
    settings = SMALL | {"DATASETS.COCO_PANOPTIC": dataset_entries(shapes), "OUTPUT_DIR": str(folder)}
    pairs = [item for pair in settings.items() for item in pair]
    run_script("train_net", "--config-file", ZOO, *(o for o in options if o == "--eval-only"), *pairs,
               *(o for o in options if o != "--eval-only"))  # fmt: skip
    return json.loads((folder / "metrics.json").read_text().splitlines()[-1])


@pytest.fixture(scope="module")
def weights(shapes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("zoo")
    run(shapes, folder)
    return folder / "model_final.pth"


def test_the_models_name_stands_for_its_config():
    cfg = build_config(ZOO, ["DATASETS.TRAIN", "('shapes_panoptic_train',)", "DATASETS.TEST", "()"])
    theirs = model_zoo.get_config(ZOO)
    assert (cfg.SOLVER.MAX_ITER, cfg.MODEL.RESNETS.DEPTH) == (theirs.SOLVER.MAX_ITER, 50) == (90000, 50)
    assert (cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES) == (7, 6)  # the data set's


def test_it_trains_and_each_merging_evaluates(shapes, weights, tmp_path):
    """The same network: detections and logits have the same AP and mIoU, each merging another map."""
    plain = run(shapes, tmp_path / "plain", "--eval-only", "MODEL.WEIGHTS", weights)
    results = {
        m: run(shapes, tmp_path / m, "--eval-only", *OURS, METHOD, m, "MODEL.WEIGHTS", weights)
        for m in METHODS
    }
    assert math.isfinite(plain["panoptic_seg/PQ"]) and plain["sem_seg/mIoU"] > 0
    assert results["detectron2"] == pytest.approx(plain, abs=1e-9, nan_ok=True)
    assert json.loads((tmp_path / "plain/inference/coco_instances_results.json").read_text())  # not in vain
    for method, found in results.items():
        for key in ("bbox/AP", "segm/AP", "sem_seg/mIoU"):
            assert found[key] == pytest.approx(plain[key], abs=1e-9, nan_ok=True), method
    assert set(results) == set(METHODS) == {"detectron2", "supplement", "reference"}


def test_both_evaluators_agree_on_it(shapes, weights, tmp_path):
    key = "TEST.PANOPTIC_EVALUATOR"
    found = [
        run(shapes, tmp_path / kind, "--eval-only", "MODEL.WEIGHTS", weights, key, kind)
        for kind in ("streaming", "detectron2")
    ]
    for name in ("PQ", "SQ", "RQ", "PQ_th", "PQ_st"):
        name = f"panoptic_seg/{name}"
        assert found[0][name] == pytest.approx(found[1][name], abs=1e-9)


@pytest.mark.parametrize("method", ["supplement", "reference"])
def test_detectron2s_own_model_cannot_merge_otherwise(method):
    with pytest.raises(UserError, match="add MODEL.META_ARCHITECTURE AutoPanopticFPN"):
        build_config(ZOO, ["DATASETS.TRAIN", "('shapes_panoptic_train',)", METHOD, method])
