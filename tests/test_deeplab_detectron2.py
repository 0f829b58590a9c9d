"""Our copies of Detectron2's Panoptic-DeepLab configs: its class and ours give the same, on two ranks too."""

import pytest
import torch
from deeplab_util import HEADS, detectron2_names
from detectron2.data import MetadataCatalog
from detectron2.projects.panoptic_deeplab import PanopticDeepLab
from detectron2.projects.panoptic_deeplab.target_generator import PanopticDeepLabTargetGenerator
from detectron2.utils.events import EventStorage
from forked_ranks import on_ranks
from modeling_util import inference, make_model, training_losses
from test_configs import read

from auto_panoptic.systems.panoptic_deeplab import AutoPanopticDeepLab
from auto_panoptic.training import FairCycleTrainer, build_optimizer

CONFIGS = {"cityscapes": (8, 19), "coco": (80, 133)}
BN = [word for node in ("RESNETS", *HEADS) for word in (f"MODEL.{node}.NORM", "BN")]
NARROW = [
    "MODEL.RESNETS.STEM_OUT_CHANNELS", 16,
    "MODEL.RESNETS.WIDTH_PER_GROUP", 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS", 32,
]  # fmt: skip
SMALL_IMAGES = ["INPUT.CROP.SIZE", [64, 64], "MODEL.PANOPTIC_DEEPLAB.STUFF_AREA", 64]


def read_copy(data, *options):
    """The config of Detectron2's class and that of ours, on a CPU and for images of 64 pixels."""
    things, _ = CONFIGS[data]
    name = f"deeplab_{data}"
    MetadataCatalog.get(name).set(
        thing_dataset_id_to_contiguous_id={i: i for i in range(things)}, label_divisor=1000
    )
    path = f"panoptic_deeplab/detectron2_{data}_R52.yaml"
    cfg = read(path, "MODEL.DEVICE", "cpu", "DATASETS.TRAIN", (name,), *SMALL_IMAGES, *options)
    if cfg.MODEL.PANOPTIC_DEEPLAB.SIZE_DIVISIBILITY > 0:
        cfg.MODEL.PANOPTIC_DEEPLAB.SIZE_DIVISIBILITY = 64
    ours, theirs = cfg.clone(), cfg
    theirs.merge_from_list(BN)
    ours.MODEL.META_ARCHITECTURE = "AutoPanopticDeepLab"
    for node, head in HEADS.items():
        ours.MODEL[node].NAME = head
    return ours, theirs


def twins(data, *options):
    ours, theirs = read_copy(data, *options)
    model, other = make_model(ours), make_model(theirs, seed=1)
    assert type(model) is AutoPanopticDeepLab and type(other) is PanopticDeepLab
    other.load_state_dict(detectron2_names(model.state_dict()))
    return (model, ours), (other, theirs)


def image(data, seed):
    """Two things and two kinds of stuff on 64 x 64 pixels, of random values."""
    things, _ = CONFIGS[data]
    panoptic = torch.full((64, 64), 1)
    panoptic[:, 30:] = 2
    panoptic[5:40, 8:50], panoptic[30:60, 40:62] = 3, 4
    panoptic[:2] = 0
    segments = [
        {"id": i, "category_id": label, "iscrowd": 0}
        for i, label in ((1, things), (2, things + 1), (3, 0), (4, things - 1))
    ]
    targets = PanopticDeepLabTargetGenerator(255, range(things), small_instance_weight=3)
    pixels = torch.randint(0, 256, (3, 64, 64), generator=torch.Generator().manual_seed(seed)).float()
    return {"image": pixels, "height": 64, "width": 64, **targets(panoptic.numpy(), segments)}


