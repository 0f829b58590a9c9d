"""Keys and defaults that configs and users rely on: more may come, none may change."""

import pytest
import yaml
from detectron2.config import get_cfg

from auto_panoptic import add_auto_panoptic_config
from auto_panoptic.systems.classifier import add_classifier_config
from auto_panoptic.systems.panoptic_fpn import add_panoptic_fpn_config

DEFAULTS = """
DATASETS.COCO_PANOPTIC: []
DATASETS.IMAGE_FOLDERS: []
DATASETS.SEARCH: []
INPUT.CLASSIFICATION.COLOR_JITTER: [0.4, 0.4, 0.4]
INPUT.CLASSIFICATION.TEST_RESIZE: 256
INPUT.CLASSIFICATION.TEST_SIZE: 224
INPUT.CLASSIFICATION.TRAIN_SIZE: 224
MODEL.CHANNELS_LAST: false
MODEL.CLASSIFIER.CONV_DIM: 0
MODEL.CLASSIFIER.DROPOUT: 0.2
MODEL.CLASSIFIER.LABEL_SMOOTHING: 0.1
MODEL.CLASSIFIER.NUM_CLASSES: 1000
MODEL.CROSS_ATTENTION.ENABLED: true
MODEL.CROSS_ATTENTION.F2B_LEVELS: ["p2", "p3", "p4", "p5", "p6"]
MODEL.CROSS_ATTENTION.LEGACY_RATIO: false
MODEL.CROSS_ATTENTION.RATIOS: [4, 8, 16]
MODEL.PANOPTIC_FPN.COMBINE.HIGH_CONFIDENCE_THRESH: 0.725
MODEL.PANOPTIC_FPN.COMBINE.INSTANCE_AREA_LIMIT: 4096
MODEL.PANOPTIC_FPN.COMBINE.METHOD: "detectron2"
MODEL.SEM_SEG_HEAD.ALIGN_CORNERS: true
MODEL.SEM_SEG_HEAD.NUM_LAYERS: 3
MODEL.SHUFFLENET.NORM: "SyncBN"
MODEL.SHUFFLENET.NORM_MOMENTUM: 0.1
MODEL.SHUFFLENET.SHUFFLE_METHOD: 1
MODEL.SHUFFLENET.STAGE_CHANNELS: [96, 240, 480, 960]
MODEL.SHUFFLENET.STAGE_REPEATS: [8, 8, 16, 8]
MODEL.SHUFFLENET.STEM_CHANNELS: 48
MODEL.SHUFFLENET.WIDTH: "1.3G"
MODEL.WEIGHTS_CLASS_LAYERS: "strict"
NAS.ARCHITECTURE: ""
NAS.AUDIT_PERIOD: 100
NAS.BN_RECALIBRATION.BATCH_SIZE: 16
NAS.BN_RECALIBRATION.ENABLED: true
NAS.BN_RECALIBRATION.MOMENTUM: 0.0
NAS.BN_RECALIBRATION.NUM_IMAGES: 500
NAS.CYCLES: 5
NAS.EVOLUTION.CROSSOVER: 0.4
NAS.EVOLUTION.GENERATIONS: 20
NAS.EVOLUTION.MUTATION: 0.4
NAS.EVOLUTION.MUTATION_PROBABILITY: 0.1
NAS.EVOLUTION.PARENTS: 10
NAS.EVOLUTION.POPULATION: 50
NAS.GRADIENTS: "mean"
NAS.MODELS_PER_CYCLE: 12
NAS.POLICY: "posterior"
NAS.RANDOM.CYCLES: 1
NAS.RANDOM.MODELS_PER_CYCLE: 300
NAS.REFERENCE_BIAS_LR: false
NAS.SAMPLING: "fair"
NAS.SEED: 0
NAS.SPACE.BACKBONE_OPS: ["shuffle_3x3", "shuffle_5x5", "shuffle_7x7", "xception_3x3"]
NAS.SPACE.HEAD_OPS: ["dwconv_3x3", "dwconv_5x5", "dfconv_3x3", "dfconv_5x5", "atconv_3x3", "atconv_5x5"]
SOLVER.AMP.DTYPE: "float16"
SOLVER.CHECKPOINTS_KEPT: 3
TEST.METRICS: ["pq", "ap", "miou"]
TEST.PANOPTIC_EVALUATOR: "streaming"
TEST.PICTURES: 3
TEST.STUFF_AREA: 0
TEST.TRIM_AREAS: [0, 256, 1024, 2048, 4096]
"""


def flat(node, prefix=""):
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def values(*adders):
    cfg = get_cfg()
    for add in adders:
        add(cfg)
    return dict(flat(yaml.safe_load(cfg.dump())))


def test_every_key_has_its_default_of_old():
    found, expected = values(add_auto_panoptic_config), yaml.safe_load(DEFAULTS)
    assert {key: found.get(key, "no such key") for key in expected} == expected


@pytest.mark.parametrize(
    "add, prefixes",
    [
        (add_panoptic_fpn_config, ("MODEL.SEM_SEG_HEAD.", "MODEL.CROSS_ATTENTION.", "MODEL.PANOPTIC_FPN.")),
        (add_classifier_config, ("MODEL.CLASSIFIER.", "INPUT.CLASSIFICATION.")),
    ],
)
def test_a_system_adds_its_own_keys(add, prefixes):
    added = values(add).keys() - values().keys()
    assert added and all(key.startswith(prefixes) for key in added)
