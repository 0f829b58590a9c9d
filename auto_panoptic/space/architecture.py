"""One architecture: an operator for every site of a space; reading and writing of architecture files."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from ..errors import UserError
from .ops import BACKBONE_OPS, GROUPS, HEAD_OPS, INTER_OPS, OpSpec, op
from .search_space import PARTS, ChoiceSite, SearchSpace, op_at, part_of

ARCHITECTURES_DIR = Path(__file__).resolve().parents[2] / "configs" / "architectures"


@dataclass(frozen=True)
class Architecture:
    """An immutable mapping from site to operator.

    Two architectures are equal if their spaces and choices are; provenance does not count.

    Attributes:
        space: the space it belongs to.
        choices: one operator name per site, in site order.
        provenance: where it comes from: free-form, JSON-compatible.
    """

    space: SearchSpace
    choices: tuple[str, ...]
    provenance: dict = field(default_factory=dict, compare=False)

    def __post_init__(self):
        object.__setattr__(self, "choices", tuple(self.choices))
        if len(self.choices) != len(self.space.sites):
            raise UserError(
                f"{len(self.choices)} choices for {len(self.space.sites)} sites: give one per site"
            )
        for site, name in zip(self.space.sites, self.choices, strict=True):
            site.index(name)

    @cached_property
    def _ops(self) -> dict[str, OpSpec]:
        return {
            site.name: site.ops[site.index(name)]
            for site, name in zip(self.space.sites, self.choices, strict=True)
        }

    def __getitem__(self, site: str) -> OpSpec:
        """The operator at ``site``."""
        self.space.site(site)
        return self._ops[site]

    def names(self) -> dict[str, str]:
        """{site name: operator name}, in site order."""
        return {site.name: name for site, name in zip(self.space.sites, self.choices, strict=True)}

    def indices(self) -> dict[str, list[int]]:
        """The three index lists ``backbone``, ``head`` (mask, semantic) and ``inter`` (f2b, b2f)."""
        result = {group: [] for group in GROUPS}
        for site, name in zip(self.space.sites, self.choices, strict=True):
            result[site.group].append(site.index(name))
        return result

    @classmethod
    def from_names(cls, space: SearchSpace, names: Mapping[str, str], provenance: dict | None = None):
        """Build from {site name: operator name}, which must cover the sites of ``space`` exactly."""
        for name in names:
            space.site(name)
        for site in space.sites:
            if site.name not in names:
                raise UserError(
                    f"site '{site.name}' has no operator: expected one of {', '.join(site.names)}"
                )
        return cls(space, tuple(names[site.name] for site in space.sites), dict(provenance or {}))

    @classmethod
    def from_indices(
        cls, space: SearchSpace, indices: Mapping[str, Sequence[int]], provenance: dict | None = None
    ):
        """Build from the three index lists; a group without sites may be left out."""
        if unknown := [key for key in indices if key not in GROUPS]:
            raise UserError(f"unknown index list {unknown[0]!r}: expected {', '.join(GROUPS)}")
        chosen = {}
        for group in GROUPS:
            sites = space.group(group)
            values = indices.get(group, ())
            if isinstance(values, str | Mapping) or not hasattr(values, "__len__"):
                raise UserError(f"'{group}' is {values!r}: expected a list of {len(sites)} indices")
            if len(values) != len(sites):
                raise UserError(f"'{group}' has {len(values)} indices: expected {len(sites)}, one per site")
            for site, index in zip(sites, values, strict=True):
                chosen[site.name] = op_at(site, index)
        return cls(space, tuple(chosen[site.name] for site in space.sites), dict(provenance or {}))

    def save(self, path: str | os.PathLike) -> None:
        """Write the architecture file: a temporary file in the same folder, then one rename.

        Raises:
            UserError: the file cannot be written.
        """
        content = {
            "space": self.space.to_dict(),
            "sites": self.names(),
            **self.indices(),
            "provenance": self.provenance,
        }
        path, temporary = Path(path), None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            with os.fdopen(handle, "w", encoding="utf-8") as f:
                f.write(_dump(content))
                f.flush()
                os.fsync(f.fileno())
                os.fchmod(f.fileno(), 0o644)
            os.replace(temporary, path)
        except OSError as e:
            if temporary and os.path.exists(temporary):
                os.unlink(temporary)
            raise UserError(f"{path}: cannot write the architecture file: {e.strerror or e}") from e

    @classmethod
    def load(cls, path: str | os.PathLike, space: SearchSpace | None = None) -> Architecture:
        """Read an architecture file, our own or one in the published format.

        The published format is a JSON list holding one object with the three index lists, in the published
        operator order and for the paper's space. Ours names the operator of every site.

        Args:
            path: the file.
            space: the space it must belong to. Without it, the space is the one stated in the file. Parts
                of the network that ``space`` lacks altogether are left out: the file of a whole network
                serves a model that has only some of its parts.

        Raises:
            UserError: no such file, not an architecture file, or an architecture of another space.
        """
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as e:
            reason = e.strerror if isinstance(e, OSError) else "it is not a text file"
            raise UserError(f"{path}: cannot read the architecture file: {reason}") from e
        try:
            content = json.loads(text, object_pairs_hook=_unique_keys)
        except (ValueError, RecursionError) as e:
            raise UserError(
                f"{path}: not an architecture file: {e}; expected JSON as search_net.py writes"
            ) from e
        try:
            return _decode(content, space)
        except UserError as e:
            raise UserError(f"{path}: {e}") from e


def configured_ops(cfg) -> dict[str, tuple[OpSpec, ...]]:
    """The operators to build at each site: all of them for a supernet, exactly one for a fixed model."""
    space = SearchSpace.from_config(cfg)
    if not cfg.NAS.ARCHITECTURE:
        return {site.name: site.ops for site in space.sites}
    architecture = Architecture.load(resolve_architecture_path(cfg.NAS.ARCHITECTURE), space)
    return {site.name: (architecture[site.name],) for site in space.sites}


def resolve_architecture_path(name: str | os.PathLike) -> Path:
    """``name`` itself if it is a file, otherwise the file of that name under ``configs/architectures``."""
    path = Path(name).expanduser()
    if path.is_file():
        return path
    shipped = ARCHITECTURES_DIR / f"{name}.json"
    if shipped.is_file():
        return shipped
    known = ", ".join(sorted(p.stem for p in ARCHITECTURES_DIR.glob("*.json"))) or "none"
    raise UserError(
        f"NAS.ARCHITECTURE: no architecture file '{name}'; give the path of an architecture.json or a "
        f"name under {ARCHITECTURES_DIR} ({known})"
    )


def _decode(content, space: SearchSpace | None) -> Architecture:
    if isinstance(content, list):
        if len(content) != 1 or not isinstance(content[0], dict):
            raise UserError(
                f"a list of {len(content)} entries: the published format is a list with one object"
            )
        content = content[0]
        if "sites" in content:
            raise UserError("'sites' inside a list: an architecture with named sites is a plain object")
    if not isinstance(content, dict):
        raise UserError(
            f"holds a {type(content).__name__}: expected an object with 'sites' or three index lists"
        )
    allowed = ("space", "sites", *GROUPS, "provenance")
    if unknown := [key for key in content if key not in allowed]:
        raise UserError(f"unknown key {unknown[0]!r}: expected {', '.join(allowed)}")
    provenance = content.get("provenance", {})
    if not isinstance(provenance, dict):
        raise UserError(f"'provenance' is {provenance!r}: expected an object")
    indices = {group: content[group] for group in GROUPS if group in content}

    if "sites" not in content:
        if not indices:
            raise UserError(
                "no 'sites' and no index lists: expected 'sites' or 'backbone', 'head' and 'inter'"
            )
        # Bare indices mean something only in an order stated elsewhere: the file's own, or the published.
        stated = SearchSpace.from_dict(content["space"]) if "space" in content else SearchSpace.default()
        architecture = Architecture.from_indices(stated, indices, provenance)
    else:
        architecture = _decode_sites(content, space, provenance)
        if indices and architecture.indices() != _padded(indices):
            _explain_disagreement(architecture, indices)
    if space is None or space == architecture.space:
        return architecture
    return _move(architecture, space)


def _decode_sites(content: dict, space: SearchSpace | None, provenance: dict) -> Architecture:
    sites = content["sites"]
    if not isinstance(sites, dict) or (not sites and content.get("space") != {}):
        raise UserError(f"'sites' is {sites!r}: expected an object {{site: operator name}}")
    for name, value in sites.items():
        if not isinstance(value, str):
            raise UserError(f"site '{name}' has {value!r}: expected the name of an operator")
    if "space" in content:
        stated = SearchSpace.from_dict(content["space"])
    elif space is not None:
        absent = [n for n in sites if part_of(n) not in space.parts]
        others = tuple(ChoiceSite(n, _usual_domain(op(sites[n]))) for n in absent)
        stated = SearchSpace(tuple(sorted(space.sites + others, key=_part_order)))
    else:
        stated = SearchSpace(tuple(ChoiceSite(name, _usual_domain(op(o))) for name, o in sites.items()))
    return Architecture.from_names(stated, sites, provenance)


def _usual_domain(spec: OpSpec) -> tuple[OpSpec, ...]:
    """The published domain the operator belongs to; an operator outside of them stands alone."""
    for domain in (BACKBONE_OPS, HEAD_OPS, INTER_OPS):
        if spec in domain:
            return domain
    return (spec,)


def _part_order(site: ChoiceSite) -> int:
    return PARTS.index(site.part) if site.part in PARTS else len(PARTS)


def _move(architecture: Architecture, space: SearchSpace) -> Architecture:
    """The same choices, by name, in ``space``; domains may differ as long as every choice is in them.

    Sites of parts that ``space`` lacks are left out.
    """
    theirs = SearchSpace(tuple(site for site in architecture.space.sites if site.part in space.parts))
    if {site.name for site in space.sites} != {site.name for site in theirs.sites}:
        raise UserError(
            "an architecture of another search space (first: the model's, second: the file's): "
            f"{space.difference(theirs)}; use the config it was searched with"
        )
    names = architecture.names()
    return Architecture.from_names(
        space, {site.name: names[site.name] for site in theirs.sites}, architecture.provenance
    )


def _padded(indices: Mapping) -> dict:
    return {group: indices.get(group, []) for group in GROUPS}


def _explain_disagreement(architecture: Architecture, indices: Mapping) -> None:
    right = architecture.indices()
    group = next(g for g in GROUPS if right[g] != indices.get(g, []))
    raise UserError(
        f"'{group}' is {indices.get(group, [])!r} but 'sites' names operators {right[group]}: "
        f"make them agree, or remove the index lists"
    )


def _unique_keys(pairs):
    result = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"key {key!r} occurs twice in one object")
        result[key] = value
    return result


def _dump(content: dict) -> str:
    """JSON with one site per line and lists kept on their line."""
    lines = []
    for key, value in content.items():
        if isinstance(value, dict) and value:
            inner = ",\n".join(f"    {json.dumps(k)}: {json.dumps(v)}" for k, v in value.items())
            text = f"{{\n{inner}\n  }}"
        else:
            text = json.dumps(value)
        lines.append(f"  {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"
