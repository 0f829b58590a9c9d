"""Merging of instances and stuff: equal to Detectron2's, and the cases that define the two other methods."""

import numpy as np
import pytest
import torch
from detectron2.modeling.meta_arch.panoptic_fpn import combine_semantic_and_instance_outputs
from detectron2.structures import Instances
from modeling_util import assert_same_outputs, inference, make_cfg, make_input, make_model, training_losses
from PIL import Image
from torch.nn import functional as F

from auto_panoptic.modeling.fusion import METHODS, combine, semantic_labels

OPTIONS = {"overlap": 0.5, "stuff_area": 4096, "score": 0.5, "high_score": 0.725, "instance_area": 4096}
NEW = ("supplement", "reference")


def detections(height, width, *entries):
    """Instances of classes 0, 1, ...; each entry is (score, box or mask); a box is (y0, x0, y1, x1)."""
    masks = torch.zeros(len(entries), height, width, dtype=torch.bool)
    for mask, (_, region) in zip(masks, entries, strict=True):
        if isinstance(region, torch.Tensor):
            mask |= region
        else:
            y0, x0, y1, x1 = region
            mask[y0:y1, x0:x1] = True
    instances = Instances((height, width))
    instances.scores = torch.tensor([score for score, _ in entries])
    instances.pred_classes = torch.arange(len(entries))
    instances.pred_masks = masks
    return instances


def merge(method, instances, semantic=None, **options):
    if semantic is None:
        semantic = torch.zeros(instances.image_size, dtype=torch.int64)
    return combine(method, instances, semantic, **{**OPTIONS, **options})


def things(segments):
    return [segment["instance_id"] for segment in segments if segment["isthing"]]


def random_case(rng):
    """Overlapping rectangles, some empty, with equal and threshold scores; a few semantic classes."""
    height, width, count = int(rng.integers(8, 40)), int(rng.integers(8, 40)), int(rng.integers(0, 9))
    entries = []
    for _ in range(count):
        y0, y1 = sorted(rng.integers(0, height + 1, 2).tolist())
        x0, x1 = sorted(rng.integers(0, width + 1, 2).tolist())
        entries.append((float(rng.choice([0.3, 0.5, 0.6, 0.725, 0.73, 0.9, rng.random()])), (y0, x0, y1, x1)))
    blocks = rng.integers(0, 5, (5, 5))
    semantic = np.kron(blocks, np.ones((8, 8), dtype=np.int64))[:height, :width]
    options = {
        "overlap": float(rng.choice([0.0, 0.25, 0.5, 1.0])),
        "stuff_area": int(rng.choice([0, 1, 20, 64])),
        "score": float(rng.choice([0.0, 0.5])),
        "instance_area": int(rng.choice([0, 1, 30])),
    }
    return detections(height, width, *entries), torch.from_numpy(semantic), options


# ------------------------------------------------------------------ all methods


def test_detectron2_is_detectron2s_own():
    rng = np.random.default_rng(0)
    for _ in range(250):
        instances, semantic, options = random_case(rng)
        ours = merge("detectron2", instances, semantic, **options)
        theirs = combine_semantic_and_instance_outputs(
            instances, semantic, options["overlap"], options["stuff_area"], options["score"]
        )
        assert torch.equal(ours[0], theirs[0]) and ours[0].dtype == theirs[0].dtype
        assert ours[1] == theirs[1]


@pytest.mark.parametrize("method", NEW)
def test_the_map_and_its_segments_agree(method):
    """Ids 1..n without gaps, all in the map; things lie in their masks, stuff in its class; areas count."""
    rng = np.random.default_rng(1)
    seen = 0
    for _ in range(250):
        instances, semantic, options = random_case(rng)
        panoptic, segments = merge(method, instances, semantic, **options)
        assert panoptic.shape == semantic.shape and panoptic.dtype == torch.int32
        assert [segment["id"] for segment in segments] == list(range(1, len(segments) + 1))
        assert set(panoptic.unique().tolist()) - {0} == {segment["id"] for segment in segments}
        for segment in segments:
            region = panoptic == segment["id"]
            if segment["isthing"]:
                index = segment["instance_id"]
                assert not (region & ~instances.pred_masks[index]).any()
                assert segment["category_id"] == index
                assert segment["score"] == instances.scores[index].item() >= options["score"]
            else:
                assert (semantic[region] == segment["category_id"]).all() and segment["category_id"] > 0
                assert segment["area"] == region.sum().item()
            seen += 1
        stuff = [segment["category_id"] for segment in segments if not segment["isthing"]]
        assert stuff == sorted(set(stuff))
        kinds = [segment["isthing"] for segment in segments]
        assert kinds == sorted(kinds, reverse=True)
    assert seen > 500


