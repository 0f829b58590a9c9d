"""Pictures: read from plain files only, judged by their header before they are unpacked."""

from __future__ import annotations

import os
import stat
import struct
import warnings
import zlib
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

from .findings import Finding

MAX_PIXELS = 89_478_485  # of a picture; from here on Pillow warns of decompression bombs
MAX_BYTES = 1 << 30  # of a file
RGB, RGBA, GREY = "RGB of 8 bits", "RGBA of 8 bits", "greyscale of 8 bits"
_PNG = b"\x89PNG\r\n\x1a\n"
_SIGNATURES = {b"\xff\xd8\xff": "JPEG", _PNG: "PNG", b"GIF8": "GIF", b"II*\0": "TIFF", b"MM\0*": "TIFF"}
_COLORS = {0: "greyscale", 2: "RGB", 3: "palette", 4: "greyscale with alpha", 6: "RGBA"}
_ORIENTATION = 0x0112  # EXIF tag
_TURNED = (5, 6, 7, 8)  # values that exchange width and height
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, struct.error, zlib.error)


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
    size = f"has {found.st_size} bytes, allowed are 1 to {MAX_BYTES}"
    return None, ("unreadable", f"the file {size}")


def picture_type(data: bytes) -> str | None:
    """ "PNG", "JPEG" and so on, or None."""
    return next((name for start, name in _SIGNATURES.items() if data.startswith(start)), None)


def size_problem(size: tuple, who: str, expected: tuple) -> tuple[str, str] | None:
    """What is wrong with the (W, H) of a picture; ``expected`` is what ``who`` says, or (None, None)."""
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
    """What is wrong with the bytes of a PNG: (last part of the kind of finding, text), or None.

    ``allowed`` are formats such as :data:`RGB`, the best one first; ``who``, ``expected`` as above.
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


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF raises anything; Detectron2 then turns nothing, too
        return 1
    return value if value in range(2, 9) else 1


def read_photo(file, whole: bool) -> tuple[tuple, int, str]:
    """Size (W, H), EXIF orientation and Pillow's mode; decodes all of it where its size allows that."""
    with Image.open(file) as image:
        size, mode = image.size, image.mode
        if size_problem(size, "", (None, None)):
            return size, 1, mode
        if not whole:  # of a PNG, Pillow looks for a tag behind the pixels
            tagged = image.format != "PNG" or "exif" in image.info
            return size, _orientation(image) if tagged else 1, mode
        if image.format == "PNG":
            image.verify()  # the checksum of every chunk; the object is then used up
    file.seek(0)
    with Image.open(file) as image:
        orientation = _orientation(image)
        if image.format == "JPEG":
            image.draft(None, (1, 1))  # all data is read, an eighth of the pixels is computed
        image.load()
    return size, orientation, mode


def check_photo(
    path: str, image_id=None, size: tuple = (None, None), whole: bool = True, turned: bool = False
) -> tuple[tuple | None, list[Finding]]:
    """Read a photograph, ``whole`` or its header, and compare it with the ``size`` (W, H) in the JSON.

    Returns:
        (W, H) as Detectron2 sees it, or None, and the findings; none of orientation and depth if ``turned``.
    """
    findings = []

    def report(suffix, what):
        findings.append(Finding(f"image-{suffix}", path, image_id, what))
        return None, findings

    file, problem = open_plain(path)
    if problem:
        return report(*problem)
    with file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # large pictures, odd EXIF
        start = file.read(8)
        file.seek(0)
        kind = picture_type(start)
        try:
            stored, orientation, mode = read_photo(file, whole)
        except UnidentifiedImageError:
            cut = "truncated", f"begins as {kind}, but its header is cut or damaged"
            return report(*(cut if kind else ("unreadable", f"it is no image (it begins {start!r})")))
        except (Image.DecompressionBombError, MemoryError) as error:
            return report("unreadable", str(error))
        except _BROKEN as error:
            problem = f"{kind or 'image'} is cut or damaged: {type(error).__name__}: {error}"
            return report("truncated", problem)
    if problem := size_problem(stored, "", (None, None)):
        return report(*problem)
    shown = stored[::-1] if orientation in _TURNED else stored
    if turned:
        return shown, findings
    known = size[0] is not None
    if orientation != 1:
        what = f"EXIF orientation {orientation}: Detectron2 turns {times(stored)} to {times(shown)}"
        if known and shown != size:
            report("rotated", f"{what}, but the JSON says {times(size)}, and stops")
        else:
            agrees = "which the JSON agrees with; the PNG must be turned, too" if known else "on reading"
            report("orientation", f"{what}, {agrees}")
    elif known and shown != size:
        report("size", f"the image has {times(shown)} pixels, the JSON says {times(size)}")
    if mode.startswith(("I", "F")):
        report("depth", f"{mode} pixels of more than 8 bits")
    return shown, findings
