"""What makes a candidate cheap changes neither its result nor the supernet."""

import copy

import pytest
import torch
from data_util import write_own, write_scenes
from detectron2.data import get_detection_dataset_dicts
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from toy import answer_strongly, make_config

from auto_panoptic.data import PanopticMapper, with_data_sets
from auto_panoptic.errors import UserError
from auto_panoptic.explore import fair_cycle
from auto_panoptic.modeling import apply_architecture, choice_blocks
from auto_panoptic.modeling.calibration import calibrated
from auto_panoptic.search.candidate import CandidateEvaluator, search_images
from auto_panoptic.search.executors.in_process import outcome_of
from auto_panoptic.space import SearchSpace
from auto_panoptic.training.loader import build_test_loader


@pytest.fixture(scope="module")
def cfg(tmp_path_factory, shapes):
    return make_config(tmp_path_factory.mktemp("candidate"), shapes)


@pytest.fixture(scope="module")
def cycle(cfg):
    return fair_cycle(SearchSpace.from_config(cfg), seed=2, cycle=0)


@pytest.fixture
def supernet(cfg):
    """Its box classifier answers strongly, at random, so that panoptic maps hold instances."""
    torch.manual_seed(0)
    model = build_model(cfg)
    answer_strongly(model)
    return model


def run(model, batches) -> list[dict]:
    return [output for batch in batches for output in model(batch)]


def test_outputs_are_those_of_the_plain_model(cfg, supernet, cycle):
    """Layout and mode of the evaluator against the supernet as it was built: up to rounding the same logits
    and boxes, the same segments but for pixels that lie on the verge of two classes, and the same PQ.
    """
    plain = copy.deepcopy(supernet)
    evaluate = CandidateEvaluator(cfg, supernet, ("pq", "miou"))
    (batches, evaluators), instances = evaluate.data[0], 0
    assert next(supernet.backbone.bottom_up.parameters()).is_contiguous(memory_format=torch.channels_last)
    for architecture in cycle[:3]:
        metrics = evaluate(architecture)[0]
        apply_architecture(plain, architecture)
        with torch.inference_mode(), calibrated(supernet, evaluate.calibration):
            ours = run(supernet, batches)
        with torch.no_grad(), calibrated(plain, evaluate.calibration):
            expected = run(plain, batches)
        for a, b in zip(ours, expected, strict=True):
            torch.testing.assert_close(a["sem_seg"], b["sem_seg"], rtol=1e-3, atol=1e-4)
            boxes = [x["instances"].pred_boxes.tensor for x in (a, b)]
            torch.testing.assert_close(*boxes, rtol=1e-3, atol=1e-2)
            (map_a, segments_a), (map_b, segments_b) = a["panoptic_seg"], b["panoptic_seg"]
            assert (map_a != map_b).float().mean() < 1e-3
            assert [s["category_id"] for s in segments_a] == [s["category_id"] for s in segments_b]
            instances += sum(s["isthing"] for s in segments_a)
        evaluators.reset()
        for i, batch in enumerate(batches):
            start = sum(len(b) for b in batches[:i])
            evaluators.process(batch, expected[start : start + len(batch)])
        quality = evaluators.evaluate()["panoptic_seg"]["PQ"]
        assert quality == pytest.approx(metrics["PQ"], abs=1e-3)
    assert instances


