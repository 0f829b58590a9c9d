"""The unified network in inference: its panoptic path by definition, both ways to one map, its costs."""

import math

import pytest
import torch
from detectron2.modeling.meta_arch.panoptic_fpn import combine_semantic_and_instance_outputs
from detectron2.structures import Boxes, Instances
from modeling_util import assert_same_outputs, inference, make_cfg, make_model
from torch.nn import functional as F
from unified_util import CUT, FIXED, STUFF, THINGS, UNIFIED, answer, scene, unified_cfg

from auto_panoptic.modeling import apply_architecture, choice_blocks, meta_model, space_of
from auto_panoptic.modeling.counting import count
from auto_panoptic.modeling.extract import extract
from auto_panoptic.modeling.searchable import panoptic_only
from auto_panoptic.systems.unified.panoptic_map import best_channels, panoptic_map

CLASSES = THINGS + STUFF


def make_unified(*options, seed=0):
    model = make_model(unified_cfg(*FIXED, *options), seed)
    answer(model)
    return model.eval()


# ------------------------------------------------------------------ supplement 3.2 and 3.3, pixel by pixel


def potential_by_definition(variant, logits, found):
    """Psi as nested lists; boxes, scores and masks are read at the centres of the pixels of stride 4."""
    height, width = logits.shape[1:]
    psi = torch.zeros(STUFF + len(found), height, width)
    for y in range(height):
        for x in range(width):
            exponentials = [math.exp(logits[c, y, x]) for c in range(CLASSES)]
            v = [e / sum(exponentials) for e in exponentials]
            for j in range(STUFF):
                psi[j, y, x] = v[THINGS + j]
            for k in range(len(found)):
                x0, y0, x1, y1 = (value / 4 for value in found.pred_boxes.tensor[k].tolist())
                if not (x0 <= x + 0.5 < x1 and y0 <= y + 0.5 < y1):
                    continue
                cue = v[found.pred_classes[k]]
                if variant != "A":
                    across, down = (x + 0.5 - x0) / (x1 - x0), (y + 0.5 - y0) / (y1 - y0)
                    mask = bilinear(found.pred_masks[k, 0], down, across)
                    cue = cue * mask if variant == "B" else cue + mask
                psi[STUFF + k, y, x] = found.scores[k] * cue
    return psi


def bilinear(mask, down, across):
    """The value at a point of [0, 1) x [0, 1) between the centres of a mask's cells; 0 beyond the mask."""
    side = len(mask)
    row, column, value = down * side - 0.5, across * side - 0.5, 0.0
    for i in (math.floor(row), math.floor(row) + 1):
        for j in (math.floor(column), math.floor(column) + 1):
            if 0 <= i < side and 0 <= j < side:
                value += (1 - abs(row - i)) * (1 - abs(column - j)) * mask[i, j].item()
    return value


def spread_by_definition(psi, q, normalise):
    """P_i = sum_j A_ij Psi_j at the stride of Q, A_ij from q_i . q_j / sqrt(D)."""
    dim, h, w = q.shape
    factor = psi.shape[1] // h
    pooled = psi.reshape(len(psi), h, factor, w, factor).mean(dim=(2, 4)).flatten(1)
    q, p = q.flatten(1), torch.zeros_like(pooled)
    for i in range(h * w):
        row = [torch.dot(q[:, i], q[:, j]).item() / math.sqrt(dim) for j in range(h * w)]
        if normalise == "softmax":
            row = [math.exp(value - max(row)) for value in row]
        else:
            row = [1 / (1 + math.exp(-value)) for value in row]
        for j in range(h * w):
            p[:, i] += row[j] / sum(row) * pooled[:, j]
    return F.interpolate(p.view(1, -1, h, w), size=psi.shape[1:], mode="bilinear", align_corners=False)[0]


