"""The weights that belong to a network's classes, and may start anew where a training starts from others."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from detectron2.config import CfgNode

from ..errors import UserError
from ..modeling import meta_model

_KNOWN: dict[str, list[str]] = {}  # building a model takes a second, and loading asks more than once


def class_layers(cfg: CfgNode) -> list[str]:
    """Names of the weights whose shapes follow from a number of classes: any NUM_CLASSES below MODEL.

    The network is built with one class more of everything, without memory for its weights; what then has
    another shape, or is one of a series that has grown, belongs to the classes. UserError as
    :func:`.meta_model`.
    """
    more = cfg.clone()
    more.defrost()
    more.MODEL.DEVICE = "cpu"
    text = repr((more.MODEL, more.NAS))
    if text not in _KNOWN:
        shapes = _shapes(more)
        _add_a_class(more.MODEL)
        others = _shapes(more)
        series = {_any_number(name) for name in others.keys() - shapes.keys()}
        _KNOWN[text] = [
            name for name, shape in shapes.items() if others.get(name) != shape or _any_number(name) in series
        ]
    return _KNOWN[text]


def _shapes(cfg: CfgNode) -> dict[str, tuple[int, ...]]:
    state = meta_model(cfg).state_dict()
    return {name: tuple(value.shape) for name, value in state.items() if not name.endswith("_extra_state")}


def _add_a_class(node: CfgNode) -> None:
    for key, value in node.items():
        if isinstance(value, CfgNode):
            _add_a_class(value)
        elif key == "NUM_CLASSES":
            node[key] = value + 1


def _any_number(name: str) -> str:
    return re.sub(r"\d+", "*", name)


def starting_anew(cfg: CfgNode | None) -> list[str]:
    """The weights that MODEL.WEIGHTS_CLASS_LAYERS leaves as initialised; none without a config."""
    return class_layers(cfg) if cfg is not None and cfg.MODEL.WEIGHTS_CLASS_LAYERS == "anew" else []


def layers_of(names: Iterable[str]) -> str:
    """The layers of these weights, in words."""
    return ", ".join(sorted({name.rpartition(".")[0] or name for name in names}))


def anew_remedy(cfg: CfgNode | None, names: Collection[str] = ()) -> str:
    """What to do where a training starts and ``names`` do not fit; "" unless all are of class layers."""
    layers = class_layers(cfg) if cfg is not None else []
    if not layers or not set(names) <= set(layers):
        return ""
    return f"to start {layers_of(layers)} anew and load the rest, add MODEL.WEIGHTS_CLASS_LAYERS anew"


def check_class_layers(cfg: CfgNode, weights: str, to_train: bool) -> None:
    """Raise UserError where MODEL.WEIGHTS_CLASS_LAYERS "anew" has nothing to act on, or nothing to learn."""
    if cfg.MODEL.WEIGHTS_CLASS_LAYERS == "strict" or to_train and weights and class_layers(cfg):
        return
    reason = "no layer of this config's network depends on a NUM_CLASSES"
    reason = reason if weights else "without MODEL.WEIGHTS all layers start anew"
    reason = reason if to_train else "what is scored must have learned its classes"
    key = "MODEL.WEIGHTS_CLASS_LAYERS"
    raise UserError(f"{key} is 'anew', but {reason}: add {key} strict")
