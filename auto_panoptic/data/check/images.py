"""One image at a time: photograph, panoptic PNG, label map and instances against what the JSON says."""

import collections
import dataclasses
import os

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
from ..formats.picture_file import check_photo
from ..labels import label_map
from .instances import check_instances
from .sets import DataSet


@dataclasses.dataclass
class Counts:
    """Sums over images: {category id: number} of segments that were found in PNGs; ``void`` are pixels."""

    images: int = 0
    segments: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    pixels: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    crowds: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    labels: collections.Counter = dataclasses.field(default_factory=collections.Counter)  # label_pairs
    void: int = 0
    total: int = 0  # pixels

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


def _image_path(data_set: DataSet, image: dict) -> str:
    """Path of a photograph; Cityscapes' JSON leaves out the city's folder and renames the file."""
    root, name = data_set.image_root, image["file_name"]
    path = os.path.join(root, data_set.locate(image) if data_set.locate else name)
    parts = os.path.basename(name).split("_")  # city_sequence_frame_...
    if data_set.locate or os.path.lexists(path) or len(parts) <= 3:
        return path
    plain = os.path.join(root, parts[0], "_".join(parts[:3]) + "_leftImg8bit.png")
    return plain if os.path.exists(plain) else path


def check_pair(data_set: DataSet, things: dict, item: tuple) -> tuple[list[Finding], Counts]:
    """Check the files of one image: (image entry or None, annotation or None, instances or None).

    ``things`` are {category id: isthing}; folders of the ``data_set`` that are None are not looked at.
    """
    image, annotation, instances = item
    findings, counts, size, shown = [], Counts(), (None, None), None
    if image is not None:
        counts.images = 1
        size = (image["width"], image["height"])
        shown, found = check_photo(_image_path(data_set, image), image["id"], size)
        findings += found
    if annotation is None:
        return findings, counts
    image_id = annotation["image_id"]
    png = os.path.join(data_set.panoptic_root, annotation["file_name"])
    segments = {}
    problems = segment_problems(annotation, things, size, segments)
    findings += findings_in(data_set.panoptic_json, problems)
    # The image may be the wrong one of the two: it has a finding of its own then.
    expected = ("the image has", shown or (None, None)) if size[0] is None else ("the JSON says", size)
    ids, found = read_ids(png, image_id, *expected)
    findings += found
    areas = {} if ids is None else areas_of(ids)
    if ids is not None:
        problems = truth_problems(areas, boxes_of(ids), segments, things, image_id)
        findings += findings_in(png, problems)
        counts.count(areas, segments)
    if data_set.sem_seg_root is not None:
        labels = label_map([{"id": i, "isthing": isthing} for i, isthing in things.items()])
        path = os.path.join(data_set.sem_seg_root, png_name(annotation["file_name"]))
        findings += _check_labels(path, image_id, ids, segments, labels, expected, counts.labels)
    if instances is not None and size[0] is not None:
        there = {
            number: segment
            for number, segment in segments.items()
            if number in areas and things.get(segment["category_id"]) and not segment["iscrowd"]
        }
        findings += check_instances(instances, size, data_set.instances_json, image_id, ids, there)
    return findings, counts


def _check_labels(path, image_id, ids, segments, label_of, expected, pairs) -> list[Finding]:
    """The label map of one image: values, and agreement with the panoptic PNG, which ``pairs`` count."""
    labels, findings = read_labels(path, image_id, *expected)
    if labels is None:
        return findings
    findings += findings_in(path, label_problems(labels, label_of, image_id))
    if not findings and ids is not None and ids.shape == labels.shape and segments:
        known = [segment for segment in segments.values() if segment["category_id"] in label_of]
        derived = semantic_labels(ids, known, label_of)
        pairs.update(label_pairs(derived, labels))
        differing = int((derived != labels).sum())
        if differing:
            what = f"{differing} of {labels.size} pixels differ from the label the panoptic PNG gives them"
            findings.append(Finding("semantic-differs", path, image_id, what))
    return findings


def check_file(path: str) -> tuple[list[Finding], Counts]:
    """Check that a classified image decodes (its orientation and size may be any)."""
    return check_photo(path, turned=True)[1], Counts(images=1)