def test_without_overlap_the_methods_agree():
    """Disjoint masks and no area limit: only the ids may differ, and they follow the order."""
    instances = detections(40, 40, (0.9, (0, 0, 30, 20)), (0.8, (0, 20, 10, 40)), (0.6, (30, 0, 40, 40)))
    semantic = torch.ones(40, 40, dtype=torch.int64)
    results = {m: merge(m, instances, semantic, stuff_area=0, instance_area=0) for m in METHODS}
    # The areas are 600, 200 and 400.
    orders = {"detectron2": [0, 1, 2], "reference": [1, 0, 2], "supplement": [1, 2, 0]}
    assert {m: things(segments) for m, (_, segments) in results.items()} == orders
    for panoptic, segments in results.values():
        for segment in segments[:3]:
            assert torch.equal(panoptic == segment["id"], instances.pred_masks[segment["instance_id"]])


def test_unknown_method():
    with pytest.raises(ValueError, match="method 'upsnet': expected one of detectron2, supplement, ref"):
        merge("upsnet", detections(8, 8))
    with pytest.raises(ValueError, match="method 'upsnet'"):
        make_model(make_cfg("MODEL.PANOPTIC_FPN.COMBINE.METHOD", "upsnet"))


@pytest.mark.parametrize("method", METHODS)
def test_nothing_found(method):
    """No detection, only label 0: a void map."""
    panoptic, segments = merge(method, detections(80, 80))
    assert segments == [] and panoptic.sum() == 0


@pytest.mark.parametrize("method", METHODS)
def test_scores_below_the_threshold_and_empty_masks_are_dropped(method):
    box = (0, 0, 70, 70)
    instances = detections(
        80, 240, (0.5, box), (0.4999, (0, 80, 70, 150)), (0.9, (0, 0, 0, 0)), (0.9, (0, 160, 70, 230))
    )
    assert sorted(things(merge(method, instances)[1])) == [0, 3]


@pytest.mark.parametrize("method", METHODS)
def test_exactly_the_overlap_is_kept_more_is_dropped(method):
    """An instance of 100 x 100 under one with a better score that covers 50 or 51 of its rows."""
    for rows, kept in ((50, [0, 1]), (51, [0])):
        instances = detections(300, 100, (0.7, (0, 0, 100 + rows, 100)), (0.6, (100, 0, 200, 100)))
        panoptic, segments = merge(method, instances)
        assert sorted(things(segments)) == kept


@pytest.mark.parametrize("method", METHODS)
def test_things_beat_stuff(method):
    """Stuff is what the instances leave, and label 0 is void."""
    instances = detections(100, 100, (0.9, (0, 0, 100, 50)))
    semantic = torch.full((100, 100), 3)
    semantic[:10] = 0
    panoptic, segments = merge(method, instances, semantic)
    expected = torch.zeros(100, 100, dtype=torch.int32)
    expected[10:, 50:] = 2
    expected[:, :50] = 1
    assert torch.equal(panoptic, expected)
    assert segments[1] == {"id": 2, "isthing": False, "category_id": 3, "area": 4500}


@pytest.mark.parametrize("method, smallest", [("detectron2", 4096), ("reference", 4096), ("supplement", 1)])
def test_small_stuff(method, smallest):
    """4095 remaining pixels become void, 4096 stay; the supplement drops no stuff."""
    for area in (4095, 4096):
        semantic = torch.zeros(100, 100, dtype=torch.int64)
        semantic.view(-1)[:area] = 2
        semantic[99, 99] = 1
        _, segments = merge(method, detections(100, 100), semantic)
        expected = {label: n for label, n in ((1, 1), (2, area)) if n >= smallest}
        assert {segment["category_id"]: segment["area"] for segment in segments} == expected


@pytest.mark.parametrize("method", METHODS)
def test_small_instances(method):
    """63 x 64 pixels: only the supplement drops them; 64 x 64 stay."""
    instances = detections(64, 200, (0.9, (0, 0, 63, 64)), (0.8, (0, 100, 64, 164)))
    assert sorted(things(merge(method, instances)[1])) == ([1] if method == "supplement" else [0, 1])


@pytest.mark.parametrize("method", NEW)
def test_a_class_that_instances_cover_is_no_segment(method):
    """Also with a limit of 0 pixels, where an empty segment would make the result invalid."""
    instances = detections(70, 70, (0.9, (0, 0, 70, 70)))
    _, segments = merge(method, instances, torch.ones(70, 70, dtype=torch.int64), stuff_area=0)
    assert [segment["isthing"] for segment in segments] == [True]


