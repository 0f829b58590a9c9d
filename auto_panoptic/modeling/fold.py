"""BatchNorm folded into the convolution before it: the same function with fewer passes over memory."""

import copy

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

__all__ = ["folded"]


def folded(model: nn.Module) -> nn.Module:
    """A copy of ``model`` in eval mode for inference, without the BatchNorm layers that follow a convolution.

    Every BatchNorm that comes right after a convolution in a ``Sequential`` scales and shifts by constants
    in eval mode, so it moves into the convolution's weight and bias. Outputs are equal up to rounding.
    Gradients, training and state-dict names of the copy are not those of the original.

    Args:
        model: a network whose running statistics are final; it is not changed.
    """
    model = copy.deepcopy(model).eval()
    for module in list(model.modules()):
        if not isinstance(module, nn.Sequential):
            continue
        for i in range(len(module) - 1):
            conv, norm = module[i], module[i + 1]
            if isinstance(conv, nn.Conv2d) and isinstance(norm, (nn.BatchNorm2d, nn.SyncBatchNorm)):
                module[i] = fuse_conv_bn_eval(conv, norm)
                module[i + 1] = nn.Identity()
    return model
