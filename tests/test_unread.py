"""A setting of the network that no part of it reads: refused where it is typed, told where it is written."""

import pytest
import torch
from detectron2.modeling import META_ARCH_REGISTRY
from test_cli import refused, toy  # noqa: F401
from toy import ROOT, make_config

from auto_panoptic import train
from auto_panoptic.errors import UserError
from auto_panoptic.read_config import read_config
from auto_panoptic.training import check_unread

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


def test_a_line_of_the_file_is_told_and_one_of_its_base_is_not(tmp_path, caplog):
    base, path = tmp_path / "base.yaml", tmp_path / "mine.yaml"
    base.write_text(f"_BASE_: {ROOT}/configs/quick/supernet.yaml\nMODEL:\n  RESNETS:\n    DEPTH: 18\n")
    path.write_text(f"_BASE_: {base}\nMODEL:\n  DEVICE: cpu\n  RETINANET:\n    NUM_CONVS: 2\n")
    check_unread(read_config(str(path)), str(path), [])
    assert f"{path}: without effect on this AutoPanopticFPN: MODEL.RETINANET.NUM_CONVS" in caplog.messages


CONFIGS = ("supernet_coco", "auto_panoptic_coco", "baselines/panoptic_fpn_coco", "reference/supernet_coco")
CONFIGS += ("quick/panoptic_fpn", "quick/supernet")


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
