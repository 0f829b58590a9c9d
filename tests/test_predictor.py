"""Detectron2's DefaultPredictor with our configs: the right weights predict, others are refused at load."""

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from detectron2.utils.visualizer import Visualizer
from toy import answer_strongly, make_config

from auto_panoptic import add_auto_panoptic_config
from auto_panoptic.errors import UserError
from auto_panoptic.space import SearchSpace


@pytest.fixture(scope="module")
def world(tmp_path_factory, shapes):
    """A folder with the weights of two fixed networks and of their supernet, and an image."""
    folder = tmp_path_factory.mktemp("predictor")
    cfg = make_config(folder, shapes)
    space = SearchSpace.from_config(cfg)
    for name in ("a", "b", "supernet"):
        indices = [int(name == "b") % len(site.ops) for site in space.sites]
        space.architecture(indices).save(folder / f"{name}.json")
        options = () if name == "supernet" else ("NAS.ARCHITECTURE", folder / f"{name}.json")
        torch.manual_seed(0)
        model = build_model(make_config(folder, shapes, *options))
        answer_strongly(model)
        torch.save({"model": model.state_dict()}, folder / f"{name}.pth")
    return folder


def predictor(folder, architecture, weights, **shufflenet):
    """As a user of Detectron2 writes it."""
    cfg = get_cfg()
    add_auto_panoptic_config(cfg)
    cfg.merge_from_file(str(folder / "toy.yaml"))
    cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 7, 6  # of the drawn set
    cfg.MODEL.SHUFFLENET.update(shufflenet)
    cfg.NAS.ARCHITECTURE = str(folder / architecture) if architecture else ""
    cfg.MODEL.WEIGHTS = str(folder / weights)
    return DefaultPredictor(cfg)


def test_the_right_network_predicts_and_is_drawn(world, shapes):
    image = cv2.imread(str(next((shapes / "val").iterdir())))
    panoptic, segments = predictor(world, "a.json", "a.pth")(image)["panoptic_seg"]
    assert segments and panoptic.shape == image.shape[:2]
    assert {s["id"] for s in segments} == set(np.unique(panoptic)) - {0}
    metadata = MetadataCatalog.get("shapes_panoptic_val")
    drawn = Visualizer(image[:, :, ::-1], metadata).draw_panoptic_seg(panoptic, segments)
    assert drawn.get_image().shape == image.shape


@pytest.mark.parametrize("architecture, weights, message", [
    ("", "a.pth", "this config builds a supernet, which predicts nothing; add NAS.ARCHITECTURE FILE"),
    ("", "supernet.pth", "this config builds a supernet, which predicts nothing"),
    ("b.json", "a.pth", r"\d+ weights of this network, such as .*, are not in the file, .* would be random"),
    ("a.json", "supernet.pth", "these weights are a supernet's, with 4 operators at site 'backbone.0'"),
])  # fmt: skip
def test_wrong_networks_are_refused(world, architecture, weights, message):
    with pytest.raises(UserError, match=message):
        predictor(world, architecture, weights)


def test_weights_of_another_width_are_refused(world):
    with pytest.raises(UserError, match="or have another shape there"):
        predictor(world, "a.json", "a.pth", STAGE_CHANNELS=[16, 24, 32, 64])


def test_other_classes_are_refused(world):
    """The predictor leaves out what has another shape, here of the classifiers alone."""
    data = torch.load(world / "a.pth", weights_only=True)["model"]
    data = {k: v[:-1] if k.startswith("roi_heads.box_predictor.cls_score") else v for k, v in data.items()}
    torch.save({"model": data}, world / "other.pth")
    with pytest.raises(
        UserError, match="2 weights of this network, such as roi_heads.box_predictor.cls_score"
    ):
        predictor(world, "a.json", "other.pth")
