"""Streaming panoptic evaluation against Detectron2's evaluator, and the evaluators a config asks for."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator, COCOPanopticEvaluator, SemSegEvaluator
from detectron2.structures import Boxes, Instances

from auto_panoptic import add_auto_panoptic_config
from auto_panoptic.data import ensure_shapes, register_shapes
from auto_panoptic.data.formats.panoptic_png import read_panoptic
from auto_panoptic.errors import UserError
from auto_panoptic.evaluation import (
    PanopticQualityEvaluator,
    build_evaluators,
    panoptic_evaluator,
    panoptic_quality_of,
)

SIZES = {"nas_train": 2, "nas_val": 2, "val": 12}
KEYS = [name + block for block in ("", "_th", "_st") for name in ("PQ", "SQ", "RQ")]


@pytest.fixture(scope="module")
def val(tmp_path_factory):
    """Name of a small drawn data set."""
    root = ensure_shapes(tmp_path_factory.mktemp("data") / "shapes", sizes=SIZES)
    names = register_shapes(root, prefix="evaluated", sizes=SIZES)
    yield "evaluated_val_separated"
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def _predict(record, rng, perfect=False):
    """A model's output for one image: the truth, or the truth shifted, relabelled and partly void."""
    metadata = MetadataCatalog.get("evaluated_val_separated")
    truth = read_panoptic(record["pan_seg_file_name"])
    pred = np.zeros_like(truth)
    segments = []
    for i, segment in enumerate(record["segments_info"], start=1):
        category, isthing = segment["category_id"], segment["isthing"]
        mask = truth == segment["id"]
        if not perfect:
            if rng.uniform() < 0.15:
                continue
            if rng.uniform() < 0.2:
                isthing = bool(rng.integers(2))
                category = int(rng.integers(7)) if isthing else int(rng.integers(1, 6))
            mask = np.roll(mask, rng.integers(-4, 5, 2), (0, 1)) & (pred == 0)
        if mask.any():
            pred[mask] = i
            segments.append({"id": i, "isthing": isthing, "category_id": category})
    instances = Instances(truth.shape)
    things = [s for s in segments if s["isthing"]]
    masks = np.stack([pred == s["id"] for s in things]) if things else np.zeros((0, *truth.shape), bool)
    instances.pred_masks = torch.as_tensor(masks)
    boxes = [[x.min(), y.min(), x.max() + 1, y.max() + 1] for y, x in (np.nonzero(m) for m in masks)]
    instances.pred_boxes = Boxes(torch.tensor(np.array(boxes, np.float32).reshape(-1, 4)))
    instances.scores = torch.as_tensor(rng.uniform(0.5, 1, len(things)))
    instances.pred_classes = torch.tensor([s["category_id"] for s in things], dtype=torch.int64)
    semantic = torch.zeros(len(metadata.stuff_classes), *truth.shape)
    for s in segments:
        semantic[0 if s["isthing"] else s["category_id"], torch.as_tensor(pred == s["id"])] = 1
    return {
        "panoptic_seg": (torch.as_tensor(pred.astype(np.int32)), segments),
        "instances": instances,
        "sem_seg": semantic,
    }


def _predictions(val, perfect=False):
    rng = np.random.default_rng(3)
    records = DatasetCatalog.get(val)
    return records, [_predict(record, rng, perfect) for record in records]


def _run(evaluator, inputs, outputs):
    evaluator.reset()
    for entry, output in zip(inputs, outputs, strict=True):
        evaluator.process([entry], [output])
    return evaluator.evaluate()


def test_equals_detectron2s_evaluator(val, tmp_path):
    pytest.importorskip("panopticapi")
    inputs, outputs = _predictions(val)
    expected = _run(COCOPanopticEvaluator(val, str(tmp_path)), inputs, copy.deepcopy(outputs))["panoptic_seg"]
    found = _run(PanopticQualityEvaluator(val), inputs, outputs)["panoptic_seg"]
    assert list(found) == list(expected) == KEYS
    for key in KEYS:
        assert found[key] == pytest.approx(expected[key], abs=1e-9)
    assert 10 < found["PQ"] < 90  # neither trivial


