"""The keys of the ImageNet stage."""

from detectron2.config import CfgNode as CN

from ...validate import CONDITIONS, PART, RULES, number, several, whole

RULES |= {
    "MODEL.CLASSIFIER.NUM_CLASSES": whole(1),
    "MODEL.CLASSIFIER.CONV_DIM": whole(0, 10**5),
    "MODEL.CLASSIFIER.DROPOUT": PART,
    "MODEL.CLASSIFIER.LABEL_SMOOTHING": PART,
    "INPUT.CLASSIFICATION.TRAIN_SIZE": whole(1, 4096),
    "INPUT.CLASSIFICATION.TEST_RESIZE": whole(1, 4096),
    "INPUT.CLASSIFICATION.TEST_SIZE": whole(1, 4096),
    "INPUT.CLASSIFICATION.COLOR_JITTER": several(number(0), count=3),
}


def _crop_fits(cfg) -> str | None:
    options = cfg.INPUT.CLASSIFICATION
    if options.TEST_SIZE > options.TEST_RESIZE:
        return (
            f"INPUT.CLASSIFICATION.TEST_SIZE is {options.TEST_SIZE}; expected at most TEST_RESIZE, which is "
            f"{options.TEST_RESIZE}"
        )
    return None


CONDITIONS.append(_crop_fits)


def add_classifier_config(cfg: CN) -> None:
    """Add the keys of the classifier and of its images to a config, in place."""
    cfg.MODEL.CLASSIFIER = CN()
    # Follows from the data sets.
    cfg.MODEL.CLASSIFIER.NUM_CLASSES = 1000
    # Channels of the 1x1 convolution before the pooling; 0 takes those of the width.
    cfg.MODEL.CLASSIFIER.CONV_DIM = 0
    cfg.MODEL.CLASSIFIER.DROPOUT = 0.2
    cfg.MODEL.CLASSIFIER.LABEL_SMOOTHING = 0.1
    # Side of the random resized crop in training; side to which the short edge is resized and side of the
    # centre crop in evaluation; strength of the random brightness, contrast and saturation.
    cfg.INPUT.CLASSIFICATION = CN()
    cfg.INPUT.CLASSIFICATION.TRAIN_SIZE = 224
    cfg.INPUT.CLASSIFICATION.TEST_RESIZE = 256
    cfg.INPUT.CLASSIFICATION.TEST_SIZE = 224
    cfg.INPUT.CLASSIFICATION.COLOR_JITTER = [0.4, 0.4, 0.4]