@pytest.mark.parametrize(
    "variant, normalise, residual",
    [("A", "softmax", True), ("B", "softmax", True), ("C", "sigmoid", True), ("B", "softmax", False)],
)
def test_panoptic_path_by_definition(variant, normalise, residual):
    node = "MODEL.UNIFIED.AFFINITY."
    options = ("NORMALISE", normalise, "RESIDUAL", residual, "STRIDE", 8)
    options = [f"{node}{word}" if i % 2 == 0 else word for i, word in enumerate(options)]
    model = make_unified("MODEL.UNIFIED.POTENTIAL", variant, *options)
    inputs = [scene(50, 40)]
    with torch.no_grad():
        images = model.preprocess_image(inputs)
        features, semantic, (found,) = model._parts(images)
        q = model.affinity_head(features)[0]
        chosen = found[found.scores >= CUT]
        assert 0 < len(chosen) < len(found)
        psi = potential_by_definition(variant, semantic[0], chosen)
        logits = spread_by_definition(psi, q, normalise)
        logits = psi + logits if residual else logits
        (actual,) = model.panoptic_logits(features, semantic, [chosen])
    torch.testing.assert_close(actual, logits, rtol=1e-4, atol=1e-5)
    assert (psi[STUFF:] > 0).any()
    full = F.interpolate(logits[None], scale_factor=4, mode="bilinear", align_corners=False)[0, :, :50, :40]
    (output,) = inference(model, inputs)
    assert_is_argmax(output, full, chosen, found)


def assert_is_argmax(output, logits, chosen, found):
    """Every pixel of the map lies in the segment of its best channel, and the segments say what that is."""
    panoptic, segments = output["panoptic_seg"]
    top = logits.topk(min(2, len(logits)), dim=0).values
    clear = (top[0] - top[-1]).abs() > 1e-4
    assert clear.float().mean() > 0.9
    best, ids = logits.argmax(dim=0), {s["id"]: s for s in segments}
    assert set(ids) == set(panoptic.unique().tolist())
    for y, x in clear.nonzero().tolist():
        channel, segment = best[y, x].item(), ids[panoptic[y, x].item()]
        if channel < STUFF:
            assert segment["category_id"] == THINGS + channel and not segment["isthing"]
        else:
            k = channel - STUFF
            assert segment["isthing"] and segment["category_id"] == chosen.pred_classes[k]
            assert segment["score"] == chosen.scores[k] == found.scores[segment["instance_id"]]


# ------------------------------------------------------------------ from logits to segments


def test_best_channels_in_parts(monkeypatch):
    logits = torch.randn(7, 8, 8, generator=torch.Generator().manual_seed(0))
    logits[6], logits[5], logits[4] = logits[1], logits[0], logits[0]  # ties go to the first
    whole = best_channels(logits, 4, (30, 32), (45, 41))
    full = F.interpolate(logits[None], scale_factor=4, mode="bilinear", align_corners=False)
    full = F.interpolate(full[:, :, :30], size=(45, 41), mode="bilinear", align_corners=False)[0]
    assert torch.equal(whole, full.argmax(dim=0)) and whole.max() == 3
    for values in (1, 2 * 45 * 41, 3 * 45 * 41):
        monkeypatch.setattr("auto_panoptic.systems.unified.panoptic_map._VALUES", values)
        assert torch.equal(best_channels(logits, 4, (30, 32), (45, 41)), whole)


def test_segments_of_channels():
    channels = torch.tensor([[1, 1, 3], [4, 3, 3]])
    found = Instances((2, 3), scores=torch.tensor([0.5, 0.75, 1.0]), pred_classes=torch.tensor([2, 0, 1]))
    panoptic, segments = panoptic_map(channels, 3, 5, found, [1, 4, 9])
    assert panoptic.tolist() == [[1, 1, 2], [3, 2, 2]] and panoptic.dtype == torch.int32
    assert segments == [
        {"id": 1, "isthing": False, "category_id": 4, "area": 2},
        {"id": 2, "isthing": True, "score": 0.75, "category_id": 0, "instance_id": 4},
        {"id": 3, "isthing": True, "score": 1.0, "category_id": 1, "instance_id": 9},
    ]


