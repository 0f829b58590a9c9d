"""Panoptic-DeepLab beside Detectron2's for the same weights; its sites, variants, costs and errors."""

import pytest
import torch
from deeplab_util import (
    FIXED,
    HEADS,
    OPS,
    SEPARABLE,
    STUFF,
    THINGS,
    answer,
    as_detectron2s,
    deeplab_cfg,
    detectron2_names,
    scene,
)
from detectron2.data import MetadataCatalog
from detectron2.layers import ShapeSpec
from modeling_util import assert_same_outputs, inference, make_model, training_losses

from auto_panoptic.errors import UserError
from auto_panoptic.modeling import apply_architecture, choice_blocks, meta_model, space_of
from auto_panoptic.modeling.calibration import active_batch_norms, calibrated
from auto_panoptic.modeling.counting import count
from auto_panoptic.modeling.extract import extract
from auto_panoptic.modeling.fold import folded
from auto_panoptic.modeling.searchable import panoptic_only
from auto_panoptic.space import Architecture
from auto_panoptic.systems.panoptic_deeplab import (
    AutoPanopticDeepLabInsEmbedHead,
    AutoPanopticDeepLabSemSegHead,
    meta_arch,
    panoptic_segmentation,
)
from auto_panoptic.training.gradients import model_space
from auto_panoptic.validate import validate

NODE = "MODEL.PANOPTIC_DEEPLAB"
V3PLUS = (f"{NODE}.DECODER", "deeplabv3plus", f"{NODE}.DEEPLABV3PLUS_CHANNELS", [8, 4])
CROP = ("INPUT.CROP.ENABLED", True, "INPUT.CROP.TYPE", "absolute", "INPUT.CROP.SIZE", [64, 32])
SEARCHED = ("NAS.SPACE.DEEPLAB_OPS", OPS, *SEPARABLE)


@pytest.fixture(scope="module", autouse=True)
def data():
    """The classes of the small network, as Detectron2's class reads them."""
    metadata = MetadataCatalog.get("deeplab_model")
    metadata.set(thing_dataset_id_to_contiguous_id={i + 5: i for i in range(THINGS)}, label_divisor=1000)
    yield
    MetadataCatalog.remove("deeplab_model")


def twins(*options):
    """Ours and Detectron2's with the same weights, in training mode."""
    cfg = deeplab_cfg(*FIXED, "DATASETS.TRAIN", ("deeplab_model",), *options)
    ours, theirs = answer(make_model(cfg)), make_model(as_detectron2s(cfg), seed=1)
    theirs.load_state_dict(detectron2_names(ours.state_dict()))
    return ours, theirs


def assert_same_maps(ours, theirs):
    """Detectron2's map has label * 1000 + number, -1 is void; its instances lie in the order of these."""
    panoptic, segments = ours["panoptic_seg"]
    ids, _ = theirs["panoptic_seg"]
    pairs = torch.stack([panoptic.long(), ids]).flatten(1).unique(dim=1).T.tolist()
    assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})
    labels = {s["id"]: s["category_id"] for s in segments} | {0: -1}
    assert all(labels[a] == b // 1000 for a, b in pairs)
    return pairs


# ------------------------------------------------------------------ Detectron2's class


@pytest.mark.parametrize("options", [(), SEPARABLE, (*SEPARABLE, *CROP), (f"{NODE}.SIZE_DIVISIBILITY", 96)])
def test_losses_and_predictions_are_detectron2s(options):
    ours, theirs = twins(*options)
    inputs = [scene(), scene(64, 32, ((2, 2, 30, 30), (0, 40, 9, 50)), seed=1)]
    inputs[0].update(height=64, width=64)
    found, expected = inference(ours, inputs), inference(theirs, inputs)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a["sem_seg"], b["sem_seg"], atol=1e-5, rtol=1e-5)
        pairs = dict(assert_same_maps(a, b))
        assert len({(s["category_id"], s["isthing"]) for s in a["panoptic_seg"][1]}) >= 3
        things = [s for s in a["panoptic_seg"][1] if s["isthing"]]
        order = sorted(range(len(things)), key=lambda i: pairs[things[i]["id"]])
        mine, other = a["instances"][torch.tensor(order)], b["instances"]
        assert torch.equal(mine.pred_masks, other.pred_masks)
        assert torch.equal(mine.pred_classes, other.pred_classes)
        torch.testing.assert_close(mine.scores, other.scores, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(mine.pred_boxes.tensor, other.pred_boxes.tensor)
    found, expected = (training_losses(model, inputs) for model in (ours, theirs))
    assert found.keys() == expected.keys() == {"loss_sem_seg", "loss_center", "loss_offset"}
    for name in found:
        torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=1e-5)
    for losses in (found, expected):
        sum(losses.values()).backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    for name, gradient in detectron2_names({n: p.grad for n, p in ours.named_parameters()}).items():
        torch.testing.assert_close(gradient, gradients[name], atol=1e-4, rtol=1e-4)


