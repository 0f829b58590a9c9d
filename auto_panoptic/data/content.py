"""What data sets hold, as digests: the same for a copy elsewhere, another where a label or photo changes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable

from ..errors import UserError
from ..files import digest, read_json, write_json
from .derive.engine import digest_of
from .derive.pool import parallel_map
from .formats.names import png_name
from .formats.panoptic_json import read_segments
from .formats.picture_file import read_photo
from .labels import data_set_for
from .register import find_source, foreign_source
from .sets.imagenet import find_image_folder

STORE = "content.json"  # among the derived files: {digest of names, sizes and times of the files: content}


def contents(cfg, names: Iterable[str], store: bool = True) -> dict[str, dict[str, str]]:
    """{data set: :func:`content`} of a config's data sets; one process reads them for all."""
    return {name: content(data_set_for(cfg, name), store) for name in names}


def content(name: str, store: bool = True) -> dict[str, str]:
    """Digests of what training and evaluation read of a registered data set.

    Files are read where their sizes or times are others than at the last call with ``store``.

    Returns:
        of panoptic images "labels" (what the JSON says of kinds of classes, images and segments), "PNGs",
        "photos" (names, bytes, orientation), and "instances JSON" and "label maps" that are not derived; of
        classified images "images" (names and classes). Empty where the metadata do not tell the files.
    """
    if folder := find_image_folder(name):
        return {"images": _digest((r["label"], os.path.basename(r["file_name"])) for r in folder.load())}
    source = find_source(name)
    if source is None:
        source = foreign_source(name)
        if source is None or not all(map(os.path.exists, source.places[1:])):
            return {}
    source.check_files()  # draws the built-in sets
    categories = source.effective_categories
    entries = read_segments(source.panoptic_json, categories).values()
    labels, files = [sorted((c["id"], bool(c["isthing"])) for c in categories)], []
    for image, annotation in entries:
        png, maps = annotation["file_name"], source.sem_seg_root
        segments = [(s["id"], s["category_id"], s.get("iscrowd", 0)) for s in annotation["segments_info"]]
        labels.append([image["id"], image["file_name"], image["height"], image["width"], png, segments])
        map_path = os.path.join(maps, png_name(png)) if maps else ""
        files.append((os.path.join(source.panoptic_root, png), source.image_path(image), map_path))
    given = source.instances_json or ""
    stats = ((os.path.basename(file), file) for file in (given, *(file for row in files for file in row)))
    label_digest, path, known = _digest(labels), source.derived / STORE, {}
    key = digest_of(label_digest, stats)
    with contextlib.suppress(UserError):
        known = read_json(path)
    if not isinstance(known, dict) or key not in known:
        columns = zip(*parallel_map(_read, files, title=f"{source.name}: digests"), strict=True)
        known = dict(zip(("PNGs", "photos", "label maps"), map(_digest, columns), strict=True))
        known = {key: {"labels": label_digest, **known, "instances JSON": _file_digest(given)}}
        if store:
            # Where nobody may write, the next start reads again.
            with contextlib.suppress(UserError, OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
                write_json(path, known)
    return known[key]


def content_difference(before: dict, now: dict) -> str:
    """What differs between two results of :func:`contents`, such as "labels of own"; "" if nothing does."""
    pairs = ((name, key, old) for name in before if now.get(name) for key, old in before[name].items())
    return ", ".join(f"{key} of {name}" for name, key, old in pairs if now[name].get(key) != old)


def _digest(values: Iterable) -> str:
    return hashlib.sha256(json.dumps(list(values)).encode()).hexdigest()[:16]


def _file_digest(path: str) -> str:
    return digest(path)[:16] if os.path.isfile(path) else ""


def _read(files: tuple[str, str, str]) -> tuple[str, tuple, str]:
    """Digest of the PNG, (name, bytes, orientation) of the photograph, digest of the label map."""
    png, photo, label_map = files
    size, orientation = os.path.getsize(photo) if os.path.exists(photo) else -1, 1
    with contextlib.suppress(OSError, SyntaxError, ValueError), open(photo, "rb") as file:
        _, orientation, _ = read_photo(file, whole=False)
    return _file_digest(png), (os.path.basename(photo), size, orientation), _file_digest(label_map)