def test_without_stuff_and_detections_everything_is_void():
    options = ("MODEL.SEM_SEG_HEAD.NUM_CLASSES", THINGS, "MODEL.UNIFIED.SCORE_THRESH_TEST", 1.0)
    model = make_unified(*options)
    (output,) = inference(model, [scene()])
    assert not output["panoptic_seg"][0].any() and output["panoptic_seg"][1] == []
    assert output["sem_seg"].shape == (THINGS, 64, 64)


# ------------------------------------------------------------------ one network, two ways to a map


def test_two_inference_modes_of_one_checkpoint():
    panoptic = make_unified()
    options = ("MODEL.UNIFIED.INFERENCE", "heuristic", "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT", 10)
    heuristic = make_unified(*options, "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH", CUT, seed=1)
    heuristic.load_state_dict(panoptic.state_dict())
    inputs = [scene(), scene(48, 64, seed=1)]
    maps = 0
    for a, b in zip(inference(panoptic, inputs), inference(heuristic, inputs), strict=True):
        assert torch.equal(a["sem_seg"], b["sem_seg"])
        for name, value in a["instances"].get_fields().items():
            value, other = (getattr(x, "tensor", x) for x in (value, b["instances"].get(name)))
            assert torch.equal(value, other), name
        labels = b["sem_seg"].argmax(dim=0)
        labels = torch.where(labels < THINGS, 0, labels - THINGS + 1)
        expected, segments = combine_semantic_and_instance_outputs(b["instances"], labels, 0.5, 10, CUT)
        assert torch.equal(b["panoptic_seg"][0], expected)
        for segment in segments:
            segment["category_id"] += 0 if segment["isthing"] else THINGS - 1
        assert b["panoptic_seg"][1] == segments
        assert any(s["isthing"] for s in segments) and not all(s["isthing"] for s in segments)
        maps += not torch.equal(a["panoptic_seg"][0], b["panoptic_seg"][0])
    assert maps


@pytest.mark.parametrize("mode", ["panoptic", "heuristic"])
def test_panoptic_only_skips_what_the_map_ignores(mode):
    options = ("MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH", CUT) * (mode == "heuristic")
    model = make_unified("MODEL.UNIFIED.INFERENCE", mode, *options)
    inputs = [scene(), scene(48, 64, seed=1)]
    whole = inference(model, inputs)
    with panoptic_only(model):
        few = inference(model, inputs)
    for a, b in zip(few, whole, strict=True):
        assert len(a["instances"]) == (b["instances"].scores >= CUT).sum() < len(b["instances"])
        assert torch.equal(a["panoptic_seg"][0], b["panoptic_seg"][0])
        assert a["panoptic_seg"][1] == b["panoptic_seg"][1]
    assert_same_outputs(inference(model, inputs), whole, tolerance=0)


def test_cut_off_chooses_channels_and_nothing_else():
    model = make_unified("MODEL.UNIFIED.SCORE_THRESH_TEST", 0.0)
    inputs = [scene()]
    (all_in,) = inference(model, inputs)
    scores = all_in["instances"].scores
    seen = []
    model.potential.register_forward_hook(lambda module, args, output: seen.append(len(output)))
    for cut in (0.0, scores[2].item(), 1.0):
        model.score_thresh = cut
        (output,) = inference(model, inputs)
        assert torch.equal(output["instances"].scores, scores)
        assert seen.pop() == STUFF + (scores >= cut).sum()
        assert all(s["score"] >= cut for s in output["panoptic_seg"][1] if s["isthing"])


def test_output_size_and_batch():
    model = make_unified()
    first, second = scene(50, 70), scene(seed=1)
    first.update(height=100, width=140)
    together = inference(model, [first, second])
    assert together[0]["sem_seg"].shape == (CLASSES, 100, 140)
    assert together[0]["panoptic_seg"][0].shape == together[0]["instances"].pred_masks.shape[1:] == (100, 140)
    assert_same_outputs(together[:1], inference(model, [first]), tolerance=1e-4)
    detections, logits = model.inference([first], do_postprocess=False)
    assert len(detections) == 1 and logits.shape == (1, CLASSES, 64, 96)


