"""Reading images and PNGs to their last byte, and saying what is wrong with those that are damaged.

Shape shorthand in this file: H, W = height and width of one image.
"""

import dataclasses
import io
import os
import struct
import warnings
import zlib

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..formats.findings import Finding

_ORIENTATION = 0x0112  # EXIF tag
_TURNED = (5, 6, 7, 8)  # values that exchange width and height
_SIGNATURES = {b"\xff\xd8\xff": "JPEG", b"\x89PNG\r\n\x1a\n": "PNG", b"GIF8": "GIF", b"II*\0": "TIFF"}
_PNG_COLORS = {0: "greyscale", 2: "RGB", 3: "palette", 4: "greyscale with alpha", 6: "RGBA"}
_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    KeyError,
    IndexError,
    TypeError,
    struct.error,
    zlib.error,
)


@dataclasses.dataclass
class Picture:
    """What was read of a file.

    Args:
        size: (W, H) as stored; None if that could not be read.
        orientation: EXIF orientation, 1 if there is none.
        mode: Pillow's.
        png: colour type and bits per channel, of PNG files.
        pixels: the decoded array, or None.
    """

    size: tuple | None = None
    orientation: int = 1
    mode: str = ""
    png: str | None = None
    pixels: np.ndarray | None = None

    @property
    def shown_size(self) -> tuple:
        """(W, H) after Detectron2 has applied the orientation."""
        return self.size[::-1] if self.orientation in _TURNED else self.size


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF raises anything; Detectron2 then turns nothing, too
        return 1
    return value if value in range(2, 9) else 1