def test_the_supernet_can_be_trained_afterwards(cfg, supernet, cycle):
    """It keeps its own buffers, holds nothing of inference mode, and trains as if nothing had happened."""
    untouched = copy.deepcopy(supernet)
    buffers = {name: id(buffer) for name, buffer in supernet.named_buffers()}
    evaluate = CandidateEvaluator(cfg, supernet, ("pq", "miou"))
    evaluate(cycle[0])
    assert {name: id(buffer) for name, buffer in supernet.named_buffers()} == buffers
    tensors = [*supernet.parameters(), *supernet.buffers()]
    assert not any(tensor.is_inference() for tensor in tensors)
    dicts = get_detection_dataset_dicts(with_data_sets(cfg).DATASETS.TRAIN, filter_empty=False)
    mapper = PanopticMapper(cfg, is_train=True)
    batch = [mapper(copy.deepcopy(dict(sample))) for sample in dicts[:2]]
    losses = []
    for model in (supernet, untouched):
        apply_architecture(model, cycle[1])
        torch.manual_seed(0)
        with EventStorage():
            loss = sum(model.train()(batch).values())
        loss.backward()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_model_without_panoptic_maps_is_scored_by_miou(cfg, supernet, cycle, monkeypatch):
    """As one that segments semantically only; by PQ the search ends with what is possible."""
    forward = supernet.forward
    monkeypatch.setattr(supernet, "forward", lambda b: [{"sem_seg": o["sem_seg"]} for o in forward(b)])
    metrics = CandidateEvaluator(cfg, supernet, ("miou",))(cycle[0])[0]
    assert metrics.keys() == {"mIoU"} and metrics["mIoU"] > 0
    with pytest.raises(
        UserError, match="--metrics has 'pq', but the model gives no .*; set --metrics to miou"
    ):
        CandidateEvaluator(cfg, supernet, ("pq", "miou"))(cycle[0])


@pytest.mark.parametrize("place", ["weight", "statistics", "output", "attention"])
def test_a_candidate_with_nan_is_a_failure_and_the_others_are_not(cfg, supernet, cycle, monkeypatch, place):
    """In one operator of a block: the paths with it fail, with a reason and no traceback."""
    evaluate = CandidateEvaluator(cfg, supernet)
    site = "attention" if place == "attention" else ""  # behind the last BatchNorm
    block = next(b for name, b in choice_blocks(supernet).items() if name.startswith(site))
    name, candidate = next(iter(block.candidates.items()))
    with torch.no_grad():
        if place == "weight":
            next(candidate.parameters()).view(-1)[0] = torch.nan
        if place == "statistics":  # infinite ones make outputs that are finite
            weight = next(m for m in candidate.modules() if isinstance(m, torch.nn.Conv2d)).weight
            weight *= 1e25
        if place in ("output", "attention"):
            candidate.register_forward_hook(lambda module, inputs, output: output * torch.nan)
    for architecture in cycle:
        outcome = outcome_of(evaluate, architecture)
        if architecture.names()[block.site] == name:
            assert outcome["status"] == "failed" and not outcome["metrics"]
            assert "NaN or infin" in outcome["error"] and "\n" not in outcome["error"]
        else:
            assert outcome["status"] == "ok" and outcome["metrics"]["PQ"] >= 0


def test_only_images_of_one_shape_share_a_batch(tmp_path, shapes, forget_data_sets):
    """GroupNorm and attention see padding: no score may depend on an image's neighbours."""
    entries = [{"name": "scenes", **write_scenes(tmp_path / "scenes", ["objects"] * 3)}]
    entries += [{"name": "own", **write_own(tmp_path / "own")}]  # one image upright, one not
    names = {key: ["scenes", "own"] for key in ("TRAIN", "SEARCH", "TEST")}
    cfg = make_config(tmp_path, shapes, DATASETS={"COCO_PANOPTIC": entries, **names})
    sizes = [[len(batch) for batch in batches] for batches in search_images(cfg).search]
    assert sizes == [[3], [1, 1]]
    for name in names["TEST"]:
        assert all(len(batch) == 1 for batch in build_test_loader(cfg, name))


def test_examples_of_a_path_change_nothing(cfg, supernet, cycle):
    """They are the best and the worst of the images, and the next score is to the last bit what it was."""
    evaluate = CandidateEvaluator(cfg, supernet, ("pq",))
    before = evaluate(cycle[0])[0]
    found = evaluate.examples(cycle[0])
    assert evaluate(cycle[0])[0] == before
    assert list(found) == list(cfg.DATASETS.SEARCH)
    (examples,) = found.values()
    images = {sample["image_id"] for batch in evaluate.data[0][0] for sample in batch}
    assert len({e.image_id for e in examples}) == len(examples) == min(2 * cfg.TEST.PICTURES, len(images))
    assert {e.image_id for e in examples} <= images
    assert all(e.predicted.shape == e.truth.shape for e in examples)
