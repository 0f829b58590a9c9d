"""Two numberings of the semantic labels: one call registers both, a model gets the one that it needs."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from data_util import CATEGORIES, config_with, write_own
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from PIL import Image

from auto_panoptic.data import (
    DATASET_MAPPER_REGISTRY,
    PanopticMapper,
    build_mapper,
    data_set_for,
    declare_inputs,
    find_image_folder,
    panoptic_metadata,
    register_coco_panoptic,
    register_image_folder,
    setup_datasets,
    with_data_sets,
)
from auto_panoptic.data.labels import label_map
from auto_panoptic.data.metadata import check_metadata
from auto_panoptic.data.register import find_source
from auto_panoptic.errors import UserError
from auto_panoptic.evaluation import build_evaluators
from auto_panoptic.training import build_train_loader

declare_inputs("LabelsAll", labels="all")


def config(architecture, **datasets):
    cfg = config_with(**datasets)
    cfg.MODEL.META_ARCHITECTURE = architecture
    return cfg


def test_labels_by_hand():
    assert label_map(CATEGORIES) == {4: 0, 9: 0, 2: 1, 7: 2}
    assert label_map(CATEGORIES, "all") == {4: 0, 9: 1, 2: 2, 7: 3}


def test_all_labels_of_coco_are_detectron2s():
    theirs, ours = MetadataCatalog.get("coco_2017_val_panoptic"), panoptic_metadata(COCO_CATEGORIES, "all")
    for key in ("stuff_classes", "thing_dataset_id_to_contiguous_id"):
        assert ours[key] == theirs.get(key)
    stuff, things = (theirs.get(f"{kind}_dataset_id_to_contiguous_id") for kind in ("stuff", "thing"))
    assert ours["stuff_dataset_id_to_contiguous_id"] == {**things, **stuff}  # as in its newer versions
    assert ours["thing_classes"] == theirs.thing_classes[:80]
    for labels in ("all", None):
        check_metadata("coco_2017_val_panoptic", theirs.as_dict(), COCO_CATEGORIES, labels=labels)


def test_every_set_is_there_with_both_labels(tmp_path, forget_data_sets):
    register_coco_panoptic("own", **write_own(tmp_path))
    names = [f"{s}_panoptic_{p}" for s in ("shapes", "ade20k", "cityscapes") for p in ("train", "nas_val")]
    coco = ("coco_2017_nas_train_panoptic", "coco_2017_val_panoptic_with_sem_seg")
    for name in ("own", *coco, *names):
        both, separated = MetadataCatalog.get(name), MetadataCatalog.get(f"{name}_separated")
        assert separated.stuff_classes[0] == "things" != both.stuff_classes[0]
        assert len(both.stuff_classes) == len(both.thing_classes) + len(separated.stuff_classes) - 1
        assert both.thing_classes == separated.thing_classes == both.stuff_classes[: len(both.thing_classes)]
        for metadata in (both, separated):
            check_metadata(name, metadata.as_dict(), labels=None)


def test_label_maps_records_and_annotations(tmp_path, forget_data_sets):
    register_coco_panoptic("own", **write_own(tmp_path))
    (both, _), (separated, _) = DatasetCatalog.get("own"), DatasetCatalog.get("own_separated")
    labels = np.array(Image.open(both.pop("sem_seg_file_name")))
    expected = np.full((20, 30), 255)
    expected[:8], expected[12:], expected[5:15, 4:10], expected[5:10, 20:26] = 2, 3, 0, 1
    np.testing.assert_array_equal(labels, expected)
    stuff = np.array(Image.open(separated.pop("sem_seg_file_name")))
    np.testing.assert_array_equal(np.where(labels == 255, 255, np.maximum(labels.astype(int) - 1, 0)), stuff)
    segments = [(s["id"], s["category_id"], s["isthing"]) for s in both.pop("segments_info")]
    assert segments == [(70_000, 2, False), (513, 3, False), (3, 0, True), (300, 1, True)]
    separated.pop("segments_info")
    assert both == separated  # images, boxes and masks


@pytest.mark.parametrize(
    "architecture, chosen, counts",
    [
        ("AutoPanopticFPN", "own_separated", (2, 3)),
        ("PanopticFPN", "own_separated", (2, 3)),
        ("LabelsAll", "own", (2, 4)),
    ],
)
@pytest.mark.parametrize("named", ["own", "own_separated"])
def test_a_model_gets_the_labels_that_it_needs(
    tmp_path, architecture, chosen, counts, named, forget_data_sets
):
    register_coco_panoptic("own", **write_own(tmp_path))
    cfg = config(architecture, TRAIN=(named,), TEST=(named,))
    setup_datasets(cfg)
    assert (cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES) == counts
    assert cfg.DATASETS.TRAIN == (named,)  # as every ledger and checkpoint records it
    assert data_set_for(cfg, named) == chosen and with_data_sets(cfg).DATASETS.TEST == (chosen,)
    cfg.DATALOADER.NUM_WORKERS, cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = (
        0,
        2,
        False,
    )
    batch = next(iter(build_train_loader(cfg, seed=0)))
    assert max(int(x["sem_seg"][x["sem_seg"] < 255].max()) for x in batch) == counts[1] - 1


@pytest.mark.parametrize("named", ["", "_separated", "_with_sem_seg", "_with_sem_seg_separated"])
def test_coco_with_a_label_for_every_class(named):
    """Detectron2's set of that kind has neither instances nor label maps."""
    cfg, name = config("LabelsAll"), f"coco_2017_val_panoptic{named}"
    assert data_set_for(cfg, name) == "coco_2017_val_panoptic_with_sem_seg"
    cfg.MODEL.META_ARCHITECTURE = "AutoPanopticFPN"
    assert data_set_for(cfg, name) == name.removesuffix("_separated") + "_separated"


