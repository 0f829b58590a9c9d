"""Reading photographs, by their header or to the last byte, and saying what is wrong with them."""

import struct
import warnings
import zlib

from PIL import Image, UnidentifiedImageError

from .findings import Finding
from .picture_file import open_plain, picture_type, size_problem, times

_ORIENTATION = 0x0112  # EXIF tag
_TURNED = (5, 6, 7, 8)  # values that exchange width and height
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, struct.error, zlib.error)


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
    """Read a photograph and compare its size with the JSON's.

    Args:
        path: the file.
        image_id: for the findings.
        size: (W, H) in the JSON, or (None, None).
        whole: read it to its end, else the header alone.
        turned: any orientation and depth will do.

    Returns:
        (W, H) as Detectron2 sees it, or None, and the findings.
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
            if kind:
                return report("truncated", f"begins as {kind}, but its header is cut or damaged")
            return report("unreadable", f"it is no image (it begins {start!r})")
        except (Image.DecompressionBombError, MemoryError) as error:
            return report("unreadable", str(error))
        except _BROKEN as error:
            return report(
                "truncated", f"{kind or 'image'} is cut or damaged: {type(error).__name__}: {error}"
            )
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
