"""Make and verify what training reads beside a set in COCO-panoptic format: label maps and instances.

Every file is written whole or not at all. Repeated, a step keeps the valid files that it finds.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

from ...errors import UserError
from ..formats import panoptic_png as coco
from ..formats.json_file import load_object
from ..formats.names import below, png_name
from ..formats.panoptic_json import read_segments
from ..labels import label_map
from .once import filling, parallel_map, replacing

SAMPLE = 200  # files that are made a second time and compared


@dataclasses.dataclass(frozen=True)
class PanopticFiles:
    """One split in COCO-panoptic format and what is made of it.

    Args:
        title: for progress bars and messages.
        panoptic_json, panoptic_root: the annotations.
        categories: COCO-panoptic categories.
        sem_seg_root: folder of the label maps to make.
        instances_json: JSON of the thing classes to make; None where the data set brings its own.
    """

    title: str
    panoptic_json: Path
    panoptic_root: Path
    categories: Sequence[dict]
    sem_seg_root: Path
    instances_json: Path | None = None

    @functools.cached_property
    def labels(self) -> dict[int, int]:
        """{category id: semantic label}."""
        return label_map(self.categories)

    @functools.cached_property
    def things(self) -> set[int]:
        """Category ids of the things."""
        return {c["id"] for c in self.categories if c["isthing"]}

    def entries(self) -> list[tuple[dict, dict]]:
        """(image, annotation) of every image, by image id."""
        return list(read_segments(str(self.panoptic_json), self.categories).values())

    def read_ids(self, entry: tuple[dict, dict]) -> np.ndarray:
        """Segment ids (H, W) of one image.

        Raises:
            UserError: the PNG is missing, damaged or of another size than the JSON says.
        """
        image, annotation = entry
        path = self.panoptic_root / annotation["file_name"]
        ids = coco.read_panoptic(str(path))
        if ids.shape != (image["height"], image["width"]):
            raise UserError(
                f"{path} has {ids.shape[1]} x {ids.shape[0]} pixels, but image {image['id']} has "
                f"{image['width']} x {image['height']} in {self.panoptic_json}; restore the one that is wrong"
            )
        return ids

    def label_map(self, entry: tuple[dict, dict]) -> np.ndarray:
        """The label map (H, W) of one image: things 0, stuff 1..S, void 255."""
        return coco.semantic_labels(self.read_ids(entry), entry[1]["segments_info"], self.labels)

    def label_path(self, entry: tuple[dict, dict]) -> Path:
        """Where the label map of one image lies."""
        return self.sem_seg_root / png_name(entry[1]["file_name"])


def is_newer(path: Path, *sources: Path) -> bool:
    """Whether ``path`` exists and is not older than its sources."""
    return path.exists() and all(path.stat().st_mtime_ns >= os.stat(s).st_mtime_ns for s in sources)


def make_label_maps(
    files: PanopticFiles, processes: int | None = None, mark: Path | None = None
) -> collections.Counter:
    """Make the label maps that are missing, invalid or older than their panoptic PNG.

    Args:
        files: the split.
        processes: None takes the CPUs there are.
        mark: file that says that all of them are made, written at the end; where it exists, nothing is done.

    Returns:
        how many were "made" and how many "kept".

    Raises:
        UserError: a panoptic PNG or the JSON is missing or damaged, or the folder cannot be written.
    """
    entries = files.entries()
    with filling(files.sem_seg_root):
        if mark is not None and mark.exists():  # made by a process that was waited for
            return collections.Counter()
        job = functools.partial(_make_label_map, files)
        counts = collections.Counter(parallel_map(job, entries, processes, f"{files.title}: label maps"))
        if mark is not None:
            mark.touch()
        return counts


def _make_label_map(files: PanopticFiles, entry: tuple[dict, dict]) -> str:
    path = below(files.sem_seg_root, png_name(entry[1]["file_name"]), files.panoptic_root)
    if is_newer(path, files.panoptic_root / entry[1]["file_name"]) and not label_map_problem(files, entry):
        return "kept"
    with replacing(path) as partial:
        coco.write_image(str(partial), files.label_map(entry))
    return "made"


def label_map_problem(files: PanopticFiles, entry: tuple[dict, dict]) -> str | None:
    """What is wrong with one label map as a file: absent, damaged, wrong size or type, impossible values."""
    image, annotation = entry
    path = files.label_path(entry)
    if not path.is_file():
        return f"{path} does not exist"
    labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if labels is None:
        return f"{path} cannot be decoded"
    size = (image["height"], image["width"])
    if labels.dtype != np.uint8 or labels.shape != size:
        return f"{path} is {labels.dtype} of shape {labels.shape}, expected uint8 of shape {size}"
    allowed = {files.labels[s["category_id"]] for s in annotation["segments_info"]} | {coco.IGNORE}
    extra = sorted(set(np.flatnonzero(np.bincount(labels.ravel(), minlength=256)).tolist()) - allowed)
    return f"{path} has the labels {extra}, which no segment of the image has" if extra else None


def make_instances(files: PanopticFiles, processes: int | None = None) -> str:
    """Make the instances JSON from the visible thing segments, unless there is one.

    Returns:
        "made" or "kept".
    """
    path = files.instances_json
    with filling(path.parent):
        if path.exists():
            return "kept"
        entries = files.entries()
        job = functools.partial(_instances, files)
        found = parallel_map(job, entries, processes, f"{files.title}: instances")
        content = {
            "info": {},
            "licenses": [],
            "images": [image for image, _ in entries],
            "annotations": coco.number_annotations(found),
            "categories": [c for c in files.categories if c["isthing"]],
        }
        with replacing(path) as partial:
            partial.write_text(json.dumps(content))
        return "made"


def _instances(files: PanopticFiles, entry: tuple[dict, dict]) -> list[dict]:
    image, annotation = entry
    ids = files.read_ids(entry)
    return coco.instance_annotations(ids, annotation["segments_info"], files.things, image["id"])


def sample(items: Sequence) -> list:
    """At most :data:`SAMPLE` of the items, always the same ones."""
    chosen = np.random.default_rng(0).permutation(len(items))[:SAMPLE]
    return [items[i] for i in sorted(chosen)]


def fail(problems: Sequence[str], checked: int, what: str, remedy: str) -> None:
    """Raise UserError if there are problems, naming the first five."""
    if problems:
        shown = "; ".join(problems[:5]) + ("; ..." if len(problems) > 5 else "")
        raise UserError(f"{what}: {len(problems)} of {checked} are wrong: {shown}. {remedy}")


def verify(files: PanopticFiles, processes: int | None = None) -> int:
    """Read everything back: each label map, a sample of them exactly, and the instances against the segments.

    Returns:
        number of images.

    Raises:
        UserError: names what is wrong and the remedy.
    """
    entries = files.entries()
    repeat = (
        "Repeat the command, which makes them again; if that does not help, the disk or its memory is bad"
    )
    steps: list[tuple[Callable, list, str]] = [
        (label_map_problem, entries, "verifying label maps"),
        (_inexact, sample(entries), "verifying a sample"),
    ]
    for check, chosen, what in steps:
        found = parallel_map(functools.partial(check, files), chosen, processes, f"{files.title}: {what}")
        fail([p for p in found if p], len(chosen), f"{files.title}, label maps", repeat)
    if files.instances_json is not None:
        again = f"Delete {files.instances_json} and repeat the command"
        fail(_instance_problems(files, entries), len(entries), f"{files.title}, images with instances", again)
    return len(entries)


def _inexact(files: PanopticFiles, entry: tuple[dict, dict]) -> str | None:
    annotation = entry[1]
    unknown = set(np.unique(files.read_ids(entry)).tolist()) - {s["id"] for s in annotation["segments_info"]}
    if unknown - {coco.VOID}:
        raise UserError(
            f"{files.panoptic_root / annotation['file_name']} has segment ids that {files.panoptic_json} "
            f"lacks, e.g. {max(unknown)}; restore both from the same source"
        )
    path = files.label_path(entry)
    labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    return None if np.array_equal(labels, files.label_map(entry)) else f"{path} differs from its panoptic PNG"


def _instance_problems(files: PanopticFiles, entries: list) -> list[str]:
    content = load_object(str(files.instances_json), "instances JSON", {"images": list, "annotations": list})
    found = collections.defaultdict(list)
    for instance in content["annotations"]:
        found[instance["image_id"]].append((instance["category_id"], instance["iscrowd"]))
    images, problems = {image["id"] for image in content["images"]}, []
    for image, annotation in entries:
        segments = annotation["segments_info"]
        stated = [
            (s["category_id"], s.get("iscrowd", 0)) for s in segments if s["category_id"] in files.things
        ]
        if image["id"] not in images:
            problems.append(f"image {image['id']} is absent")
        elif sorted(found[image["id"]]) != sorted(stated):
            count = len(found[image["id"]])
            problems.append(f"image {image['id']} has {count} instances, but {len(stated)} thing segments")
    return problems
