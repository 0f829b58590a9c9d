"""The YAML files of a config, plain values only. Needs neither torch nor Detectron2."""

from __future__ import annotations

import os

import yaml

from .errors import UserError


def read_files(path: str, above: tuple[str, ...] = ()) -> list[dict]:
    """Content of a YAML file and of its bases; of two files that state a key, the first counts.

    Raises:
        UserError: one is missing, is no plain YAML, or has itself as a base.
    """
    if not os.path.isfile(path):
        raise UserError(f"{above[-1] if above else path}: no file {path!r}, which is its _BASE_")
    if os.path.realpath(path) in map(os.path.realpath, above):
        raise UserError(f"{path}: is a _BASE_ of itself, by way of {' and '.join(above)}")
    if path.endswith(".py"):
        raise UserError(f"{path}: a Python file is no config here; write it as YAML")
    try:
        with open(path, encoding="utf-8") as stream:
            content = yaml.safe_load(stream)
    except yaml.constructor.ConstructorError as error:
        place = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(
            f"{path}: {error.problem}{place}; a config holds plain values, no code is run: write a list or a "
            "number instead"
        ) from None
    except (yaml.YAMLError, ValueError, RecursionError, OSError) as error:
        raise UserError(f"{path}: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds no config; expected YAML with KEY: VALUE lines")
    bases = content.get("_BASE_", [])
    bases = bases if isinstance(bases, list) else [bases]
    found = [content]
    for base in reversed(bases):
        if not isinstance(base, str) or "://" in base:
            raise UserError(f"{path}: _BASE_ is {base!r}; expected the path of a YAML file")
        base = os.path.join(os.path.dirname(path), os.path.expanduser(base))
        found += read_files(base, (*above, path))
    return found
