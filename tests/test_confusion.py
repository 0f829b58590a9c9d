"""Things and stuff confused by the semantic head, and its IoU over each, against counts of single pixels."""

import itertools
import json

import numpy as np
import pytest
import torch
from data_util import config_with, write_own
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import SemSegEvaluator
from forked_ranks import on_ranks
from PIL import Image

from auto_panoptic.data import ensure_shapes, register_coco_panoptic, register_shapes
from auto_panoptic.errors import UserError
from auto_panoptic.evaluation import (
    build_evaluators,
    confusion_table,
    mean_iou,
    thing_labels,
    thing_stuff_confusion,
)

SIZES = {"nas_train": 1, "nas_val": 1, "val": 5}
# Things are labels 0..6 of "all", and label 0 of "separated".
THINGS = {"confused_val": range(7), "confused_val_separated": range(1)}
sets = pytest.mark.parametrize("name", THINGS)


@pytest.fixture(scope="module", autouse=True)
def drawn(tmp_path_factory):
    root = ensure_shapes(tmp_path_factory.mktemp("data") / "shapes", sizes=SIZES)
    names = register_shapes(root, prefix="confused", sizes=SIZES)
    yield
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def predictions(name):
    """(record, true labels, predicted labels) of every image; labels are changed and moved."""
    rng, count = np.random.default_rng(0), len(MetadataCatalog.get(name).stuff_classes)
    for record in DatasetCatalog.get(name):
        true = np.array(Image.open(record["sem_seg_file_name"])).astype(int)
        changed = rng.permutation(count)
        known = np.where(true == 255, rng.integers(0, count, true.shape), true)
        predicted = np.where(rng.uniform(size=true.shape) < 0.4, changed[known], known)
        yield record, true, np.roll(predicted, (2, 3), (0, 1))


def evaluate(name, part=slice(None), confusion=True):
    cfg = config_with()
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"  # takes the set that is named
    evaluator = build_evaluators(cfg, name, metrics=["miou"], confusion=confusion)
    evaluator.reset()
    count = len(MetadataCatalog.get(name).stuff_classes)
    for record, _, predicted in [*predictions(name)][part]:
        logits = torch.nn.functional.one_hot(torch.as_tensor(predicted), count).permute(2, 0, 1).float()
        evaluator.process([record], [{"sem_seg": logits}])
    return evaluator.evaluate()


def brute_force(name):
    """Pixel by pixel: the confusion, and the mean IoU over all labels, things and stuff."""
    pixels = dict.fromkeys(itertools.product(("th", "st"), repeat=2), 0)
    right, union = {}, {}
    for _, true, predicted in predictions(name):
        for t, p in zip(true.flat, predicted.flat, strict=True):
            if t == 255:
                continue
            pixels[tuple("th" if label in THINGS[name] else "st" for label in (t, p))] += 1
            for label in {t, p}:
                union[label] = union.get(label, 0) + 1
            right[t] = right.get(t, 0) + (t == p)
    confusion = {f"{t}_{p}": 100 * n / (pixels[t, "th"] + pixels[t, "st"]) for (t, p), n in pixels.items()}
    iou = {label: 100 * right.get(label, 0) / n for label, n in union.items()}
    groups = [[*iou], [x for x in iou if x in THINGS[name]], [x for x in iou if x not in THINGS[name]]]
    return confusion, [np.mean([iou[label] for label in group]) for group in groups]


@sets
def test_it_equals_brute_force(name):
    results, (confusion, (both, things, stuff)) = evaluate(name), brute_force(name)
    assert results["confusion"] == pytest.approx(confusion, abs=1e-9)
    assert all(1 < value < 99 for value in confusion.values())
    assert results["sem_seg"]["mIoU"] == pytest.approx(both, abs=1e-9)
    assert results["sem_seg"]["mIoU_st"] == pytest.approx(stuff, abs=1e-9)
    if name.endswith("_separated"):  # things have one label: no mean over classes of things
        assert "mIoU_th" not in results["sem_seg"]
    else:
        assert results["sem_seg"]["mIoU_th"] == pytest.approx(things, abs=1e-9)


@sets
def test_rows_sum_to_100(name):
    found = evaluate(name)["confusion"]
    for true in ("th", "st"):
        assert found[f"{true}_th"] + found[f"{true}_st"] == pytest.approx(100, abs=1e-9)


@sets
def test_the_other_results_are_detectron2s(name):
    plain, found = evaluate(name, confusion=False), evaluate(name)
    theirs = SemSegEvaluator(name)
    assert list(plain) == ["sem_seg"] and len(plain["sem_seg"]) == 4 + 2 * len(theirs._class_names)
    assert repr({k: found["sem_seg"][k] for k in plain["sem_seg"]}) == repr(dict(plain["sem_seg"]))


def test_it_is_that_of_all_processes(tmp_path):
    """Three images in one, two in the other."""

    def run(rank):
        torch.distributed.init_process_group("gloo")
        results = evaluate("confused_val", slice(rank, None, 2))
        (tmp_path / f"{rank}.json").write_text(json.dumps(results))

    assert on_ranks(2, run, tmp_path / "logs") == [0, 0]
    main, other = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    expected = evaluate("confused_val")
    assert main == json.loads(json.dumps(expected)) and not other


def test_by_hand():
    """Labels 0 and 1 are things. Of 10 pixels of things 2 go to stuff, of 8 of stuff 1 to things."""
    counts = np.array([[4, 1, 1, 0], [0, 3, 0, 1], [0, 1, 3, 4], [0, 0, 0, 0]])
    assert thing_stuff_confusion(counts, [0, 1]) == {"th_th": 80, "th_st": 20, "st_th": 12.5, "st_st": 87.5}
    found = mean_iou(counts, [0, 1])
    assert found["mIoU_th"] == pytest.approx(100 * (4 / 6 + 3 / 6) / 2)
    assert found["mIoU_st"] == pytest.approx(100 * (3 / 9 + 0) / 2)  # label 3 is predicted, and nowhere true


def test_what_does_not_occur_is_no_number():
    empty = thing_stuff_confusion(np.diag([0, 5, 7]), [0])
    assert np.isnan([empty["th_th"], empty["th_st"]]).all() and (empty["st_th"], empty["st_st"]) == (0, 100)
    iou = mean_iou(np.diag([0, 5, 7]), [0])
    assert np.isnan(iou["mIoU_th"]) and iou["mIoU_st"] == 100
    first, second = confusion_table(empty, {"mIoU": 100.0, "mIoU_st": 100.0}).split("\n\n")
    assert [cell.strip() for cell in first.splitlines()[2].split("|")[1:-1]] == ["true things", "-", "-"]
    assert [c.strip() for c in second.splitlines()[2].split("|")[1:-1]] == ["IoU", "100.00", "-", "100.00"]


def test_sets_without_labels_of_things_and_stuff(tmp_path, forget_data_sets):
    own = write_own(tmp_path, categories=[
        {"id": 4, "name": "cat", "isthing": 1},
        {"id": 2, "name": "wall", "isthing": 1},
        {"id": 9, "name": "dog", "isthing": 1},
        {"id": 7, "name": "floor", "isthing": 1},
    ])  # fmt: skip
    register_coco_panoptic("own", **own, show_ids=False)
    DatasetCatalog.register("maps", list)
    MetadataCatalog.get("maps").set(evaluator_type="sem_seg", stuff_classes=["sky"], ignore_label=255)
    for name in ("shapes_objects_val", "maps", "own_separated"):
        with pytest.raises(
            UserError, match=f"needs label maps of things and stuff, which data set {name} do"
        ):
            thing_labels(name)
