"""What a panoptic model is trained on, from the samples of a batch."""

from collections.abc import Sequence

import torch
from detectron2.structures import ImageList, Instances
from torch import nn

from ..errors import UserError


def training_targets(
    model: nn.Module, batched_inputs: Sequence[dict]
) -> tuple[list[Instances], list[torch.Tensor]]:
    """The instances (possibly none) and the (H, W) labels of each image, on the model's device.

    Raises:
        UserError: a sample lacks them.
    """
    for key in ("sem_seg", "instances"):
        if any(key not in x for x in batched_inputs):
            raise UserError(
                f"a training image comes without {key!r}; train on a panoptic data set "
                "(DATASETS.TRAIN) whose mapper yields instances and sem_seg"
            )
    instances = [x["instances"].to(model.device) for x in batched_inputs]
    return instances, [x["sem_seg"].to(model.device) for x in batched_inputs]


def padded_labels(backbone: nn.Module, labels: list[torch.Tensor], void: int) -> torch.Tensor:
    """(N, H, W): label maps padded with ``void`` to the size that ``preprocess_image`` gives images."""
    constraints = getattr(backbone, "padding_constraints", None)  # of later versions of Detectron2
    options = {} if constraints is None else {"padding_constraints": constraints}
    return ImageList.from_tensors(labels, backbone.size_divisibility, void, **options).tensor