def _png_format(data: bytes) -> str | None:
    """Colour type and depth from the header."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n") or len(data) < 26:
        return None
    return f"{_PNG_COLORS.get(data[25], f'colour type {data[25]}')} of {data[24]} bits"


def _decode(data: bytes, keep: bool, picture: Picture) -> str | None:
    """Decode everything; returns what is wrong where the rest cannot be trusted."""
    with Image.open(io.BytesIO(data)) as image:
        if image.format == "PNG":
            image.verify()  # the checksum of every chunk; the object is then used up
    with Image.open(io.BytesIO(data)) as image:
        picture.size, picture.mode, picture.png = image.size, image.mode, _png_format(data)
        if 0 in image.size:
            return "it has no pixel"
        picture.orientation = _orientation(image)
        if image.format == "JPEG" and not keep:
            image.draft(None, (1, 1))  # all data is read, an eighth of the pixels is computed
        image.load()
        if keep:
            picture.pixels = np.asarray(image)
    return None


def read_picture(
    path: str, image_id, prefix: str, keep: bool = False
) -> tuple[Picture | None, list[Finding]]:
    """Read an image file to its end.

    Args:
        path: the file.
        image_id: for the findings.
        prefix: "image", "png" or "semantic": how the kinds of findings begin.
        keep: also return the pixels.

    Returns:
        what was read, or None if the file is of no use, and what is wrong with it.
    """

    def finding(suffix, what):
        return Finding(f"{prefix}-{suffix}", path, image_id, what)

    try:
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        dangling = " (a link that leads nowhere)" if os.path.islink(path) else ""
        return None, [finding("missing", f"the file does not exist{dangling}")]
    except OSError as error:
        return None, [finding("unreadable", f"the file cannot be read: {error.strerror}")]
    if not data:
        return None, [finding("unreadable", "the file is empty (0 bytes)")]
    known = next((name for start, name in _SIGNATURES.items() if data.startswith(start)), None)
    picture = Picture()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # large pictures, odd EXIF
            problem = _decode(data, keep, picture)
    except UnidentifiedImageError:
        if known:
            return None, [finding("truncated", f"begins as {known}, but its header is cut or damaged")]
        return None, [finding("unreadable", f"{len(data)} bytes that are no image (they begin {data[:8]!r})")]
    except (*_BROKEN, Image.DecompressionBombError, MemoryError) as error:
        what = f"{known or 'image'} of {len(data)} bytes is cut or damaged: {type(error).__name__}: {error}"
        too_large = isinstance(error, (Image.DecompressionBombError, MemoryError))
        return None, [finding("unreadable" if too_large else "truncated", str(error) if too_large else what)]
    if problem:
        return None, [finding("unreadable", problem)]
    return picture, []


def check_image(path: str, image_id, size: tuple) -> tuple[tuple | None, list[Finding]]:
    """Read a photograph and compare its size with the JSON's ``size`` (W, H), which may be (None, None).

    Returns:
        (W, H) as Detectron2 sees it, or None, and the findings.
    """
    picture, findings = read_picture(path, image_id, "image")
    if picture is None:
        return None, findings

    def report(kind, what):
        findings.append(Finding(kind, path, image_id, what))

    shown, stored = picture.shown_size, picture.size
    known = size[0] is not None
    if picture.orientation != 1:
        turned = (
            f"EXIF orientation {picture.orientation}: Detectron2 turns {_times(stored)} to {_times(shown)}"
        )
        if known and shown != size:
            report("image-rotated", f"{turned}, but the JSON says {_times(size)}, and stops")
        else:
            agrees = "which the JSON agrees with; the PNG must be turned, too" if known else "on reading"
            report("image-orientation", f"{turned}, {agrees}")
    elif known and shown != size:
        report("image-size", f"the image has {_times(shown)} pixels, the JSON says {_times(size)}")
    if picture.mode.startswith(("I", "F")):
        report("image-depth", f"{picture.mode} pixels of more than 8 bits")
    return shown, findings


def _times(size: tuple) -> str:
    return f"{size[0]} x {size[1]}"


def read_ids(path: str, image_id, who: str, size: tuple | None) -> tuple[np.ndarray | None, list[Finding]]:
    """Read a panoptic PNG.

    Args:
        path: the file.
        image_id: for the findings.
        who, size: who says which (W, H) it has; None or (None, None) if nobody knows.

    Returns:
        int32 segment ids (H, W), or None, and the findings.
    """
    picture, findings = read_picture(path, image_id, "png", keep=True)
    if picture is None:
        return None, findings
    if picture.png != "RGB of 8 bits":
        found = picture.png or f"no PNG but {picture.mode} of another format"
        findings.append(Finding("png-format", path, image_id, f"the file is {found}, expected RGB of 8 bits"))
        return None, findings
    findings += _check_size("png-size", path, image_id, picture.size, who, size)
    rgb = picture.pixels
    ids = rgb[..., 2].astype(np.int32)
    for channel in (1, 0):
        ids <<= 8
        ids |= rgb[..., channel]
    return ids, findings


def read_labels(path: str, image_id, who: str, size: tuple | None) -> tuple[np.ndarray | None, list[Finding]]:
    """Read a semantic PNG: uint8 labels (H, W), or None, and the findings. Arguments as :func:`read_ids`."""
    picture, findings = read_picture(path, image_id, "semantic", keep=True)
    if picture is None:
        return None, findings
    if picture.mode != "L":
        found = picture.png or picture.mode
        what = f"the file is {found}, expected one channel of 8 bits; Detectron2 would turn colours into grey"
        findings.append(Finding("semantic-format", path, image_id, what))
        return None, findings
    findings += _check_size("semantic-size", path, image_id, picture.size, who, size)
    return picture.pixels, findings


def _check_size(kind: str, path: str, image_id, found: tuple, who: str, size: tuple | None) -> list[Finding]:
    if size is None or size[0] is None or found == size:
        return []
    return [Finding(kind, path, image_id, f"the PNG has {_times(found)} pixels, {who} {_times(size)}")]


def regions(ids: np.ndarray) -> dict:
    """Area and tight box of every value in a map (H, W), in one pass over its runs of equal pixels.

    Returns:
        {id: (area, (x, y, width, height))}, id 0 included.
    """
    width = ids.shape[1]
    flat = ids.reshape(-1)
    new = np.empty(flat.size, bool)
    new[1:] = flat[1:] != flat[:-1]
    new[::width] = True
    starts = np.flatnonzero(new)
    lengths = np.diff(starts, append=flat.size)
    found, group = np.unique(flat[starts], return_inverse=True)
    order = np.argsort(group, kind="stable")
    first = np.searchsorted(group[order], np.arange(len(found)))
    rows, left = np.divmod(starts[order], width)
    lengths = lengths[order]
    area = np.add.reduceat(lengths, first)
    x0, x1 = np.minimum.reduceat(left, first), np.maximum.reduceat(left + lengths, first)
    y0, y1 = np.minimum.reduceat(rows, first), np.maximum.reduceat(rows, first) + 1
    boxes = np.stack([x0, y0, x1 - x0, y1 - y0], axis=1).tolist()
    return {i: (a, tuple(box)) for i, a, box in zip(found.tolist(), area.tolist(), boxes, strict=True)}