# ------------------------------------------------------------------ reference code


def test_reference_order():
    """Above 0.725 the smallest first, then by score; 0.725 itself is not above; below 0.5 is out."""
    sizes = {0.95: 100, 0.80: 40, 0.70: 20, 0.60: 60, 0.40: 5}
    instances = detections(
        120, 10, *((score, (24 * i, 0, 24 * i + n // 5, 5)) for i, (score, n) in enumerate(sizes.items()))
    )
    _, segments = merge("reference", instances)
    assert [round(segment["score"], 2) for segment in segments] == [0.80, 0.95, 0.70, 0.60]
    assert things(merge("reference", instances, high_score=0.5)[1]) == [2, 1, 3, 0]
    # 0.75 is exact in binary: at the threshold itself an instance belongs to the second tier.
    edge = detections(20, 20, (0.9, (0, 0, 10, 10)), (0.75, (12, 12, 14, 14)))
    assert things(merge("reference", edge, high_score=0.75)[1]) == [0, 1]
    assert things(merge("reference", edge, high_score=0.74)[1]) == [1, 0]


def test_reference_keeps_a_confident_small_mask_on_a_large_one():
    """Small (0.80) inside large (0.95): both stay, the small one on top. Elsewhere it is suppressed."""
    instances = detections(200, 200, (0.95, (0, 0, 200, 200)), (0.80, (50, 50, 130, 130)))
    panoptic, segments = merge("reference", instances)
    assert things(segments) == [1, 0]
    assert (panoptic == 1).sum() == 80 * 80 and (panoptic == 2).sum() == 200 * 200 - 80 * 80
    for method in ("detectron2", "supplement"):
        assert things(merge(method, instances)[1]) == [0]


def test_reference_lets_the_smaller_duplicate_survive():
    instances = detections(200, 200, (0.95, (0, 0, 100, 100)), (0.80, (0, 0, 100, 99)))
    assert things(merge("reference", instances)[1]) == [1]
    for method in ("detectron2", "supplement"):
        assert things(merge(method, instances)[1]) == [0]


def test_reference_judges_all_that_was_placed_before():
    """Covered by 30 % and 30 % of two others: more than half by their union."""
    instances = detections(
        100, 300, (0.95, (0, 60, 100, 90)), (0.9, (0, 0, 100, 30)), (0.7, (0, 0, 100, 100))
    )
    assert sorted(things(merge("reference", instances)[1])) == [0, 1]
    assert sorted(things(merge("reference", instances, overlap=0.6)[1])) == [0, 1, 2]


# ------------------------------------------------------------------ supplement


def test_supplement_paints_the_smallest_first():
    """A less confident small mask, half covered by a large one, is kept and lies on top of it."""
    instances = detections(300, 300, (0.95, (0, 0, 200, 200)), (0.6, (150, 0, 250, 100)))
    panoptic, segments = merge("supplement", instances)
    assert things(segments) == [1, 0]
    assert (panoptic == 1).sum() == 100 * 100 and (panoptic == 2).sum() == 200 * 200 - 50 * 100
    # Detectron2 lets the confident one keep the shared pixels.
    panoptic, segments = merge("detectron2", instances)
    assert things(segments) == [0, 1]
    assert (panoptic == 2).sum() == 100 * 100 - 50 * 100


def test_supplement_judges_small_masks_before_dropping_them():
    """A confident mask below the area limit suppresses what it covers, and is then dropped itself."""
    instances = detections(100, 100, (0.95, (0, 0, 60, 60)), (0.6, (0, 0, 64, 70)))
    assert 60 * 60 < 4096 <= 64 * 70
    assert things(merge("supplement", instances)[1]) == []
    assert things(merge("supplement", instances, instance_area=0)[1]) == [0]


def test_supplement_leaves_out_what_smaller_masks_cover():
    """A mask of 100 rows, of which three smaller ones take 50, 25 and 25: no pixel and no segment is left."""
    split = torch.zeros(200, 100, dtype=torch.bool)
    split[50:75] = split[125:150] = True
    boxes = [(0, 0, 50, 100), (0, 0, 100, 100), split, (75, 0, 125, 100)]
    instances = detections(200, 100, *zip((0.95, 0.9, 0.8, 0.7), boxes, strict=True))
    panoptic, segments = merge("supplement", instances)
    assert things(segments) == [0, 2, 3]
    assert torch.bincount(panoptic.flatten()).tolist() == [5000, 5000, 5000, 5000]


# ------------------------------------------------------------------ labels and the model


def test_labels_by_nearest_neighbour_as_pil_has_it():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 40, 64, generator=generator)
    resized = torch.randn(6, 77, 91, generator=generator)
    assert torch.equal(semantic_labels("detectron2", logits, (33, 50), resized), resized.argmax(0))
    cropped = logits[:, :33, :50].argmax(0).numpy().astype(np.uint8)
    expected = np.array(Image.fromarray(cropped).resize((91, 77), Image.Resampling.NEAREST)).astype(np.int64)
    for method in NEW:
        labels = semantic_labels(method, logits, (33, 50), resized)
        assert torch.equal(labels, torch.from_numpy(expected))


def test_reference_labels_at_ties_are_pils():
    """Sizes where a pixel lies exactly between two: the same as resizing the whole label map with PIL."""
    rng, differing = np.random.default_rng(5), 0
    sizes = [((800, 1066), (480, 640)), ((800, 1199), (427, 640)), ((75, 100), (25, 40)), ((7, 5), (14, 35))]
    sizes += [tuple(map(tuple, rng.integers(1, 130, (2, 2)).tolist())) for _ in range(100)]
    for source, target in sizes:
        labels = rng.integers(0, 54, source).astype(np.uint8)
        logits = F.one_hot(torch.from_numpy(labels).long(), 54).permute(2, 0, 1).float()
        resized = torch.empty(54, *target, device="meta")
        expected = np.array(Image.fromarray(labels).resize(target[::-1], Image.Resampling.NEAREST))
        found = semantic_labels("reference", logits, source, resized)
        assert found.dtype == torch.int64 and np.array_equal(found.numpy(), expected)
        differing += int((semantic_labels("supplement", logits, source, resized) != found).sum())
    assert differing  # the sizes do have ties


@pytest.mark.parametrize("method", METHODS)
def test_of_equal_logits_the_first_class_wins(method):
    logits = torch.tensor([[0.0, 2.0, 1.0, -1.0], [1.0, 2.0, 1.0, -1.0], [1.0, 0.0, 1.0, -1.0]])[:, None]
    logits = logits.repeat(1, 3, 1)
    found = semantic_labels(method, logits, (3, 4), logits)
    assert found.dtype == torch.int64
    assert found.tolist() == [[1, 0, 0, 0]] * 3


@pytest.mark.parametrize("method", METHODS)
def test_the_model_merges_as_configured(method):
    """The panoptic map is the merging of the model's own instances and logits, at another size too."""
    prefix = "MODEL.PANOPTIC_FPN.COMBINE."
    options = {
        "OVERLAP_THRESH": 0.25,
        "STUFF_AREA_LIMIT": 30,
        "INSTANCES_CONFIDENCE_THRESH": 0.2,
        "HIGH_CONFIDENCE_THRESH": 0.3,
        "INSTANCE_AREA_LIMIT": 10,
        "METHOD": method,
    }
    pairs = [item for key, value in options.items() for item in (prefix + key, value)]
    model = make_model(make_cfg(*pairs))
    assert (model.combine_high_score_thresh, model.combine_instance_area_limit) == (0.3, 10)
    inputs = {**make_input(), "height": 90, "width": 80}
    (output,) = inference(model, [inputs])
    _, logits = model.inference([inputs], do_postprocess=False)
    expected = combine(
        method,
        output["instances"],
        semantic_labels(method, logits[0], (64, 64), output["sem_seg"]),
        overlap=0.25,
        stuff_area=30,
        score=0.2,
        high_score=0.3,
        instance_area=10,
    )
    assert torch.equal(output["panoptic_seg"][0], expected[0]) and output["panoptic_seg"][1] == expected[1]
    assert output["panoptic_seg"][0].shape == (90, 80)


def test_without_attention_any_semantic_head_will_do():
    """With Detectron2's own heads the model is Detectron2's: same losses, same outputs."""
    options = ("MODEL.PANOPTIC_FPN.COMBINE.METHOD", "detectron2", "NAS.ARCHITECTURE", "")
    options += ("MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT", 30)
    config = "ablations/auto_panoptic_coco_backbone.yaml"
    ours = make_model(make_cfg(*options, config=config))
    theirs = make_model(make_cfg(*options, "MODEL.META_ARCHITECTURE", "PanopticFPN", config=config))
    assert type(theirs).__name__ == "PanopticFPN"
    theirs.load_state_dict(ours.state_dict())
    inputs = [make_input()]
    assert_same_outputs(inference(ours, inputs), inference(theirs, inputs), tolerance=0)
    expected = training_losses(theirs, inputs)
    torch.testing.assert_close(training_losses(ours, inputs), expected, rtol=0, atol=0)
    assert "loss_sem_seg" in expected and len(expected) == 6
