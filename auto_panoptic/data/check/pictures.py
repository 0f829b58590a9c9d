"""Reading photographs to their last byte, and saying what is wrong with those that are damaged."""

import io
import struct
import warnings
import zlib

from PIL import Image, UnidentifiedImageError

from ..formats.findings import Finding
from ..formats.picture_file import picture_type, read_bytes, size_problem, times

_ORIENTATION = 0x0112  # EXIF tag
_TURNED = (5, 6, 7, 8)  # values that exchange width and height
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


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF raises anything; Detectron2 then turns nothing, too
        return 1
    return value if value in range(2, 9) else 1


def _decode(data: bytes) -> tuple[tuple, int, str]:
    """Decode everything; returns size (W, H), EXIF orientation and Pillow's mode."""
    with Image.open(io.BytesIO(data)) as image:
        if image.format == "PNG":
            image.verify()  # the checksum of every chunk; the object is then used up
    with Image.open(io.BytesIO(data)) as image:
        size, mode, orientation = image.size, image.mode, _orientation(image)
        if size_problem(size, "", (None, None)) is None:
            if image.format == "JPEG":
                image.draft(None, (1, 1))  # all data is read, an eighth of the pixels is computed
            image.load()
    return size, orientation, mode


def check_image(path: str, image_id, size: tuple, turned: bool = False) -> tuple[tuple | None, list[Finding]]:
    """Read a photograph to its end and compare its size with the JSON's.

    Args:
        path: the file.
        image_id: for the findings.
        size: (W, H) in the JSON, which may be (None, None).
        turned: any orientation and depth will do.

    Returns:
        (W, H) as Detectron2 sees it, or None, and the findings.
    """
    findings = []

    def report(suffix, what):
        findings.append(Finding(f"image-{suffix}", path, image_id, what))
        return None, findings

    data, problem = read_bytes(path)
    if problem:
        return report(*problem)
    kind = picture_type(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # large pictures, odd EXIF
            stored, orientation, mode = _decode(data)
    except UnidentifiedImageError:
        if kind:
            return report("truncated", f"begins as {kind}, but its header is cut or damaged")
        return report("unreadable", f"{len(data)} bytes that are no image (they begin {data[:8]!r})")
    except (Image.DecompressionBombError, MemoryError) as error:
        return report("unreadable", str(error))
    except _BROKEN as error:
        what = f"{kind or 'image'} of {len(data)} bytes is cut or damaged: {type(error).__name__}: {error}"
        return report("truncated", what)
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
