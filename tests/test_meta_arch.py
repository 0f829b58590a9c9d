import math

import pytest
import torch
from detectron2.modeling.meta_arch.panoptic_fpn import combine_semantic_and_instance_outputs
from detectron2.structures import ImageList
from modeling_util import (
    assert_same_outputs,
    inference,
    make_cfg,
    make_input,
    make_model,
    num_params,
    training_losses,
)
from toy import answer_strongly

from auto_panoptic.errors import UserError
from auto_panoptic.modeling import apply_architecture, choice_blocks
from auto_panoptic.modeling.targets import padded_labels
from auto_panoptic.space import Architecture, SearchSpace
from auto_panoptic.systems.panoptic_fpn import AutoPanopticFPN

LOSSES = {"loss_sem_seg", "loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg", "loss_mask"}


@pytest.fixture(scope="module")
def full_model():
    return make_model(make_cfg(small=False))


@pytest.fixture
def model():
    return make_model(make_cfg())


def test_params_of_the_coco_supernet(full_model):
    parts = {
        "backbone.bottom_up": 28642008,
        # Four 1x1 laterals, four 3x3 outputs, GroupNorm after each.
        "backbone": 28642008 + (96 + 240 + 480 + 960) * 256 + 4 * 256 * 256 * 9 + 8 * 512,
        # 3x3, 3 objectness and 12 box outputs, with bias.
        "proposal_generator": 256 * 256 * 9 + 256 + 256 * 15 + 15,
        "roi_heads.box_head": 13897728,
        "roi_heads.box_predictor": 1024 * (81 + 320) + 81 + 320,
        "roi_heads.mask_head.blocks": 4 * (68864 + 72960 + 590592 + 1639168 + 652827 + 2119243),
        "sem_seg_head.blocks": (35712 + 39808 + 295296 + 819584 + 357531 + 1299659)
        + 2 * (18048 + 20096 + 147840 + 409984 + 178971 + 650059),
        "sem_seg_head.predictor": 27702,
        "attention.f2b": 4 * (45216 + 22672 + 11400),
        "attention.b2f": 5 * (49472 + 24864 + 12560),
    }
    assert {name: num_params(full_model.get_submodule(name)) for name in parts} == parts
    assert num_params(full_model) == 73697240
    assert len(choice_blocks(full_model)) == 56
    assert set(choice_blocks(full_model)) == {site.name for site in SearchSpace.default().sites}


def test_full_model_trains_and_predicts(full_model):
    inputs = [make_input(sem_classes=54), make_input(48, 96, boxes=(), sem_classes=54)]
    losses = training_losses(full_model, inputs)
    assert set(losses) == LOSSES
    total = sum(losses.values())
    assert math.isfinite(total.item())
    total.backward()
    gradients = [p.grad for p in full_model.parameters() if p.grad is not None]
    assert all(g.isfinite().all() for g in gradients)
    full_model.zero_grad(set_to_none=True)
    outputs = inference(full_model, inputs)
    assert [tuple(o["sem_seg"].shape) for o in outputs] == [(54, 64, 64), (54, 48, 96)]


@pytest.mark.parametrize(
    "name, params",
    [
        ("auto_panoptic_coco", (6825840, 3435622, 1025638, 283672)),
        ("auto_panoptic_ade20k", (7845360, 4960177, 2128689, 287800)),
    ],
)
def test_fixed_model_of_a_published_architecture(name, params):
    with torch.device("meta"):
        model = AutoPanopticFPN(make_cfg("NAS.ARCHITECTURE", name, small=False))
    blocks = choice_blocks(model)
    assert len(blocks) == 56 and all(len(block.candidates) == 1 for block in blocks.values())
    heads = (model.roi_heads.mask_head.blocks, model.sem_seg_head.blocks)
    built = (model.backbone.bottom_up, *heads, model.attention)
    assert tuple(num_params(part) for part in built) == params


def test_losses_and_gradients(model):
    losses = training_losses(model, [make_input(), make_input(48, 40, seed=1)])
    assert set(losses) == LOSSES
    for loss in losses.values():
        assert loss.ndim == 0 and loss.isfinite() and loss.requires_grad and loss > 0
    # The attention couples the branches both ways: each loss alone reaches the other branch.
    semantic = torch.autograd.grad(losses["loss_sem_seg"], list(model.attention.f2b.parameters()),
                                   retain_graph=True, allow_unused=True)  # fmt: skip
    assert any(g is not None and g.any() for g in semantic)
    boxes = torch.autograd.grad(losses["loss_cls"], list(model.sem_seg_head.blocks.parameters()),
                                retain_graph=True, allow_unused=True)  # fmt: skip
    assert any(g is not None and g.any() for g in boxes)


