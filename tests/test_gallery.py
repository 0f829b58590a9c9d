"""The best and the worst images of an evaluation, kept in one process or several, and what is written."""

import json

import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from detectron2.utils.events import EventStorage
from PIL import Image
from test_evaluators import _predictions, _run, val  # noqa: F401

from auto_panoptic.evaluation import PanopticQualityEvaluator, panoptic_evaluator
from auto_panoptic.evaluation.gallery import Example, Gallery, class_names, write_pictures
from auto_panoptic.pictures import PANELS, picture_name


def example(score, image_id):
    return Example(score, image_id, "", np.zeros((1, 1)), np.zeros((1, 1)), None)


@pytest.mark.parametrize("number", [1, 3, 5, 6, 7, 40])
@pytest.mark.parametrize("processes", [1, 3])
def test_the_best_and_the_worst_of_all_processes(number, processes):
    """Against sorting all of them; scores recur, and some images have none."""
    rng = np.random.default_rng(number)
    scores = rng.integers(0, 8, number).astype(float)
    parts = [Gallery(3) for _ in range(processes)]
    made = []
    for i, score in enumerate(scores):
        parts[i % processes].offer(score, lambda i=i, s=score: made.append(i) or example(s, i))
    parts[0].offer(float("nan"), lambda: pytest.fail("has no score"))
    gallery = Gallery(3)
    gallery.extend([e for part in parts for e in part.examples])
    order = sorted(range(number), key=lambda i: (scores[i], str(i)))
    best = order[::-1][:3]
    worst = [i for i in order if i not in best][:3]
    expected = {f"best {k}": i for k, i in enumerate(best, 1)}
    expected |= {f"worst {k}": i for k, i in enumerate(worst, 1)}
    assert {rank: e.image_id for rank, e in gallery.chosen().items()} == expected
    assert len(gallery.examples) <= 6


def test_an_image_between_the_best_and_the_worst_is_not_even_made():
    gallery = Gallery(1)
    for score in (10.0, 90.0):
        gallery.offer(score, lambda score=score: example(score, score))
    gallery.offer(50.0, lambda: pytest.fail("is neither"))
    gallery.offer(95.0, lambda: example(95.0, 95))
    assert {rank: e.score for rank, e in gallery.chosen().items()} == {"best 1": 95.0, "worst 1": 10.0}


@pytest.mark.parametrize("processes", [1, 2])
def test_an_evaluation_leaves_pictures_of_its_images(val, tmp_path, monkeypatch, processes):  # noqa: F811
    """The images are those whose own PQ, computed alone, is best and worst; the results are as without."""
    inputs, outputs = _predictions(val)
    plain = _run(PanopticQualityEvaluator(val, distributed=False), inputs, outputs)
    options = {"pictures": 2, "operators": {"site": "op"}, "saved_as": "my/set"}
    ranks = [PanopticQualityEvaluator(val, str(tmp_path), **options) for _ in range(processes)]
    for k, rank in enumerate(ranks):
        for entry, output in list(zip(inputs, outputs, strict=True))[k::processes]:
            rank.process([entry], [output])
    if processes > 1:
        gathered = [(rank._scores, rank._seen, [], rank.gallery.examples) for rank in ranks]
        monkeypatch.setattr(panoptic_evaluator.comm, "get_world_size", lambda: 2)
        monkeypatch.setattr(panoptic_evaluator.comm, "gather", lambda data, dst=0: gathered)
    folder = tmp_path / "pictures_my_set"
    with EventStorage() as storage:
        found = ranks[0].evaluate()
    assert found["panoptic_seg"] == pytest.approx(plain["panoptic_seg"])
    record = json.loads((folder / "pictures.json").read_text())
    assert record["metrics"]["PQ"] == found["panoptic_seg"]["PQ"]
    assert (record["data_set"], record["operators"]) == ("my/set", {"site": "op"})
    scores = {}
    for key, _, rows in ranks[0].quality._images:
        tp, fp, fn, iou = rows.sum(0)
        scores[str(key)] = 100 * iou / (tp + fp / 2 + fn / 2)
    order = sorted(scores, key=lambda key: (scores[key], key))
    expected = [("best 1", order[-1]), ("best 2", order[-2]), ("worst 1", order[0]), ("worst 2", order[1])]
    assert [(row["rank"], row["image"]) for row in record["images"]] == expected
    assert [row["PQ"] for row in record["images"]] == [round(scores[image], 2) for _, image in expected]
    files = {picture_name(rank, panel) for rank, _ in expected for panel in PANELS}
    assert {path.name for path in folder.iterdir()} == files | {"pictures.json"}
    sizes = {Image.open(folder / name).size for name in files}
    assert all(max(size) == 300 for size in sizes)
    assert set(record["classes"]) <= set(class_names(MetadataCatalog.get(val), ranks[0]._categories).values())
    # TensorBoard gets the four panels of each image side by side.
    assert [name for name, *_ in storage._vis_data] == [f"pictures_my_set/{rank}" for rank, _ in expected]
    assert all(p.shape[0] == 3 and p.shape[2] > 4 * 200 for _, p, _ in storage._vis_data)


