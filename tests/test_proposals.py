import pytest
import torch
from detectron2.modeling.proposal_generator import RPN
from detectron2.structures import Boxes, Instances
from modeling_util import inference, make_cfg, make_input, make_model, training_losses

from auto_panoptic.systems.panoptic_fpn import BatchTopkRPN
from auto_panoptic.systems.panoptic_fpn.proposals import keep_best_of_batch

BATCH_TOPK = ["MODEL.PROPOSAL_GENERATOR.NAME", "BatchTopkRPN"]


def make_proposals(*logits):
    """Per image, proposals with these logits; box k of image i is (i, k, i + 1, k + 1)."""
    result = []
    for i, values in enumerate(logits):
        image = Instances((100, 100))
        image.proposal_boxes = Boxes(
            torch.tensor([[i, k, i + 1.0, k + 1] for k in range(len(values))]).view(-1, 4)
        )
        image.objectness_logits = torch.tensor(values, dtype=torch.float32)
        result.append(image)
    return result


def kept(proposals):
    """Positions of the proposals that are left, per image."""
    return [p.proposal_boxes.tensor[:, 1].int().tolist() for p in proposals]


@pytest.mark.parametrize(
    "limit, expected",
    [
        (1, [[], [0], []]),
        (3, [[0, 1], [0], []]),
        (4, [[0, 1], [0, 1], []]),
        (6, [[0, 1, 2], [0, 1, 2], []]),
        (7, [[0, 1, 2], [0, 1, 2, 3], []]),
        (100, [[0, 1, 2], [0, 1, 2, 3], []]),
    ],
)
def test_best_of_the_batch(limit, expected):
    proposals = make_proposals([5, 4, 1], [9, 3, 2, 0], [])
    found = keep_best_of_batch(proposals, limit)
    assert kept(found) == expected
    for i, image in enumerate(found):
        assert image.image_size == (100, 100)
        assert (image.proposal_boxes.tensor[:, 0] == i).all()
        assert torch.equal(image.objectness_logits, proposals[i].objectness_logits[kept(found)[i]])


def test_ties_go_to_the_earlier():
    assert kept(keep_best_of_batch(make_proposals([1, 1, 1], [1, 1]), 4)) == [[0, 1, 2], [0]]
    assert kept(keep_best_of_batch(make_proposals([0, 0], [1, 0, 0]), 2)) == [[0], [0]]


def proposals_of(model, inputs):
    """The proposals that the box head is given in one pass in the model's current mode."""
    found = []
    generator = model.proposal_generator
    hook = generator.register_forward_hook(lambda module, args, output: found.extend(output[0]))
    training_losses(model, inputs) if model.training else inference(model, inputs)
    hook.remove()
    return found


@pytest.fixture(scope="module")
def models():
    """Detectron2's RPN and ours with the same weights and a limit below the number of candidates."""
    options = ["MODEL.RPN.POST_NMS_TOPK_TRAIN", 20, "MODEL.RPN.NMS_THRESH", 0.9]
    return make_model(make_cfg(*options)), make_model(make_cfg(*options, *BATCH_TOPK))


def test_training_keeps_the_best_of_the_batch(models):
    detectron2, ours = (m.train() for m in models)
    assert type(detectron2.proposal_generator) is RPN and type(ours.proposal_generator) is BatchTopkRPN
    inputs = [make_input(), make_input(96, 128, seed=1)]
    per_image, per_batch = proposals_of(detectron2, inputs), proposals_of(ours, inputs)
    assert [len(p) for p in per_image] == [20, 20] and sum(len(p) for p in per_batch) == 20
    # Oracle: the twenty largest of both images' logits; these models are in no tie.
    logits = torch.cat([p.objectness_logits for p in per_image])
    assert len(logits.unique()) == 40
    threshold = logits.sort(descending=True).values[19]
    for theirs, mine in zip(per_image, per_batch, strict=True):
        best = theirs[theirs.objectness_logits >= threshold]
        assert torch.equal(mine.objectness_logits, best.objectness_logits)
        assert torch.equal(mine.proposal_boxes.tensor, best.proposal_boxes.tensor)
    assert len(per_batch[0]) != len(per_batch[1])


def test_one_image_and_inference_are_detectron2s(models):
    for train, inputs in ((True, [make_input()]), (False, [make_input(), make_input(96, 128, seed=1)])):
        theirs, mine = (proposals_of(m.train(train), inputs) for m in models)
        assert len(theirs) == len(mine) == len(inputs)
        for a, b in zip(theirs, mine, strict=True):
            assert len(a) > 5 and torch.equal(a.proposal_boxes.tensor, b.proposal_boxes.tensor)


def test_losses_use_the_selected_proposals(models):
    ours = models[1]
    losses = training_losses(ours, [make_input(), make_input(96, 128, boxes=(), seed=1)])
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    assert ours.proposal_generator.rpn_head.conv.weight.grad.abs().sum() > 0


PARITY = [
    *BATCH_TOPK,
    *("MODEL.RPN.BOUNDARY_THRESH", 0),
    *("MODEL.RPN.SMOOTH_L1_BETA", 1 / 9),
    *("MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA", 1.0),
    *("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlign"),
    *("MODEL.ROI_MASK_HEAD.POOLER_TYPE", "ROIAlign"),
    *("MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO", 2),
    *("MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO", 2),
]


def test_settings_of_the_reference_code():
    model = make_model(make_cfg(*PARITY)).train()
    rpn, heads = model.proposal_generator, model.roi_heads
    assert (rpn.anchor_boundary_thresh, rpn.smooth_l1_beta) == (0, 1 / 9)
    assert heads.box_predictor.smooth_l1_beta == 1.0
    for pooler in (heads.box_pooler, heads.mask_pooler):
        for level in pooler.level_poolers:
            assert (level.aligned, level.sampling_ratio) == (False, 2)
    # Straddling anchors are neither positive nor negative.
    inputs = make_input()
    features = model.backbone(model.preprocess_image([inputs]).tensor)
    anchors = rpn.anchor_generator([features[f] for f in rpn.in_features])
    (labels,), _ = rpn.label_and_sample_anchors(anchors, [inputs["instances"]])
    inside = Boxes.cat(anchors).inside_box((64, 64), 0)
    assert (labels[~inside] == -1).all() and (~inside).sum() > 100
    assert (labels[inside] == 1).any() and (labels[inside] == 0).any()
    assert all(torch.isfinite(loss) for loss in training_losses(model, [inputs, make_input(seed=1)]).values())
