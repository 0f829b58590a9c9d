"""The mapper of the classifier."""

import numpy as np
import torch
from detectron2.data.detection_utils import read_image
from PIL import Image
from torchvision import transforms

from ...data.mapper import DATASET_MAPPER_REGISTRY, seeded
from ...errors import UserError


@DATASET_MAPPER_REGISTRY.register()
class ClassificationMapper:
    """From a record {"file_name", "label"} to the same with "image": uint8 (3, S, S) in ``INPUT.FORMAT``.

    Training: a random crop of 8 to 100 % of the area and aspect ratio 3/4 to 4/3, resized to TRAIN_SIZE;
    brightness, contrast and saturation scaled at random; a horizontal flip in half of the cases (reference
    code, SPOS). A record with "sample_seed" is augmented by that seed alone. Evaluation: short side to
    TEST_RESIZE, centre crop of TEST_SIZE.

    Args:
        cfg: reads INPUT.CLASSIFICATION and INPUT.FORMAT.
        is_train: augment.
    """

    def __init__(self, cfg, is_train: bool):
        options = cfg.INPUT.CLASSIFICATION
        self.bgr = cfg.INPUT.FORMAT == "BGR"
        if is_train:
            steps = [
                transforms.RandomResizedCrop(options.TRAIN_SIZE),
                transforms.ColorJitter(*options.COLOR_JITTER),
                transforms.RandomHorizontalFlip(),
            ]
        else:
            steps = [transforms.Resize(options.TEST_RESIZE), transforms.CenterCrop(options.TEST_SIZE)]
        self.transform = transforms.Compose(steps)

    def __call__(self, record: dict) -> dict:
        path = record["file_name"]
        try:
            image = Image.fromarray(read_image(path, format="RGB"))
        except Exception as error:  # Pillow raises many kinds for damaged files
            raise UserError(
                f"image {path} cannot be read ({type(error).__name__}: {error}); restore or remove it"
            ) from error
        with seeded(record.get("sample_seed")):
            pixels = np.asarray(self.transform(image))
        if self.bgr:
            pixels = pixels[:, :, ::-1]
        return {**record, "image": torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))}
