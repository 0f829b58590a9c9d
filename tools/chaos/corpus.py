"""Malformed files, made of sound ones: damaged bytes, and values of JSON and YAML that mean nothing.

Everything follows from the generator that is given, so that a case can be made again from its number.
"""

from __future__ import annotations

import copy
import io
import json
import random
import zlib
from collections.abc import Callable, Iterator

import torch
import yaml

DEEP = 3000  # levels of nesting
MAGIC = (
    b"",
    b"\0",
    b"{",
    b"[",
    b"null",
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"\x80\4.",
    b"\xff\xd8\xff\xe0",
    b"PK\3\4",
)
MAGIC += (
    b"\x89PNG\r\n\x1a\n",
    b"\x1f\x8b\b",
    b"%PDF-1.4",
    b"<html>",
    b"version https://git-lfs.github.com/\n",
)
TEXTS = (
    "",
    " ",
    "0",
    "-1",
    "nan",
    "1e5",
    "true",
    "null",
    "None",
    "\0",
    "\n",
    "a\nb",
    "\ud800",
    "ü",
    "😀",
    "~",
)
TEXTS += ("../../../etc/passwd", "/etc/passwd", "/dev/zero", "file:///etc/passwd", "https://127.0.0.1:9/x")
TEXTS += ("__import__('os').system('touch executed')", "!!python/object/apply:os.system ['touch executed']")
TEXTS += ("$HOME", "%s%n{0}", "a" * 10**5)
NUMBERS = (0, -1, 1, 2, 255, 256, 2**24, 2**31, 2**63, 2**70, 10**400, -(2**65), 0.5, -0.0, 1e-320, 1e308)
NUMBERS += (float("nan"), float("inf"), float("-inf"), True, False)


# ------------------------------------------------------------------ bytes


def damaged(data: bytes, rng: random.Random) -> bytes:
    """One to three damages of the bytes of a file."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        data = rng.choice(BYTES)(data, rng)
    return data


def _flip(data, rng):
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 8, 64)) if found else 0):
        found[rng.randrange(len(found))] ^= 1 << rng.randrange(8)
    return bytes(found)


def _cut(data, rng):
    return data[: rng.randrange(len(data) + 1)]


def _cut_end(data, rng):
    return data[: -rng.randint(1, 24)]


def _cut_start(data, rng):
    return data[rng.randint(1, 24) :]


def _remove(data, rng):
    start = rng.randrange(len(data) + 1)
    return data[:start] + data[start + rng.randint(1, 64) :]


def _insert(data, rng):
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.randbytes(rng.randint(1, 64)) + data[at:]


def _twice(data, rng):
    start = rng.randrange(len(data) + 1)
    end = start + rng.randint(1, max(1, len(data) // 2))
    return data[:end] + data[start:]


def _zeros(data, rng):
    start, size = rng.randrange(len(data) + 1), rng.randint(1, 512)
    return data[:start] + b"\0" * min(size, len(data) - start) + data[start + size :]


def _other(data, rng):
    return rng.choice(MAGIC) + rng.choice((b"", data, data[4:], rng.randbytes(99)))


BYTES = (_flip, _flip, _cut, _cut_end, _cut_start, _remove, _insert, _twice, _zeros, _other)


# ------------------------------------------------------------------ trees


def odd(rng: random.Random):
    """A value that hardly any place of a file may have."""
    kind = rng.randrange(8)
    if kind < 3:
        return rng.choice(NUMBERS)
    if kind < 5:
        return rng.choice(TEXTS)
    if kind == 5:
        return copy.deepcopy(rng.choice((None, [], {}, [[]], [None], {"": None}, [0] * 1000, {"a": {}})))
    if kind == 6:
        return [odd(rng) for _ in range(rng.randrange(4))]
    return {rng.choice(TEXTS): odd(rng) for _ in range(rng.randrange(3))}


def places(tree) -> Iterator[tuple]:
    """(container, key) of everything below ``tree``, which holds dicts and lists."""
    if isinstance(tree, (dict, list)):
        for key, value in list(tree.items() if isinstance(tree, dict) else enumerate(tree)):
            yield tree, key
            yield from places(value)


def changed(tree, rng: random.Random):
    """A copy of ``tree`` with one to three changes: values, types, keys that are missing, new or doubled."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        found = list(places(tree))
        if not found or rng.random() < 0.02:
            return odd(rng)
        # every depth is as likely as another: most places are numbers far down
        depths = {key if isinstance(key, str) else "": None for _, key in found}
        name = rng.choice(list(depths))
        container, key = rng.choice([p for p in found if (p[1] if isinstance(p[1], str) else "") == name])
        _change(container, key, rng)
    return tree


def _change(container, key, rng: random.Random) -> None:
    value, kind = container[key], rng.randrange(12)
    if kind < 5:
        container[key] = odd(rng)
    elif kind == 5:
        del container[key]
    elif kind == 6:
        container[key] = [value]
    elif kind == 7:
        container[key] = {str(key): value}
    elif kind == 8:
        container[key] = str(value)
    elif kind == 9 and isinstance(container, list):
        container.append(copy.deepcopy(value))
    elif kind == 9:
        container[rng.choice(TEXTS)] = value
    elif kind == 10 and isinstance(value, (list, dict)):
        container[key] = type(value)()
    elif kind == 10 and isinstance(value, (int, float)):
        container[key] = rng.choice((value + 1, -value, value * 2, float(value) + 0.5))
    else:
        other, there = rng.choice(list(places(container)))
        container[key] = copy.deepcopy(other[there])


# ------------------------------------------------------------------ files


def of_bytes(data: bytes, rng: random.Random) -> bytes:
    return damaged(data, rng)


