"""A setting of the network that no part of it reads: refused where it is typed, told where it is written."""

import pytest
import torch
from detectron2.modeling import META_ARCH_REGISTRY
from test_cli import refused, toy  # noqa: F401
from toy import ROOT, make_config

from auto_panoptic import train
from auto_panoptic.errors import UserError
from auto_panoptic.read_config import read_config
from auto_panoptic.training import AutoPanopticTrainer, check_unread

UNREAD = {
    "MODEL.RESNETS.DEPTH": 101,
    "MODEL.RETINANET.NUM_CLASSES": 5,
    "MODEL.ROI_BOX_CASCADE_HEAD.IOUS": "(0.5, 0.6)",
    "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS": 3,
    "MODEL.CLASSIFIER.DROPOUT": 0.5,
}


def check(tmp_path, shapes, *options):
    cfg = make_config(tmp_path, shapes, *options)
    check_unread(cfg, str(tmp_path / "toy.yaml"), [str(o) for o in options])


@pytest.mark.parametrize("key", UNREAD)
def test_pairs_without_effect_are_refused(tmp_path, shapes, key):
    with pytest.raises(
        UserError, match=f"{key} is .*, but no part of this config's AutoPanopticFPN reads it"
    ):
        check(tmp_path, shapes, "MODEL.DEVICE", "cpu", key, UNREAD[key])


def test_what_else_decides_whether_a_key_is_read(tmp_path, shapes):
    width = ("MODEL.SHUFFLENET.WIDTH", "300M")
    with pytest.raises(UserError, match="STAGE_CHANNELS is .*, but no part"):
        check(tmp_path, shapes, *width, "MODEL.SHUFFLENET.STAGE_CHANNELS", "[16, 24, 32, 64]")
    with pytest.raises(UserError, match="CROSS_ATTENTION.RATIOS is .*, but no part"):
        check(tmp_path, shapes, "MODEL.CROSS_ATTENTION.ENABLED", False, "MODEL.CROSS_ATTENTION.RATIOS", "[2]")
    check(tmp_path, shapes, "MODEL.CROSS_ATTENTION.RATIOS", "[2]")


def test_an_architecture_needs_something_to_choose(tmp_path, shapes):
    options = ["NAS.ARCHITECTURE", "auto_panoptic_coco"]
    fixed, searched = (str(ROOT / f"configs/quick/{name}.yaml") for name in ("panoptic_fpn", "retrain"))
    with pytest.raises(UserError, match="NAS.ARCHITECTURE is 'auto_panoptic_coco', but no part"):
        check_unread(read_config(fixed, options), fixed, options)
    with pytest.raises(UserError, match="auto_panoptic_coco"):  # it is read: of another space
        check_unread(read_config(searched, options), searched, options)


@META_ARCH_REGISTRY.register()
class ReadsByGet(torch.nn.Module):
    """Reads one key as a mapping's, not as an attribute."""

    def __init__(self, cfg):
        super().__init__()
        self.depth = cfg.MODEL.RESNETS.get("DEPTH", 50)


def test_a_key_may_be_read_as_a_mappings(tmp_path, shapes):
    model = ("MODEL.META_ARCHITECTURE", "ReadsByGet")
    check(tmp_path, shapes, *model, "MODEL.RESNETS.DEPTH", 101)
    with pytest.raises(UserError, match="NUM_GROUPS is 2, but no part"):
        check(tmp_path, shapes, *model, "MODEL.RESNETS.NUM_GROUPS", 2)


@META_ARCH_REGISTRY.register()
class ReadsLater(torch.nn.Module):
    """Keeps its config."""

    def __init__(self, cfg):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.settings = cfg.MODEL


def test_a_model_that_keeps_its_config_may_read_it_later(tmp_path, shapes):
    model = ("MODEL.META_ARCHITECTURE", "ReadsLater")
    check(tmp_path, shapes, *model, "MODEL.RESNETS.DEPTH", 101)
    with pytest.raises(UserError, match="TRAIN_SIZE is 64, but no part"):
        check(tmp_path, shapes, *model, "INPUT.CLASSIFICATION.TRAIN_SIZE", 64)


def test_what_is_read_or_usual_may_stand_there(tmp_path, shapes):
    options = (
        "MODEL.RESNETS.DEPTH",
        50,
        "MODEL.RPN.NMS_THRESH",
        0.6,
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST",
        0.1,
    )
    options += ("MODEL.FPN.NORM", "", "MODEL.WEIGHTS", "x.pth", "MODEL.CHANNELS_LAST", True, "VIS_PERIOD", 5)
    options += (
        "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT",
        0.3,
        "MODEL.BACKBONE.FREEZE_AT",
        1,
        "MODEL.PIXEL_STD",
        "[2, 2, 2]",
    )
    check(tmp_path, shapes, *options)


def test_a_line_of_the_file_is_refused_and_one_of_its_base_is_not(tmp_path, caplog):
    base, path = tmp_path / "base.yaml", tmp_path / "mine.yaml"
    base.write_text(f"_BASE_: {ROOT}/configs/quick/supernet.yaml\nMODEL:\n  RESNETS:\n    DEPTH: 18\n")
    path.write_text(f"_BASE_: {base}\nMODEL:\n  DEVICE: cpu\n")
    check_unread(read_config(str(path)), str(path), [])
    path.write_text(f"_BASE_: {base}\nMODEL:\n  DEVICE: cpu\n  RETINANET:\n    NUM_CONVS: 2\n")
    with pytest.raises(UserError, match="MODEL.RETINANET.NUM_CONVS is 2, but no part"):
        check_unread(read_config(str(path)), str(path), [])
    assert "without effect" not in caplog.text


