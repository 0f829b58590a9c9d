"""Choice blocks: several candidate operators at one site, exactly one of them active.

A supernet and a fixed model are built from the same classes. A supernet's blocks hold every operator of
their site, a fixed model's blocks hold one; :class:`Choices` decides when a model is built. The blocks of the
built model are its search space. :func:`apply_architecture` is the only place where a path switches; no
``forward`` takes a path argument.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils.events import get_event_storage
from torch import nn

from auto_panoptic.errors import UserError, first_line
from auto_panoptic.space import (
    TEXT,
    Architecture,
    ChoiceSite,
    OpSpec,
    SearchSpace,
    domain,
    load_names,
    names_in,
    op,
    resolve_architecture_path,
)
from auto_panoptic.space.space import some
from auto_panoptic.validate import RULES, machine_memory


class ChoiceBlock(nn.Module):
    """One site of the search space: named candidates with one active at a time.

    State-dict keys are ``candidates.<operator name>.*``, so a candidate carries the same name in the
    supernet and in a fixed model that holds nothing else.

    Attributes:
        site: its name.
        ops: every operator of the site, in index order; a fixed model holds only one of them.
    """

    def __init__(self, site: str, candidates: Mapping[str, nn.Module], ops: Sequence[OpSpec] = ()):
        """The first of ``candidates`` is active until another is selected; ``ops`` is theirs by default."""
        super().__init__()
        if not candidates:
            raise ValueError(f"site {site!r} has no operator")
        self.site = site
        self.ops = tuple(ops) or tuple(op(name) for name in candidates)
        self.candidates = nn.ModuleDict(candidates)
        self._active = next(iter(candidates))
        self._chosen = len(candidates) == 1
        self.register_load_state_dict_post_hook(check_complete)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        start = f"{prefix}candidates."
        held = {key[len(start) :].partition(".")[0] for key in state_dict if key.startswith(start)}
        if not self.training and len(self.candidates) > 1:
            raise UserError(
                "this config builds a supernet, which predicts nothing; add NAS.ARCHITECTURE FILE"
            )
        if not self.training and held > self.candidates.keys():
            raise UserError(
                f"these weights are a supernet's, with {len(held)} operators at site {self.site!r}: their "
                "BatchNorm statistics are not this network's; train it, or let train_net.py --eval-only "
                "compute them"
            )
        super()._load_from_state_dict(state_dict, prefix, *args)

    @property
    def active(self) -> str:
        """Name of the active operator."""
        return self._active

    def select(self, op_name: str) -> None:
        """Make ``op_name`` the active operator; UserError if the block has no such candidate."""
        if op_name not in self.candidates:
            raise UserError(
                f"site {self.site!r} has no operator {op_name!r}; this model holds "
                f"{sorted(self.candidates)}. A fixed model runs only its own architecture"
            )
        self._active, self._chosen = op_name, True

    def forward(self, *args):
        """Run the active candidate on ``args``; the others take no part in the graph.

        Raises:
            UserError: a trainer runs it and has selected none of several, as Detectron2's own.
        """
        if self.training and not self._chosen and _in_a_trainer():
            raise UserError(
                "this config builds a supernet, and no path of it was chosen; train it with train_net.py or "
                "AutoPanopticTrainer, which draw the paths, or add NAS.ARCHITECTURE FILE"
            )
        return self.candidates[self._active](*args)

    def extra_repr(self) -> str:
        return f"site={self.site!r}, active={self._active!r}"


def _in_a_trainer() -> bool:
    """Whether a training loop of Detectron2 is running."""
    try:
        get_event_storage()
    except AssertionError:
        return False
    return True


def check_complete(module: nn.Module, incompatible) -> None:
    """A hook after ``load_state_dict``: a network in evaluation mode never keeps random weights.

    Detectron2's predictor loads what fits by name and leaves the rest as initialised.

    Raises:
        UserError: weights are missing, or were left out for their shape.
    """
    missing = [key for key in incompatible.missing_keys if not key.endswith("num_batches_tracked")]
    if missing and not module.training:
        raise UserError(
            f"{len(missing)} weights of this network, such as {missing[0]}, are not in the file, or have "
            "another shape there, and would be random; give weights of this config, with NAS.ARCHITECTURE as "
            "they were trained"
        )


SITES = "NAS.SPACE.SITES"


def site_domains(cfg: CfgNode) -> list[tuple[str, list[str]]]:
    """(pattern of sites, operator names) in the order of ``NAS.SPACE.SITES``.

    Raises:
        UserError: it is something else.
    """
    if "NAS" not in cfg:  # of a network that is Detectron2's alone
        return []
    RULES[SITES].check(SITES, cfg.NAS.SPACE.SITES)
    return [(pattern, list(names)) for pattern, names in cfg.NAS.SPACE.SITES]


class Choices:
    """Makes the choice blocks of a model: with every operator, or with those of one architecture.

    Args:
        names: {site: operator name} of the fixed model; None for a supernet. May name sites of other models.
        source: where the names come from, for errors.
        domains: (pattern of sites, operator names), which replace those that a site has otherwise.
    """

    def __init__(
        self,
        names: Mapping[str, str] | None = None,
        source: str = "the architecture",
        domains: Sequence[tuple[str, Sequence[str]]] = (),
    ):
        self.names = names
        self.source = source
        self.domains = tuple(domains)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Choices:
        """Those of ``NAS.ARCHITECTURE``, a file, which is read once, or its text; and ``NAS.SPACE.SITES``."""
        domains = site_domains(cfg)
        if not cfg.NAS.ARCHITECTURE:
            return cls(domains=domains)
        if cfg.NAS.ARCHITECTURE.startswith(TEXT):
            return cls(names_in(cfg.NAS.ARCHITECTURE), "NAS.ARCHITECTURE", domains)
        path = resolve_architecture_path(cfg.NAS.ARCHITECTURE)
        return cls(load_names(path), str(path), domains)

    def _domain(self, site: str, ops: Sequence[OpSpec]) -> tuple[OpSpec, ...]:
        """The operators of a site: those of the last pattern that fits, otherwise ``ops``."""
        fitting = [names for pattern, names in self.domains if fnmatchcase(site, pattern)]
        return domain(fitting[-1], ops[0].group, f"{SITES}, site {site!r},") if fitting else tuple(ops)

    def __call__(self, site: str, ops: Sequence[OpSpec], build: Callable[[OpSpec], nn.Module]) -> ChoiceBlock:
        """The block of one site with its operators, in index order; ``build`` makes the module of one.

        Raises:
            UserError: the architecture names no operator for the site, or one that the site has not.
        """
        place = ChoiceSite(site, self._domain(site, ops))
        chosen = place.ops
        if self.names is not None:
            if site not in self.names:
                raise UserError(
                    f"{self.source}: an architecture of another search space: it says nothing about site "
                    f"{site!r}; use the config it was searched with"
                )
            try:
                chosen = (place.ops[place.index(self.names[site])],)
            except UserError as error:
                raise UserError(f"{self.source}: {error}") from None
        return ChoiceBlock(site, {spec.name: build(spec) for spec in chosen}, place.ops)

    def row(
        self, prefix: str, ops: Sequence[OpSpec], builds: Sequence[Callable[[OpSpec], nn.Module]]
    ) -> nn.ModuleList:
        """The blocks of the sites ``prefix.0``, ``prefix.1``, ...: one for each of ``builds``.

        Raises:
            UserError: as :meth:`__call__`; the architecture names more sites of the row.
        """
        self.check_row(prefix, len(builds))
        return nn.ModuleList(self(f"{prefix}.{i}", ops, build) for i, build in enumerate(builds))

    def check_row(self, prefix: str, count: int) -> None:
        """Raise UserError if the architecture names more than ``count`` sites ``prefix.0``, ..."""
        named = sum(site.rpartition(".")[0] == prefix for site in self.names or ())
        if named > count:
            raise UserError(
                f"{self.source}: an architecture of another search space: it has {named} sites {prefix}.*, "
                f"this model {count}; use the config it was searched with"
            )


def choice_blocks(model: nn.Module) -> dict[str, ChoiceBlock]:
    """Every :class:`ChoiceBlock` of ``model`` by its site name, in the order of the model's modules.

    Raises:
        ValueError: two blocks claim the same site.
    """
    blocks = {}
    for module in model.modules():
        if isinstance(module, ChoiceBlock):
            if module.site in blocks:
                raise ValueError(f"two blocks of the model claim the site {module.site!r}; names must differ")
            blocks[module.site] = module
    return blocks


def space_of(model: nn.Module) -> SearchSpace:
    """The search space of ``model``, a supernet or a fixed model of it: its choice blocks, in their order."""
    return SearchSpace(tuple(ChoiceSite(site, block.ops) for site, block in choice_blocks(model).items()))


# What constructors raise for settings that they cannot work with.
_UNFIT = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


@contextlib.contextmanager
def buildable(what: str = "the model of this config") -> Iterator[None]:
    """Context that builds a model; UserError where its settings do not fit together."""
    try:
        yield
    except UserError:
        raise
    except _UNFIT as error:
        raise UserError(f"{what} cannot be built: {first_line(error)}") from error


def meta_model(cfg: CfgNode) -> nn.Module:
    """The model of ``cfg`` without memory for its weights, on the meta device.

    A model whose construction reads values, as some backbones read their drop rates from tensors, is built on
    the CPU instead. Random numbers stay what they were.

    Raises:
        UserError: a component or a device of this name does not exist, settings do not fit together, or the
            weights need more memory than the machine has.
    """
    with buildable():
        torch.device(cfg.MODEL.DEVICE)
        try:
            model = _build(cfg, "meta")
        except (RuntimeError, TypeError) as error:  # from .item(), .numpy(), ...
            if "meta" not in str(error):
                raise
            with torch.random.fork_rng(devices=[]):
                model = _build(cfg, "cpu")
    check_size(model, 4)
    return model


def check_size(model: nn.Module, each: int) -> None:
    """Raise UserError if the machine lacks the memory for ``each`` bytes per parameter (training: 12)."""
    count = sum(p.numel() for p in model.parameters())
    if count * each > machine_memory():
        raise UserError(
            f"this config's model has {count / 1e9:.1f} G parameters, which need {count * each >> 30} GiB or "
            f"more; this machine has {machine_memory() >> 30}: choose fewer layers, "
            "channels or classes"
        )


def _build(cfg: CfgNode, device: str) -> nn.Module:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = device
    with torch.device(device):
        model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
    sites = [*choice_blocks(model)]
    for pattern, _ in site_domains(cfg):
        if not any(fnmatchcase(site, pattern) for site in sites):
            raise UserError(
                f"{SITES} has {pattern!r}, which fits no site of this model: expected one of "
                f"{some(sites) if sites else 'none: it has no sites'}"
            )
    return model


def configured_space(cfg: CfgNode) -> SearchSpace:
    """The search space of the model that ``cfg`` describes; ``NAS.ARCHITECTURE`` plays no part in it.

    Raises:
        UserError: as :func:`meta_model`.
    """
    supernet = cfg.clone()
    supernet.defrost()
    supernet.NAS.ARCHITECTURE = ""
    nodes = {key: node for key, node in supernet.items() if key not in _NOT_OF_THE_MODEL}
    text = repr(nodes)
    if text not in _SPACES:
        _SPACES[text] = space_of(meta_model(supernet))
    return _SPACES[text]


_NOT_OF_THE_MODEL = ("DATALOADER", "DATASETS", "OUTPUT_DIR", "SOLVER")
_SPACES: dict[str, SearchSpace] = {}  # building a model takes a second, and commands ask more than once


def apply_architecture(model: nn.Module, architecture: Architecture) -> None:
    """Make ``architecture`` the path that ``model``, or what it wraps, runs from now on.

    Raises:
        UserError: a site is missing on either side, or the model lacks a chosen operator; nothing changes.
    """
    blocks, names = choice_blocks(model), architecture.names()
    check_fit(blocks, names)
    for site, block in blocks.items():
        block.select(names[site])


def check_fit(blocks: Mapping[str, ChoiceBlock], names: Mapping[str, str]) -> None:
    """Raise UserError unless model and architecture have the same sites, and the model the operators."""
    unknown = [site for site in names if site not in blocks]
    missing = [site for site in blocks if site not in names]
    if unknown or missing:
        parts = [f"the architecture says nothing about {some(missing)}"] if missing else []
        parts += [f"the model has no {some(unknown)}"] if unknown else []
        raise UserError(
            f"architecture and model do not fit: {'; '.join(parts)} ({len(names)} sites in the architecture, "
            f"{len(blocks)} in the model). Build the model from the config that it was searched with"
        )
    for site, block in blocks.items():
        if names[site] not in block.candidates:
            block.select(names[site])  # raises with the allowed names
