"""The bytes of pictures: read from plain files only, and judged by their header before they are unpacked."""

from __future__ import annotations

import os
import stat
import struct
import zlib
from typing import BinaryIO

MAX_PIXELS = 89_478_485  # of a picture; from here on Pillow warns of decompression bombs
MAX_BYTES = 1 << 30  # of a file
RGB, RGBA, GREY = "RGB of 8 bits", "RGBA of 8 bits", "greyscale of 8 bits"
_PNG = b"\x89PNG\r\n\x1a\n"
_SIGNATURES = {b"\xff\xd8\xff": "JPEG", _PNG: "PNG", b"GIF8": "GIF", b"II*\0": "TIFF", b"MM\0*": "TIFF"}
_COLORS = {0: "greyscale", 2: "RGB", 3: "palette", 4: "greyscale with alpha", 6: "RGBA"}


def open_plain(path: str) -> tuple[BinaryIO | None, tuple[str, str] | None]:
    """A file, open for reading, and what is wrong: None, or ("missing" or "unreadable", text).

    A pipe or a device, which may never end, is not read.
    """
    try:
        file = open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    except FileNotFoundError:
        dangling = " (a link that leads nowhere)" if os.path.islink(path) else ""
        return None, ("missing", f"the file does not exist{dangling}")
    except (OSError, ValueError) as error:
        return None, ("unreadable", f"the file cannot be read: {getattr(error, 'strerror', error)}")
    found = os.fstat(file.fileno())
    if stat.S_ISREG(found.st_mode) and 0 < found.st_size <= MAX_BYTES:
        return file, None
    file.close()
    if not stat.S_ISREG(found.st_mode):
        return None, ("unreadable", "it is no plain file but a folder, pipe or device")
    size = (
        "is empty (0 bytes)" if not found.st_size else f"has {found.st_size} bytes, allowed are {MAX_BYTES}"
    )
    return None, ("unreadable", f"the file {size}")


def picture_type(data: bytes) -> str | None:
    """ "PNG", "JPEG" and so on, or None."""
    return next((name for start, name in _SIGNATURES.items() if data.startswith(start)), None)


def size_problem(size: tuple, who: str, expected: tuple) -> tuple[str, str] | None:
    """What is wrong with the (W, H) that a picture declares.

    Args:
        size: of the picture.
        who, expected: who says which size it has; (None, None) if nobody knows.
    """
    if 0 in size:
        return "unreadable", "it has no pixel"
    if size[0] * size[1] > MAX_PIXELS:
        return "unreadable", f"it has {size[0]} x {size[1]} pixels, allowed are {MAX_PIXELS}"
    if expected[0] is not None and size != expected:
        return "size", f"the PNG has {times(size)} pixels, {who} {times(expected)}"
    return None


def times(size: tuple) -> str:
    """(W, H) as text."""
    return f"{size[0]} x {size[1]}"


def png_problem(data: bytes, allowed: tuple, who: str, expected: tuple) -> tuple[str, str] | None:
    """What is wrong with a PNG, before it is unpacked: (last part of the kind of finding, text), or None.

    Args:
        data: the file.
        allowed: of the formats such as :data:`RGB`, the best one first.
        who, expected: as for :func:`size_problem`.
    """
    known = picture_type(data)
    if known is None:
        return "unreadable", f"{len(data)} bytes that are no image (they begin {data[:8]!r})"
    if known != "PNG":
        return "format", f"the file is {known}, whatever its name says, expected PNG, {allowed[0]}"
    if len(data) < 33 or data[12:16] != b"IHDR":
        return "truncated", "begins as PNG, but its header is cut or damaged"
    width, height, depth, color = struct.unpack_from(">IIBB", data, 16)
    found = f"{_COLORS.get(color, f'colour type {color}')} of {depth} bits"
    if found not in allowed:
        return "format", f"the file is {found}, expected {allowed[0]}"
    return size_problem((width, height), who, expected) or _damage(data)


def _damage(data: bytes) -> tuple[str, str] | None:
    """The checksums of the chunks that hold the picture, and whether its end is there."""
    place, view = len(_PNG), memoryview(data)
    while place + 12 <= len(data):
        end = place + 8 + int.from_bytes(view[place : place + 4], "big")
        optional = data[place + 4] & 32
        if end + 4 > len(data):
            break
        if not optional and zlib.crc32(view[place + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            break
        if view[place + 4 : place + 8] == b"IEND":
            return None
        place = end + 4
    return "truncated", f"PNG of {len(data)} bytes is cut or damaged at byte {min(place, len(data))}"
