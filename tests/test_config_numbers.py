"""The numbers in the shipped configs: those of the paper, of Detectron2 and of the reference code."""

import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_anchor_generator
from test_configs import FOLDER, PANOPTIC_FPN, RUNNABLE, is_supernet, read, stated

from auto_panoptic.space import SearchSpace
from auto_panoptic.training.schedule import build_lr_scheduler

COCO, ADE20K = 118287, 20210  # training images; 5000 and 2000 of them are set aside for the search


def test_the_published_schedule_of_the_supernet():
    """90000 mini-batches in fair cycles of 12; learning rate / 10 at epochs 8 and 11 of 12."""
    cfg = read("supernet_coco.yaml")
    assert cfg.SOLVER.MAX_ITER * SearchSpace.from_config(cfg).cycle_length == 90000
    assert [step * 12 / cfg.SOLVER.MAX_ITER for step in cfg.SOLVER.STEPS] == [8, 11]
    solver = cfg.SOLVER
    assert (solver.IMS_PER_BATCH, solver.BASE_LR, solver.MOMENTUM) == (16, 0.02, 0.9)
    assert solver.WEIGHT_DECAY == 1e-4
    assert SearchSpace.from_config(cfg) == SearchSpace.default()
    settings = cfg.NAS.BN_RECALIBRATION
    assert (cfg.NAS.CYCLES, cfg.NAS.MODELS_PER_CYCLE, settings.NUM_IMAGES) == (5, 12, 500)
    assert (settings.MOMENTUM, cfg.MODEL.SHUFFLENET.WIDTH) == (0, "1.3G")
    assert 90000 * 16 / (COCO - 5000) == pytest.approx(12.7, abs=0.02)


def test_the_schedule_of_the_supernet_on_ade20k():
    """24 epochs of 18210 images, learning rate / 10 at epochs 16 and 22, in fair cycles of 12."""
    cfg = read("supernet_ade20k.yaml")
    mini_batches = 24 * (ADE20K - 2000) / 16
    assert mini_batches == 27315
    assert cfg.SOLVER.MAX_ITER == mini_batches // 12 and mini_batches - 12 * cfg.SOLVER.MAX_ITER == 3
    for step, epoch in zip(cfg.SOLVER.STEPS, (16, 22), strict=True):
        assert abs(step - epoch * (ADE20K - 2000) / 16 / 12) <= 0.5
    assert (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR) == (16, 0.02)


def test_the_schedules_of_retraining():
    coco, ade20k = read("auto_panoptic_coco.yaml").SOLVER, read("auto_panoptic_ade20k.yaml").SOLVER
    assert (coco.MAX_ITER, tuple(coco.STEPS), coco.WARMUP_ITERS) == (90000, (60000, 80000), 500)
    assert 24 * ADE20K / 16 == ade20k.MAX_ITER == 30315
    assert [16 * ADE20K / 16, round(22 * ADE20K / 16)] == list(ade20k.STEPS) == [20210, 27789]
    for path in PANOPTIC_FPN:
        cfg = read(path)
        if not is_supernet(cfg):
            expected = ade20k if "ade20k_panoptic_train_separated" in cfg.DATASETS.TRAIN else coco
            assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS) == (expected.MAX_ITER, expected.STEPS)
            assert (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR) == (16, 0.02)


@pytest.mark.parametrize("data", ["coco", "ade20k"])
def test_transfer_changes_the_architecture_only(data):
    other = {"coco": "ade20k", "ade20k": "coco"}[data]
    assert stated(FOLDER / f"auto_panoptic_{data}_from_{other}.yaml") == {
        "NAS.ARCHITECTURE": f"auto_panoptic_{other}",
        "OUTPUT_DIR": f"output/auto_panoptic_{data}_from_{other}",
    }
    assert read(f"auto_panoptic_{data}.yaml").NAS.ARCHITECTURE == f"auto_panoptic_{data}"


def test_the_components_of_the_ablation():
    """What is searched in each row of the paper's table, and that nothing else changes between them."""
    expected = {
        "ablations/auto_panoptic_coco_backbone.yaml": ("backbone",),
        "ablations/auto_panoptic_coco_backbone_heads.yaml": ("backbone", "mask", "sem_seg"),
        "ablations/auto_panoptic_coco_heads_attention.yaml": ("mask", "sem_seg", "attention"),
        "auto_panoptic_coco.yaml": ("backbone", "mask", "sem_seg", "attention"),
    }
    cfgs = {path: read(path) for path in expected}
    assert {path: SearchSpace.from_config(cfg).parts for path, cfg in cfgs.items()} == expected
    assert {cfg.NAS.ARCHITECTURE for cfg in cfgs.values()} == {"auto_panoptic_coco"}
    assert len({(str(cfg.SOLVER), str(cfg.INPUT), str(cfg.DATASETS)) for cfg in cfgs.values()}) == 1


def test_what_reports_the_papers_numbers_merges_as_the_reference_code():
    methods = {
        str(path.relative_to(FOLDER)): cfg.MODEL.PANOPTIC_FPN.COMBINE.METHOD
        for path in RUNNABLE
        if (cfg := read(path)).MODEL.META_ARCHITECTURE == "AutoPanopticFPN"
    }
    detectron2 = {path for path, method in methods.items() if method == "detectron2"}
    assert detectron2 == {
        "supernet_coco.yaml",
        "supernet_ade20k.yaml",
        *(p for p in methods if p.startswith(("quick/", "own/", "bench/"))),
    }
    assert set(methods.values()) == {"detectron2", "reference"}