def test_a_perfect_prediction_has_no_differences(val, tmp_path):  # noqa: F811
    inputs, outputs = _predictions(val, perfect=True)
    evaluator = PanopticQualityEvaluator(val, str(tmp_path), pictures=1)
    _run(evaluator, inputs, outputs)
    folder = tmp_path / f"pictures_{val}"
    for rank in ("best 1", "worst 1"):
        panels = {p: np.asarray(Image.open(folder / picture_name(rank, p))) for p in PANELS}
        assert np.array_equal(panels["truth"], panels["prediction"])
        assert np.ptp(panels["differences"], axis=-1).max() == 0


def test_what_cannot_be_drawn_costs_the_pictures_only(val, tmp_path, caplog):  # noqa: F811
    inputs, outputs = _predictions(val)
    lost = [{**entry, "file_name": str(tmp_path / "lost.jpg")} for entry in inputs]
    plain = _run(PanopticQualityEvaluator(val, distributed=False), inputs, outputs)
    evaluator = PanopticQualityEvaluator(val, str(tmp_path), pictures=1)
    _run(evaluator, inputs, outputs)
    assert (tmp_path / f"pictures_{val}/pictures.json").exists()
    assert _run(evaluator, lost, outputs) == plain
    assert "no pictures of this evaluation" in caplog.text and "lost.jpg" in caplog.text
    assert not (tmp_path / f"pictures_{val}/pictures.json").exists()  # would be of an earlier one


def test_no_pictures_where_none_are_asked_for(val, tmp_path):  # noqa: F811
    inputs, outputs = _predictions(val)
    _run(PanopticQualityEvaluator(val, str(tmp_path)), inputs, outputs)
    assert list(tmp_path.iterdir()) == [tmp_path / f"panoptic_counts_{val}.json"]


def test_with_few_classes_a_class_has_one_colour_in_all_pictures(tmp_path):
    """Eleven classes of which one occurs; of a thousand, those that occur are numbered."""
    for number, expected in ((11, 7), (1000, 0)):
        write_pictures(
            tmp_path, {"best 1": _of_one_class(tmp_path, 7)}, {i: f"c{i}" for i in range(number)}, {}
        )
        assert json.loads((tmp_path / "pictures.json").read_text())["classes"] == {"c7": expected}


def _of_one_class(folder, category):
    from auto_panoptic.evaluation.overlap import Overlap

    Image.new("RGB", (20, 10)).save(folder / "photo.png")
    ids = np.ones((10, 20), np.int32)
    segments = [{"id": 1, "category_id": category}]
    overlap = Overlap.of(ids, segments, ids, segments)
    return Example(100.0, 1, str(folder / "photo.png"), ids, ids, overlap)
