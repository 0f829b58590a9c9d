"""One image at a time: photograph, panoptic PNG, label map and instances against what the JSON says."""

import collections
import dataclasses
import os
from collections.abc import Callable

from ..formats.findings import Finding, findings_in
from ..formats.names import png_name
from ..formats.panoptic_json import segment_problems
from ..formats.panoptic_png import (
    VOID,
    areas_of,
    boxes_of,
    label_pairs,
    label_problems,
    read_ids,
    read_labels,
    semantic_labels,
    truth_problems,
)
from ..formats.photo import check_photo
from .instances import check_instances


@dataclasses.dataclass(frozen=True)
class Roots:
    """Where the files of a set lie.

    Args:
        panoptic_json, panoptic_root, image_root: paths.
        things: {category id: isthing}.
        labels: {category id: label of the semantic head}.
        sem_seg_root, instances_json: paths, or None where there are none to check.
        locate: path of an image below ``image_root`` from its entry in the JSON; None goes by file_name.
    """

    panoptic_json: str
    panoptic_root: str
    image_root: str
    things: dict
    labels: dict
    sem_seg_root: str | None = None
    instances_json: str | None = None
    locate: Callable | None = None

    def image_path(self, image: dict) -> str:
        """Path of a photograph."""
        if self.locate is not None:
            return os.path.join(self.image_root, self.locate(image))
        return _image_path(self.image_root, image["file_name"])


@dataclasses.dataclass
class Counts:
    """What was counted; sums over images.

    Args:
        images: images looked at.
        segments, pixels, crowds: {category id: number} over the segments that were found in PNGs.
        labels: {(label, that of the label map): pixels} of the semantic head.
        void: pixels without a segment.
        total: all pixels of the PNGs.
    """

    images: int = 0
    segments: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    pixels: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    crowds: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    labels: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    void: int = 0
    total: int = 0

    def count(self, areas: dict, segments: dict) -> None:
        """Add an image: {id: pixels} of its PNG, {id: segment} of the JSON."""
        self.total += sum(areas.values())
        self.void += areas.get(VOID, 0)
        for number, segment in segments.items():
            if number in areas:
                self.segments[segment["category_id"]] += 1
                self.pixels[segment["category_id"]] += areas[number]
                self.crowds[segment["category_id"]] += segment["iscrowd"]

    def add(self, other: "Counts") -> None:
        """Add another count to this one."""
        for field in dataclasses.fields(self):
            value = getattr(other, field.name)
            if isinstance(value, collections.Counter):
                getattr(self, field.name).update(value)
            else:
                setattr(self, field.name, getattr(self, field.name) + value)


def _image_path(root: str, file_name: str) -> str:
    """Path of a photograph; Cityscapes' JSON leaves out the city's folder and renames the file."""
    path = os.path.join(root, file_name)
    if os.path.lexists(path):
        return path
    parts = os.path.basename(file_name).split("_")
    if len(parts) > 3:  # city_sequence_frame_...
        plain = os.path.join(root, parts[0], "_".join(parts[:3]) + "_leftImg8bit.png")
        if os.path.exists(plain):
            return plain
    return path


def check_pair(roots: Roots, item: tuple) -> tuple[list[Finding], Counts]:
    """Check the files of one image.

    Args:
        roots: the set.
        item: (image entry or None, annotation or None, instances or None).
    """
    image, annotation, instances = item
    findings, counts, size, shown = [], Counts(), (None, None), None
    if image is not None:
        counts.images = 1
        size = (image["width"], image["height"])
        path = roots.image_path(image)
        shown, found = check_photo(path, image["id"], size)
        findings += found
    if annotation is None:
        return findings, counts
    image_id = annotation["image_id"]
    png = os.path.join(roots.panoptic_root, annotation["file_name"])
    segments = {}
    problems = segment_problems(annotation, roots.things, size, segments)
    findings += findings_in(roots.panoptic_json, problems)
    # The image may be the wrong one of the two: it has a finding of its own then.
    expected = ("the image has", shown or (None, None)) if size[0] is None else ("the JSON says", size)
    ids, found = read_ids(png, image_id, *expected)
    findings += found
    areas = {} if ids is None else areas_of(ids)
    if ids is not None:
        problems = truth_problems(areas, boxes_of(ids), segments, roots.things, image_id)
        findings += findings_in(png, problems)
        counts.count(areas, segments)
    if roots.sem_seg_root is not None:
        findings += _check_labels(roots, annotation, ids, segments, expected, counts.labels)
    if instances is not None and size[0] is not None:
        things = {
            number: segment
            for number, segment in segments.items()
            if number in areas and roots.things.get(segment["category_id"]) and not segment["iscrowd"]
        }
        findings += check_instances(instances, size, roots.instances_json, image_id, ids, things)
    return findings, counts


def _check_labels(roots: Roots, annotation: dict, ids, segments, expected, pairs) -> list[Finding]:
    """The label map of one image: values, and agreement with the panoptic PNG, which ``pairs`` count."""
    path = os.path.join(roots.sem_seg_root, png_name(annotation["file_name"]))
    image_id = annotation["image_id"]
    labels, findings = read_labels(path, image_id, *expected)
    if labels is None:
        return findings
    findings += findings_in(path, label_problems(labels, roots.labels, image_id))
    if not findings and ids is not None and ids.shape == labels.shape and segments:
        known = [segment for segment in segments.values() if segment["category_id"] in roots.labels]
        derived = semantic_labels(ids, known, roots.labels)
        pairs.update(label_pairs(derived, labels))
        differing = int((derived != labels).sum())
        if differing:
            what = f"{differing} of {labels.size} pixels differ from the label the panoptic PNG gives them"
            findings.append(Finding("semantic-differs", path, image_id, what))
    return findings


def check_file(path: str) -> tuple[list[Finding], Counts]:
    """Check that a classified image decodes (its orientation and size may be any)."""
    return check_photo(path, turned=True)[1], Counts(images=1)
