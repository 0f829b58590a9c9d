"""Cost tables beside the ledger: with them, selecting anew builds no model and does without torch."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
from pathlib import Path

from ..config_files import read_files
from ..errors import UserError
from ..files import read_json, write_json
from ..space import CostTables

PACKAGE = Path(__file__).resolve().parents[1]


def origin(config_file: str | dict, opts: list[str]) -> tuple[str, str] | None:
    """What the costs of a config follow from, without building the config.

    That is a digest of the files, the options, this package and the version of Detectron2; and OUTPUT_DIR,
    which does not count. None where they do not tell all: the config has modules of IMPORTS, or is at fault;
    or a program has made it.
    """
    if isinstance(config_file, dict):
        return None
    try:
        files = read_files(config_file)
        options = dict(zip(opts[::2], opts[1::2], strict=True))
    except (UserError, ValueError):
        return None
    if "IMPORTS" in options or any("IMPORTS" in content for content in files):
        return None
    given = (content["OUTPUT_DIR"] for content in files if "OUTPUT_DIR" in content)
    output_dir = options.pop("OUTPUT_DIR", None) or next(given, "./output")
    total = hashlib.sha256(importlib.metadata.version("detectron2").encode())
    for path in sorted(PACKAGE.rglob("*.py")):
        total.update(path.read_bytes())
    total.update(json.dumps([files, sorted(options.items())], default=str).encode())
    return total.hexdigest(), output_dir


def stored_tables(directory: Path, key: str) -> CostTables | None:
    """The tables that :func:`store_tables` stored; None where there are none, or, with a warning, others."""
    path = directory / "costs.json"
    try:
        entries = read_json(path) if path.exists() else {}
        if isinstance(entries, dict) and key not in entries:
            return None
        if entries[key]["sha256"] == _digest([key, entries[key]["tables"]]):
            return CostTables.from_json(entries[key]["tables"])
    except (UserError, KeyError, TypeError, ValueError):
        pass
    logging.getLogger(__name__).warning("%s was changed or is damaged: the costs are counted anew", path)
    return None


def store_tables(directory: Path, key: str, tables: CostTables) -> None:
    """Add a config's tables, by its :func:`origin`, to costs.json beside the ledger, whose lock is held."""
    try:
        stored = read_json(directory / "costs.json")
    except UserError:
        stored = {}
    content = tables.to_json()
    entry = {key: {"sha256": _digest([key, content]), "tables": content}}
    write_json(directory / "costs.json", (stored if isinstance(stored, dict) else {}) | entry)


def _digest(content: list) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