def test_truth_scores_100_in_every_metric(val, tmp_path):
    """Boxes and masks of crowds are no detections; without them the rest is perfect."""
    inputs, outputs = _predictions(val, perfect=True)
    crowds = {
        (r["image_id"], i): bool(s["iscrowd"]) for r in inputs for i, s in enumerate(r["segments_info"], 1)
    }
    for record, output in zip(inputs, outputs, strict=True):
        things = [s for s in output["panoptic_seg"][1] if s["isthing"]]
        keep = torch.tensor([not crowds[record["image_id"], s["id"]] for s in things], dtype=torch.bool)
        output["instances"] = output["instances"][keep]
    cfg = get_cfg()
    add_auto_panoptic_config(cfg)
    cfg.MODEL.MASK_ON = True
    results = _run(build_evaluators(cfg, val, str(tmp_path)), inputs, outputs)
    assert [results["panoptic_seg"][key] for key in KEYS] == [100.0] * len(KEYS)
    assert results["sem_seg"]["mIoU"] == 100.0
    for task in ("bbox", "segm"):
        assert results[task]["AP"] == pytest.approx(100.0, abs=1e-9)


def test_outputs_are_not_modified(val):
    inputs, outputs = _predictions(val)
    before = copy.deepcopy(outputs)
    _run(PanopticQualityEvaluator(val), inputs, outputs)
    for a, b in zip(before, outputs, strict=True):
        torch.testing.assert_close(a["panoptic_seg"][0], b["panoptic_seg"][0], rtol=0, atol=0)
        assert a["panoptic_seg"][1] == b["panoptic_seg"][1]


def test_numpy_flags_count_as_flags(val):
    """``isthing`` as numpy.bool_ or 1 must not change the class, as it does in Detectron2."""
    inputs, outputs = _predictions(val)
    expected = _run(PanopticQualityEvaluator(val), inputs, outputs)
    for kind in (np.bool_, int):
        for output in outputs:
            for segment in output["panoptic_seg"][1]:
                segment["isthing"] = kind(segment["isthing"])
        assert _run(PanopticQualityEvaluator(val), inputs, outputs) == expected


def test_ids_without_segments_info(val, tmp_path):
    """category * label_divisor + instance and -1 for void, as from Panoptic-DeepLab."""
    pytest.importorskip("panopticapi")
    inputs, outputs = _predictions(val)
    things = {v: k for k, v in MetadataCatalog.get(val).thing_dataset_id_to_contiguous_id.items()}
    for output in outputs:
        pred, segments = output["panoptic_seg"]
        ids = torch.full_like(pred, -1)
        for segment in segments:
            if segment["isthing"] and segment["category_id"] in things:
                ids[pred == segment["id"]] = segment["category_id"] * 1000 + segment["id"]
        output["panoptic_seg"] = (ids, None)
    copies = copy.deepcopy(outputs)
    found = _run(PanopticQualityEvaluator(val), inputs, outputs)["panoptic_seg"]
    for a, b in zip(copies, outputs, strict=True):
        torch.testing.assert_close(a["panoptic_seg"][0], b["panoptic_seg"][0], rtol=0, atol=0)
    expected = _run(COCOPanopticEvaluator(val, str(tmp_path)), inputs, copies)["panoptic_seg"]
    for key in KEYS:
        assert found[key] == pytest.approx(expected[key], abs=1e-9)


