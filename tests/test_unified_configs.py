"""The configs of the unified network: the supplement's settings, and its tables in MODEL_ZOO.md."""

import re

import pytest
import torch
from test_configs import FOLDER, build_on_meta, read, stated
from test_model_zoo import ROWS, linked

from auto_panoptic.data import PanopticMapper
from auto_panoptic.modeling.counting import configured_costs
from auto_panoptic.space import SearchSpace
from auto_panoptic.systems.unified import UnifiedPanoptic
from auto_panoptic.training.schedule import build_lr_scheduler
from train_net import without_merging_limit

CITYSCAPES, COCO = "unified/cityscapes_R50.yaml", "unified/coco_R50.yaml"
CONFIGS = sorted(str(path.relative_to(FOLDER)) for path in FOLDER.glob("unified/[!B]*.yaml"))
CLASSES = {"cityscapes": (8, 11), "coco": (80, 53)}


def data_of(path):
    return next(name for name in CLASSES if name in path)


@pytest.mark.parametrize("path", CONFIGS)
def test_variant_and_cut_off_of_the_data_set(path):
    """B and 0.5 on Cityscapes, C and 0.75 on COCO, but for the ablations; the model has them."""
    cfg, data = read(path), data_of(path)
    node = cfg.MODEL.UNIFIED
    expected = {"cityscapes": "B", "coco": "C"}[data]
    expected = {"variant_C": "C", "variant_B": "B", "maskfree": "A"}.get(
        next((word for word in ("variant_C", "variant_B", "maskfree") if word in path), ""), expected
    )
    assert (node.POTENTIAL, cfg.MODEL.MASK_ON) == (expected, expected != "A")
    assert node.SCORE_THRESH_TEST == {"cityscapes": 0.5, "coco": 0.75}[data]
    assert node.LOSS.SEMANTIC == {"cityscapes": "lovasz_softmax", "coco": "cross_entropy"}[data]
    weights = (node.LOSS.PANOPTIC_WEIGHT, cfg.MODEL.SEM_SEG_HEAD.LOSS_WEIGHT)
    assert weights == {"cityscapes": (0.5, 1.0), "coco": (0.1, 0.2)}[data]
    assert node.DECODER_DIMS == {"cityscapes": [128, 128], "coco": [256, 128, 128]}[data]
    assert node.TRAIN_DETECTIONS == ("ground_truth" if "ground_truth" in path else "predicted")
    assert cfg.TEST.STUFF_AREA == {"cityscapes": 2048, "coco": 4096}[data]
    things, stuff = CLASSES[data]
    assert (cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES) == (things, things + stuff)
    assert node.AFFINITY.STRIDE == 8 and node.AFFINITY.ENABLED and node.INFERENCE == "panoptic"


@pytest.mark.parametrize("path", [CITYSCAPES, COCO, "unified/cityscapes_R50_maskfree.yaml"])
def test_the_published_network(path):
    """Deformable 3x3 layers everywhere, ResNet-50 with fixed statistics, GroupNorm in what is new."""
    cfg = read(path)
    space = SearchSpace.from_config(cfg)
    assert {site.names for site in space.sites} == {("dfconv_3x3",)}
    assert space.parts == ("sem_seg", "affinity")
    model = build_on_meta(cfg)
    assert isinstance(model, UnifiedPanoptic) and model.roi_heads.mask_on == cfg.MODEL.MASK_ON
    norms = {type(m).__name__ for m in model.backbone.modules() if "Norm" in type(m).__name__}
    assert norms == {"FrozenBatchNorm2d"}
    layers = len(cfg.MODEL.UNIFIED.DECODER_DIMS)
    for head in (model.sem_seg_head, model.affinity_head):
        assert sum(isinstance(m, torch.nn.GroupNorm) for m in head.modules()) == layers


def test_the_learning_rates_on_cityscapes():
    """A third at first, 0.01 from iteration 500 on, a tenth of it after 40000, a hundredth after 55000."""
    cfg = read(CITYSCAPES)
    assert (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MOMENTUM, cfg.SOLVER.WEIGHT_DECAY) == (32, 0.9, 1e-4)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=cfg.SOLVER.BASE_LR)
    scheduler = build_lr_scheduler(cfg, optimizer)
    rates = []
    for _ in range(cfg.SOLVER.MAX_ITER):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert len(rates) == 65000
    expected = {0: 0.01 / 3, 250: 0.01 * 2 / 3, 499: 0.01 * (1 / 3 + 2 / 3 * 499 / 500), 500: 0.01}
    expected |= {39999: 0.01, 40000: 0.001, 54999: 0.001, 55000: 0.0001, 64999: 0.0001}
    assert {i: rates[i] for i in expected} == pytest.approx(expected, rel=1e-12, abs=0)


def test_the_schedule_on_coco_is_detectron2s():
    solver = read(COCO).SOLVER
    assert (solver.BASE_LR, solver.IMS_PER_BATCH, solver.WEIGHT_DECAY) == (0.02, 16, 1e-4)
    assert (solver.MAX_ITER, tuple(solver.STEPS)) == (90000, (60000, 80000))
    supernet = read("unified/supernet_coco.yaml")
    assert SearchSpace.from_config(supernet).cycle_length * supernet.SOLVER.MAX_ITER == 90000