def _half(mutate: Callable) -> Callable[[bytes, random.Random], bytes]:
    """Two thirds by ``mutate``, the others damaged bytes."""

    def either(data: bytes, rng: random.Random) -> bytes:
        return mutate(data, rng) if rng.random() < 0.67 else damaged(data, rng)

    return either


def of_sealed_json(seal: Callable) -> Callable[[bytes, random.Random], bytes]:
    """Of a JSON file; ``seal`` makes what was changed look right again."""

    @_half
    def mutate(data: bytes, rng: random.Random) -> bytes:
        tree = changed(json.loads(data), rng)
        text = json.dumps(seal(tree) if rng.random() < 0.8 else tree)
        kind = rng.randrange(25)
        if kind == 0:
            text = "[" * DEEP + text + "]" * DEEP
        elif kind == 1:
            text = text.replace("{", '{"a": 1, "a": 2, ', 1)
        elif kind == 2:
            text = text.replace('": ', '": ' + '{"":' * DEEP, 1)
        elif kind == 3:
            text = text.replace(",", ", ,", 1)
        return text.encode()

    return mutate


of_json = of_sealed_json(lambda tree: tree)


def of_lines(seal: Callable | None = None) -> Callable[[bytes, random.Random], bytes]:
    """Of a file with JSON in each line; ``seal`` makes what was changed look right again."""

    @_half
    def mutate(data: bytes, rng: random.Random) -> bytes:
        lines = data.splitlines()
        for _ in range(rng.choice((1, 1, 2))):
            at = rng.randrange(len(lines))
            tree = changed(json.loads(lines[at]), rng)
            if seal and rng.random() < 0.8:
                tree = seal(tree)
            lines[at] = json.dumps(tree).encode()
            if rng.random() < 0.1:
                lines.insert(rng.randrange(len(lines)), rng.choice(lines))
            if rng.random() < 0.1:
                lines.pop(rng.randrange(len(lines)))
            if not lines:
                break
            at = rng.randrange(len(lines))
        return b"\n".join(lines) + b"\n" * rng.choice((0, 1, 1, 1, 2))

    return mutate


@_half
def of_yaml(data: bytes, rng: random.Random) -> bytes:
    """Of a YAML file."""
    tree = changed(yaml.safe_load(data), rng)
    text = yaml.safe_dump(tree, allow_unicode=True)
    kind = rng.randrange(20)
    if kind == 0:
        text = text.replace(": ", ": !!python/object/apply:os.system ['touch executed'] #", 1)
    elif kind == 1:
        text += "\nX: " + "[" * 500 + "]" * 500
    elif kind == 2:
        text = "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: [*c, *c]\n" + text
    elif kind == 3:
        text += "\n<<: *nowhere\n"
    return text.encode(errors="surrogateescape") if "\ud800" not in text else text.encode(errors="replace")


@_half
def of_png(data: bytes, rng: random.Random) -> bytes:
    """Of a PNG: chunks changed, doubled or missing, their checksums right."""
    chunks, at = [], 8
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    for _ in range(rng.choice((1, 1, 2))):
        place, kind = rng.randrange(len(chunks)), rng.randrange(6)
        name, content = chunks[place]
        if kind < 2:  # width, height, depth, colour, interlacing
            header = bytearray(chunks[0][1])
            field = rng.choice(((0, 4), (4, 4), (8, 1), (9, 1), (12, 1)))
            value = rng.choice((0, 1, 2, 3, 6, 8, 16, 255, 4000, 60_000, 2**31 - 1)) % 256 ** field[1]
            header[field[0] : sum(field)] = value.to_bytes(field[1], "big")
            chunks[0] = (b"IHDR", bytes(header))
        elif kind == 2:
            chunks[place] = (name, damaged(content, rng))
        elif kind == 3:
            chunks.insert(place, chunks[rng.randrange(len(chunks))])
        elif kind == 4 and len(chunks) > 1:
            chunks.pop(place)
        else:
            name = rng.choice((b"PLTE", b"tRNS", b"iCCP", b"eXIf", b"zTXt", b"gAMA", b"acTL"))
            chunks.insert(place, (name, rng.randbytes(rng.choice((0, 3, 12, 300)))))
    parts = [len(c).to_bytes(4, "big") + n + c + zlib.crc32(n + c).to_bytes(4, "big") for n, c in chunks]
    return data[:8] + b"".join(parts)


@_half
def of_archive(data: bytes, rng: random.Random) -> bytes:
    """Of a file of torch.save: what it holds, changed, and stored again."""
    tree = torch.load(io.BytesIO(data), weights_only=True)
    found = [(c, k) for c, k in places(tree) if isinstance(c[k], torch.Tensor)]
    if rng.random() < 0.3 and found:
        container, key = rng.choice(found)
        container[key] = tensor_of_another_kind(container[key], rng)
    else:
        tree = changed(tree, rng)
    stream = io.BytesIO()
    torch.save(tree, stream)
    return stream.getvalue()


def tensor_of_another_kind(value: torch.Tensor, rng: random.Random) -> torch.Tensor:
    """Of other numbers, type, shape or layout."""
    kind = rng.randrange(8)
    if kind == 0:
        return torch.full_like(value.float(), rng.choice((float("nan"), float("inf"), 1e38)))
    if kind == 1:
        return value.to(rng.choice((torch.float64, torch.float16, torch.int64, torch.bool, torch.complex64)))
    if kind == 2:
        return value.flatten()[: rng.choice((0, 1))]
    if kind == 3:
        return value[None]
    if kind == 4:
        return torch.zeros(1).expand(10**6, 10**6)  # a number that claims to be many
    if kind == 5 and value.dim() == 2:
        return value.to_sparse()
    if kind == 6:
        return torch.empty(0)
    return torch.empty(value.shape, device="meta") if kind == 7 else value.flatten()
