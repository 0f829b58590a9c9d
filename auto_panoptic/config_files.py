"""The YAML files of a config, plain values only. Needs neither torch nor Detectron2."""

from __future__ import annotations

import os

import yaml

from .errors import UserError

SIZE = 256 * 1024  # bytes of a config and its bases
FILES = 50  # read for one config
VALUES = 20_000  # in one file, its aliases written out


def read_files(path: str) -> list[dict]:
    """Content of a YAML file and of its bases; of two files that state a key, the first counts.

    Raises:
        UserError: one is missing, is no plain YAML, states a key twice, or has itself as a base; they are
            more or larger than a config is.
    """
    found: list[dict] = []
    _read(path, (), found, [SIZE])
    return found


def _read(path: str, above: tuple[str, ...], found: list[dict], room: list[int]) -> None:
    if not os.path.isfile(path):
        what = "is no plain file" if os.path.exists(path) else "there is no such file"
        raise UserError(f"{above[-1]}: no file {path!r}, which is its _BASE_" if above else f"{path}: {what}")
    if os.path.realpath(path) in map(os.path.realpath, above):
        raise UserError(f"{path}: is a _BASE_ of itself, by way of {' and '.join(above)}")
    if path.endswith(".py"):
        raise UserError(f"{path}: a Python file is no config here; write it as YAML")
    room[0] -= os.path.getsize(path)
    if room[0] < 0 or len(found) >= FILES:
        most = f"{FILES} files and {SIZE // 1024} KiB"
        raise UserError(f"{path}: a config with its bases has at most {most}; name a smaller one")
    try:
        with open(path, "rb") as stream:
            content = read_text(stream.read(SIZE + 1), path)
    except OSError as error:
        raise UserError(f"{path}: {' '.join(str(error).split())}") from None
    bases = content.get("_BASE_", [])
    bases = bases if isinstance(bases, list) else [bases]
    found.append(content)
    for base in reversed(bases):
        if not isinstance(base, str) or "://" in base:
            raise UserError(f"{path}: _BASE_ is {base!r}; expected the path of a YAML file")
        base = os.path.join(os.path.dirname(path), os.path.expanduser(base))
        _read(base, (*above, path), found, room)


def read_text(text: bytes | str, source: str) -> dict:
    """Content of the text of one YAML file, ``source``; UserError as :func:`read_files`."""
    try:
        content = _plain_values(text)
    except yaml.constructor.ConstructorError as error:
        place = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        problem = f"{source}: {error.problem}{place}; a config holds plain values, no code is run"
        raise UserError(f"{problem}: write a list or a number instead") from None
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{source}: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UserError(f"{source}: holds no config; expected YAML with KEY: VALUE lines")
    return content


def _plain_values(text: bytes | str):
    """What a YAML text says; ValueError if a key is no text or stands twice, or aliases hold too much."""
    loader = yaml.SafeLoader(text)
    node = loader.get_single_node()
    if node is None:
        return None
    sizes: dict[int, float] = {}

    def size(node: yaml.Node) -> float:
        if id(node) not in sizes:
            sizes[id(node)] = float("inf")  # of a node within itself
            children = node.value if isinstance(node, yaml.CollectionNode) else []
            if isinstance(node, yaml.MappingNode):
                lines: dict[str, int] = {}
                for key, _ in children:
                    line = key.start_mark.line + 1
                    if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                        raise ValueError(f"line {line}: a key is a name; write {key.value!r} in quotes")
                    if key.value in lines:
                        twice = f"in line {lines[key.value]} and again in line {line}"
                        raise ValueError(f"key {key.value!r} stands {twice}; remove one")
                    lines[key.value] = line
                children = [child for pair in children for child in pair]
            sizes[id(node)] = 1 + sum(map(size, children))
        return sizes[id(node)]

    if size(node) > VALUES:
        raise ValueError(f"holds more than {VALUES} values, its aliases (*name) written out; write fewer")
    return loader.construct_document(node)