@pytest.mark.parametrize("data", CONFIGS)
def test_the_settings_are_detectron2s(data):
    """Separable layers, Adam without decay, poly; 90k x 32 crops of 512 x 1024, 200k x 64 of 640."""
    cfg = read(f"panoptic_deeplab/detectron2_{data}_R52.yaml")
    things, labels = CONFIGS[data]
    node, solver = cfg.MODEL.PANOPTIC_DEEPLAB, cfg.SOLVER
    assert (cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES) == (things, labels)
    assert node.USE_DEPTHWISE_SEPARABLE_CONV and not node.CENTER_SEPARABLE
    assert cfg.MODEL.SEM_SEG_HEAD.PROJECT_CHANNELS == cfg.MODEL.INS_EMBED_HEAD.PROJECT_CHANNELS == [32, 64]
    assert (node.CENTER_THRESHOLD, node.TOP_K_INSTANCE, cfg.MODEL.RESNETS.RES5_DILATION) == (0.1, 200, 2)
    assert (solver.OPTIMIZER, solver.LR_SCHEDULER_NAME, solver.WEIGHT_DECAY) == ("ADAM", "WarmupPolyLR", 0)
    found = (node.STUFF_AREA, node.NMS_KERNEL, cfg.INPUT.GAUSSIAN_SIGMA, tuple(cfg.INPUT.CROP.SIZE),
        solver.BASE_LR, solver.IMS_PER_BATCH, solver.MAX_ITER, cfg.MODEL.SEM_SEG_HEAD.LOSS_TOP_K)  # fmt: skip
    assert (
        found
        == {
            "cityscapes": (2048, 7, 10, (512, 1024), 0.001, 32, 90000, 0.2),
            "coco": (4096, 41, 8, (640, 640), 0.0005, 64, 200000, 1.0),
        }[data]
    )


@pytest.mark.parametrize("data", CONFIGS)
def test_both_classes_give_the_same(data):
    """ResNet-52 as published, with copied weights: losses and predictions to 1e-5."""
    (ours, _), (theirs, _) = twins(data)
    inputs = [image(data, 0), image(data, 1)]
    losses = training_losses(ours, inputs), training_losses(theirs, inputs)
    assert losses[0].keys() == losses[1].keys() == {"loss_sem_seg", "loss_center", "loss_offset"}
    for name, loss in losses[0].items():
        torch.testing.assert_close(loss, losses[1][name], rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        for model in (ours, theirs):
            model.sem_seg_head.predictor.weight *= 100
            model.ins_embed_head.center_predictor.bias += 0.5
            model.ins_embed_head.center_predictor.weight *= 100
    things = 0
    for a, b in zip(inference(ours, inputs), inference(theirs, inputs), strict=True):
        torch.testing.assert_close(a["sem_seg"], b["sem_seg"], rtol=1e-5, atol=1e-5)
        panoptic, segments = a["panoptic_seg"]
        labels = torch.tensor([-1, *(s["category_id"] for s in segments)])[panoptic.long()]
        numbers = b["panoptic_seg"][0]
        assert torch.equal(labels, torch.where(numbers < 0, -1, numbers // 1000))
        assert len(torch.stack([panoptic.long(), numbers]).flatten(1).unique(dim=1).T) == len(
            panoptic.unique()
        )
        if "instances" in b:
            assert len(a["instances"]) == len(b["instances"])
            scores = [x["instances"].scores.sort().values for x in (a, b)]
            torch.testing.assert_close(*scores, rtol=1e-5, atol=1e-5)
            things += len(a["instances"])
    assert things > 1


@pytest.mark.slow
def test_both_classes_train_alike_on_two_ranks(tmp_path):
    """Two steps of Adam, two images a rank: gradients and statistics are averaged, weights stay equal."""

    def train(rank):
        torch.distributed.init_process_group("gloo")
        results = []
        for model, cfg in twins("cityscapes", *NARROW):
            model.train()
            batches = [
                [image("cityscapes", 10 * step + rank), image("cityscapes", 50 + rank)] for step in (1, 2)
            ]
            trainer = FairCycleTrainer(model, batches, build_optimizer(cfg, model), seed=3)
            losses = []
            with EventStorage():
                for trainer.iter in range(2):
                    trainer.run_step()
                    losses.append(trainer.losses)
            results.append((losses, {k: v for k, v in detectron2_names(model.state_dict()).items()}))
        torch.save(results, tmp_path / f"{rank}.pt")

    assert on_ranks(2, train, tmp_path / "logs", timeout=500) == [0, 0], (tmp_path / "logs/0.log").read_text()
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    (losses, weights), (other_losses, other_weights) = ranks[0]
    assert losses[0] != losses[1]
    for a, b in zip(losses, other_losses, strict=True):
        assert a == pytest.approx(b, rel=1e-5, abs=1e-5)
    for name, value in weights.items():
        torch.testing.assert_close(value, other_weights[name], rtol=1e-4, atol=1e-4, msg=name)
        assert torch.equal(value, ranks[1][0][1][name])
