"""The keys of this system's encoders. What the supplement leaves open is marked "re-interpretation"."""

from detectron2.config import CfgNode as CN

from ...validate import RULES, WIDTH, Rule, choice, optional, several, whole

_NORM = choice("BN", "SyncBN")
_FOURFOLD = Rule(lambda v: WIDTH.allows(v) and v % 4 == 0, "a multiple of 4")

RULES |= {
    "MODEL.HRNET.WIDTH": optional(choice(18, 32, 48, "wider", "custom")),
    "MODEL.HRNET.CHANNELS": several(WIDTH, count=4),
    "MODEL.HRNET.RAISED": several(_FOURFOLD, count=4),
    "MODEL.HRNET.BOTTLENECK": WIDTH,
    "MODEL.HRNET.BLOCK": choice("basic", "xception"),
    "MODEL.HRNET.BLOCKS": whole(1, 100),
    "MODEL.HRNET.MODULES": several(whole(1, 100), count=3),
    "MODEL.HRNET.HEAD": choice("none", "concat", "classification"),
    "MODEL.HRNET.FUSE_UPSAMPLE": choice("nearest", "bilinear"),
    "MODEL.HRNET.SKIPS": choice("trunk", "raised"),
    "MODEL.HRNET.ASPP_INPUT": choice(2048, 1024),
    "MODEL.HRNET.NORM": _NORM,
    "MODEL.XCEPTION.NORM": _NORM,
    "MODEL.AUTO_DEEPLAB.FILTERS": WIDTH,
    "MODEL.AUTO_DEEPLAB.NORM": _NORM,
}


def add_encoder_config(cfg: CN) -> None:
    """Add the keys of the encoders to a config, in place."""
    # ------------------------------------------------------------------ HRNet (supplement, section 1)
    # MODEL.BACKBONE.NAME build_hrnet_backbone. Needs timm: the extra "deeplab". MODEL.WEIGHTS may be a
    # published classifier, of which all but the last layer is used: a file of timm's or of HRNet's authors,
    # or a name of timm's hub, as timm://hrnet_w48.ms_in1k. Images: RGB, ImageNet's mean and deviation.
    cfg.MODEL.HRNET = CN()
    # 18, 32, 48: channels of the finest branch, which the others double. "wider" is HRNet-Wider: Xception
    # modules and 64, 256, 384, 384 channels. "custom" reads CHANNELS to RAISED below. None is 48.
    cfg.MODEL.HRNET.WIDTH = None
    # "none": the four branches as res2..res5. "concat": one map "concat" of stride 4, of all branches (Figure
    # 1). "classification" (HRNet+): res2..res4, and as res5 the output of the classification head.
    cfg.MODEL.HRNET.HEAD = "classification"
    # HRNet+ (Atrous): the fourth branch, and res5, keep stride 16, with dilation 2.
    cfg.MODEL.HRNET.ATROUS_LAST = False
    # How coarse maps grow before they are added to finer ones: "nearest" as in pre-training, or "bilinear"
    # with aligned corners, as in public ports.
    cfg.MODEL.HRNET.FUSE_UPSAMPLE = "nearest"
    # With the classification head, res2..res4 are the branches ("trunk": 48, 96, 192 channels), or what the
    # head makes of them ("raised": 128, 256, 512). Re-interpretation: the supplement does not tell.
    cfg.MODEL.HRNET.SKIPS = "trunk"
    # Channels of res5 with the classification head: 2048, or 1024 without its last convolution.
    # Re-interpretation: "replace pooling and classifier" keeps that.
    cfg.MODEL.HRNET.ASPP_INPUT = 2048
    # With Xception modules: the 3x3 convolutions between branches are depthwise separable, too.
    # Re-interpretation: only the residual modules change.
    cfg.MODEL.HRNET.SEPARABLE_FUSE = False
    # "BN", or "SyncBN" to share statistics between GPUs (falls back to BN on CPU).
    cfg.MODEL.HRNET.NORM = "SyncBN"
    # WIDTH "custom": channels of the branches; of the bottlenecks of stage 1; residual modules, "basic" or
    # "xception", per branch; exchanges in stages 2 to 4; what the classification head raises the branches to.
    cfg.MODEL.HRNET.CHANNELS = [48, 96, 192, 384]
    cfg.MODEL.HRNET.BOTTLENECK = 64
    cfg.MODEL.HRNET.BLOCK = "basic"
    cfg.MODEL.HRNET.BLOCKS = 4
    cfg.MODEL.HRNET.MODULES = [1, 4, 3]
    cfg.MODEL.HRNET.RAISED = [128, 256, 512, 1024]

    # ------------------------------------------------------------------ Xception-71
    # MODEL.BACKBONE.NAME build_xception71_backbone. Needs timm: the extra "deeplab". Output stride 16.
    # MODEL.WEIGHTS may be timm's classifier, as timm://xception71.tf_in1k: RGB, mean and deviation 127.5.
    cfg.MODEL.XCEPTION = CN()
    cfg.MODEL.XCEPTION.NORM = "SyncBN"

    # ------------------------------------------------------------------ Auto-DeepLab (supplement, section 2)
    # MODEL.BACKBONE.NAME build_auto_deeplab_backbone. res2, res3, res4 have strides 4, 8, 16; the encoder's
    # output res5 has stride 8: leave res4 out where heads take the coarsest map for it.
    cfg.MODEL.AUTO_DEEPLAB = CN()
    # F: 20 (small), 32 or 48.
    cfg.MODEL.AUTO_DEEPLAB.FILTERS = 20
    # Whether the last stride, to 32, stays (Auto-DeepLab), or is removed (Auto-DeepLab+).
    cfg.MODEL.AUTO_DEEPLAB.KEEP_LAST_STRIDE = True
    cfg.MODEL.AUTO_DEEPLAB.NORM = "SyncBN"