def test_several_processes_add_their_counts(val, monkeypatch):
    inputs, outputs = _predictions(val)
    whole = _run(PanopticQualityEvaluator(val), inputs, outputs)["panoptic_seg"]
    ranks = [PanopticQualityEvaluator(val) for _ in range(2)]
    for k, rank in enumerate(ranks):
        for entry, output in list(zip(inputs, outputs, strict=True))[k::2]:
            rank.process([entry], [output])
    gathered = [(rank._scores, rank._seen, []) for rank in ranks]
    monkeypatch.setattr(panoptic_evaluator.comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(panoptic_evaluator.comm, "gather", lambda data, dst=0: copy.deepcopy(gathered))
    for _ in range(2):  # evaluating twice does not count twice
        merged = ranks[0].evaluate()["panoptic_seg"]
        for key in KEYS:
            assert merged[key] == pytest.approx(whole[key], abs=1e-9)
        assert ranks[0].quality.num_images == len(inputs)
    assert ranks[0].quality.intervals(50)["PQ"]["std"] > 0
    monkeypatch.setattr(panoptic_evaluator.comm, "is_main_process", lambda: False)
    assert ranks[1].evaluate() is None


def test_reset_repeat_and_cache(val, monkeypatch):
    inputs, outputs = _predictions(val)
    evaluator = PanopticQualityEvaluator(val, cache_ground_truth=True)
    first = _run(evaluator, inputs, outputs)
    monkeypatch.setattr(panoptic_evaluator, "read_ids", None)  # the second round must not decode
    assert _run(evaluator, inputs, outputs) == first
    evaluator.process([inputs[0]], [outputs[1]])  # an image again: the first prediction counts
    assert evaluator.evaluate() == first


@pytest.mark.parametrize("problem", ["missing", "foreign", "thing class", "stuff label 0", "size"])
def test_mistakes_are_named(val, problem):
    inputs, outputs = _predictions(val, perfect=True)
    evaluator = PanopticQualityEvaluator(val)
    pred, segments = outputs[0]["panoptic_seg"]
    messages = {
        "missing": "11 of 12 images have no prediction",
        "foreign": "image 5 is not in",
        "thing class": "image 100001: predicted thing class 7 does not exist",
        "stuff label 0": "image 100001: predicted stuff class 0 does not exist",
        "size": "image 100001: .*differ in size",
    }
    with pytest.raises(UserError, match=messages[problem]):
        if problem == "foreign":
            evaluator.process([{"image_id": 5}], outputs[:1])
        elif problem == "size":
            pred = pred[1:]
        elif problem != "missing":
            isthing = problem == "thing class"
            segments = [{**s, "isthing": isthing, "category_id": 7 if isthing else 0} for s in segments]
        evaluator.process(inputs[:1], [{"panoptic_seg": (pred, segments)}])
        evaluator.evaluate()


def test_config_chooses_the_evaluators(val, tmp_path):
    cfg = get_cfg()
    add_auto_panoptic_config(cfg)

    def kinds(**kwargs):
        return [type(e) for e in build_evaluators(cfg, val, str(tmp_path), **kwargs).by_metric.values()]

    first, *others = kinds()
    assert issubclass(first, COCOEvaluator) and others == [SemSegEvaluator, PanopticQualityEvaluator]
    assert kinds(metrics=("pq",)) == [PanopticQualityEvaluator]
    cfg.TEST.PANOPTIC_EVALUATOR = "detectron2"
    assert kinds(metrics=("pq", "miou")) == [SemSegEvaluator, COCOPanopticEvaluator]
    with pytest.raises(UserError, match=r"unknown \['mIoU'\].*miou"):
        kinds(metrics=("mIoU",))
    cfg.TEST.PANOPTIC_EVALUATOR = "fast"
    with pytest.raises(UserError, match="'fast'; expected one of streaming, detectron2"):
        kinds()


@pytest.mark.parametrize(
    "names, refused", [("a/1.jpg b/1.jpg", True), ("1.jpg 1.png", True), ("1.jpg 2.jpg", False)]
)
def test_equal_names_in_two_folders(val, tmp_path, forget_data_sets, names, refused):
    """Detectron2's evaluator would overwrite the prediction of one with that of the other."""
    records, metadata = DatasetCatalog.get(val)[:2], _metadata(val).as_dict()
    records = [{**r, "file_name": f"/data/{n}"} for r, n in zip(records, names.split(), strict=True)]
    DatasetCatalog.register("named", lambda: records)
    _metadata("named").set(**{**metadata, "name": "named"})
    cfg = get_cfg()
    add_auto_panoptic_config(cfg)
    build_evaluators(cfg, "named", metrics=["pq"])
    cfg.TEST.PANOPTIC_EVALUATOR = "detectron2"
    if not refused:
        build_evaluators(cfg, "named", metrics=["pq"])
        return
    first, second = (record["file_name"] for record in records)
    with pytest.raises(UserError, match=f"set named: .* of {first} and {second} would be one .*'streaming'"):
        build_evaluators(cfg, "named", metrics=["pq"])
    build_evaluators(cfg, "named", metrics=["miou"])
    evaluator = COCOPanopticEvaluator("named", str(tmp_path))
    outputs = [_predict(r, np.random.default_rng(0), perfect=True) for r in records]
    evaluator.reset()
    evaluator.process(records, outputs)
    assert len({p["file_name"] for p in evaluator._predictions}) == 1  # else there is nothing to refuse


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s.pop("iscrowd"), "segment .* has no 'iscrowd'"),
        (lambda s: s.pop("area"), "segment .* has no 'area'"),
        (lambda s: s.update(iscrowd=int(s["category_id"] < 100)), "no image has things"),
        (lambda s: s.update(iscrowd=int(s["category_id"] > 100)), "no image has stuff"),
    ],
)
def test_what_detectron2s_evaluator_cannot_score_is_refused_before(
    val, tmp_path, forget_data_sets, change, message
):
    metadata = _metadata(val).as_dict()
    content = json.loads(Path(metadata["panoptic_json"]).read_text())
    for annotation in content["annotations"]:
        for segment in annotation["segments_info"]:
            change(segment)
    (tmp_path / "changed.json").write_text(json.dumps(content))
    DatasetCatalog.register("changed", lambda: DatasetCatalog.get(val))
    _metadata("changed").set(
        **{**metadata, "name": "changed", "panoptic_json": str(tmp_path / "changed.json")}
    )
    cfg = get_cfg()
    add_auto_panoptic_config(cfg)
    build_evaluators(cfg, "changed", metrics=["pq"])
    cfg.TEST.PANOPTIC_EVALUATOR = "detectron2"
    with pytest.raises(UserError, match=f"{message}.*choose 'streaming'"):
        build_evaluators(cfg, "changed", metrics=["pq"])


