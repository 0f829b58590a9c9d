"""What training reads beside a set in COCO-panoptic format: label maps, instances, a JSON of own categories.

Files are written one by one, each whole or not at all, under one lock per folder. They are fresh as long as
all that they depend on is the same: the JSON, size and time of every PNG, the labels. Otherwise they are
computed anew and those that differ are replaced: an interrupted run is continued by the next one, and files
made by others, or copied, are kept where they say the same.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ...errors import UserError
from ...files import replacing, write_json, write_text
from ..formats import panoptic_png as coco
from ..formats.findings import findings_in, raise_first
from ..formats.json_file import check_entries, load_object, no_collection
from ..formats.names import below, png_name
from ..formats.panoptic_json import read_index, read_panoptic_json, read_segments, with_moved
from ..formats.picture_file import check_photo
from ..labels import SEPARATED, label_map
from .once import filling
from .pool import parallel_map

logger = logging.getLogger(__name__)

VERSION = 1  # of what is derived; another one has everything compared again
RULES = 2  # of the comparison of PNGs with the JSON; others have all compared again
STATE = ".derived.json"  # in the folder of a derivation: product -> digest of what it depends on


@dataclasses.dataclass(frozen=True)
class Derivation:
    """One set in COCO-panoptic format and what is derived from it.

    Args:
        title: for progress bars and messages.
        panoptic_json, panoptic_root: the annotations; only read.
        categories: COCO-panoptic categories.
        folder: locked while files are made; what lies in it may be replaced.
        label_maps: {folder of label maps: their labels, "all" or "separated"}.
        instances_json: JSON of the thing classes, or None. Outside ``folder``, one made by others is kept.
        panoptic_copy: the panoptic JSON with ``categories``, or None.
        given_maps: folder of label maps "separated" that are there already and only looked at, or None.
        photo: path of a photograph from its entry in the JSON; None where none is needed.
    """

    title: str
    panoptic_json: Path
    panoptic_root: Path
    categories: Sequence[dict]
    folder: Path
    label_maps: Mapping[Path, str] = dataclasses.field(default_factory=dict)
    instances_json: Path | None = None
    panoptic_copy: Path | None = None
    given_maps: Path | None = None
    photo: Callable[[dict], str] | None = None

    @property
    def products(self) -> list[Path]:
        """JSON files and folders of label maps, to make or to look at."""
        files = self.instances_json, self.panoptic_copy, self.given_maps
        return [*(p for p in files if p is not None), *self.label_maps]

    def entries(self) -> list[tuple[dict, dict]]:
        """(image, annotation) of every image, by image id."""
        return list(read_segments(str(self.panoptic_json), list(self.categories)).values())

    def read_ids(self, entry: tuple[dict, dict]) -> tuple[np.ndarray, tuple]:
        """Segment ids (H, W) of one image, and their runs; UserError where the JSON says otherwise."""
        image, annotation = entry
        path = os.path.join(self.panoptic_root, annotation["file_name"])
        kinds = {c["id"]: c["isthing"] for c in self.categories}
        return coco.read_truth(path, image, annotation["segments_info"], kinds)


def stat_of(path: str | os.PathLike) -> str:
    """Size and time of a file, empty where there is none."""
    with contextlib.suppress(OSError):
        found = os.stat(path)
        return f"{found.st_size} {found.st_mtime_ns}"
    return ""


def digest_of(settings: object, files: Iterable[tuple[str, str | os.PathLike]]) -> str:
    """Digest of settings and of name, size and time of files (name, path), whether they exist or not."""
    total = hashlib.sha256(json.dumps([VERSION, settings]).encode())
    for name, path in files:
        total.update(f"{name} {stat_of(path)}\n".encode())
    return total.hexdigest()


def _digest(task: Derivation, product: Path, entries: list) -> str:
    """Digest of all that a product depends on, and of its own files."""
    names = [annotation["file_name"] for _, annotation in entries]
    labels = task.label_maps.get(product, SEPARATED if product == task.given_maps else None)
    files = [("", task.panoptic_json), *((name, os.path.join(task.panoptic_root, name)) for name in names)]
    files += [("photo", task.photo(image)) for image, _ in entries if task.photo]
    made = [product] if labels is None else [os.path.join(product, png_name(name)) for name in names]
    files += [("made", path) for path in made]
    return digest_of([labels, list(task.categories), RULES], files)


def read_state(folder: Path) -> dict:
    """{product: digest} as of the last run; empty where there was none."""
    with contextlib.suppress(OSError, ValueError):
        content = json.loads((folder / STATE).read_text())
        return content if isinstance(content, dict) else {}
    return {}


def _key(task: Derivation, product: Path) -> str:
    return f"{os.path.relpath(product, task.folder)} of {os.path.basename(task.panoptic_json)}"


def _foreign(task: Derivation, product: Path, state: dict) -> bool:
    """Whether a file that was not made here lies where a product would go, outside the folder: it is kept."""
    folder = task.folder.parent.resolve() / task.folder.name  # a link is no folder of ours
    outside = not product.parent.resolve().is_relative_to(folder)
    unknown = state.get(f"{_key(task, product)}, made") != stat_of(product)
    return outside and product.is_file() and unknown


def derive(task: Derivation, processes: int | None = None, thorough: bool = False) -> dict[Path, str]:
    """Make what is not there or not fresh.

    Args:
        task: what is wanted.
        processes: as in :func:`.stream`.
        thorough: compare every file with its source, whatever was noted about it.

    Returns:
        {product: "made", "kept", or how many files of each}.

    Raises:
        UserError: a panoptic PNG or the JSON is missing or damaged, or the folder cannot be written.
    """
    entries = task.entries()

    def stale() -> list[Path]:
        state = read_state(task.folder)
        mine = [p for p in task.products if not _foreign(task, p, state)]
        return [p for p in mine if thorough or state.get(_key(task, p)) != _digest(task, p, entries)]

    report = dict.fromkeys(task.products, "kept")
    wanted = stale()
    if not wanted:
        return report
    nearest = next(p for p in (task.folder, *task.folder.absolute().parents) if p.exists())
    if wanted == [task.given_maps] and not os.access(nearest, os.W_OK):
        _make(task, entries, wanted, processes)  # looked at each time, as that cannot be noted
        return report
    if task.folder.is_dir() and not os.access(task.folder, os.W_OK):
        verify(task, processes, f"Make {task.folder} writable, to have them made again")
        return report
    with filling(task.folder):
        wanted = stale()  # without what was made by a process that was waited for
        if wanted:
            report |= _make(task, entries, wanted, processes)
            state = read_state(task.folder)
            for product in wanted:
                state[_key(task, product)] = _digest(task, product, entries)
                state[f"{_key(task, product)}, made"] = stat_of(product)
            write_json(task.folder / STATE, state)
    return report


def _make(task: Derivation, entries: list, wanted: list[Path], processes: int | None) -> dict[Path, str]:
    logger.info("Deriving %s of %s ...", ", ".join(map(str, wanted)), task.title)
    maps = {p: label_map(task.categories, labels) for p, labels in task.label_maps.items() if p in wanted}
    report = {}
    if wanted != [task.panoptic_copy]:
        plain = dataclasses.replace(task, photo=None)  # which may be of a kind that no process can be sent
        job = functools.partial(_make_image, plain, maps, task.instances_json in wanted)
        items = [(entry, task.photo and task.photo(entry[0])) for entry in entries]
        done = parallel_map(job, items, processes, f"{task.title}: label maps and instances")
        if doubts := [line for *_, lines, _ in done for line in lines]:
            logger.warning("%s, %d photos, such as %s", task.title, len(doubts), doubts[0])
        pairs = collections.Counter()
        for *_, found in done:
            pairs.update(found)
        raise_first(findings_in(str(task.given_maps), coco.exchanged_labels(pairs)))
        for position, path in enumerate(maps):
            made = sum(flags[position] for flags, *_ in done)
            report[path] = f"{made} made, {len(done) - made} kept"
    if task.instances_json in wanted:
        content = {
            "info": {},
            "licenses": [],
            "images": [image for image, _ in entries],
            "annotations": coco.number_annotations([instances for _, instances, *_ in done]),
            "categories": [c for c in task.categories if c["isthing"]],
        }
        report[task.instances_json] = _write(task.instances_json, content)
    if task.panoptic_copy in wanted:
        path = str(task.panoptic_json)
        content, moved = read_panoptic_json(path), read_index(path, task.categories).moved
        annotations = [with_moved(entry, moved) for entry in content["annotations"]]
        content = {**content, "annotations": annotations, "categories": list(task.categories)}
        report[task.panoptic_copy] = _write(task.panoptic_copy, content)
    return report


def _write(path: Path, content: dict) -> str:
    with no_collection():
        text = json.dumps(content)
    if path.is_file() and not path.is_symlink() and path.read_bytes() == text.encode():
        return "kept"
    write_text(path, text)
    return "made"


def _holds(path: Path, pixels: np.ndarray, read: Callable) -> bool:
    return not path.is_symlink() and np.array_equal(read(str(path))[0], pixels)


def write_image(path: Path, pixels: np.ndarray, read: Callable, write: Callable) -> bool:
    """Write an image (H, W), unless ``read`` finds it there already; returns whether it was written.

    Raises:
        UserError: it reads back differently.
    """
    if _holds(path, pixels, read):
        return False
    with replacing(path, sync=False) as partial:
        write(str(partial), pixels)
    if not _holds(path, pixels, read):
        raise UserError(f"{path} was written but reads back differently; check the disk and repeat")
    return True


def _make_image(task: Derivation, maps: dict, instances: bool, item: tuple) -> tuple[list, list, list, dict]:
    """Make maps of one image that differ: which, instances, doubts about the photo, pairs of given labels."""
    entry, photo = item
    (image, annotation), (ids, runs), flags, found = entry, task.read_ids(entry), [], []
    if photo is not None:
        _, found = check_photo(photo, image["id"], (image["width"], image["height"]), whole=False)
        raise_first(found)
    doubts = [finding.line() for finding in found]
    pairs = _check_given(task, entry, ids, runs)
    for folder, labels in maps.items():
        path = below(folder, png_name(annotation["file_name"]), task.panoptic_root)
        wanted = coco.semantic_labels(ids, annotation["segments_info"], labels, runs)
        flags.append(write_image(path, wanted, coco.read_labels, coco.write_image))
    things = {c["id"] for c in task.categories if c["isthing"] and instances}
    made = coco.instance_annotations(ids, annotation["segments_info"], things, image["id"])
    return flags, made, doubts, pairs


def _check_given(task: Derivation, entry: tuple, ids: np.ndarray, runs: tuple) -> collections.Counter:
    """Raise UserError where the label map that was given of one image is damaged or holds other labels."""
    if task.given_maps is None:
        return collections.Counter()
    image, annotation = entry
    path = str(below(task.given_maps, png_name(annotation["file_name"]), task.panoptic_root))
    size = (image["width"], image["height"])
    labels, findings = coco.read_labels(path, image["id"], "the JSON says", size)
    raise_first(findings)
    label_of = label_map(task.categories)
    raise_first(findings_in(path, coco.label_problems(labels, label_of, image["id"])))
    wanted = coco.semantic_labels(ids, annotation["segments_info"], label_of, runs)
    return coco.label_pairs(wanted, labels)


def _fail(problems: Sequence[str], checked: int, what: str, remedy: str) -> None:
    if problems:
        shown = "; ".join(problems[:5]) + ("; ..." if len(problems) > 5 else "")
        raise UserError(f"{what}: {len(problems)} of {checked} are wrong: {shown}. {remedy}")


def verify(
    task: Derivation,
    processes: int | None = None,
    remedy: str = "Repeat the command without --check, which makes them again",
) -> int:
    """Compare label maps with panoptic PNGs and instances with segments; writes nothing, returns the images.

    Raises:
        UserError: names what is wrong and the remedy.
    """
    entries = task.entries()
    found = parallel_map(functools.partial(_problem, task), entries, processes, f"{task.title}: verifying")
    _fail([p for p in found if p], len(entries), f"{task.title}, label maps", remedy)
    return verify_instances(task, entries)


def _problem(task: Derivation, entry: tuple) -> str | None:
    ids, runs = task.read_ids(entry)
    _check_given(task, entry, ids, runs)
    for folder, labels in task.label_maps.items():
        path = folder / png_name(entry[1]["file_name"])
        segments = entry[1]["segments_info"]
        wanted = coco.semantic_labels(ids, segments, label_map(task.categories, labels), runs)
        if not _holds(path, wanted, coco.read_labels):
            return f"{path} is missing, damaged or differs from its panoptic PNG"
    return None


def verify_instances(task: Derivation, entries: list | None = None) -> int:
    """As :func:`verify`, of the instances JSON alone, which others may have made."""
    entries = task.entries() if entries is None else entries
    if task.instances_json is None:
        return len(entries)
    content = load_object(str(task.instances_json), "instances JSON", {"images": list, "annotations": list})
    ids = {"images": ("id",), "annotations": ("image_id", "category_id")}
    check_entries(str(task.instances_json), content, ids)
    found = collections.defaultdict(list)
    for instance in content["annotations"]:
        found[instance["image_id"]].append((instance["category_id"], bool(instance.get("iscrowd"))))
    images, problems = {image["id"] for image in content["images"]}, []
    things = {c["id"] for c in task.categories if c["isthing"]}
    for image, annotation in entries:
        segments = [s for s in annotation["segments_info"] if s["category_id"] in things]
        stated = sorted((s["category_id"], s.get("iscrowd", 0)) for s in segments)
        if image["id"] not in images:
            problems.append(f"image {image['id']} is absent")
        elif sorted(found[image["id"]]) != stated:
            count = len(found[image["id"]])
            problems.append(f"image {image['id']} has {count} instances, but {len(stated)} thing segments")
    again = f"Delete {task.instances_json} and repeat the command"
    _fail(problems, len(entries), f"{task.title}, images with instances", again)
    return len(entries)