def test_the_augmentations():
    """Cityscapes: half to twice the size, 512 x 1024 of it, mirrored, colours; COCO: resized and mirrored."""
    steps = {
        path: PanopticMapper.from_config(read(path), True)["augmentations"] for path in (CITYSCAPES, COCO)
    }
    kinds = {path: [type(step).__name__ for step in found] for path, found in steps.items()}
    assert kinds[COCO] == ["ResizeShortestEdge", "RandomFlip"]
    assert kinds[CITYSCAPES] == [*kinds[COCO][:1], "RandomCrop", *kinds[COCO][1:], "ColorAugSSDTransform"]
    resize, crop, flip, _ = steps[CITYSCAPES]
    assert (resize.is_range, resize.short_edge_length, resize.max_size) == (True, (512, 2048), 4096)
    assert (crop.crop_type, list(crop.crop_size), flip.horizontal, flip.prob) == (
        "absolute",
        [512, 1024],
        True,
        0.5,
    )
    assert list(steps[COCO][0].short_edge_length) == [800] and steps[COCO][0].max_size == 1333
    cfg = read(CITYSCAPES)
    assert (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST) == (1024, 2048)


def test_an_ablation_changes_one_thing():
    changed = {path: stated(FOLDER / path).keys() - {"OUTPUT_DIR"} for path in CONFIGS}
    for path in ("cityscapes_R50_variant_C", "coco_R50_variant_B"):
        assert changed[f"unified/{path}.yaml"] == {"MODEL.UNIFIED.POTENTIAL"}
    assert changed["unified/cityscapes_R50_maskfree.yaml"] == {"MODEL.UNIFIED.POTENTIAL", "MODEL.MASK_ON"}
    found = changed["unified/cityscapes_R50_maskfree_ground_truth.yaml"]
    assert found == {"MODEL.UNIFIED.TRAIN_DETECTIONS"}


def test_a_trim_study_moves_the_limit_of_merging_only():
    """Its panoptic map is an argmax, which drops no stuff; merging does."""
    limit = ("MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT", 3000)
    cfg = read(CITYSCAPES, *limit)
    assert without_merging_limit(cfg).TEST.STUFF_AREA == 2048
    merged = without_merging_limit(read(CITYSCAPES, *limit, "MODEL.UNIFIED.INFERENCE", "heuristic"))
    assert (merged.TEST.STUFF_AREA, merged.MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT) == (3000, 1)


# ------------------------------------------------------------------ MODEL_ZOO.md

FULL = [row for row in ROWS if row.get("method", "").startswith(("Cityscapes, ", "COCO, "))]


def test_costs_of_the_whole_networks():
    rows = [row for row in FULL if "config" in row]
    assert len(rows) == 3
    for row in rows:
        (path,) = linked(row["config"])
        size = (1024, 2048) if "cityscapes" in path.name else (800, 1333)
        cfg = read(path)
        space = SearchSpace.from_config(cfg)
        cost = configured_costs(cfg, size).cost(space.architecture([0] * len(space.sites)))
        expected = f"{cost.macs / 1e9:.1f} G", f"{cost.params / 1e6:.2f} M"
        assert (row["MACs, whole"], row["params, whole"]) == expected


def test_published_rows_add_up():
    """PQ, SQ, RQ and IoU of all classes are the means over things and stuff, weighted by their classes."""
    checked = 0
    merged = {}
    for row in FULL:
        merged.setdefault(row["method"], {}).update(
            {k.removesuffix(", published"): v for k, v in row.items()}
        )
    for method, row in merged.items():
        things, stuff = CLASSES[data_of(method.lower())]
        row |= {"PQ Th": row["Th"], "PQ St": row["St"]}
        for name in ("PQ", "SQ", "RQ", "IoU"):
            mean = things * float(row[f"{name} Th"]) + stuff * float(row[f"{name} St"])
            assert abs(mean / (things + stuff) - float(row[name])) < 0.1, (method, name)
            checked += 1
    assert checked == 3 * 4


def test_the_tables_agree_with_each_other():
    """A config that is in several tables has the same PQ, SQ and RQ in each; confusions sum to 100."""
    found = {}
    for row in ROWS:
        for path in linked(row.get("config", "")):
            if "unified" in path.parts and "PQ, published" in row:
                found.setdefault(path.stem, set()).add((row["PQ, published"], row["SQ"], row["RQ"]))
    assert len(found) == 6 and all(len(values) == 1 for values in found.values())
    confusion = [row for row in ROWS if "true pixels" in row]
    assert len(confusion) == 4
    for row in confusion:
        assert float(row["as things, published"]) + float(row["as stuff"]) == pytest.approx(100)


def test_trimming_as_published():
    """It raises the recognition of stuff by more than two points and lowers its IoU by 0.2 at most."""
    rows = [row for row in ROWS if "stuff trimmed" in row]
    for before, after in zip(rows[::2], rows[1::2], strict=True):
        assert before["method"] == after["method"] and (before["stuff trimmed"], after["stuff trimmed"]) == (
            "",
            "✓",
        )
        change = {key: float(after[key]) - float(before[key]) for key in ("RQ St", "IoU St")}
        assert change["RQ St"] > 2 and -0.21 < change["IoU St"] < 0
    assert len(rows) == 6 and re.match("unified", rows[-1]["method"])
