"""Panoptic-DeepLab in training: Adam and the poly schedule, fair cycles, and every command."""

import json
import sys

import pytest
import torch
import yaml
from deeplab_util import OPS, SEPARABLE, deeplab_cfg, scene
from detectron2.projects.deeplab.lr_scheduler import WarmupPolyLR
from detectron2.utils.events import EventStorage
from modeling_util import make_model
from toy import (
    PREFIX,
    ROOT,
    dataset_entries,
    final_checkpoint,
    final_results,
    run_script,
    through_the_commands,
)

from auto_panoptic.explore import Ledger
from auto_panoptic.space import Architecture
from auto_panoptic.training import FairCycleTrainer, build_optimizer
from auto_panoptic.training.schedule import build_lr_scheduler

ADAM = ("SOLVER.OPTIMIZER", "ADAM", "SOLVER.BASE_LR", 0.1, "SOLVER.WEIGHT_DECAY", 0.0)


# ------------------------------------------------------------------ solver


def test_a_step_of_adam_by_hand():
    """The first step is the learning rate times the sign of the gradient."""
    layer = torch.nn.Linear(2, 1)
    before = layer.weight.detach().clone()
    optimizer = build_optimizer(deeplab_cfg(*ADAM), layer)
    layer(torch.tensor([[3.0, -0.5]])).sum().backward()
    optimizer.step()
    assert isinstance(optimizer, torch.optim.Adam)
    torch.testing.assert_close(layer.weight.detach() - before, torch.tensor([[-0.1, 0.1]]))


def test_adam_clips_and_decays_as_configured():
    layer = torch.nn.Linear(2, 1)
    clip = ("SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "norm",
        "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 0.5)  # fmt: skip
    cfg = deeplab_cfg(*ADAM, *clip, "SOLVER.WEIGHT_DECAY_BIAS", 0.01)
    optimizer = build_optimizer(cfg, layer)
    decays = {p: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert (decays[layer.weight], decays[layer.bias]) == (0.0, 0.01)
    (100 * layer(torch.ones(1, 2))).sum().backward()
    optimizer.step()
    assert layer.weight.grad.norm().item() == pytest.approx(0.5)


def test_the_poly_schedule_by_hand():
    """BASE_LR * (1 - i / MAX_ITER) ** 0.9, after a linear warm-up from WARMUP_FACTOR."""
    options = ("SOLVER.LR_SCHEDULER_NAME", "WarmupPolyLR", "SOLVER.MAX_ITER", 100, "SOLVER.WARMUP_ITERS", 10)
    cfg = deeplab_cfg(*ADAM, *options, "SOLVER.WARMUP_FACTOR", 0.1, "SOLVER.STEPS", ())
    optimizer = build_optimizer(cfg, torch.nn.Linear(1, 1))
    scheduler, rates = build_lr_scheduler(cfg, optimizer), []
    assert isinstance(scheduler, WarmupPolyLR)
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    warm = [0.1 + 0.9 * i / 10 for i in range(10)]
    expected = [0.1 * (1 - i / 100) ** 0.9 * (warm[i] if i < 10 else 1) for i in range(100)]
    assert rates == pytest.approx(expected, rel=1e-9, abs=1e-12)


# ------------------------------------------------------------------ fair cycles


def test_a_fair_cycle_trains_every_operator_alike():
    """12 passes on 12 mini-batches, one step of Adam: every weight of every operator has moved."""
    cfg = deeplab_cfg(
        *ADAM, *SEPARABLE, "NAS.SPACE.DEEPLAB_OPS", OPS, "NAS.SPACE.BACKBONE_OPS", ["shuffle_3x3"]
    )
    model = make_model(cfg)
    before = {name: value.clone() for name, value in model.named_parameters()}
    batches = [[scene(seed=i), scene(seed=20 + i)] for i in range(12)]
    trainer = FairCycleTrainer(model, batches, build_optimizer(cfg, model))
    with EventStorage():
        trainer.iter = 0
        trainer.run_step()
    assert set(trainer.losses) == {"loss_sem_seg", "loss_center", "loss_offset"}
    counts = [trainer.cycle[i].names()["center.0"] for i in range(12)]
    assert sorted(map(counts.count, {*counts})) == [3] * 4
    same = [name for name, value in model.named_parameters() if torch.equal(value, before[name])]
    assert [name for name in same if not name.endswith("conv.bias") and ".conv.1.bias" not in name] == []


# ------------------------------------------------------------------ every command

BRANCH = {
    "IN_FEATURES": ["res2", "res3", "res5"],
    "PROJECT_CHANNELS": [8, 8],
    "CONVS_DIM": 16,
    "ASPP_CHANNELS": 16,
    "HEAD_CHANNELS": 16,
}
TOY = {
    "_BASE_": str(ROOT / "configs/quick/Base-panoptic_deeplab.yaml"),
    "MODEL": {
        "SHUFFLENET": {"STEM_CHANNELS": 8, "STAGE_CHANNELS": [16, 24, 32, 48], "STAGE_REPEATS": [1, 1, 2, 1]},
        "SEM_SEG_HEAD": BRANCH,
        "INS_EMBED_HEAD": BRANCH,
        "PANOPTIC_DEEPLAB": {"CENTER_THRESHOLD": 0.0, "STUFF_AREA": 4},
    },
    "INPUT": {"MIN_SIZE_TRAIN": [48, 64], "MAX_SIZE_TRAIN": 96, "MIN_SIZE_TEST": 64, "MAX_SIZE_TEST": 96},
    "NAS": {
        "SPACE": {"DEEPLAB_OPS": ["sep_5x5", "dwconv_3x3"], "BACKBONE_OPS": ["shuffle_3x3", "shuffle_5x5"]},
        "POLICY": "path_priority",
        "MODELS_PER_CYCLE": 2,
        "CYCLES": 1,
        "BN_RECALIBRATION": {"NUM_IMAGES": 4, "BATCH_SIZE": 2},
    },
    "SOLVER": {"IMS_PER_BATCH": 2, "MAX_ITER": 4, "WARMUP_ITERS": 1, "CHECKPOINT_PERIOD": 2},
}


def test_centres_may_be_learnt_from_whole_objects(tmp_path, shapes, forget_data_sets):
    """The first step with either annotation: objects under others have other centres, labels are the same."""
    (split,) = (entry for entry in dataset_entries(shapes) if entry["name"] == f"{PREFIX}_nas_train")
    whole = str(shapes / "annotations/whole_instances_nas_train.json")
    data = {"COCO_PANOPTIC": [{**split, "instances_json": whole}], "TRAIN": [split["name"]], "TEST": []}
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump({**TOY, "DATASETS": data}))
    losses = {}
    for source in ("panoptic", "instance"):
        options = ("OUTPUT_DIR", tmp_path / source, "MODEL.PANOPTIC_DEEPLAB.GT_SOURCE", source)
        run_script("train_net", "--config-file", tmp_path / "toy.yaml", *options, "SOLVER.MAX_ITER", 1)
        losses[source] = json.loads((tmp_path / source / "metrics.json").read_text().splitlines()[0])
    panoptic, instance = losses.values()
    assert instance["loss_sem_seg"] == panoptic["loss_sem_seg"] > 0
    assert instance["loss_center"] != panoptic["loss_center"]
    assert instance["loss_offset"] != panoptic["loss_offset"]


def test_a_command_without_timm_ends_in_one_line(tmp_path, shapes, forget_data_sets, monkeypatch, capsys):
    data = {"COCO_PANOPTIC": dataset_entries(shapes), "TRAIN": [f"{PREFIX}_nas_train"], "TEST": []}
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump({**TOY, "DATASETS": data}))
    for module in [m for m in sys.modules if m.partition(".")[0] == "timm"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "timm", None)
    options = ("OUTPUT_DIR", tmp_path / "run", "MODEL.BACKBONE.NAME", "build_hrnet_backbone")
    with pytest.raises(SystemExit) as end:
        run_script("train_net", "--config-file", tmp_path / "toy.yaml", *options)
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "pip install timm" in error and "'deeplab'" in error