def test_noise_of_a_result_is_available(val):
    inputs, outputs = _predictions(val)
    cfg = get_cfg()
    add_auto_panoptic_config(cfg)
    both = build_evaluators(cfg, val, metrics=["pq"], cache_ground_truth=True)
    result = _run(both, inputs, outputs)["panoptic_seg"]["PQ"]
    noise = panoptic_quality_of(both).intervals(200)["PQ"]
    assert noise["low"] < result < noise["high"] and 0.5 < noise["std"] < 15
    cfg.TEST.PANOPTIC_EVALUATOR = "detectron2"
    assert panoptic_quality_of(build_evaluators(cfg, val, metrics=["pq"])) is None


def test_details_are_added_to_the_same_results(val):
    inputs, outputs = _predictions(val)
    plain = _run(PanopticQualityEvaluator(val), inputs, outputs)["panoptic_seg"]
    evaluator = PanopticQualityEvaluator(val, details=True)
    found = _run(evaluator, inputs, outputs)["panoptic_seg"]
    bounds = [f"{name}_{side}" for name in ("PQ", "PQ_th", "PQ_st") for side in ("low", "high")]
    assert list(found) == [*KEYS, "IoU_st", *bounds]
    assert {key: found[key] for key in KEYS} == plain
    for name in ("PQ", "PQ_th", "PQ_st"):
        assert found[f"{name}_low"] < found[name] < found[f"{name}_high"]
    names = [c["name"] for c in json.loads(Path(_metadata(val).panoptic_json).read_text())["categories"]]
    assert [values["name"] for values in evaluator.per_class.values()] == names
    stuff = [v["IoU"] for v in evaluator.per_class.values() if "IoU" in v]
    assert np.mean(stuff) == pytest.approx(found["IoU_st"])
    assert np.mean([v["PQ"] for v in evaluator.per_class.values()]) == pytest.approx(found["PQ"])


def _metadata(name):
    return MetadataCatalog.get(name)


def _official(json_file, monkeypatch):
    """The nine numbers of panopticapi for saved predictions."""
    evaluation = pytest.importorskip("panopticapi.evaluation")
    single = evaluation.pq_compute_single_core
    monkeypatch.setattr(evaluation, "pq_compute_multi_core", lambda *arguments: single(0, *arguments))
    truth = _metadata("evaluated_val_separated")
    folder = str(json_file.with_suffix(""))
    found = evaluation.pq_compute(truth.panoptic_json, str(json_file), truth.panoptic_root, folder)
    blocks = (("All", ""), ("Things", "_th"), ("Stuff", "_st"))
    return {q.upper() + suffix: 100 * found[b][q] for b, suffix in blocks for q in ("pq", "sq", "rq")}


