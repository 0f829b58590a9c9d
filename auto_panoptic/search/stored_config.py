"""The config of a search beside its ledger, so that selecting anew need not import Detectron2 to read it.

It counts only if the files and options it was made from are the ones given, to the byte.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from pathlib import Path

import yaml

from .. import __version__
from .results import write_json


class _Node(dict):
    """A config node: keys are attributes."""

    __getattr__ = dict.__getitem__


def store_config(cfg, config_file: str, opts: list[str]) -> None:
    """Write OUTPUT_DIR/search/config.json, where there is a search.

    Args:
        cfg: what the two others make.
        config_file: path of a YAML file.
        opts: ``KEY VALUE`` pairs.

    Raises:
        UserError: the file cannot be written.
    """
    folder = Path(cfg.OUTPUT_DIR) / "search"
    if Path(config_file).is_file() and folder.is_dir():
        write_json(folder / "config.json", {"made_from": _made_from(config_file, opts)[0], "config": cfg})


def stored_config(config_file: str, opts: list[str]) -> dict | None:
    """The config that :func:`store_config` stored for the same files and options; None if there is none."""
    try:
        made_from, output_dir = _made_from(config_file, opts)
        content = json.loads((Path(output_dir) / "search" / "config.json").read_text(), object_hook=_Node)
        if content["made_from"] != made_from:
            return None
        return _Node(content["config"], OUTPUT_DIR=output_dir)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError):
        return None  # reading the config the long way tells what is wrong


def _made_from(config_file: str, opts: list[str]) -> tuple[str, str]:
    """(digest of all that a config follows from, OUTPUT_DIR apart; OUTPUT_DIR)."""
    options = dict(zip(opts[::2], opts[1::2], strict=True))
    output_dir = options.pop("OUTPUT_DIR", None)
    versions = [__version__, importlib.metadata.version("detectron2")]
    total = hashlib.sha256(json.dumps([versions, sorted(options.items())]).encode())
    texts = [(Path(__file__).parents[1] / "config.py").read_bytes()]
    waiting = [Path(config_file)]  # the files that state more come first
    while waiting:
        path = waiting.pop(0)
        texts.append(path.read_bytes())
        content = yaml.safe_load(texts[-1])
        output_dir = content.get("OUTPUT_DIR") if output_dir is None else output_dir
        bases = content.get("_BASE_", [])
        bases = [bases] if isinstance(bases, str) else bases[::-1]  # the last of a list counts most
        waiting[:0] = [path.parent / base for base in bases]
    for text in texts:
        total.update(hashlib.sha256(text).digest())
    return total.hexdigest(), "./output" if output_dir is None else output_dir