def test_a_line_that_only_a_pair_leaves_without_effect_is_told(tmp_path, caplog):
    path = tmp_path / "mine.yaml"
    base = ROOT / "configs/own/cpu_supernet.yaml"
    path.write_text(f"_BASE_: {base}\nMODEL: {{DEVICE: cpu, CROSS_ATTENTION: {{RATIOS: [2]}}}}\n")
    opts = ["MODEL.CROSS_ATTENTION.ENABLED", "False"]
    check_unread(read_config(str(path), opts), str(path), opts)
    assert f"{path}: without effect on this AutoPanopticFPN: MODEL.CROSS_ATTENTION.RATIOS" in caplog.messages


def test_the_config_that_a_run_wrote_may_be_used_again(tmp_path):
    """It states every key, also those of its bases that nothing reads."""
    path = tmp_path / "config.yaml"
    cfg = read_config(str(ROOT / "configs/quick/panoptic_fpn.yaml"))
    path.write_text(cfg.dump())
    check_unread(read_config(str(path)), str(path), [])


TYPED = {
    "SOLVER.GAMMA": (0.5, "SOLVER.LR_SCHEDULER_NAME", "WarmupLinearLR"),
    "SOLVER.STEPS": ("(1,)", "SOLVER.LR_SCHEDULER_NAME", "WarmupLinearLR"),
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": (0.5, "SOLVER.CLIP_GRADIENTS.ENABLED", False),
    "SOLVER.AMP.DTYPE": ("bfloat16",),
    "INPUT.CROP.TYPE": ("absolute",),
    "INPUT.CROP.AFTER_RESIZE": (True,),
    "INPUT.CLASSIFICATION.TRAIN_SIZE": (64,),
    "TEST.AUG.MAX_SIZE": (100,),
    "TEST.PRECISE_BN.NUM_ITER": (7,),
    "NAS.BN_RECALIBRATION.BATCH_SIZE": (2, "NAS.BN_RECALIBRATION.ENABLED", False),
}


@pytest.mark.parametrize("key", TYPED)
def test_pairs_beyond_the_network(tmp_path, shapes, key):
    """What the schedule, the optimizer or the images do not read, and what is switched off."""
    value, *others = TYPED[key]
    with pytest.raises(UserError, match=f"{key} is .*, but no part of this config's"):
        check(tmp_path, shapes, key, value, *others)


def test_pairs_that_are_obeyed(tmp_path, shapes):
    options = ("SOLVER.NESTEROV", True, "SOLVER.GAMMA", 0.5, "SOLVER.CLIP_GRADIENTS.ENABLED", True)
    options += (
        "SOLVER.CLIP_GRADIENTS.CLIP_VALUE",
        0.5,
        "INPUT.CROP.ENABLED",
        True,
        "INPUT.CROP.TYPE",
        "absolute",
    )
    options += ("INPUT.CROP.SIZE", "[40, 50]", "INPUT.CROP.AFTER_RESIZE", True, "INPUT.COLOR_AUG_SSD", True)
    options += ("INPUT.MIN_SIZE_TEST", 70, "INPUT.RANDOM_FLIP", "none", "SOLVER.AMP.ENABLED", True)
    check(tmp_path, shapes, *options, "SOLVER.AMP.DTYPE", "bfloat16", "DATALOADER.NUM_WORKERS", 2)


class OwnTrainer(AutoPanopticTrainer):
    """Reads keys in ways of its own."""

    @classmethod
    def build_optimizer(cls, cfg, model):
        raise NotImplementedError

    @classmethod
    def build_train_loader(cls, cfg):
        raise NotImplementedError


def test_a_trainer_of_ones_own_may_read_anything(tmp_path, shapes):
    options = ["INPUT.CLASSIFICATION.TRAIN_SIZE", "64", "SOLVER.GAMMA", "0.5"]
    cfg = make_config(tmp_path, shapes, *options, "SOLVER.LR_SCHEDULER_NAME", "WarmupLinearLR")
    check_unread(cfg, str(tmp_path / "toy.yaml"), options, OwnTrainer)
    with pytest.raises(UserError, match="is 64, but no part"):
        check_unread(cfg, str(tmp_path / "toy.yaml"), options)


@pytest.mark.parametrize("name", ["R_50_1x", "R_50_3x", "R_101_3x"])
def test_configs_of_detectron2_say_nothing_in_vain(caplog, name):
    path = f"COCO-PanopticSegmentation/panoptic_fpn_{name}.yaml"
    check_unread(read_config(path, ["MODEL.DEVICE", "cpu"]), path, [])
    assert "without effect" not in caplog.text


CONFIGS = ("supernet_coco", "auto_panoptic_coco", "baselines/panoptic_fpn_coco", "reference/supernet_coco")
CONFIGS += (
    "quick/panoptic_fpn",
    "quick/panoptic_fpn_narrow",
    "quick/panoptic_fpn_quarter",
    "quick/supernet",
    "quick/unified",
    "quick/unified_R18",
)
CONFIGS += ("unified/cityscapes_R50", "unified/cityscapes_R50_maskfree_ground_truth", "unified/supernet_coco")


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_of_the_project_say_nothing_in_vain(caplog, name):
    path = str(ROOT / f"configs/{name}.yaml")
    check_unread(read_config(path, ["MODEL.DEVICE", "cpu", "NAS.ARCHITECTURE", ""]), path, [])
    assert "without effect" not in caplog.text


def test_every_command_refuses(capfd, tmp_path, toy, monkeypatch):  # noqa: F811
    option = ("MODEL.RESNETS.DEPTH", 101)
    for script in ("train_net", "search_net"):
        assert "no part of this config's" in refused(capfd, tmp_path, script, "--config-file", toy, *option)
    with pytest.raises(UserError, match="MODEL.RESNETS.DEPTH is 101"):
        train(str(toy), option)
