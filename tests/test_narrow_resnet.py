"""A ResNet-18 of any width: with Detectron2's width it is Detectron2's."""

import pytest
import torch
from detectron2.modeling import build_backbone
from toy import ROOT

from auto_panoptic.errors import UserError
from auto_panoptic.read_config import read_config

NARROW = str(ROOT / "configs/quick/panoptic_fpn_narrow.yaml")


def build(*options):
    torch.manual_seed(0)
    return build_backbone(read_config(NARROW, list(map(str, options)))).eval()


@pytest.mark.parametrize("depth", [18, 34])
def test_with_its_width_it_is_detectron2s(depth):
    options = ("MODEL.RESNETS.DEPTH", depth, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64)
    ours = build(*options)
    theirs = build(*options, "MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone")
    theirs.load_state_dict(ours.state_dict(), strict=True)
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        found, expected = ours(image), theirs(image)
    assert found.keys() == expected.keys()
    for name in expected:
        assert torch.equal(found[name], expected[name]), name


def test_widths():
    backbone = build("MODEL.RESNETS.RES2_OUT_CHANNELS", 12)
    assert [s.channels for s in backbone.bottom_up.output_shape().values()] == [12, 24, 48, 96]
    with pytest.raises(UserError, match="MODEL.RESNETS.DEPTH 50: this backbone is for 18 and 34"):
        build("MODEL.RESNETS.DEPTH", 50)
