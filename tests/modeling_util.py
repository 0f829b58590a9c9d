"""Small configs, inputs and comparisons for the tests of auto_panoptic.modeling."""

from pathlib import Path

import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

import auto_panoptic.systems  # noqa: F401  registers the components
from auto_panoptic import add_auto_panoptic_config
from auto_panoptic.modeling import choice_blocks

CONFIGS = Path(__file__).resolve().parents[1] / "configs"

# A model of a few hundred thousand parameters with every kind of site.
SMALL = [
    "MODEL.SHUFFLENET.WIDTH", "custom",
    "MODEL.SHUFFLENET.STEM_CHANNELS", 8,
    "MODEL.SHUFFLENET.STAGE_CHANNELS", [16, 32, 48, 64],
    "MODEL.SHUFFLENET.STAGE_REPEATS", [1, 1, 2, 1],
    "MODEL.FPN.OUT_CHANNELS", 64,
    "MODEL.ANCHOR_GENERATOR.SIZES", [[8], [16], [32], [64], [128]],
    "MODEL.RPN.POST_NMS_TOPK_TRAIN", 50,
    "MODEL.RPN.POST_NMS_TOPK_TEST", 20,
    "MODEL.ROI_HEADS.NUM_CLASSES", 3,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 16,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0,
    "MODEL.ROI_BOX_HEAD.FC_DIM", 64,
    "MODEL.ROI_MASK_HEAD.NUM_CONV", 2,
    "MODEL.ROI_MASK_HEAD.CONV_DIM", 64,
    "MODEL.SEM_SEG_HEAD.NUM_LAYERS", 2,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM", 64,
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 5,
    "TEST.DETECTIONS_PER_IMAGE", 5,
]  # fmt: skip


def make_cfg(*options, config="supernet_coco.yaml", small=True):
    """The config file ``config`` on CPU, small by default, with ``options`` KEY VALUE ... on top."""
    cfg = get_cfg()
    add_auto_panoptic_config(cfg)
    cfg.merge_from_file(str(CONFIGS / config))
    cfg.merge_from_list([*(SMALL if small else []), "MODEL.DEVICE", "cpu", *options])
    return cfg


def make_model(cfg, seed=0):
    """The model of ``cfg``, initialised from ``seed``, a supernet on its first path."""
    torch.manual_seed(seed)
    model = build_model(cfg)
    for block in choice_blocks(model).values():
        block.select(block.active)
    return model


def make_input(height=64, width=64, boxes=((4, 4, 40, 40), (10, 20, 60, 60)), seed=0, sem_classes=5):
    """One training input: each box is an instance of class 0, 1, ... whose mask fills it."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(len(boxes), height, width, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.gt_classes = torch.arange(len(boxes))
    instances.gt_masks = BitMasks(masks)
    return {
        "image": torch.randint(0, 256, (3, height, width), generator=generator).float(),
        "instances": instances,
        "sem_seg": torch.randint(0, sem_classes, (height, width), generator=generator),
        "height": height,
        "width": width,
    }


def training_losses(model, inputs, seed=0):
    """The losses of ``model`` in training mode; the sampling of anchors and regions starts from ``seed``."""
    model.train()
    torch.manual_seed(seed)
    with EventStorage():
        return model(inputs)


def inference(model, inputs):
    """Outputs of ``model`` in evaluation mode, without gradients."""
    model.eval()
    with torch.no_grad():
        return model(inputs)


def num_params(module):
    return sum(p.numel() for p in module.parameters())


def assert_same_outputs(ours, theirs, tolerance=1e-5):
    """Compare two results of :func:`inference` in all parts: semantic, instances, panoptic."""
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a["sem_seg"], b["sem_seg"], atol=tolerance, rtol=tolerance)
        assert len(a["instances"]) == len(b["instances"])
        assert torch.equal(a["instances"].pred_classes, b["instances"].pred_classes)
        assert torch.equal(a["instances"].pred_masks, b["instances"].pred_masks)
        for x, y in (
            (a["instances"].scores, b["instances"].scores),
            (a["instances"].pred_boxes.tensor, b["instances"].pred_boxes.tensor),
        ):
            torch.testing.assert_close(x, y, atol=tolerance * 10, rtol=tolerance)
        assert torch.equal(a["panoptic_seg"][0], b["panoptic_seg"][0])