def test_sizes_that_detectron2_refuses():
    """Training images whose sides are no multiple of 4; images that a crop's window does not divide."""
    ours, theirs = twins(*SEPARABLE, *CROP)
    odd = [scene(63, 70)]
    with pytest.raises((ValueError, RuntimeError)):
        training_losses(theirs, odd)
    assert all(loss.isfinite() for loss in training_losses(ours, odd).values())
    with pytest.raises(ValueError, match="pool_kernel_size"):
        inference(theirs, [scene(96, 64)])
    (output,) = inference(ours, [scene(96, 64)])
    assert output["panoptic_seg"][0].shape == (96, 64)
    (small,) = inference(ours, [scene(16, 16, ())])
    assert small["sem_seg"].shape == (THINGS + STUFF, 16, 16)


def test_cross_entropy_by_hand():
    """Detectron2's head cannot: the mean over labelled pixels, each times its weight."""
    model = make_model(deeplab_cfg(*FIXED, "MODEL.SEM_SEG_HEAD.LOSS_TYPE", "cross_entropy"))
    logits = torch.tensor([[0.0, 2.0], [0.0, 0.0]]).view(1, 2, 1, 2)
    labels, weights = torch.tensor([[[1, 255]]]), torch.tensor([[[3.0, 1.0]]])
    assert model.sem_seg_head.loss(logits, labels, weights).item() == pytest.approx(3 * 0.693147, abs=1e-5)
    assert training_losses(model, [scene()])["loss_sem_seg"].isfinite()
    with pytest.raises(UserError, match="LOSS_TYPE is 'cross_entropy', which Detectron2's head cannot"):
        validate(as_detectron2s(deeplab_cfg("MODEL.SEM_SEG_HEAD.LOSS_TYPE", "cross_entropy")))


def test_offsets_in_pixels_of_the_output(monkeypatch):
    """An output of twice the height and three times the width has longer ones; not so in Detectron2."""
    seen = []

    def spy(labels, heatmap, offsets, *args, **kwargs):
        seen.append(offsets)
        return panoptic_segmentation(labels, heatmap, offsets, *args, **kwargs)

    monkeypatch.setattr(meta_arch, "panoptic_segmentation", spy)
    for scaled in (False, True):
        model, _ = twins(*SEPARABLE, f"{NODE}.RESCALE_OFFSETS", scaled)
        inference(model, [{**scene(), "height": 128, "width": 192}])
    torch.testing.assert_close(seen[0] * torch.tensor([2.0, 3.0])[:, None, None], seen[1])


# ------------------------------------------------------------------ sites and variants


def test_sites_in_their_order():
    space = space_of(meta_model(deeplab_cfg(*SEARCHED)))
    rows = [site for site in space.sites if not site.name.startswith("backbone")]
    names = [f"decoder.{i}" for i in range(5)] + ["center.0", "offset.0"]
    assert [site.name for site in rows] == names
    assert [site.names[0] for site in rows] == ["sep_5x5"] * 5 + ["conv_3x3_twice", "sep_5x5"]
    assert all(set(site.names) >= set(OPS) for site in rows)


