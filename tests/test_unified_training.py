"""The unified network in training: what its losses reach, images without something, and the general means."""

import pytest
import torch
from detectron2.modeling import build_model
from modeling_util import make_model, training_losses
from toy import final_checkpoint, final_results, make_config, through_the_commands, write_config
from unified_util import FIXED, STUFF, THINGS, answer, scene, unified_cfg

from auto_panoptic.explore import Ledger
from auto_panoptic.modeling import apply_architecture, choice_blocks, space_of
from auto_panoptic.modeling.calibration import calibrated
from auto_panoptic.space import Architecture
from auto_panoptic.systems.unified.panoptic_loss import IGNORED

LOSSES = {
    *("loss_sem_seg", "loss_panoptic", "loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg"),
    "loss_mask",
}


def make_unified(*options, seed=0):
    model = make_model(unified_cfg(*FIXED, *options), seed)
    answer(model, 5.0)
    return model


def gradients_of_the_panoptic_loss(model, inputs):
    """{name: whether the panoptic loss alone has a gradient there that is not zero}."""
    loss = training_losses(model, inputs)["loss_panoptic"]
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    assert all(g is None or g.isfinite().all() for g in found)
    return {name: g is not None and bool(g.any()) for name, g in zip(names, found, strict=True)}


def any_below(gradients, prefix):
    found = [has for name, has in gradients.items() if name.startswith(prefix)]
    assert found
    return any(found)


# ------------------------------------------------------------------ what the panoptic loss reaches


@pytest.mark.parametrize("variant", ["A", "B", "C"])
@pytest.mark.parametrize("detections", ["predicted", "ground_truth"])
def test_what_the_panoptic_loss_reaches(variant, detections):
    options = ("MODEL.UNIFIED.POTENTIAL", variant, "MODEL.UNIFIED.TRAIN_DETECTIONS", detections)
    gradients = gradients_of_the_panoptic_loss(make_unified(*options), [scene(), scene(48, 64, seed=1)])
    predicted = detections == "predicted"
    assert any_below(gradients, "roi_heads.box_head.") == predicted
    assert gradients["roi_heads.box_predictor.cls_score.weight"] == predicted
    assert not any_below(gradients, "roi_heads.box_predictor.bbox_pred.")  # boxes have no gradient
    assert any_below(gradients, "roi_heads.mask_head.") == (variant != "A")
    for part in ("backbone.", "sem_seg_head.blocks.", "sem_seg_head.predictor.", "affinity_head.blocks."):
        assert any_below(gradients, part), part
    assert not any_below(gradients, "proposal_generator.")


def test_ground_truth_mode_has_true_boxes_of_score_one():
    model = make_unified("MODEL.UNIFIED.TRAIN_DETECTIONS", "ground_truth")
    seen = []
    model.potential.register_forward_hook(lambda module, args, output: seen.append(args[1]))
    inputs = scene()
    training_losses(model, [inputs])
    (found,) = seen
    assert torch.equal(found.pred_boxes.tensor, inputs["instances"].gt_boxes.tensor)
    assert found.scores.tolist() == [1, 1] and found.pred_classes.tolist() == [0, 1]
    assert found.pred_masks.shape == (2, 1, 28, 28)


def spy_on_detection(model):
    """What the potential is made of, image by image."""
    seen = []
    model.potential.register_forward_hook(lambda module, args, output: seen.append(args[1]))
    return seen


def test_training_takes_detections_that_inference_cuts_off():
    """Of the proposals of the RPN alone: not of the true boxes that the box head is also trained on."""
    options = ("MODEL.UNIFIED.SCORE_THRESH_TEST", 0.9, "MODEL.UNIFIED.TRAIN_SCORE_THRESH", 0.2)
    model = make_unified(*options, "MODEL.UNIFIED.TRAIN_TOPK", 7, "MODEL.UNIFIED.TRAIN_PROPOSALS", 18)
    seen, inputs = spy_on_detection(model), [scene(), scene(seed=1)]
    regions = []
    model.roi_heads.box_head.register_forward_hook(lambda module, args, output: regions.append(len(args[0])))
    training_losses(model, inputs)
    assert regions == [2 * 18, 2 * 16]  # and those sampled for the losses
    for found in seen:
        assert 0 < len(found) <= 7
        assert (found.scores > 0.2).all() and (found.scores < 0.9).any()


