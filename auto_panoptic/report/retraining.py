"""The command that retrains what a search has selected."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Mapping
from pathlib import Path

from ..config_files import read_files
from ..errors import UserError
from ..files import HOME
from ..validate import flat
from .facts import Search

CONFIGS = HOME / "configs"
_FIXED = re.compile(r"^\s+ARCHITECTURE: *[^\s\"']", re.M)


def retraining_command(search: Search) -> tuple[str, bool]:
    """The command, and whether its config is known; where it is not, the word CONFIG stands for it."""
    config = retraining_config(search.header.get("config"))
    path = shlex.quote(str(search.directory / "architecture.json"))
    return (
        f"python train_net.py --config-file {config or 'CONFIG'} NAS.ARCHITECTURE {path}",
        config is not None,
    )


def retraining_config(searched: object, folder: Path = CONFIGS) -> str | None:
    """The shipped config of a fixed network that is most like a search's config.

    It has the meta-architecture and the test sets of the search, and of all such configs the fewest model
    keys with other values. None if there is none.
    """
    if not isinstance(searched, Mapping):
        return None
    known = {key: _value(value) for key, value in flat(searched)}
    same = ("MODEL.META_ARCHITECTURE", "DATASETS.TEST")
    found = []
    for path in sorted(folder.rglob("*.yaml")):
        text = _text(path)  # to read all of them as YAML takes long
        tests = known.get("DATASETS.TEST") or [""]
        stated = _stated(path) if _FIXED.search(text) and str(tests[0]) in text else {}
        is_fixed = stated.get("NAS.ARCHITECTURE")
        if not is_fixed or any(stated.get(key, known.get(key)) != known.get(key) for key in same):
            continue
        other = sum(
            known[key] != value for key, value in stated.items() if key.startswith("MODEL.") and key in known
        )
        found.append((other, len(path.parts), f"{folder.name}/{path.relative_to(folder)}"))
    return min(found)[2] if found else None


def _text(path: Path) -> str:
    """The text of a config with that of its bases."""
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return ""
    bases = re.search(r"^_BASE_:(.*)$", text, re.M)
    names = re.findall(r"[^\s,\[\]\"']+\.yaml", bases[1]) if bases else []
    return "\n".join([text, *(_text(path.parent / name) for name in names)])


def _stated(path: Path) -> dict[str, object]:
    """{key: value} that a config and its bases state; empty if they cannot be read."""
    stated: dict[str, object] = {}
    try:
        for content in read_files(str(path)):
            stated = {key: _value(value) for key, value in flat(content)} | stated
    except UserError:
        return {}
    return {key: value for key, value in stated.items() if key != "MODEL.WEIGHTS"}


def _value(value: object) -> object:
    """A value in one form: Detectron2 writes tuples as text."""
    if isinstance(value, str) and value[:1] in ("(", "["):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            return value
    return [_value(v) for v in value] if isinstance(value, list | tuple) else value