@pytest.mark.parametrize(
    "options, stage, head, center",
    [
        ((), "conv_3x3_twice", "conv_3x3_twice", "conv_3x3_twice"),
        (SEPARABLE, "sep_5x5", "sep_5x5", "conv_3x3_twice"),
        ((*SEPARABLE, f"{NODE}.CENTER_SEPARABLE", True), "sep_5x5", "sep_5x5", "sep_5x5"),
        ((*SEPARABLE, *V3PLUS), "sep_3x3_twice", "sep_5x5", "conv_3x3_twice"),
        (V3PLUS, "conv_3x3_twice", "conv_3x3_twice", "conv_3x3_twice"),
    ],
)
def test_the_published_operators(options, stage, head, center):
    model = make_model(deeplab_cfg(*FIXED, *options))
    ops = {site: tuple(block.candidates) for site, block in choice_blocks(model).items()}
    stages = 1 if "deeplabv3plus" in options else 2
    expected = [stage] * stages + [head] + [stage] * stages + [center, head]
    assert [names for site, names in ops.items() if "backbone" not in site] == [(n,) for n in expected]
    skips = [name for name in model.sem_seg_head.in_features if name != "res5"]
    assert skips == (["res2"] if stages == 1 else ["res2", "res3"]) == model.ins_embed_head.in_features[:-1]
    if stages == 1:
        widths = [h.decoder["res2"]["project_conv"].out_channels for h in (model.sem_seg_head,
            model.ins_embed_head)]  # fmt: skip
        assert widths == [8, 4]
    assert all(loss.isfinite() for loss in training_losses(model, [scene()]).values())


def test_an_own_head_of_hrnet():
    """One map "concat": 1x1 with norm and ReLU, then the semantic predictor, or the instance heads."""
    cfg = deeplab_cfg(*SEPARABLE)
    for node in HEADS:
        cfg.MODEL[node].IN_FEATURES = ["concat"]
    shape = {"concat": ShapeSpec(channels=30, stride=4)}
    semantic, instance = (
        AutoPanopticDeepLabSemSegHead(cfg, shape),
        AutoPanopticDeepLabInsEmbedHead(cfg, shape),
    )
    assert list(choice_blocks(semantic)) == [] and list(choice_blocks(instance)) == ["center.0", "offset.0"]
    assert sum(p.numel() for p in semantic.parameters()) == 30 * 30 + 2 * 30 + 30 * 5 + 5
    x = {"concat": torch.randn(2, 30, 8, 8)}
    assert semantic.eval()(x)[0].shape == (2, 5, 32, 32)
    assert [y.shape[1] for y in instance.eval()(x)[:2]] == [1, 2]


# ------------------------------------------------------------------ the general means


def test_costs_by_hand():
    """Multiply-adds of every operator of the finest semantic stage: 8 + 16 channels to 16 at stride 4."""
    tables = count(
        meta_model(deeplab_cfg(*SEARCHED, "NAS.SPACE.DEEPLAB_OPS", [*OPS, "conv_3x3_twice"])), (64, 96)
    )
    rows = {site.name: row for site, row in zip(tables.space.sites, tables.sites, strict=True)}
    pixels, ci, co = 16 * 24, 24, 16
    expected = {
        "sep_5x5": ci * 25 + ci * co,
        "dwconv_3x3": ci * 9 + ci * co,
        "atconv_3x3": ci * 9 * co,
        "conv_3x3_twice": 9 * (ci * co + co * co),
    }
    assert {name: cost.macs for name, cost in rows["decoder.1"].items()} == {
        name: macs * pixels for name, macs in expected.items()
    }
    assert rows["decoder.1"]["sep_5x5"].params == expected["sep_5x5"] + 2 * (ci + co)
    assert rows["center.0"]["conv_3x3_twice"].macs == 9 * (16 * 16 + 16 * 20) * pixels


def test_extracted_network_is_the_path(tmp_path):
    model = answer(make_model(deeplab_cfg(*SEARCHED)))
    space = space_of(model)
    architecture = space.architecture([(i + 1) % len(site.ops) for i, site in enumerate(space.sites)])
    apply_architecture(model, architecture)
    inputs = [scene(), scene(64, 64, ((5, 5, 60, 20),), seed=3)]
    expected = inference(model, inputs)
    alone = extract(model, architecture)
    assert_same_outputs(inference(alone, inputs), expected, tolerance=0)
    architecture.save(tmp_path / "architecture.json")
    fixed = make_model(deeplab_cfg(*SEARCHED, "NAS.ARCHITECTURE", str(tmp_path / "architecture.json")))
    assert fixed.state_dict().keys() == alone.state_dict().keys()
    fixed.load_state_dict(alone.state_dict())
    assert_same_outputs(inference(fixed, inputs), expected, tolerance=0)
    assert Architecture.load(tmp_path / "architecture.json", space) == architecture


