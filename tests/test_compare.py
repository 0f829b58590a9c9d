"""Networks beside each other: PQ and its differences by hand, costs counted, other images refused."""

import json

import pytest
from test_evaluators import _predictions, _run, val  # noqa: F401  a fixture
from toy import make_config

from auto_panoptic import compare
from auto_panoptic.compare import Run, comparison, difference, read_run
from auto_panoptic.errors import UserError
from auto_panoptic.evaluation import PanopticQuality
from auto_panoptic.evaluation.panoptic_evaluator import PanopticQualityEvaluator, counts_file
from auto_panoptic.files import read_json, write_json
from auto_panoptic.modeling.counting import configured_costs

FIXED = ("NAS.SPACE.HEAD_OPS", ["conv_3x3"], "NAS.SPACE.BACKBONE_OPS", ["shuffle_3x3"])
FIXED += ("MODEL.CROSS_ATTENTION.ENABLED", False)
CATEGORIES = [{"id": 1, "isthing": 1}, {"id": 2, "isthing": 0}]


def quality(found, images=None):
    """One thing and one stuff segment in every image; the first is found with so much overlap, or not."""
    rows = [
        [key, [0, 1], [[1, 0, 0, iou] if iou else [0, 0, 1, 0.0], [1, 0, 0, 0.5]]]
        for key, iou in zip(images or range(len(found)), found, strict=True)
    ]
    return PanopticQuality.of_record({"categories": CATEGORIES, "images": rows})


def test_differences_by_hand():
    # The thing's PQ is 80 against 60 wherever it is drawn, stuff's 50: the half of 20, without any noise.
    assert difference(quality([0.8] * 5), quality([0.6] * 5)) == pytest.approx((10, 10, 10))
    better, worse = quality([0.8, 0.8, 0.9, 0.6] * 10), quality([0.7, 0, 0.9, 0.6] * 10)
    apart = difference(better, worse)
    # Things: 31/40 against 22/3.5/10 = 44/70.
    assert apart.mean == pytest.approx((77.5 - 440 / 7) / 2)
    assert apart.low < apart.mean < apart.high and apart.verdict == "above"
    assert difference(worse, better) == pytest.approx((-apart.mean, -apart.high, -apart.low))
    # The same images in another order are the same.
    turned = quality([0.7, 0.8], images=[1, 0])
    assert difference(turned, quality([0.8, 0.7])) == pytest.approx((0, 0, 0))


def test_table_and_records():
    runs = [
        Run("ours", 2 * 10**8, 10**6, quality([0.8] * 5)),
        Run("theirs", 10**9, 10**7, quality([0.6] * 5)),
    ]
    text, records = comparison(runs)
    first, second = text.splitlines()[2:]
    assert [cell.strip() for cell in first.split("|")[1:-1]] == [
        "ours", "0.200 G", "1.00 M", "65.0 [65.0, 65.0]", "80.0", "50.0", ""
    ]  # fmt: skip
    assert second.split("|")[-2].strip() == "+10.0 [+10.0, +10.0]"
    assert records[1]["first_minus_this"]["verdict"] == "above" and records[0]["PQ"] == pytest.approx(65)


@pytest.mark.parametrize("other", [quality([0.6], images=[7]), PanopticQuality(CATEGORIES[:1])])
def test_other_images_and_classes_are_refused(other):
    with pytest.raises(UserError, match="different images or classes"):
        difference(quality([0.8]), other)


def test_a_run_is_read(val, tmp_path, shapes, monkeypatch, capsys):  # noqa: F811
    cfg = make_config(tmp_path, shapes, *FIXED)
    cfg.defrost()
    cfg.DATASETS.TEST = (val,)
    monkeypatch.setattr(compare, "read_config", lambda file, opts: cfg)
    with pytest.raises(UserError, match=r"no run of train_net.py"):
        read_run(tmp_path / "nothing")
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(UserError, match="not there; evaluate the run"):
        read_run(tmp_path)
    evaluator = PanopticQualityEvaluator(val, str(tmp_path / "inference"))
    inputs, outputs = _predictions(val)
    expected = _run(evaluator, inputs, outputs)["panoptic_seg"]
    run = read_run(tmp_path)
    space_costs = configured_costs(cfg)
    (architecture,) = (space_costs.space.architecture([0] * len(space_costs.space.sites)),)
    assert (run.macs, run.params) == tuple(space_costs.cost(architecture))
    assert run.quality.compute()["PQ"] == expected["PQ"]
    compare.main([str(tmp_path), str(tmp_path)])
    first, second = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert first["PQ"] == expected["PQ"] and second["first_minus_this"]["mean"] == 0
    file = counts_file(tmp_path / "inference", val)
    cfg.DATASETS.TEST = (val.removesuffix("_separated"),)  # as a config may name it
    assert read_run(tmp_path).quality.image_ids == run.quality.image_ids
    write_json(file, {"images": read_json(file, "counts")["images"]})
    with pytest.raises(UserError, match="damaged .*; evaluate the run again"):
        read_run(tmp_path)
