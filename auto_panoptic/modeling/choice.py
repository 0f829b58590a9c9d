"""ChoiceBlock: several candidate operators at one site, exactly one of them active.

A supernet and a fixed model are built from the same classes. A supernet's blocks hold every operator of
their site, a fixed model's blocks hold one. :func:`apply_architecture` is the only place where a path
switches; no ``forward`` takes a path argument.
"""

from collections.abc import Mapping

from torch import nn

from auto_panoptic.errors import UserError

__all__ = ["ChoiceBlock", "apply_architecture", "choice_blocks"]


class ChoiceBlock(nn.Module):
    """One site of the search space: named candidates with one active at a time.

    State-dict keys are ``candidates.<operator name>.*``, so a candidate carries the same name in the
    supernet and in a fixed model that holds nothing else.
    """

    def __init__(self, site: str, candidates: Mapping[str, nn.Module]):
        """
        Args:
            site: stable name of the site, such as ``"backbone.0"`` or ``"mask.3"``.
            candidates: operator name -> module. The first is active until :meth:`select` is called.

        Raises:
            UserError: no candidate was given.
        """
        super().__init__()
        if not candidates:
            raise UserError(f"site {site!r} has no operator; list at least one for it in NAS.SPACE")
        self.site = site
        self.candidates = nn.ModuleDict(candidates)
        self._active = next(iter(candidates))

    @property
    def active(self) -> str:
        """Name of the active operator."""
        return self._active

    def select(self, op_name: str) -> None:
        """Make ``op_name`` the active operator.

        Raises:
            UserError: the site has no such candidate.
        """
        if op_name not in self.candidates:
            raise UserError(
                f"site {self.site!r} has no operator {op_name!r}; this model holds "
                f"{sorted(self.candidates)}. A fixed model (NAS.ARCHITECTURE) runs only its own architecture"
            )
        self._active = op_name

    def forward(self, *args):
        """Run the active candidate on ``args``; the others take no part in the graph."""
        return self.candidates[self._active](*args)

    def extra_repr(self) -> str:
        return f"site={self.site!r}, active={self._active!r}"


def choice_blocks(model: nn.Module) -> dict[str, ChoiceBlock]:
    """Every :class:`ChoiceBlock` of ``model`` by its site name, in the order of the model's modules.

    Raises:
        UserError: two blocks claim the same site.
    """
    blocks = {}
    for module in model.modules():
        if isinstance(module, ChoiceBlock):
            if module.site in blocks:
                raise UserError(f"two blocks of the model claim the site {module.site!r}; names must differ")
            blocks[module.site] = module
    return blocks


def apply_architecture(model: nn.Module, architecture) -> None:
    """Make ``architecture`` the path that ``model`` runs from now on.

    Nothing changes unless every site fits.

    Args:
        model: a supernet, a fixed model, or a wrapper around one (DistributedDataParallel).
        architecture: an :class:`auto_panoptic.space.Architecture`; its sites must be the model's sites.

    Raises:
        UserError: a site is missing on either side, or the model does not hold the chosen operator.
    """
    blocks, names = choice_blocks(model), architecture.names()
    check_sites(blocks, names)
    for site, block in blocks.items():
        if names[site] not in block.candidates:
            block.select(names[site])  # raises with the allowed names, before anything was switched
    for site, block in blocks.items():
        block.select(names[site])


def check_sites(blocks: Mapping[str, ChoiceBlock], names: Mapping[str, str]) -> None:
    """Raise a UserError unless the model's sites and the architecture's sites are the same set."""
    unknown = [site for site in names if site not in blocks]
    missing = [site for site in blocks if site not in names]
    if unknown or missing:
        parts = []
        if missing:
            parts.append(f"the architecture says nothing about {_some(missing)}")
        if unknown:
            parts.append(f"the model has no {_some(unknown)}")
        raise UserError(
            f"architecture and model do not fit: {'; '.join(parts)} "
            f"({len(names)} sites in the architecture, {len(blocks)} in the model). "
            "Build the model from the config that the architecture was searched with"
        )


def _some(sites: list[str], limit: int = 4) -> str:
    more = f" and {len(sites) - limit} more" if len(sites) > limit else ""
    return ", ".join(repr(site) for site in sites[:limit]) + more