@pytest.fixture(scope="module")
def root(tmp_path_factory, shapes):
    """What the commands left: whole, resumed (stopped after two iterations), search, retrained, evaluated."""
    root = tmp_path_factory.mktemp("deeplab")
    splits = {"TRAIN": "nas_train", "TEST": "val", "SEARCH": "nas_val"}
    data = {key: [f"{PREFIX}_{split}"] for key, split in splits.items()}
    content = {**TOY, "DATASETS": {"COCO_PANOPTIC": dataset_entries(shapes), **data}}
    path = root / "toy.yaml"
    path.write_text(yaml.safe_dump(content))
    run, fixed = through_the_commands(root, path)
    for score in ("product", "objectness", "class"):
        run("train_net", score, "--eval-only", *fixed, root / "retrained/model_final.pth",
            "MODEL.PANOPTIC_DEEPLAB.INSTANCE_SCORE", score)  # fmt: skip
    return root


@pytest.mark.slow
def test_a_resumed_supernet_is_the_one_trained_at_once(root):
    whole, resumed = (final_checkpoint(root, run)["model"] for run in ("whole", "resumed"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


@pytest.mark.slow
def test_search_scores_paths(root):
    ledger = Ledger(root / "search/search/ledger.jsonl").records
    assert [record["status"] for record in ledger] == ["ok", "ok"]
    chosen = Architecture.load(root / "search/search/architecture.json").names()
    assert chosen.keys() == final_checkpoint(root, "resumed")["space"].keys()
    assert {"decoder.4", "center.0", "offset.0"} < chosen.keys()
    assert set(final_checkpoint(root, "retrained")["model"]) < set(final_checkpoint(root, "resumed")["model"])


@pytest.mark.slow
def test_the_score_changes_ap_alone(root):
    """Evaluation after a training and by itself; PQ and mIoU are the same for every score."""
    trained, *scored = (final_results(root, run) for run in ("retrained", "product", "objectness", "class"))
    keys = [
        key for key in scored[0] if key.startswith(("panoptic_seg/PQ", "panoptic_seg/SQ", "sem_seg/mIoU"))
    ]
    assert {"panoptic_seg/PQ", "sem_seg/mIoU"} <= set(keys) and "segm/AP" in scored[0]
    for key in keys:
        assert all(result[key] == pytest.approx(scored[0][key], abs=0, nan_ok=True) for result in scored)
        assert trained[key] == pytest.approx(scored[0][key], nan_ok=True)
