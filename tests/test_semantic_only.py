"""A data set of label maps alone, and a model that gives nothing but labels: set-up and evaluation."""

import numpy as np
import pytest
import torch
from data_util import config_with
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from auto_panoptic.data import ensure_shapes, log_ids, register_shapes, setup_datasets
from auto_panoptic.errors import UserError
from auto_panoptic.evaluation import build_evaluators, panoptic_quality_of, results_table

SIZES = {"nas_train": 2, "nas_val": 2, "val": 3}
KEYS = ("file_name", "image_id", "height", "width", "sem_seg_file_name")


@pytest.fixture
def names(tmp_path, forget_data_sets):
    """A panoptic set with all labels, and a set of its images and label maps alone."""
    register_shapes(ensure_shapes(tmp_path / "shapes", sizes=SIZES), prefix="drawn", sizes=SIZES)
    records = [{key: record[key] for key in KEYS} for record in DatasetCatalog.get("drawn_val")]
    DatasetCatalog.register("maps", lambda: records)
    classes = MetadataCatalog.get("drawn_val").stuff_classes
    MetadataCatalog.get("maps").set(evaluator_type="sem_seg", stuff_classes=classes, ignore_label=255)
    return "drawn_val", "maps"


def config(name, model="SemanticSegmentor"):
    cfg = config_with(TRAIN=(name,), TEST=(name,))
    cfg.MODEL.META_ARCHITECTURE = model
    return cfg


def score(evaluators, name):
    """Of the true labels, given as a model gives them."""
    evaluators.reset()
    for record in DatasetCatalog.get(name):
        labels = np.array(Image.open(record["sem_seg_file_name"])).astype(int)
        labels[labels == 255] = 0
        one_hot = torch.nn.functional.one_hot(torch.from_numpy(labels), 12).permute(2, 0, 1)
        evaluators.process([record], [{"sem_seg": one_hot.float()}])
    return evaluators.evaluate()


@pytest.mark.parametrize("index", [0, 1])
def test_set_up_and_scored_by_miou_alone(names, index):
    cfg = config(names[index])
    setup_datasets(cfg)
    log_ids(cfg)
    assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 12
    evaluators = build_evaluators(cfg, names[index], metrics=["miou"])
    results = score(evaluators, names[index])
    assert list(results) == ["sem_seg"] and results["sem_seg"]["mIoU"] == 100
    assert panoptic_quality_of(evaluators) is None and "100.00" in results_table(results)


def test_the_type_of_the_set_leaves_out_what_it_cannot_be_scored_by(names):
    found = build_evaluators(config("maps"), "maps")
    assert list(found.by_metric) == ["miou"] and score(found, "maps")["sem_seg"]["mIoU"] == 100
    with pytest.raises(UserError, match="maps of type 'sem_seg' is evaluated by miou"):
        build_evaluators(config("maps"), "maps", metrics=["pq", "ap"])


@pytest.mark.parametrize("metrics", [["pq", "miou"], ["ap"]])
def test_metrics_that_the_model_does_not_give_are_refused(names, metrics):
    evaluators = build_evaluators(config("drawn_val"), "drawn_val", metrics=metrics)
    with pytest.raises(UserError, match=rf"'{metrics[0]}'.* gives no .*set TEST.METRICS to \['miou'\]"):
        score(evaluators, "drawn_val")


def test_other_models_and_mixed_sets_are_refused(names):
    with pytest.raises(UserError, match="maps holds label maps alone; .*PanopticFPN needs a panoptic"):
        setup_datasets(config("maps", "PanopticFPN"))
    cfg = config("maps")
    cfg.DATASETS.TEST = ("drawn_val",)
    with pytest.raises(UserError, match="maps and drawn_val are of different kinds"):
        setup_datasets(cfg)