# ------------------------------------------------------------------ Detectron2 and the reference code


def test_panoptic_fpn_is_the_model_zoos():
    """Key for key, beside the output folder."""
    ours = read("baselines/panoptic_fpn_coco.yaml")
    theirs = model_zoo.get_config("COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml")
    ours.OUTPUT_DIR = theirs.OUTPUT_DIR
    ours.MODEL.WEIGHTS = ours.MODEL.WEIGHTS.replace("detectron2://", "")
    theirs.MODEL.WEIGHTS = theirs.MODEL.WEIGHTS.replace("detectron2://", "")

    def differences(a, b, prefix=""):
        for key, value in b.items():
            if isinstance(value, CfgNode):
                yield from differences(a[key], value, f"{prefix}{key}.")
            elif a[key] != value:
                yield prefix + key, a[key], value

    assert list(differences(ours, theirs)) == []


@pytest.mark.parametrize("data", ["coco", "ade20k"])
def test_the_reference_settings(data):
    """As read in the reference code's configs, scripts and defaults."""
    supernet, retrain = read(f"reference/supernet_{data}.yaml"), read(f"reference/auto_panoptic_{data}.yaml")
    for cfg in (supernet, retrain):
        assert cfg.MODEL.CROSS_ATTENTION.F2B_LEVELS == ["p3", "p4", "p5", "p6"]
        assert cfg.MODEL.CROSS_ATTENTION.LEGACY_RATIO
        assert (cfg.NAS.GRADIENTS, cfg.NAS.REFERENCE_BIAS_LR) == ("lr_scale", True)
        assert (cfg.SOLVER.WEIGHT_DECAY, cfg.SOLVER.WEIGHT_DECAY_NORM) == (1e-4, 1e-4)
        assert (cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN, cfg.MODEL.RPN.BOUNDARY_THRESH) == (2000, 0)
        assert cfg.MODEL.PROPOSAL_GENERATOR.NAME == "BatchTopkRPN"
        anchors = build_anchor_generator(cfg, [ShapeSpec(stride=4 * 2**i) for i in range(5)])
        for level, stride in zip(anchors([torch.empty(1, 1, 2, 2)] * 5), (4, 8, 16, 32, 64), strict=True):
            cell = stride * torch.tensor([[0.5, 0.5], [1.5, 0.5], [0.5, 1.5], [1.5, 1.5]])
            centers = cell.repeat_interleave(3, dim=0)  # three aspect ratios; sides are rounded
            torch.testing.assert_close(level.get_centers(), centers, rtol=0, atol=1e-4)
        assert (cfg.MODEL.RPN.SMOOTH_L1_BETA, cfg.MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA) == (1 / 9, 1)
        for head in (cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.ROI_MASK_HEAD):
            assert (head.POOLER_TYPE, head.POOLER_SAMPLING_RATIO) == ("ROIAlign", 2)
        settings = cfg.NAS.BN_RECALIBRATION
        assert (settings.NUM_IMAGES, settings.BATCH_SIZE, settings.MOMENTUM) == (500 * 16, 16, 0.1)
        assert cfg.MODEL.PANOPTIC_FPN.COMBINE.METHOD == "reference"
    assert supernet.SOLVER.LR_SCHEDULER_NAME == "ReferenceCosineLR"
    assert (supernet.SOLVER.WARMUP_ITERS * 12, supernet.SOLVER.WARMUP_FACTOR) == (3000, 0.1)
    assert (retrain.SOLVER.LR_SCHEDULER_NAME, retrain.SOLVER.WARMUP_ITERS) == ("WarmupMultiStepLR", 500)


def test_the_reference_learning_rates_of_the_supernet():
    """After 0, 1500, 3000, 46500 and 90000 mini-batches: 0.002, 0.011, 0.02, 0.01, 0."""
    cfg = read("reference/supernet_coco.yaml")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=cfg.SOLVER.BASE_LR)
    scheduler = build_lr_scheduler(cfg, optimizer)
    rates = []
    for _ in range(cfg.SOLVER.MAX_ITER + 1):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    found = [rates[mini_batches // 12] for mini_batches in (0, 1500, 3000, 46500, 90000)]
    assert found == pytest.approx([0.002, 0.011, 0.02, 0.01, 0], abs=1e-9)


def test_the_quick_commands_fit_together():
    """Retraining builds a path of the quick supernet; its statistics move as slowly as the paper's (0.01).

    The supernet is trained as those of the benchmark, whose ranking was measured.
    """
    supernet, retrain = read("quick/supernet.yaml"), read("quick/retrain.yaml")
    assert read("bench/shapes4096.yaml").SOLVER == supernet.SOLVER and supernet.SOLVER.MAX_ITER == 640
    assert SearchSpace.from_config(supernet) == SearchSpace.from_config(retrain)
    assert (supernet.MODEL.SHUFFLENET.NORM_MOMENTUM, retrain.MODEL.SHUFFLENET.NORM_MOMENTUM) == (0.1, 0.01)
    supernet.MODEL.SHUFFLENET.NORM_MOMENTUM = 0.01
    assert supernet.MODEL.SHUFFLENET == retrain.MODEL.SHUFFLENET