@pytest.mark.parametrize("processes", [1, 2])
def test_saved_predictions_score_the_same_officially(val, tmp_path, monkeypatch, processes):
    """Trimmed as they were scored; written by several processes, the JSON by the first."""
    inputs, outputs = _predictions(val)
    for output in outputs:  # a record without pixels is valid for us, but not for panopticapi
        output["panoptic_seg"][1].append({"id": 77, "isthing": False, "category_id": 1})
    options = {"stuff_area": 900, "save_predictions": True}
    ranks = [PanopticQualityEvaluator(val, str(tmp_path), **options) for _ in range(processes)]
    saved = tmp_path / f"panoptic_{val}.json"
    saved.write_text("of an earlier run")
    for k, rank in enumerate(ranks):
        for entry, output in list(zip(inputs, outputs, strict=True))[k::processes]:
            rank.process([entry], [output])
            assert not saved.exists()
    if processes > 1:
        gathered = [(rank._scores, rank._seen, rank._writer.records, []) for rank in ranks]
        monkeypatch.setattr(panoptic_evaluator.comm, "get_world_size", lambda: 2)
        monkeypatch.setattr(panoptic_evaluator.comm, "gather", lambda data, dst=0: gathered)
    found = ranks[0].evaluate()["panoptic_seg"]
    expected = _official(saved, monkeypatch)
    assert list(found) == list(expected)
    for key in KEYS:
        assert found[key] == pytest.approx(expected[key], abs=1e-9)
    untrimmed = _run(PanopticQualityEvaluator(val, distributed=False), inputs, outputs)["panoptic_seg"]
    assert untrimmed["PQ_th"] == pytest.approx(found["PQ_th"], abs=1e-9)
    assert abs(untrimmed["PQ_st"] - found["PQ_st"]) > 0.1
    left = [f"panoptic_counts_{val}.json", f"panoptic_{val}", f"panoptic_{val}.json"]
    assert sorted(p.name for p in tmp_path.iterdir()) == left


def test_trim_study_equals_one_evaluation_per_threshold(val):
    inputs, outputs = _predictions(val)
    areas = (0, 900, 3000)
    evaluator = PanopticQualityEvaluator(val, trim_areas=areas, stuff_area=900, details=True)
    found = _run(evaluator, inputs, outputs)["panoptic_seg"]
    assert list(evaluator.trim_study) == list(areas)
    for area, values in evaluator.trim_study.items():
        alone = _run(PanopticQualityEvaluator(val, stuff_area=area, details=True), inputs, outputs)
        assert values == {key: alone["panoptic_seg"][key] for key in [*KEYS, "IoU_st"]}
    assert {key: found[key] for key in KEYS} == {key: evaluator.trim_study[900][key] for key in KEYS}
    assert len({values["PQ_st"] for values in evaluator.trim_study.values()}) > 2
    assert len({values["PQ_th"] for values in evaluator.trim_study.values()}) == 1


def test_stuff_area_of_the_config(val):
    inputs, outputs = _predictions(val)
    cfg = get_cfg()
    add_auto_panoptic_config(cfg)
    cfg.TEST.STUFF_AREA = 900
    expected = _run(PanopticQualityEvaluator(val, stuff_area=900), inputs, outputs)
    assert _run(build_evaluators(cfg, val, metrics=["pq"]), inputs, outputs) == expected
    cfg.TEST.PANOPTIC_EVALUATOR = "detectron2"
    with pytest.raises(UserError, match="'detectron2' trims nothing; choose 'streaming'"):
        build_evaluators(cfg, val, metrics=["pq"])
    cfg.TEST.STUFF_AREA = -1
    with pytest.raises(UserError, match="TEST.STUFF_AREA is -1; expected a whole number"):
        build_evaluators(cfg, val, metrics=["pq"])


def test_data_set_without_panoptic_truth_is_named():
    with pytest.raises(UserError, match="no panoptic_json"):
        PanopticQualityEvaluator("coco_2017_val")
