"""Weights move by name, strictly: a checkpoint says what it holds, and the wrong one is named."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY

from ..data.classes import check_classes, config_classes
from ..errors import UserError
from ..modeling import ChoiceBlock, choice_blocks, meta_model
from ..modeling.finite import finite_problem
from ..modeling.layers.setting import SettingInWeights
from ..space import SearchSpace
from .archive import DERIVED, optional, read_checkpoint
from .hub import is_of_hub, read_hub
from .zoo import is_of_zoo, match_zoo, read_zoo

_CANDIDATE = re.compile(r"(?P<block>.*\.candidates)\.(?P<op>[^.]+)\.")
_KNOWN: dict[str, list[str]] = {}  # building a model takes a second, and loading asks more than once


# ------------------------------------------------------------------ what a model is


def model_meta(model: torch.nn.Module) -> dict:
    """What a checkpoint says about its model besides the names and shapes of the weights.

    That is "meta_architecture", its name; "architecture", {site: operator} of a fixed model, else None;
    "pixel_mean", "pixel_std": lists of numbers, or None; and what modules with ``weights_meta()`` say.
    """
    blocks = {site: list(block.candidates) for site, block in choice_blocks(model).items()}
    fixed = blocks and all(len(ops) == 1 for ops in blocks.values())
    meta = {
        "meta_architecture": type(model).__name__,
        "architecture": {site: ops[0] for site, ops in blocks.items()} if fixed else None,
        **{key: _pixels(getattr(model, key, None)) for key in DERIVED},
    }
    for module in model.modules():
        meta |= module.weights_meta() if hasattr(module, "weights_meta") else {}
    return meta


def _pixels(buffer: torch.Tensor | None) -> list[float] | None:
    if buffer is None or buffer.is_meta:
        return None
    return [float(f"{value:.7g}") for value in buffer.flatten().tolist()]  # as in the config, not in binary


# ------------------------------------------------------------------ matching


def select_weights(
    model: torch.nn.Module,
    data: dict,
    path: str,
    *,
    to_train: bool = False,
    cfg: CfgNode | None = None,
    classes: dict | None = None,
    key: str = "MODEL.WEIGHTS",
) -> dict[str, torch.Tensor]:
    """Select from a checkpoint what ``model`` needs, by name.

    Operators that the model does not hold are left out: so a fixed model takes its path from a supernet.

    Args:
        model: may be on the meta device.
        data: what has been read; ``path`` and ``key`` are named in errors.
        to_train: accept a checkpoint of a model that pre-trains a part of this one.
        cfg: the config, where a training starts; its MODEL.WEIGHTS_CLASS_LAYERS counts.
        classes: of the data sets, to compare with those that the checkpoint records.

    Raises:
        UserError: the checkpoint holds another space, architecture, width or other classes; a weight is
            missing, has another shape, belongs to nothing in the model, or holds NaN or infinity.

    A published classifier may stand for a backbone that has its names: :func:`published_part`.
    """
    subject = f"{key}: {path!r}"
    weights, meta, space = data["model"], data.get("meta", {}), data.get("space")
    own, blocks, anew = model.state_dict(), choice_blocks(model), set(starting_anew(cfg))
    if "__author__" in data:
        weights, own = match_zoo(subject, data, own, to_train)
    kinds = meta.get("meta_architecture"), type(model).__name__
    part, weights = published_part(model, weights)
    if part:
        kinds = "published classifier", kinds[1]
    elif kinds[0] != kinds[1]:
        part = _part_for_others(kinds[0])
    if part:
        if not to_train:
            remedy = "train the model of this config from it, and give the weights that come out"
            raise UserError(f"{subject} holds a {kinds[0]}, of which only {part} fits: {remedy}")
        part, weights = _without_pyramid(part, weights, own)
        weights, own = ({k: v for k, v in d.items() if k.startswith(part)} for d in (weights, own))
        if not own:
            raise UserError(f"{subject} holds a {kinds[0]}, whose {part} this config's model has not")
        blocks = choice_blocks(model.get_submodule(part.removesuffix(".")))
    elif not anew:
        try:
            check_classes(subject, data.get("classes"), classes)
        except UserError as error:
            raise UserError("; ".join(filter(None, (str(error), anew_remedy(cfg))))) from None
    _check_meta(subject, model, meta)
    own_space = {site: list(block.candidates) for site, block in blocks.items()}
    if space is not None and (problem := _space_problem(space, own_space)):
        raise UserError(f"{subject} {problem}")
    weights, own = ({k: v for k, v in d.items() if k not in anew} for d in (weights, own))
    candidates = {f"{k}.candidates" for k, m in model.named_modules() if isinstance(m, ChoiceBlock)}
    _check_names(subject, weights, own, kinds, candidates, cfg)
    _check_pixels(subject, model, meta)
    _check_layers(subject, model, weights)
    selected = {k: weights[k] for k in own if k in weights}
    if problem := finite_problem({k: v.to(own[k].dtype) for k, v in selected.items()}):
        raise UserError(f"{subject}: {problem}; its training has diverged: give an earlier checkpoint")
    return selected


def _part_for_others(kind: str | None) -> str:
    """Prefix of the weights of a meta-architecture that others start from: its attribute ``pretrains``."""
    return getattr(META_ARCH_REGISTRY.get(kind), "pretrains", "") if kind in META_ARCH_REGISTRY else ""


def _without_pyramid(part: str, weights: dict, own: dict) -> tuple[str, dict]:
    """``part`` and ``weights`` under the name that the part has in a model that puts nothing on it."""
    bare = f"{part.partition('.')[0]}."
    if any(name.startswith(part) for name in own) or not any(name.startswith(bare) for name in own):
        return part, weights
    return bare, {bare + k.removeprefix(part): v for k, v in weights.items() if k.startswith(part)}


def published_part(model: torch.nn.Module, weights: dict) -> tuple[str, dict]:
    """(prefix of the part of ``model`` that a published classifier becomes, its weights under that prefix).

    Of a backbone with ``classifier_layers``, beginnings of names, ``weights`` are a published classifier's if
    they have its names, without a prefix; those layers are left out. Of other weights: ("", ``weights``).
    """
    for name, module in model.named_modules():
        layers = getattr(module, "classifier_layers", ())
        if name and layers and not weights.keys().isdisjoint(module.state_dict()):
            return f"{name}.", {f"{name}.{k}": v for k, v in weights.items() if not k.startswith(layers)}
    return "", weights


def _check_meta(subject: str, model: torch.nn.Module, meta: dict) -> None:
    for module in model.modules():
        try:
            if hasattr(module, "check_weights_meta"):
                module.check_weights_meta(meta)
        except ValueError as error:
            raise UserError(f"{subject} holds {error}; set it as there, or give other weights") from None
        except (AttributeError, KeyError, TypeError):
            raise UserError(f"{subject} has malformed records of its model; give an intact copy") from None


def _check_pixels(subject: str, model: torch.nn.Module, meta: dict) -> None:
    for name in DERIVED:
        ours = _pixels(getattr(model, name, None))
        if meta.get(name) and ours and meta[name] != ours:
            setting = f"MODEL.{name.upper()}"
            problem = f"{subject} was trained with {setting} {meta[name]}, this config has {ours}"
            raise UserError(f"{problem}; set {setting} as there")


def _space_problem(theirs: dict[str, list[str]], ours: dict[str, list[str]]) -> str:
    same_sites = theirs.keys() == ours.keys()
    if same_sites and all(set(ours[site]) <= set(theirs[site]) for site in ours):
        return ""
    if same_sites and all(len(ops) == 1 for ops in theirs.values()):
        if any(len(ops) > 1 for ops in ours.values()):
            remedy = "set NAS.ARCHITECTURE to the file of its architecture, or give the weights of a supernet"
            return f"holds a fixed model, this config builds a supernet; {remedy}"
        other = [site for site in ours if ours[site] != theirs[site]]
        shown = ", ".join(f"{site} is {theirs[site][0]} there, {ours[site][0]} here" for site in other[:3])
        more = f" and {len(other) - 3} more sites differ" if len(other) > 3 else ""
        return f"holds another architecture: {shown}{more}; set NAS.ARCHITECTURE to the file of that one"
    difference = SearchSpace.from_dict(theirs).difference(SearchSpace.from_dict(ours))
    problem = f"holds another search space (first) than this config builds (second): {difference}"
    return f"{problem}; give the weights of this config, or change the config"


def _check_layers(subject: str, model: torch.nn.Module, weights: dict) -> None:
    for name, module in model.named_modules():
        state = weights.get(f"{name}._extra_state" if name else "_extra_state")
        if state is not None and isinstance(module, SettingInWeights):
            try:
                module.set_extra_state(state)
            except ValueError as error:
                raise UserError(f"{subject} does not fit: {error}; set it so, or give others") from None


def _check_names(
    subject: str, weights: dict, own: dict, kinds: tuple, candidates: set[str], cfg: CfgNode | None
) -> None:
    unneeded = {k for k in weights if (match := _CANDIDATE.match(k)) and match["block"] in candidates}
    lacking = [k for k in own if k not in weights and not optional(k)]
    shared = [k for k in own if k in weights and not k.endswith("_extra_state")]
    shapes = [k for k in shared if own[k].shape != weights[k].shape]
    foreign = [k for k in weights if not (k in own or k in unneeded or optional(k))]
    problems = {"lacks": lacking, "has another shape for": shapes, "holds the unknown": foreign}
    for problem, keys in problems.items():
        if keys:
            first, more = keys[0], f" and {len(keys) - 1} more" * (len(keys) > 1)
            if keys is shapes:
                more = f" ({tuple(weights[first].shape)} instead of {tuple(own[first].shape)}){more}"
            if kinds[0] not in (None, kinds[1]):
                more += f" (it is a {kinds[0]}, the config's a {kinds[1]})"
            remedy = anew_remedy(cfg, keys) or (
                "it belongs to another network, search space, width or data set: give the weights of this "
                "config, or change the config"
            )
            raise UserError(f"{subject} {problem} {first!r}{more}; {remedy}")


# ------------------------------------------------------------------ loading


def load_weights(
    model: torch.nn.Module, path: str, *, to_train: bool = False, cfg: CfgNode | None = None
) -> dict[str, list[str]]:
    """Load weights by name, strictly; returns {site: operators} of the file, empty where it does not say.

    Args:
        path: a checkpoint, a ``detectron2://`` name of Detectron2's catalogue, or a ``timm://`` name of
            timm's hub.
        to_train: a training starts from them: a backbone of a model that pre-trains it, of the catalogue, or
            of a published classifier, is enough.
        cfg: its data sets must have the classes of the weights; None compares none.

    Raises:
        UserError: as :func:`select_weights`.
    """
    logger = logging.getLogger(__name__)
    data, selected = _selected(model, path, to_train, cfg)
    anew = starting_anew(cfg if to_train else None)
    if cfg is not None and config_classes(cfg) and not anew and not data.get("classes"):
        logger.info("%s does not say its classes: not compared with those of the data sets", path)
    rest = model.state_dict().keys() - selected.keys() - set(anew)
    rest = [name for name in rest if not optional(name)]
    model.load_state_dict(selected, strict=False)
    if rest:
        logger.info("%s holds a part only: the other %d weights stay as initialised", path, len(rest))
    if anew:
        logger.info("Of other classes than %s, these layers start anew: %s", path, layers_of(anew))
    logger.info("Loaded %s", path)
    return data.get("space") or {}


def _selected(model, path: str, to_train: bool, cfg, mmap: bool = False) -> tuple[dict, dict]:
    read = read_zoo if is_of_zoo(path) else read_hub if is_of_hub(path) else read_checkpoint
    data = read(path, model=model, mmap=mmap)
    classes, start = config_classes(cfg) if cfg is not None else None, cfg if to_train else None
    return data, select_weights(model, data, path, to_train=to_train, cfg=start, classes=classes)


def check_weights(cfg, path: str, *, to_train: bool = False, model: torch.nn.Module | None = None) -> None:
    """Raise UserError unless ``path`` fits the model of ``cfg``, which ``model`` is on the meta device."""
    check_class_layers(cfg, path, to_train)
    model = model or meta_model(cfg)
    for name in DERIVED:
        if hasattr(model, name):  # on the meta device the model's own have no values
            setattr(model, name, torch.tensor(getattr(cfg.MODEL, name.upper())))
    _selected(model, path, to_train, cfg, mmap=True)


# ------------------------------------------------------------------ weights that belong to the classes


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
