"""BatchNorm folded into the convolution before it: the same function with fewer passes over memory."""

import copy

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def folded(model: nn.Module) -> nn.Module:
    """A copy of ``model`` in eval mode, for inference only; outputs are equal up to rounding.

    Every BatchNorm right after a convolution in a ``Sequential`` moves into that one's weight and bias.
    Subclasses of convolutions and of BatchNorm (they may end in an activation), ``Sequential`` with another
    ``forward`` and BatchNorm without running statistics stay as they are. State-dict names of the copy are
    others.
    """
    model = copy.deepcopy(model).eval()
    for module in list(model.modules()):
        if not isinstance(module, nn.Sequential) or type(module).forward is not nn.Sequential.forward:
            continue
        for i in range(len(module) - 1):
            conv, norm = module[i], module[i + 1]
            if type(conv) is not nn.Conv2d or type(norm) not in (nn.BatchNorm2d, nn.SyncBatchNorm):
                continue
            if norm.track_running_stats:
                module[i] = fuse_conv_bn_eval(conv, norm)
                module[i + 1] = nn.Identity()
    return model