# ------------------------------------------------------------------ images without something


def nothing_found(model):
    """The box head is sure that every proposal is background."""
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.bias[-1] = 100
    model.roi_heads.train_score_thresh = 0.05


def all_void(inputs):
    inputs["sem_seg"][:] = 255
    return inputs


def crowd(inputs):
    """Things without instances, as crowds leave them."""
    return {**inputs, "instances": scene(boxes=())["instances"]}


CASES = {
    "no things": lambda: [scene(boxes=())],
    "no labels": lambda: [all_void(scene())],
    "nothing at all": lambda: [all_void(scene(boxes=()))],
    "crowds": lambda: [crowd(scene())],
    "only things": lambda: [scene(boxes=((0, 0, 64, 64),))],
}


@pytest.mark.parametrize("found", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_images_without_something(case, found):
    """Finite losses, and a gradient for every parameter, so that several processes stay in step."""
    model = make_unified()
    if not found:
        nothing_found(model)
    seen = spy_on_detection(model)
    losses = training_losses(model, CASES[case]())
    assert set(losses) == LOSSES
    assert all(len(x) > 0 for x in seen) == found
    assert all(loss.isfinite() for loss in losses.values())
    if case in ("no labels", "nothing at all"):
        assert losses["loss_panoptic"] == losses["loss_sem_seg"] == 0
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@pytest.mark.parametrize(
    "options",
    [
        ("MODEL.MASK_ON", False, "MODEL.UNIFIED.POTENTIAL", "A", "MODEL.UNIFIED.GLOBAL_TERM", True),
        ("MODEL.UNIFIED.POTENTIAL", "C", "MODEL.UNIFIED.LOSS.PANOPTIC", "lovasz_softmax"),
        ("MODEL.UNIFIED.LOSS.SEMANTIC", "lovasz_softmax", "MODEL.UNIFIED.LOSS.MASK", "bce"),
        ("MODEL.UNIFIED.AFFINITY.NORMALISE", "sigmoid", "MODEL.UNIFIED.AFFINITY.RESIDUAL", False),
        ("MODEL.UNIFIED.AFFINITY.ENABLED", False),
        ("MODEL.SEM_SEG_HEAD.NUM_CLASSES", THINGS),
        ("MODEL.UNIFIED.TRAIN_DETECTIONS", "ground_truth"),
        ("MODEL.UNIFIED.DEFORM_MODULATED", False, "NAS.SPACE.HEAD_OPS", ["dfconv_3x3"]),
    ],
)
@pytest.mark.parametrize("found", [True, False])
def test_settings_train(options, found):
    model = make_unified(*options)
    if not found:
        nothing_found(model)
    losses = training_losses(model, [scene(boxes=((0, 0, 64, 64),))])
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_what_pixels_should_choose():
    """Detections are matched to instances of their class; stuff counts, unmatched things and void do not."""
    model = make_unified()
    seen, inputs = spy_on_detection(model), scene(boxes=((0, 0, 32, 32), (32, 32, 64, 64)))
    inputs["sem_seg"][60:, :8] = 255
    model.roi_heads._predicted = lambda features, proposals: [one_detection()]
    training_losses(model, [inputs])
    (targets,) = model._targets(seen, [inputs["instances"]], inputs["sem_seg"][None])
    expected = torch.full((16, 16), 0)
    expected[:, 8:] = 1  # stuff 4
    expected[:8, :8] = STUFF  # the first box, whose detection is the first
    expected[8:, 8:] = IGNORED  # an instance that was not found
    expected[15, :2] = IGNORED
    assert torch.equal(targets, expected)


def one_detection():
    found = scene(boxes=((0, 0, 30, 32),))["instances"]
    found.pred_boxes, found.scores, found.pred_classes = found.gt_boxes, torch.ones(1), found.gt_classes
    for name in ("gt_boxes", "gt_masks", "gt_classes"):
        found.remove(name)
    return found


# ------------------------------------------------------------------ every command

TOY = {
    "MODEL": {
        "META_ARCHITECTURE": "UnifiedPanoptic",
        "CROSS_ATTENTION": {"ENABLED": False},
        "ROI_HEADS": {"NAME": "UnifiedROIHeads", "NUM_CLASSES": 7, "BATCH_SIZE_PER_IMAGE": 8},
        "SEM_SEG_HEAD": {"NAME": "UnifiedSemSegHead", "NUM_CLASSES": 12, "NUM_LAYERS": 3, "CONVS_DIM": 128},
        "PANOPTIC_FPN": {"COMBINE": {"STUFF_AREA_LIMIT": 4096}},
        "UNIFIED": {"DECODER_DIMS": [32], "POTENTIAL": "B", "SCORE_THRESH_TEST": 0.0, "AFFINITY": {"DIM": 8}},
    },
    "NAS": {
        "SPACE": {
            "HEAD_OPS": ["dwconv_3x3", "dfconv_3x3"],
            "BACKBONE_OPS": ["shuffle_3x3", "shuffle_5x5"],
        },
        "POLICY": "path_priority",
        "MODELS_PER_CYCLE": 2,
        "CYCLES": 1,
        "BN_RECALIBRATION": {"NUM_IMAGES": 4, "BATCH_SIZE": 2},
    },
    "SOLVER": {"MAX_ITER": 4, "STEPS": [3], "CHECKPOINT_PERIOD": 2},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory, shapes):
    """What the commands left: whole, resumed (stopped after two iterations), search, retrained, evaluated."""
    root = tmp_path_factory.mktemp("unified")
    path = write_config(root / "toy.yaml", shapes, **TOY)
    run, fixed = through_the_commands(root, path)
    run("train_net", "evaluated", "--eval-only", *fixed, root / "retrained/model_final.pth")
    run("train_net", "merged", "--eval-only", *fixed, root / "retrained/model_final.pth",
        "MODEL.UNIFIED.INFERENCE", "heuristic")  # fmt: skip
    return root


@pytest.mark.slow
def test_a_resumed_supernet_is_the_one_trained_at_once(root):
    whole, resumed = (final_checkpoint(root, run)["model"] for run in ("whole", "resumed"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


@pytest.mark.slow
def test_checkpoint_names_and_sites(root):
    content = final_checkpoint(root, "resumed")
    rows = {site.rpartition(".")[0] for site in content["space"]}
    assert rows == {"backbone", "mask", "sem_seg", "affinity"}
    names = set(content["model"])
    for part in ("sem_seg_head", "affinity_head"):
        assert f"{part}.predictor.weight" in names
        assert f"{part}.blocks.0.candidates.dwconv_3x3.norm.weight" in names
    fixed = set(final_checkpoint(root, "retrained")["model"])
    assert fixed < names


@pytest.mark.slow
def test_search_scores_paths(root):
    ledger = Ledger(root / "search/search/ledger.jsonl").records
    assert [record["status"] for record in ledger] == ["ok", "ok"]
    chosen = Architecture.load(root / "search/search/architecture.json").names()
    assert chosen.keys() == final_checkpoint(root, "resumed")["space"].keys()


@pytest.mark.slow
def test_the_retrained_network_is_evaluated_as_after_its_training(root):
    trained, evaluated, merged = (final_results(root, run) for run in ("retrained", "evaluated", "merged"))
    keys = [key for key in evaluated if key.startswith(("panoptic_seg/PQ", "sem_seg/mIoU", "segm/AP"))]
    assert {"panoptic_seg/PQ", "sem_seg/mIoU", "segm/AP"} <= set(keys)
    for key in keys:
        assert trained[key] == pytest.approx(evaluated[key], nan_ok=True)
    assert merged["sem_seg/mIoU"] == evaluated["sem_seg/mIoU"]


@pytest.mark.slow
def test_only_the_backbone_is_calibrated(root, shapes, tmp_path):
    """The other parts have GroupNorm: the pass stops after the backbone's last BatchNorm."""
    cfg = make_config(tmp_path, shapes, **TOY)
    model = build_model(cfg)
    model.load_state_dict(final_checkpoint(root, "resumed")["model"])
    space = space_of(model)
    apply_architecture(model, space.architecture([0] * len(space.sites)))
    batches = [[scene(seed=2 * i), scene(seed=2 * i + 1)] for i in range(2)]
    called = []
    model.sem_seg_head.predictor.register_forward_hook(lambda *_: called.append(1))
    norm = next(m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d))
    before = norm.running_mean.clone()
    with calibrated(model, batches):
        assert not torch.allclose(norm.running_mean, before)
    assert torch.equal(norm.running_mean, before)
    assert len(called) == 1  # the pass that finds out which layers run
    assert choice_blocks(model)
