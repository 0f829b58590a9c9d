"""Reading a JSON object of known keys, and what its values may be."""

from __future__ import annotations

import contextlib
import gc
import json
import math
import os

from .findings import Finding, raise_first

_NUMBERS = frozenset((int, float))
_LARGEST = 1e300


def is_id(value: object) -> bool:
    """Whether ``value`` can be the id of an image (Cityscapes uses strings)."""
    return type(value) in (int, str)


def is_number(value: object) -> bool:
    """A finite number (JSON admits NaN, Infinity and integers of any length); True and False are none."""
    return type(value) in _NUMBERS and -_LARGEST < value < _LARGEST


def are_numbers(values: list) -> bool:
    """Whether all values of a list are finite numbers, quickly."""
    try:
        return _NUMBERS.issuperset(map(type, values)) and math.isfinite(sum(values))
    except OverflowError:
        return False


def is_box(box: object) -> bool:
    """x, y, width, height; finite, with positive sides."""
    return type(box) is list and len(box) == 4 and are_numbers(box) and box[2] > 0 < box[3]


@contextlib.contextmanager
def no_collection():
    """Leave out garbage collection while many containers are made: it takes as long as the work itself."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def read_object(path: str, what: str, keys: dict) -> tuple[dict | None, list[Finding]]:
    """Read a JSON object with ``keys``, {key: type}: the object, or None, and what is wrong.

    ``what`` says for the messages what the file is.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        return None, [Finding("json-broken", path, None, f"the {what} is no file")]
    try:
        with no_collection(), open(path, encoding="utf-8") as file:
            content = json.load(file)
    except FileNotFoundError:
        return None, [Finding("json-missing", path, None, f"the {what} does not exist")]
    except json.JSONDecodeError as error:
        size = os.path.getsize(path)
        where = f"line {error.lineno}, column {error.colno}, character {error.pos} of a file of {size} bytes"
        return None, [Finding("json-broken", path, None, f"the {what} is no JSON: {error.msg} at {where}")]
    except (OSError, ValueError, RecursionError) as error:
        return None, [Finding("json-broken", path, None, f"the {what} cannot be read: {error}")]
    if not isinstance(content, dict):
        found = f"the {what} holds a {type(content).__name__}, expected an object"
        return None, [Finding("json-format", path, None, found)]
    findings = []
    for key, expected in keys.items():
        if not isinstance(content.get(key), expected):
            found = type(content[key]).__name__ if key in content else "missing"
            wrong = f"{key!r} is {found}, expected a {expected.__name__}"
            findings.append(Finding("json-format", path, None, wrong))
    return (None if findings else content), findings


def check_entries(path: str, content: dict, keys: dict) -> None:
    """Raise UserError unless the entries of lists are objects with ids of one type; {list: names of ids}."""
    for part, names in keys.items():
        first = None
        for position, entry in enumerate(content[part]):
            ids = [entry.get(name) for name in names] if isinstance(entry, dict) else [None]
            types = list(map(type, ids))
            first = first or types
            if not all(map(is_id, ids)) or types != first:
                expected = f"an object with {' and '.join(names)}, of the type of the first"
                what = f"{part}[{position}] is {repr(entry)[:100]}, expected {expected}"
                raise_first([Finding("json-format", path, None, what)])


def load_object(path: str, what: str, keys: dict) -> dict:
    """As :func:`read_object`; raises UserError if it is missing, damaged, or a key has another type."""
    content, findings = read_object(path, what, keys)
    raise_first(findings)
    return content