def test_images_without_instances(model):
    losses = training_losses(model, [make_input(boxes=()), make_input(boxes=(), seed=1)])
    assert set(losses) == LOSSES
    assert all(loss.isfinite() for loss in losses.values())
    assert losses["loss_mask"].item() == losses["loss_box_reg"].item() == losses["loss_rpn_loc"].item() == 0
    sum(losses.values()).backward()
    unused = {
        id(p)
        for block in choice_blocks(model).values()
        for name, candidate in block.candidates.items()
        if name != block.active
        for p in candidate.parameters()
    }
    for name, parameter in model.named_parameters():
        if id(parameter) not in unused:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_images_without_labelled_pixels(model):
    inputs = make_input()
    inputs["sem_seg"].fill_(255)
    losses = training_losses(model, [inputs])
    assert losses["loss_sem_seg"].item() == 0
    assert all(loss.isfinite() for loss in losses.values())


@pytest.mark.parametrize("name", ["AutoPanopticFPN", "PanopticFPN"])
def test_detectron2s_semantic_head_on_images_without_labelled_pixels(name):
    """Zero, not the NaN of a mean over nothing; parameters keep gradients, so ranks stay in step."""
    cfg = make_cfg("MODEL.CROSS_ATTENTION.ENABLED", False, "MODEL.SEM_SEG_HEAD.NAME", "SemSegFPNHead")
    cfg.MODEL.META_ARCHITECTURE = name
    model = make_model(cfg)
    inputs = make_input()
    inputs["sem_seg"][:] = 255
    losses = training_losses(model, [inputs])
    assert losses["loss_sem_seg"] == 0
    losses["loss_sem_seg"].backward()
    assert all((p.grad == 0).all() for p in model.sem_seg_head.parameters())


def test_output_format_and_sizes(model):
    # Neither side is a multiple of 32 and the output has another size.
    inputs = make_input(50, 70)
    inputs.update(height=100, width=140)
    (output,) = inference(model, [inputs])
    assert output["sem_seg"].shape == (5, 100, 140)
    segments, info = output["panoptic_seg"]
    assert segments.shape == (100, 140)
    assert {s["id"] for s in info} == set(segments.unique().tolist()) - {0}
    assert output["instances"].pred_masks.shape[1:] == (100, 140)
    expected = combine_semantic_and_instance_outputs(
        output["instances"], output["sem_seg"].argmax(0), 0.5, 4096, 0.5
    )
    assert torch.equal(segments, expected[0]) and info == expected[1]
    raw_instances, raw_sem_seg = model.inference([inputs], do_postprocess=False)
    assert raw_sem_seg.shape == (1, 5, 64, 96)
    assert len(raw_instances) == 1


def test_result_does_not_depend_on_the_rest_of_the_batch(model):
    first, second = make_input(), make_input(seed=1)
    together = inference(model, [first, second])
    assert_same_outputs(together[:1], inference(model, [first]))
    assert_same_outputs(together[1:], inference(model, [second]))


class Spies:
    """Records what the branches of a model receive."""

    def __init__(self, model):
        self.rpn = self.roi = self.subnet = self.raw = self.gates = None
        self.model = model

        def remember(name, index):
            return lambda module, args: setattr(self, name, dict(args[index]))

        self.hooks = [
            model.proposal_generator.register_forward_pre_hook(remember("rpn", 1)),
            model.roi_heads.register_forward_pre_hook(remember("roi", 1)),
            model.backbone.register_forward_hook(lambda module, args, out: setattr(self, "raw", dict(out))),
        ]
        head, subnet, predict = model.sem_seg_head, model.sem_seg_head.subnet, model.sem_seg_head.predict

        def spy_subnet(features):
            self.subnet = dict(features)
            self.subnet_output = subnet(features)
            return self.subnet_output

        def spy_predict(subnet_features, gates=None, targets=None):
            self.classified, self.gates = dict(subnet_features), gates
            return predict(subnet_features, gates, targets)

        head.subnet, head.predict = spy_subnet, spy_predict


