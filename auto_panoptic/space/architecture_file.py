"""Architecture files: our own, which name the operator of every site, and the published index lists."""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..errors import UserError
from ..files import HOME, read_json, write_text
from .ops import op
from .space import Architecture, ChoiceSite, SearchSpace, part_of

TEXT = "json:"  # begins an architecture in place of the path of its file
ARCHITECTURES_DIR = HOME / "configs" / "architectures"


def resolve_architecture_path(name: str | os.PathLike) -> Path:
    """``name`` itself if it is a file, otherwise the file of that name under ``configs/architectures``."""
    path = Path(name).expanduser()
    shipped = ARCHITECTURES_DIR / f"{name}.json"
    for candidate in (path, shipped):
        if os.path.isfile(candidate):  # False, not an OSError, where a name is too long
            return candidate
    known = ", ".join(sorted(p.stem for p in ARCHITECTURES_DIR.glob("*.json"))) or "none"
    raise UserError(
        f"NAS.ARCHITECTURE: no architecture file '{name}'; give the path of an architecture.json or a "
        f"name under {ARCHITECTURES_DIR} ({known})"
    )


def load(path: str | os.PathLike, space: SearchSpace | None = None) -> Architecture:
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
    with _read(path) as content:
        stated = _stated_space(content)
        names = _names(content, stated)
        if stated is None and space is None:
            raise UserError("states no 'space': add it, {site: [operators]}, as search_net.py writes it")
        space = space or stated
        kept = {name: value for name, value in names.items() if part_of(name) in space.parts}
        if {site.name for site in space.sites} != kept.keys():
            known = {site.name: site for site in (stated or space).sites}
            theirs = SearchSpace(tuple(known.get(n) or ChoiceSite(n, (op(o),)) for n, o in kept.items()))
            raise UserError(
                "an architecture of another search space (first: the model's, second: the file's): "
                f"{space.difference(theirs)}; use the config it was searched with"
            )
        return Architecture.from_names(space, kept, content.get("provenance"))


@functools.lru_cache(maxsize=8)
def _names_of_version(path: Path, *_version) -> Mapping[str, str]:
    with _read(path) as content:
        return _names(content, _stated_space(content))


def load_names(path: str | os.PathLike) -> Mapping[str, str]:
    """As :func:`load`, {site: operator name} of whatever space; read once for each version of the file."""
    try:
        status = os.stat(path)
    except OSError:
        status = None  # reading it says why
    version = status and (status.st_ino, status.st_mtime_ns, status.st_size)
    return _names_of_version(Path(path), version)


def as_text(names: Mapping[str, str]) -> str:
    """An architecture, {site: operator name}, as a value of NAS.ARCHITECTURE that needs no file."""
    return TEXT + json.dumps({"sites": dict(names)})


def names_in(text: str) -> Mapping[str, str]:
    """The names in a text as :func:`as_text` makes it, or with the content of any architecture file."""
    source = "NAS.ARCHITECTURE"
    try:
        content = json.loads(text.removeprefix(TEXT), object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{source}: what follows {TEXT} is not valid JSON: {error}") from error
    with _object_in(content, source) as content:
        return _names(content, _stated_space(content))


def save(architecture: Architecture, path: str | os.PathLike) -> None:
    """See :meth:`Architecture.save`."""
    content = {
        "space": architecture.space.to_dict(),
        "sites": architecture.names(),
        **architecture.indices(),
        "provenance": architecture.provenance,
    }
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_text(path, _dump(content))


# ------------------------------------------------------------------ reading


@contextlib.contextmanager
def _read(path) -> Iterator[dict]:
    """The object that a file holds; a UserError names the file."""
    with _object_in(read_json(path, "architecture file", object_pairs_hook=_unique_keys), path) as content:
        yield content


@contextlib.contextmanager
def _object_in(content, source) -> Iterator[dict]:
    """The object of an architecture, alone or in the published list of one; a UserError names its source."""
    try:
        if isinstance(content, list):
            if len(content) != 1 or not isinstance(content[0], dict) or "sites" in content[0]:
                raise UserError(
                    f"a list of {len(content)} entries: the published format is a list with one object, "
                    "which has three index lists and no 'sites'"
                )
            content = content[0]
        if not isinstance(content, dict):
            raise UserError(
                f"holds a {type(content).__name__}: expected an object with 'sites' or three index lists"
            )
        if not isinstance(content.get("provenance", {}), dict):
            raise UserError(f"'provenance' is {content['provenance']!r}: expected an object")
        yield content
    except UserError as e:
        raise UserError(f"{source}: {e}") from e


def _stated_space(content: dict) -> SearchSpace | None:
    """The space a file states; that of bare index lists is the paper's. None: it states none."""
    if "space" in content:
        return SearchSpace.from_dict(content["space"])
    return None if "sites" in content else SearchSpace.default()


def _names(content: dict, stated: SearchSpace | None) -> dict[str, str]:
    """{site: operator name} of a file's content, checked against the space that it states."""
    indices = {key: value for key, value in content.items() if key not in ("space", "sites", "provenance")}
    if stated is None and indices:
        raise UserError("holds index lists but no 'space' that they refer to: add it, or remove them")
    if stated is not None and (unknown := [key for key in indices if key not in stated.groups]):
        allowed = ("space", "sites", *stated.groups, "provenance")
        raise UserError(f"unknown key {unknown[0]!r}: expected {', '.join(allowed)}")
    if "sites" not in content:
        if not indices:
            raise UserError(
                "no 'sites' and no index lists: expected 'sites' or 'backbone', 'head' and 'inter'"
            )
        return Architecture.from_indices(stated, indices).names()
    sites = content["sites"]
    if not isinstance(sites, dict) or (not sites and content.get("space") != {}):
        raise UserError(f"'sites' is {sites!r}: expected an object {{site: operator name}}")
    for name, value in sites.items():
        if not isinstance(value, str):
            raise UserError(f"site '{name}' has {value!r}: expected the name of an operator")
        if stated is None:
            ChoiceSite(name, (op(value),))
    for group, right in Architecture.from_names(stated, sites).indices().items() if stated else ():
        if indices and right != indices.get(group, []):
            raise UserError(
                f"'{group}' is {indices.get(group, [])!r} but 'sites' names operators {right}: "
                f"make them agree, or remove the index lists"
            )
    return sites


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
