"""What can be wrong with a data set: every kind of finding, how bad it is, and what to do about it."""

import dataclasses
import os
from collections.abc import Iterable, Iterator

from ...errors import UserError
from .names import RELATIVE

ERROR, WARNING, NOTE = "error", "warning", "note"
SEVERITIES = (ERROR, WARNING, NOTE)

_FETCH = "fetch the file again, or drop the image and its annotation from the JSON"
_JSON_FIELD = "correct the entry; COCO-panoptic needs images (id, file_name, height, width), annotations \
(image_id, file_name, segments_info) and categories (id, name, isthing)"
_UNIQUE = "make it unique, or remove one of the two"
_DERIVED = "or leave instances_json out to derive it"

# kind -> (severity, remedy). "image" is the photograph, "png" the panoptic PNG, "semantic" the PNG of the
# semantic head, "instance" an annotation of the instances JSON.
KINDS = {
    # The files that describe the set.
    "json-missing": (ERROR, "correct the path, or put the file there (see datasets/README.md)"),
    "json-broken": (ERROR, "restore the file, whole and as UTF-8 without a mark in front"),
    "json-format": (ERROR, _JSON_FIELD),
    "file-name": (ERROR, RELATIVE),
    "folder-missing": (ERROR, "correct the path, or set DETECTRON2_DATASETS (see datasets/README.md)"),
    "no-images": (ERROR, "add images with annotations"),
    "bad-category": (ERROR, "give an integer id >= 0, a name, isthing 0 or 1, and 3 bytes as color if any"),
    "duplicate-category-id": (ERROR, _UNIQUE),
    "duplicate-category-name": (WARNING, "rename one: tables and plots cannot tell the two classes apart"),
    "bad-categories": (ERROR, "give categories with every class of the JSON, or correct the ids of its own"),
    "category-mismatch": (ERROR, "use the JSON this name is registered for, or register the set as your own"),
    "unknown-category": (ERROR, "correct category_id, or add the category to 'categories'"),
    "duplicate-image-id": (ERROR, _UNIQUE),
    "duplicate-image-file": (ERROR, "let every image entry name a file of its own"),
    "duplicate-annotation": (ERROR, "keep one annotation per image"),
    "duplicate-png-file": (ERROR, "let every annotation name a PNG of its own"),
    "annotation-without-image": (ERROR, "add the image to 'images', or remove the annotation"),
    "image-without-annotation": (WARNING, "annotate it, or remove it; training and evaluation leave it out"),
    "bad-size": (ERROR, "write the pixels of the image file (89 million at most) as height and width"),
    # The photographs.
    "image-missing": (ERROR, _FETCH),
    "image-unreadable": (ERROR, _FETCH),
    "image-truncated": (ERROR, _FETCH),
    "image-size": (ERROR, "correct height and width in the JSON, or restore the image they were written for"),
    "image-rotated": (ERROR, "rewrite the image without the orientation tag, turned as its annotation is"),
    "image-orientation": (WARNING, "see that the PNG is turned alike, then rewrite it without the tag"),
    "image-depth": (WARNING, "convert it to 8 bits yourself: Detectron2 would clip the values"),
    # The panoptic PNGs against the JSON.
    "png-missing": (ERROR, _FETCH),
    "png-unreadable": (ERROR, _FETCH),
    "png-truncated": (ERROR, _FETCH),
    "png-format": (ERROR, "write it as PNG with 3 channels of 8 bits, id = R + 256 G + 65536 B"),
    "png-size": (ERROR, "scale it to the image by nearest neighbour, or restore the right file"),
    "id-not-in-json": (ERROR, "add the segment to segments_info, or paint its pixels 0 (void)"),
    "id-not-in-png": (ERROR, "remove the segment from segments_info, or restore its pixels"),
    "segment-id-zero": (ERROR, "0 means void; give the segment an id of its own, in the PNG too"),
    "segment-id-range": (ERROR, "use ids from 1 to 16777215, which 24 bits can hold"),
    "duplicate-segment-id": (ERROR, "give the two segments different ids, in the PNG too"),
    "bad-iscrowd": (ERROR, "write 0, or 1 for a group of things"),
    "stuff-crowd": (WARNING, "set iscrowd to 0: crowds are groups of things, evaluation would skip this one"),
    "stuff-split": (WARNING, "merge the segments: evaluation expects one segment per stuff class and image"),
    "bad-area": (ERROR, "write the number of pixels of the segment"),
    "area-missing": (WARNING, "write the number of pixels; panopticapi needs it"),
    "area-differs": (ERROR, "write the number of pixels, or restore the PNG that it was counted from"),
    "bad-box": (ERROR, "write x, y, width, height as finite numbers, width and height positive"),
    "box-outside": (ERROR, "correct the box, or the size of the image"),
    "box-cuts": (WARNING, "write the smallest box around all pixels; training counts its own from the PNG"),
    "box-loose": (WARNING, "write the smallest box around the segment, width = last - first + 1"),
    # The semantic PNGs.
    "semantic-missing": (ERROR, "make the label maps again, or leave sem_seg_root out to have them derived"),
    "semantic-unreadable": (ERROR, "make the label maps again"),
    "semantic-truncated": (ERROR, "make the label maps again"),
    "semantic-format": (ERROR, "write it with one channel of 8 bits and without a palette"),
    "semantic-size": (ERROR, "make the label maps again from the panoptic PNGs"),
    "semantic-values": (ERROR, "use 0 for things, 1 to S for stuff by category id, 255 for void"),
    "semantic-differs": (WARNING, "make the label maps again, unless they are meant to differ from the PNGs"),
    "semantic-classes": (ERROR, "number stuff 1 to S by category id, or leave sem_seg_root out to derive it"),
    # The instances JSON.
    "instances-image": (ERROR, f"give both JSONs the same images, {_DERIVED}"),
    "instances-entry": (ERROR, "copy the image entry from the panoptic JSON"),
    "instances-classes": (ERROR, f"number the classes of both JSONs alike, {_DERIVED}"),
    "instances-boxes": (ERROR, f"write x, y, width, height in pixels, {_DERIVED}"),
    "instance-format": (ERROR, "give id, image_id, category_id, bbox and segmentation (polygons or RLE)"),
    "duplicate-instance-id": (ERROR, _UNIQUE),
    "instance-id-zero": (ERROR, "number from 1: COCO's evaluation takes id 0 for 'no match'"),
    "instance-without-image": (ERROR, "add the image to 'images', or remove the annotation"),
    "instance-category": (ERROR, "use the id of a thing class of this set"),
    "instance-box": (ERROR, "write x, y, width, height as finite numbers, no side negative"),
    "instance-box-flat": (WARNING, "remove the annotation: training and evaluation learn nothing from it"),
    "instance-box-cuts": (WARNING, "write the smallest box around the mask: training crops the mask to it"),
    "instance-area": (WARNING, "write the area of the mask; AP small, medium and large go by it"),
    "mask-format": (ERROR, "write polygons x, y, x, y, ..., or an RLE whose counts fill the image"),
    "mask-size": (ERROR, "encode the mask at the size of the image"),
    "mask-outside": (ERROR, "correct the polygon, or the image it belongs to"),
    "mask-points": (WARNING, "remove the polygon: training leaves it out, and an object without any other"),
    "mask-leaves-image": (WARNING, "clip the polygon to the image"),
    "instance-empty": (WARNING, "remove the annotation: no pixel belongs to it, training drops it"),
    "instance-duplicate": (WARNING, "remove one of the two: they cover the same object"),
    "instances-differ": (WARNING, "derive the instances from the PNGs by leaving instances_json out"),
    # Folders of classified images.
    "class-without-image": (ERROR, "add images of this class, or remove the folder"),
    "class-missing": (ERROR, "put one folder of images per class there"),
    # Allowed, but good to know.
    "instance-overlap": (NOTE, "nothing to do: hand-drawn masks may overlap; the panoptic PNG decides"),
    "no-object": (NOTE, "nothing to do: images without things train the semantic head"),
    "crowd-only": (NOTE, "nothing to do: boxes and masks learn nothing from this image"),
    "all-void": (NOTE, "nothing to do, but the image teaches and tests nothing"),
    "class-unused": (NOTE, "nothing to do: PQ leaves classes without a segment out of the average"),
    "not-made-yet": (NOTE, "nothing to do: the first training or evaluation derives them"),
    "other-file": (NOTE, "nothing to do: the loader leaves it out; rename it if it is an image"),
}


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing found: a key of :data:`KINDS`, the file, the id of the image or None, what is wrong in it."""

    kind: str
    file: str
    image_id: int | str | None
    what: str

    def __post_init__(self):
        # One line and short, whatever stands in a damaged file.
        what = " ".join("".join(c if c.isprintable() else "?" for c in self.what).split())
        object.__setattr__(self, "what", what if len(what) <= 300 else what[:297] + "...")
        object.__setattr__(self, "file", os.fspath(self.file))

    @property
    def severity(self) -> str:
        """ "error", "warning" or "note"."""
        return KINDS[self.kind][0]

    @property
    def remedy(self) -> str:
        return KINDS[self.kind][1]

    def line(self) -> str:
        """File, image id, what, and the remedy."""
        file = "".join(c if c.isprintable() else "?" for c in self.file)
        image = "" if self.image_id is None else f" (image {self.image_id})"
        return f"{file}{image}: {self.what}; {self.remedy}"

    def record(self) -> dict:
        """For a JSON file."""
        return {"severity": self.severity, **dataclasses.asdict(self), "remedy": self.remedy}


Problem = tuple  # (kind, image id or None, what): a finding before it is known in which file


def findings_in(path: str, problems: Iterable[Problem]) -> Iterator[Finding]:
    """Problems of a file as findings."""
    return (Finding(kind, path, image_id, what) for kind, image_id, what in problems)


def raise_first(findings: Iterable[Finding]) -> None:
    """Take findings up to the first error, which is raised; warnings and notes are for the checker.

    Raises:
        UserError: the line of the finding.
    """
    for finding in findings:
        if finding.severity == ERROR:
            raise UserError(finding.line())