@pytest.mark.parametrize("training", [True, False])
def test_what_the_branches_read(model, training):
    spies = Spies(model)
    (training_losses if training else inference)(model, [make_input()])
    assert list(spies.raw) == ["p2", "p3", "p4", "p5", "p6"]
    # The subnet reads raw F, the classifier raw S and its gates.
    for name, x in spies.subnet.items():
        assert torch.equal(x, spies.raw[name])
    for name, x in spies.classified.items():
        assert torch.equal(x, spies.subnet_output[name])
    f2b = model.attention.foreground_to_background(spies.raw)
    assert spies.gates.keys() == f2b.keys()
    for name, gate in f2b.items():
        torch.testing.assert_close(spies.gates[name], gate)
    # RPN, box and mask heads read F' = (1 + a) F, with a from raw S.
    b2f = model.attention.background_to_foreground(spies.subnet_output)
    for branch in (spies.rpn, spies.roi):
        for name, x in branch.items():
            torch.testing.assert_close(x, spies.raw[name] * (1 + b2f[name])[:, :, None, None])
            assert not torch.equal(x, spies.raw[name])


def test_without_attention_features_pass_unchanged():
    model = make_model(make_cfg("MODEL.CROSS_ATTENTION.ENABLED", False))
    assert model.attention is None
    assert not any(site.startswith("attention") for site in choice_blocks(model))
    spies = Spies(model)
    inference(model, [make_input()])
    assert spies.gates is None
    for branch in (spies.rpn, spies.roi):
        for name, x in branch.items():
            assert torch.equal(x, spies.raw[name])
    assert set(training_losses(model, [make_input()])) == LOSSES


def test_reference_levels_come_from_the_config():
    model = make_model(make_cfg("MODEL.CROSS_ATTENTION.F2B_LEVELS", ["p3", "p4", "p5", "p6"]))
    assert model.attention.f2b[0].candidates["r4"].reduce.in_features == 4 * 64


def test_training_input_without_ground_truth(model):
    for key in ("sem_seg", "instances"):
        inputs = make_input()
        del inputs[key]
        with pytest.raises(UserError, match=f"without '{key}'"):
            training_losses(model, [make_input(), inputs])


@pytest.mark.parametrize("method", ["detectron2", "supplement", "reference"])
def test_panoptic_only_skips_what_the_merging_ignores(method):
    model = make_model(make_cfg("MODEL.PANOPTIC_FPN.COMBINE.METHOD", method, "TEST.DETECTIONS_PER_IMAGE", 30))
    answer_strongly(model)
    inputs = [make_input(), make_input(48, 64, seed=1)]
    whole = inference(model, inputs)
    with pytest.raises(KeyError), model.panoptic_only():
        few = inference(model, inputs)
        raise KeyError
    for a, b in zip(few, whole, strict=True):
        confident = b["instances"].scores >= model.combine_instances_score_thresh
        assert len(a["instances"]) == confident.sum() < len(b["instances"])
        assert torch.equal(a["panoptic_seg"][0], b["panoptic_seg"][0])
        assert a["panoptic_seg"][1] == b["panoptic_seg"][1]
    assert sum(len(a["instances"]) for a in few) > 0
    again = inference(model, inputs)
    assert [len(x["instances"]) for x in again] == [len(x["instances"]) for x in whole]


def test_labels_are_padded_as_the_images_are(model, monkeypatch):
    """Later versions of Detectron2 know backbones that want square images; 0.6 has no such argument."""
    labels = [torch.zeros(40, 64, dtype=torch.int64), torch.zeros(64, 33, dtype=torch.int64)]
    padded = padded_labels(model.backbone, labels, 255)
    assert padded.shape == (2, 64, 64) and padded[0, 40:].eq(255).all() and padded[1, :, 33:].eq(255).all()
    calls = []
    original = ImageList.from_tensors
    monkeypatch.setattr(type(model.backbone), "padding_constraints", {"square_size": 96}, raising=False)
    monkeypatch.setattr(
        ImageList,
        "from_tensors",
        lambda *args, padding_constraints=None: calls.append(padding_constraints) or original(*args),
    )
    padded_labels(model.backbone, labels, 255)
    assert calls == [{"square_size": 96}]


def test_unsuitable_semantic_head():
    with pytest.raises(UserError, match="MODEL.SEM_SEG_HEAD.NAME is 'SemSegFPNHead'"):
        make_model(make_cfg("MODEL.SEM_SEG_HEAD.NAME", "SemSegFPNHead"))


def test_every_operator_trains():
    """One short pass per column of a fair set: every operator of every site is used once."""
    cfg = make_cfg()
    model = make_model(cfg)
    assert isinstance(model, AutoPanopticFPN)
    space = SearchSpace.from_config(cfg)
    for i in range(6):
        names = tuple(site.ops[i % len(site.ops)].name for site in space.sites)
        apply_architecture(model, Architecture(space, names))
        sum(training_losses(model, [make_input()]).values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