def test_sets_that_number_their_classes_differently_are_refused(tmp_path, forget_data_sets):
    register_coco_panoptic("own", **write_own(tmp_path / "a"))
    other = [{**c, "name": {"cat": "dog", "dog": "cat"}.get(c["name"], c["name"])} for c in CATEGORIES]
    register_coco_panoptic("other", **write_own(tmp_path / "b", categories=other))
    difference = (
        r"thing classes \(2 and 2; in another order, by their ids: 0 is 'cat' / 'dog', 1 is 'dog' / 'cat'"
    )
    with pytest.raises(UserError, match=difference):
        setup_datasets(config_with(TRAIN=("own",), TEST=("other",)))


def test_a_model_that_declares_nothing_takes_the_set_that_is_named(tmp_path, forget_data_sets):
    register_coco_panoptic("own", **write_own(tmp_path))
    for name, labels in (("own", 4), ("own_separated", 3)):
        cfg = config("SomebodysNet", TRAIN=(name,), TEST=())
        setup_datasets(cfg)
        assert (data_set_for(cfg, name), cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES) == (name, labels)


@pytest.mark.parametrize("kind, metrics", [(0, ["pq", "miou"]), (1, ["pq", "ap"])])
def test_a_set_of_one_kind_is_scored_by_what_it_has(tmp_path, kind, metrics, forget_data_sets):
    """Stuff alone, with any model; things alone have one label, whose IoU says nothing."""
    own = write_own(tmp_path, categories=[{**c, "isthing": kind} for c in CATEGORIES])
    register_coco_panoptic("own", **own)
    for cfg in (
        config("LabelsAll", TRAIN=("own",), TEST=("own",)),
        config_with(TRAIN=("own",), TEST=("own",)),
    ):
        setup_datasets(cfg)
    assert [cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES] == [4 * kind, 5 - 4 * kind]
    assert sorted(build_evaluators(cfg, "own").by_metric) == sorted(metrics)
    with pytest.raises(UserError, match="is evaluated by"):
        build_evaluators(cfg, "own", metrics=sorted({"ap", "miou"} - set(metrics)))


