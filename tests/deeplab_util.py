"""A small Panoptic-DeepLab, inputs with its targets, and weights between Detectron2's class and ours."""

import re

import torch
from detectron2.projects.panoptic_deeplab.target_generator import PanopticDeepLabTargetGenerator
from modeling_util import make_cfg

THINGS, STUFF = 3, 2  # classes of the small network: labels 0, 1, 2 and 3, 4
HEADS = {"SEM_SEG_HEAD": "AutoPanopticDeepLabSemSegHead", "INS_EMBED_HEAD": "AutoPanopticDeepLabInsEmbedHead"}
OPS = ["sep_5x5", "dwconv_3x3", "atconv_3x3"]
SMALL = {
    "MODEL.META_ARCHITECTURE": "AutoPanopticDeepLab",
    "MODEL.BACKBONE.NAME": "build_shufflenet_backbone",
    "MODEL.PANOPTIC_DEEPLAB.STUFF_AREA": 50,
    "MODEL.PANOPTIC_DEEPLAB.CENTER_THRESHOLD": 0.0,
    "INPUT.GAUSSIAN_SIGMA": 3,
    "INPUT.SMALL_INSTANCE_AREA": 300,
}
for _node, _name in HEADS.items():
    SMALL |= {
        f"MODEL.{_node}.NAME": _name,
        f"MODEL.{_node}.IN_FEATURES": ["res2", "res3", "res5"],
        f"MODEL.{_node}.PROJECT_CHANNELS": [8, 12],
        f"MODEL.{_node}.CONVS_DIM": 16,
        f"MODEL.{_node}.ASPP_CHANNELS": 24,
        f"MODEL.{_node}.ASPP_DROPOUT": 0.0,
        f"MODEL.{_node}.HEAD_CHANNELS": 20,
        f"MODEL.{_node}.NORM": "BN",
    }
FIXED = ["NAS.SPACE.BACKBONE_OPS", ["shuffle_3x3"]]
RESNET = [
    "MODEL.BACKBONE.NAME", "build_resnet_deeplab_backbone",
    "MODEL.RESNETS.STEM_OUT_CHANNELS", 8,
    "MODEL.RESNETS.WIDTH_PER_GROUP", 4,
    "MODEL.RESNETS.RES2_OUT_CHANNELS", 8,
    "MODEL.RESNETS.RES5_DILATION", 2,
    "MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res5"],
    "MODEL.RESNETS.NORM", "BN",
]  # fmt: skip
SEPARABLE = [
    word
    for node in ("SEM_SEG_HEAD", "PANOPTIC_DEEPLAB")
    for word in (f"MODEL.{node}.USE_DEPTHWISE_SEPARABLE_CONV", True)
]


def deeplab_cfg(*options):
    """The config of the small network, with ``options`` KEY VALUE ... on top."""
    return make_cfg(*(word for pair in SMALL.items() for word in pair), *options)


def as_detectron2s(cfg):
    """The same network of Detectron2's own class."""
    cfg = cfg.clone()
    cfg.MODEL.META_ARCHITECTURE = "PanopticDeepLab"
    for node, name in HEADS.items():
        cfg.MODEL[node].NAME = name.removeprefix("Auto")
    return cfg


def detectron2_names(state):
    """Our weights under the names that Detectron2's class has for them: without the choice blocks."""
    return {re.sub(r"(.*_head\..*)\.candidates\.\w+", r"\1", name): value for name, value in state.items()}


def scene(height=64, width=64, boxes=((4, 4, 40, 40), (10, 20, 60, 60)), seed=0, sigma=3):
    """One training input: the left half is stuff 3, the right 4, a strip void; box i is of class i."""
    generator = torch.Generator().manual_seed(seed)
    panoptic = torch.full((height, width), 1)
    panoptic[:, width // 2 :] = 2
    segments = [{"id": i + 1, "category_id": THINGS + i, "iscrowd": 0} for i in range(STUFF)]
    for i, (x0, y0, x1, y1) in enumerate(boxes):
        panoptic[y0:y1, x0:x1] = 10 + i
        segments.append({"id": 10 + i, "category_id": i % THINGS, "iscrowd": 0})
    panoptic[-4:, :8] = 0
    generate = PanopticDeepLabTargetGenerator(
        255, range(THINGS), sigma=sigma, small_instance_area=300, small_instance_weight=3
    )
    image = torch.randint(0, 256, (3, height, width), generator=generator).float()
    return {"image": image, "height": height, "width": width, **generate(panoptic.numpy(), segments)}


@torch.no_grad()
def answer(model):
    """Let an untrained network be sure of random things: every class and a few centres occur in scene().

    The statistics of the active path are those of a scene.
    """
    norms = [layer for layer in model.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    images = model._images([scene(seed=9), scene(seed=8)], 0)
    before = [layer.momentum for layer in norms]
    model.eval()
    for layer in norms:
        layer.train().momentum = 1.0
    model._maps(images)
    for layer, momentum in zip(norms, before, strict=True):
        layer.momentum = momentum
    model.eval()
    heads = model.sem_seg_head, model.ins_embed_head
    predictors = heads[0].predictor, heads[1].center_predictor, heads[1].offset_predictor
    for predictor, values in zip(predictors, model._maps(images), strict=True):
        std = values.std(dim=(0, 2, 3))
        predictor.weight /= std[:, None, None, None]
        predictor.bias.copy_(-values.mean(dim=(0, 2, 3)) / std)
    predictors[2].weight *= 3
    return model
