"""BatchNorm folded into the convolution before it: the same function with fewer passes over memory."""

import collections
import copy
from collections.abc import Iterator

from detectron2.layers import Conv2d
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)


def folded(model: nn.Module) -> nn.Module:
    """A copy of ``model`` in eval mode, for inference only; outputs are equal up to rounding.

    Every BatchNorm of a ``detectron2.layers.Conv2d`` moves into its weight and bias, and so does one that a
    ``forward`` calls with the output of a convolution and nothing else uses: it is followed with stand-ins
    for tensors. A ``forward`` that decides by what is in a tensor, or by its size, cannot be followed; then
    its own norms stay, while those of its parts are folded.

    Subclasses of convolutions and of BatchNorm (they may end in an activation), layers that occur twice,
    Detectron2's frozen BatchNorm, and BatchNorm without running statistics stay as they are, too. State-dict
    names of the copy are others.
    """
    model = copy.deepcopy(model).eval()
    times = collections.Counter(layer for _, layer in model.named_modules(remove_duplicate=False))
    for module in list(model.modules()):
        if type(module) is Conv2d and _is_norm(module.norm) and times[module] == times[module.norm] == 1:
            _fold(module, module.norm)
            module.norm = None
        if not any(_is_norm(child) for child in module.children()):
            continue
        for conv_name, norm_name in _chained(module):
            conv, norm = _last(module.get_submodule(conv_name)), module.get_submodule(norm_name)
            if _is_conv(conv) and _is_norm(norm) and times[conv] == times[norm] == 1:
                _fold(conv, norm)
                module.set_submodule(norm_name, nn.Identity())
    return model


def _is_norm(layer: nn.Module | None) -> bool:
    return type(layer) in _NORMS and layer.track_running_stats


def _is_conv(layer: nn.Module) -> bool:
    """Whether nothing comes after its convolution."""
    return type(layer) is nn.Conv2d or (type(layer) is Conv2d and layer.norm is layer.activation is None)


def _last(layer: nn.Module) -> nn.Module:
    """What gives the output of ``layer``, which may be a chain."""
    while _is_chain(layer) and len(layer):
        layer = layer[-1]
    return layer


def _is_chain(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Sequential) and type(layer).forward is nn.Sequential.forward


def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    statistics = norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    conv.weight, conv.bias = fuse_conv_bn_weights(conv.weight, conv.bias, *statistics)


class _OwnForward(fx.Tracer):
    """Follows the ``forward`` of a module and none of its parts'."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return True


def _chained(module: nn.Module) -> Iterator[tuple[str, str]]:
    """Names of pairs of layers, each called once, of which the second alone takes what the first gives."""
    if _is_chain(module):
        names = [name for name, _ in module.named_children()]
        yield from zip(names, names[1:], strict=False)
        return
    try:
        graph = _OwnForward().trace(module)
    except Exception:  # of any kind: it is another's code with what it does not expect
        return
    calls = collections.Counter(node.target for node in graph.nodes if node.op == "call_module")
    for node in graph.nodes:
        for before in node.all_input_nodes:
            layers = node, before
            if all(n.op == "call_module" and calls[n.target] == 1 for n in layers) and len(before.users) == 1:
                yield before.target, node.target
