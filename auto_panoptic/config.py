"""The configuration keys that systems share, with their meaning and the paper's symbol.

The keys of one system are in its folder: ``systems/NAME/config.py``.
"""

from detectron2.config import CfgNode as CN


def add_auto_panoptic_config(cfg: CN) -> None:
    """Add the keys of Auto-Panoptic to a Detectron2 config, in place, and register its components."""
    from . import systems
    from .explore import POLICY_REGISTRY
    from .space import BACKBONE_OPS, HEAD_OPS

    # Seconds without a sign of life after which the other processes of a run take one for stopped or lost,
    # and end. However long it works alone, as in an evaluation, it gives signs.
    cfg.RANK_TIMEOUT = 120.0

    # Modules to import before the rest is read, such as [my.module]. They may register components, and add
    # keys by a function add_config(cfg). They are found as python -m finds them. Honoured in the config that
    # a command names, not in its bases, and in KEY VALUE pairs.
    cfg.IMPORTS = []

    # ------------------------------------------------------------------ architecture search
    cfg.NAS = CN()
    # "" builds the supernet. A path to an architecture file, or a name under configs/architectures,
    # builds the fixed model with one operator per site; so does json: with the text of one.
    cfg.NAS.ARCHITECTURE = ""
    # Seed of the fair cycles, in supernet training and in the search.
    cfg.NAS.SEED = 0
    # How a search chooses its candidates: "posterior", "path_priority" (paper), or one of the baselines
    # "random" and "evolution". The settings of each are in NAS.POSTERIOR, NAS.CYCLES and
    # NAS.MODELS_PER_CYCLE, NAS.RANDOM and NAS.EVOLUTION; their meaning and defaults: explore/policies.py.
    cfg.NAS.POLICY = "posterior"
    POLICY_REGISTRY.add_config(cfg.NAS, CN)
    # How evaluated candidates are ranked: "exact", or "reference" as the reference code does (PQ to two
    # decimals, and of operators with equal score the last).
    cfg.NAS.SCOREBOARD = "exact"
    # What the optimizer sees after the passes of one fair cycle: "mean" divides each parameter's
    # accumulated gradient by the number of passes that used it; "sum" leaves the sum; "lr_scale" leaves
    # the sum and divides the learning rate of each parameter instead, as the reference code does (its
    # weight decay then acts at the divided rate).
    cfg.NAS.GRADIENTS = "mean"
    # The reference code's rule for every parameter with "bias" in its name, norm layers included: twice the
    # base learning rate, undivided, and no weight decay.
    cfg.NAS.REFERENCE_BIAS_LR = False
    # How the paths of a supernet are drawn: "fair" (strict fairness, one fair cycle per iteration) or
    # "uniform" (one uniformly random path and one mini-batch per iteration, the ImageNet stage).
    cfg.NAS.SAMPLING = "fair"
    # Iterations between two lines of the fairness audit in metrics.json.
    cfg.NAS.AUDIT_PERIOD = 100

    # Operators every site of a kind may take, in the published order (indices refer to it).
    cfg.NAS.SPACE = CN()
    cfg.NAS.SPACE.BACKBONE_OPS = [spec.name for spec in BACKBONE_OPS]
    cfg.NAS.SPACE.HEAD_OPS = [spec.name for spec in HEAD_OPS]
    # Operators of single sites, [[pattern of sites, [operator, ...]], ...], which replace those above; of
    # several patterns that fit, the last. One operator takes a site out of the search.
    cfg.NAS.SPACE.SITES = []

    # Before a candidate is scored, the running statistics of its path's BatchNorm layers are
    # recomputed as the average over this many training images (supplement: 500).
    cfg.NAS.BN_RECALIBRATION = CN()
    cfg.NAS.BN_RECALIBRATION.ENABLED = True
    cfg.NAS.BN_RECALIBRATION.NUM_IMAGES = 500
    cfg.NAS.BN_RECALIBRATION.BATCH_SIZE = 16
    # 0 averages over all batches. Otherwise the weight of the newest batch in a moving average that starts at
    # mean 0 and variance 1, as in the reference code (0.1).
    cfg.NAS.BN_RECALIBRATION.MOMENTUM = 0.0

    # ------------------------------------------------------------------ backbone
    cfg.MODEL.SHUFFLENET = CN()
    # "300M", "1.3G" (search), "3.8G" (retraining): MACs at 224x224. "custom" reads the three keys below.
    cfg.MODEL.SHUFFLENET.WIDTH = "1.3G"
    cfg.MODEL.SHUFFLENET.STEM_CHANNELS = 48
    cfg.MODEL.SHUFFLENET.STAGE_CHANNELS = [96, 240, 480, 960]
    cfg.MODEL.SHUFFLENET.STAGE_REPEATS = [8, 8, 16, 8]
    # "BN", or "SyncBN" to share statistics between GPUs (falls back to BN on CPU).
    cfg.MODEL.SHUFFLENET.NORM = "SyncBN"
    # Weight of the newest batch in the running statistics: 0.1 for a supernet, 0.01 for a retrained model.
    cfg.MODEL.SHUFFLENET.NORM_MOMENTUM = 0.1
    # 1: interleave the halves, then split contiguously (the paper's code); 2: even/odd channels (SPOS).
    cfg.MODEL.SHUFFLENET.SHUFFLE_METHOD = 1

    # ------------------------------------------------------------------ start of a training
    # Layers whose shapes follow from the classes, where a training starts from MODEL.WEIGHTS: "strict" loads
    # them as all others; "anew" leaves them as initialised, for other classes than those of the weights.
    cfg.MODEL.WEIGHTS_CLASS_LAYERS = "strict"

    # ------------------------------------------------------------------ precision and memory layout
    # Number format of mixed precision when SOLVER.AMP.ENABLED: "float16" (with loss scaling) or "bfloat16".
    cfg.SOLVER.AMP.DTYPE = "float16"
    # Keep images and convolution weights in channels-last order.
    cfg.MODEL.CHANNELS_LAST = False

    # ------------------------------------------------------------------ checkpoints
    # Newest model_<iteration>.pth to keep in OUTPUT_DIR; 0 keeps all. model_final.pth always stays.
    cfg.SOLVER.CHECKPOINTS_KEPT = 3

    # ------------------------------------------------------------------ data
    # Data sets in COCO-panoptic format to register before use. Each entry is a mapping with the
    # arguments of auto_panoptic.data.register_coco_panoptic:
    #   {name: my_train, panoptic_json: ..., panoptic_root: ..., image_root: ...}
    cfg.DATASETS.COCO_PANOPTIC = []
    # Data sets of classified images to register before use, for the ImageNet stage. Each entry is a mapping
    # {name: my_train, root: my/train}; the root holds one folder of images per class.
    cfg.DATASETS.IMAGE_FOLDERS = []
    # Name of the mapper in auto_panoptic.data.DATASET_MAPPER_REGISTRY; "" takes the one the model declares.
    cfg.INPUT.DATASET_MAPPER_NAME = ""
    # INPUT.CROP cuts the resized image, not that of the file; TYPE "absolute" then gives images of one size.
    cfg.INPUT.CROP.AFTER_RESIZE = False
    # Change brightness, contrast, saturation and hue of training images at random, as SSD (PointRend's key).
    cfg.INPUT.COLOR_AUG_SSD = False
    # Data sets on which the search scores its candidates.
    cfg.DATASETS.SEARCH = ()

    # ------------------------------------------------------------------ evaluation
    # "streaming": panoptic quality in memory, equal to panopticapi; "detectron2": COCOPanopticEvaluator.
    cfg.TEST.PANOPTIC_EVALUATOR = "streaming"
    # What --eval-only and the evaluation after training compute: any of "pq", "ap", "miou". The ImageNet
    # stage always computes top-1 and top-5 accuracy.
    cfg.TEST.METRICS = ["pq", "ap", "miou"]
    # Trimming before scoring: predicted stuff whose class covers fewer pixels of the image becomes void. 0
    # trims nothing; UPSNet has 2048 on Cityscapes and 4096 on COCO.
    cfg.TEST.STUFF_AREA = 0
    # The values of TEST.STUFF_AREA that --trim-study compares.
    cfg.TEST.TRIM_AREAS = [0, 256, 1024, 2048, 4096]
    # So many of the best and as many of the worst images are drawn at each evaluation and at the end of a
    # search, for its report and for TensorBoard: photo, truth, prediction and where they differ.
    cfg.TEST.PICTURES = 3

    systems.add_configs(cfg)