def test_an_architecture_of_another_decoder(tmp_path):
    space = space_of(meta_model(deeplab_cfg(*SEARCHED)))
    space.architecture([0] * len(space.sites)).save(tmp_path / "architecture.json")
    with pytest.raises(UserError, match=r"another search space: it has 5 sites decoder\.\*, this model 3"):
        meta_model(deeplab_cfg(*SEARCHED, *V3PLUS, "NAS.ARCHITECTURE", str(tmp_path / "architecture.json"),
            "NAS.SPACE.DEEPLAB_OPS", [*OPS, "sep_3x3_twice", "conv_3x3_twice"]))  # fmt: skip


def test_every_active_batch_norm_is_calibrated():
    """Those of both decoders too: statistics are the images' own, and another path keeps its old ones."""
    model = answer(make_model(deeplab_cfg(*SEARCHED)))
    space = space_of(model)
    apply_architecture(model, space.architecture([1 % len(site.ops) for site in space.sites]))
    layers = active_batch_norms(model)
    inside = {id(layer) for head in (model.sem_seg_head, model.ins_embed_head) for layer in head.modules()}
    assert sum(id(layer) in inside for layer in layers) > 20
    before = {layer: layer.running_mean.clone() for layer in layers}
    idle = {k: v.clone() for k, v in model.state_dict().items() if ".conv_3x3_twice." in k}
    with calibrated(model, [[scene(seed=1), scene(seed=2)], [scene(seed=3)]]):
        assert not any(torch.allclose(layer.running_mean, old) for layer, old in before.items())
        assert all(torch.equal(v, model.state_dict()[k]) for k, v in idle.items())
    assert all(torch.equal(layer.running_mean, old) for layer, old in before.items())


def test_folded_network_is_the_same_without_norms():
    """Those of the ASPP and the heads are inside Detectron2's convolutions."""
    model = answer(make_model(deeplab_cfg(*FIXED, *SEPARABLE))).double()
    result, images = folded(model), model._images([scene()], 0)
    norms = [
        [name for name, m in network.named_modules() if isinstance(m, torch.nn.BatchNorm2d)]
        for network in (model, result)
    ]
    assert any(name.startswith("sem_seg_head") for name in norms[0]) and not norms[1]
    images.tensor = images.tensor.double()
    with torch.no_grad():
        torch.testing.assert_close(result._maps(images), model._maps(images), atol=1e-8, rtol=1e-8)


def test_panoptic_only_makes_no_instances():
    model = answer(make_model(deeplab_cfg(*FIXED)))
    (whole,) = inference(model, [scene()])
    with panoptic_only(model):
        (few,) = inference(model, [scene()])
    assert "instances" not in few and len(whole["instances"])
    assert torch.equal(few["panoptic_seg"][0], whole["panoptic_seg"][0])
    assert few["panoptic_seg"][1] == whole["panoptic_seg"][1]
    assert "instances" in inference(model, [scene()])[0]


def test_scores_change_nothing_else():
    """Supplement 4: three scores, two places; the product is that of the others."""
    model, scores = answer(make_model(deeplab_cfg(*FIXED))), {}
    (expected,) = inference(model, [scene()])
    for score in ("objectness", "class", "product"):
        for place in ("centroid", "center"):
            model.instance_score, model.objectness_at = score, place
            (output,) = inference(model, [scene()])
            assert torch.equal(output["panoptic_seg"][0], expected["panoptic_seg"][0])
            assert torch.equal(output["sem_seg"], expected["sem_seg"])
            scores[score, place] = output["instances"].scores
    for place in ("centroid", "center"):
        product = scores["objectness", place] * scores["class", place]
        torch.testing.assert_close(product, scores["product", place])
    assert torch.equal(scores["class", "centroid"], scores["class", "center"])
    assert not torch.equal(scores["objectness", "centroid"], scores["objectness", "center"])


def test_a_supernet_holds_its_domains():
    model = meta_model(deeplab_cfg(*SEARCHED, "NAS.SPACE.BACKBONE_OPS", ["shuffle_3x3"]))
    assert model_space(model).cycle_length == 12  # of 3 operators, and 4 before the centres