def test_detections_that_leave_the_output_take_no_number():
    """A box that is empty in a tiny output is dropped before instances are numbered."""
    model = make_unified("MODEL.UNIFIED.SCORE_THRESH_TEST", 0.0)
    images = scene()
    found = Instances((64, 64))
    found.pred_boxes = Boxes(torch.tensor([[70.0, 4, 90, 9], [8, 8, 56, 56]]))
    found.scores, found.pred_classes = torch.tensor([0.9, 0.8]), torch.tensor([0, 1])
    found.pred_masks = torch.ones(2, 1, 28, 28)
    model.roi_heads.forward = lambda *args: ([found], {})
    (output,) = inference(model, [images])
    assert output["instances"].scores.tolist() == pytest.approx([0.8])
    (thing,) = [s for s in output["panoptic_seg"][1] if s["isthing"]]
    assert thing["instance_id"] == 0 and thing["category_id"] == 1


# ------------------------------------------------------------------ the general means


def test_costs_of_the_affinity():
    cfg = unified_cfg("MODEL.UNIFIED.AFFINITY.STRIDE", 16)
    tables = count(meta_model(cfg), (64, 96))
    pixels, channels = 4 * 6, STUFF + cfg.TEST.DETECTIONS_PER_IMAGE
    assert tables.fixed["affinity"].macs == pixels**2 * (16 + channels)
    assert tables.fixed["affinity"].params == 0
    levels = sum(64 * 96 // 4**i for i in (2, 3, 4, 5))
    rows = {site.name: row for site, row in zip(tables.space.sites, tables.sites, strict=True)}
    for site, ci, co in (("sem_seg.0", 64, 64), ("affinity.0", 64, 64), ("affinity.1", 64, 32)):
        assert rows[site]["atconv_3x3"].macs == 9 * ci * co * levels
    assert tables.fixed["affinity_head"].macs == levels * 32 * 16
    assert tables.fixed["sem_seg_head"].macs == levels * 32 * CLASSES


def test_sites_in_their_order():
    space = space_of(meta_model(unified_cfg()))
    rows = [site.name.rpartition(".")[0] for site in space.sites]
    assert list(dict.fromkeys(rows)) == ["backbone", "mask", "sem_seg", "affinity"]
    fixed = meta_model(unified_cfg("MODEL.UNIFIED.AFFINITY.ENABLED", False))
    assert not any(site.startswith("affinity") for site in choice_blocks(fixed))
    assert fixed.affinity is None


def test_global_term_is_a_weight_of_the_potential():
    options = ("MODEL.UNIFIED.POTENTIAL", "A", "MODEL.UNIFIED.GLOBAL_TERM", True)
    tables = count(meta_model(unified_cfg(*options)), (64, 64))
    assert tables.fixed["potential"].params == 1


def test_extracted_network_is_the_path():
    model = make_model(unified_cfg())
    answer(model)
    space = space_of(model)
    architecture = space.architecture([i % len(site.ops) for i, site in enumerate(space.sites)])
    apply_architecture(model, architecture)
    inputs = [scene()]
    alone = extract(model, architecture)
    assert_same_outputs(inference(alone, inputs), inference(model, inputs), tolerance=0)
    assert all(len(block.candidates) == 1 for block in choice_blocks(alone).values())


def test_published_network_on_the_meta_device():
    """Deformable layers in both decoders, Detectron2's heads and ResNet-50."""
    options = {
        "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
        "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
        "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
        "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsampleHead",
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 133,
        "MODEL.ROI_HEADS.NUM_CLASSES": 80,
        "MODEL.UNIFIED.DECODER_DIMS": [256, 128, 128],
        "MODEL.UNIFIED.AFFINITY.DIM": 128,
        "NAS.SPACE.HEAD_OPS": ["dfconv_3x3"],
        "TEST.DETECTIONS_PER_IMAGE": 100,
    }
    options = [word for pair in options.items() for word in pair]
    model = meta_model(make_cfg(*UNIFIED, *options, small=False))
    assert space_of(model).cardinality == 1
    tables = count(model, (512, 1024))
    pixels = 64 * 128
    assert tables.fixed["affinity"].macs == pixels**2 * (128 + 53 + 100)