@pytest.mark.parametrize("architecture", ["LabelsAll", "AutoPanopticFPN"])
def test_evaluators_read_the_same_labels(tmp_path, architecture, forget_data_sets):
    """A perfect prediction in the model's own numbering scores 100."""
    register_coco_panoptic("own", **write_own(tmp_path))
    cfg = config(architecture, TRAIN=("own",), TEST=("own",))
    setup_datasets(cfg)
    evaluators = build_evaluators(cfg, "own", str(tmp_path / "out"), ("miou", "pq"), save_predictions=True)
    evaluators.reset()
    for record in DatasetCatalog.get(data_set_for(cfg, "own")):
        labels = torch.from_numpy(np.array(Image.open(record["sem_seg_file_name"]))).long()
        scores = torch.nn.functional.one_hot(labels.clamp(max=cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES - 1))
        rgb = np.array(Image.open(record["pan_seg_file_name"])).astype(np.int32)
        segments = [s for s in record["segments_info"] if not s["iscrowd"]]
        ids = rgb @ np.array([1, 256, 65536], np.int32)
        ids = torch.from_numpy(np.where(np.isin(ids, [s["id"] for s in segments]), ids, 0))
        output = {"sem_seg": scores.permute(2, 0, 1), "panoptic_seg": (ids, segments)}
        evaluators.process([record], [output])
    results = evaluators.evaluate()
    assert results["sem_seg"]["mIoU"] == pytest.approx(100) and results["panoptic_seg"]["PQ"] == 100
    assert (tmp_path / "out/panoptic_own.json").is_file()


def test_more_labels_than_eight_bits_hold(tmp_path, forget_data_sets):
    things = [{"id": 100 + i, "name": f"thing {i}", "isthing": 1} for i in range(251)]
    register_coco_panoptic("own", **write_own(tmp_path, categories=CATEGORIES + things))
    assert len(DatasetCatalog.get("own_separated")) == 2
    with pytest.raises(UserError, match="own: 255 classes; label maps of 8 bits hold at most 254"):
        DatasetCatalog.get("own")


# ------------------------------------------------------------------ what is registered, and what no more


def test_a_removed_data_set_is_forgotten(tmp_path, forget_data_sets):
    register_coco_panoptic("own", **write_own(tmp_path / "a"))
    DatasetCatalog.remove("own")  # as Detectron2's users do; the metadata stay
    assert find_source("own") is None
    register_coco_panoptic("own", **write_own(tmp_path / "b"))
    assert MetadataCatalog.get("own_separated").panoptic_json == str(tmp_path / "b/panoptic.json")
    register_image_folder("folder", tmp_path)
    DatasetCatalog.remove("folder")
    assert find_image_folder("folder") is None
    DatasetCatalog.register("folder", list)  # somebody else's
    assert find_image_folder("folder") is None


def test_a_corrected_json_is_registered_anew(tmp_path, forget_data_sets):
    """The same cell of a notebook again, after a class was filed as the other kind."""
    own = write_own(tmp_path)
    wrong = [{**c, "isthing": 0} if c["id"] == 9 else c for c in CATEGORIES]

    def cell(categories):
        content = json.loads(Path(own["panoptic_json"]).read_text())
        Path(own["panoptic_json"]).write_text(json.dumps({**content, "categories": categories}))
        register_coco_panoptic("own", **own)
        objects = [len(r["annotations"]) for r in DatasetCatalog.get("own_separated")]
        return MetadataCatalog.get("own").thing_classes, objects

    assert cell(wrong) == (["cat"], [1, 0])
    assert cell(CATEGORIES) == (["cat", "dog"], [2, 0])
    setup_datasets(config_with(TRAIN=("own",), TEST=()))


# ------------------------------------------------------------------ mappers


def test_mappers_by_name(tmp_path, forget_data_sets):
    class TakesNothing:
        def __init__(self, cfg, is_train):
            self.is_train = is_train

    DATASET_MAPPER_REGISTRY._do_register("TakesNothing", TakesNothing)
    try:
        declare_inputs("LabelsMapped", mapper="TakesNothing")
        assert isinstance(build_mapper(config("LabelsMapped"), True), TakesNothing)
        cfg = config_with()
        assert type(build_mapper(cfg, False)) is PanopticMapper
        cfg.INPUT.DATASET_MAPPER_NAME = "TakesNothing"
        assert build_mapper(cfg, False).is_train is False
    finally:
        del DATASET_MAPPER_REGISTRY._obj_map["TakesNothing"]
    register_coco_panoptic("own", **write_own(tmp_path))
    cfg = config_with(TRAIN=("own",), TEST=())
    cfg.INPUT.DATASET_MAPPER_NAME = "NoSuchMapper"
    message = "INPUT.DATASET_MAPPER_NAME is 'NoSuchMapper'; expected one of .*PanopticMapper"
    with pytest.raises(UserError, match=message):
        setup_datasets(cfg)


def test_what_a_model_declares_is_checked():
    with pytest.raises(ValueError, match="labels 'some'; expected 'all', 'separated', 'classes' or None"):
        declare_inputs("LabelsSome", labels="some")
