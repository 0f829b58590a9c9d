"""Miniature trees of COCO, ADE20K and Cityscapes as their publishers release them."""

import json
import runpy
import sys

import cv2
import numpy as np
import pytest
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from toy import ROOT

from auto_panoptic.data.formats.panoptic_png import segment_records, write_panoptic


@pytest.fixture(name="root")
def data_root(tmp_path, monkeypatch):
    """An empty data set root."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path


def run(script, *arguments):
    """Run a script of datasets/ in this process; its exit code."""
    argv, sys.argv = sys.argv, [script, *map(str, arguments)]
    try:
        runpy.run_path(str(ROOT / "datasets" / script), run_name="__main__")
    except SystemExit as end:
        return end.code
    finally:
        sys.argv = argv
    return 0


def content(folder):
    """{file name: bytes} of the images in a folder."""
    return {path.name: path.read_bytes() for path in folder.glob("[!.]*")}


# Segment id -> COCO category id, of every image of the miniature COCO: two things, first, second, last stuff.
COCO_SEGMENTS = {3: 1, 70_000: 90, 513: 92, 5: 93, 6: 200}
COCO_LABELS = {3: 0, 70_000: 0, 513: 1, 5: 2, 6: 53, 0: 255}


def coco_ids(number):
    """Segment ids, 12 x 10 pixels: two rows of each segment and of void; ``number`` shifts them."""
    return np.roll(np.repeat([0, *COCO_SEGMENTS], 2)[:, None] * np.ones((1, 10), np.int64), number, axis=0)


def write_coco(root, count, split="val"):
    """COCO's panoptic annotations of ``count`` images."""
    folder = root / f"coco/panoptic_{split}2017"
    folder.mkdir(parents=True)
    (root / "coco/annotations").mkdir(exist_ok=True)
    images, annotations = [], []
    for i in range(1, count + 1):
        ids, name = coco_ids(i), f"{i:012d}"
        write_panoptic(folder / f"{name}.png", ids)
        images.append({"id": i, "file_name": f"{name}.jpg", "height": 12, "width": 10})
        segments = segment_records(ids, COCO_SEGMENTS, set())
        annotations.append({"image_id": i, "file_name": f"{name}.png", "segments_info": segments})
    content = {"images": images, "annotations": annotations, "categories": COCO_CATEGORIES}
    (root / f"coco/annotations/panoptic_{split}2017.json").write_text(json.dumps(content))
    return root / f"coco/panoptic_stuff_{split}2017"


def ade20k_annotations(number=0):
    """annotations/ (6 x 8) and annotations_instance/ (6 x 8 x RGB) of one image; ``number`` shifts the rows.

    Rows: wall; wall, half of it a bed (8) by instance 1 of class 1; fountain (105) as instances 7 and 200 of
    class 67; a flag (150) as instance 3 of class 100; a bed without instance; other.
    """
    semantic = np.repeat(np.array([1, 1, 105, 150, 8, 0], np.uint8), 8).reshape(6, 8)
    instances = np.zeros((6, 8, 3), np.uint8)
    instances[1, 4:] = 1, 1, 0
    instances[2, :5], instances[2, 5:] = (67, 7, 0), (67, 200, 0)
    instances[3] = 100, 3, 9
    return np.roll(semantic, number, axis=0), np.roll(instances, number, axis=0)


# Their segment ids by row, and {segment id: (category id, area)}.
ADE20K_SEGMENTS = {
    1: (0, 12),
    256 * 8 + 1: (7, 4),
    256 * 105 + 7: (104, 5),
    256 * 105 + 200: (104, 3),
    256 * 150 + 3: (149, 8),
}


def ade20k_ids(number=0):
    """The segment ids that belong to :func:`ade20k_annotations`."""
    ids = np.zeros((6, 8), np.int64)
    ids[:2] = 1
    ids[1, 4:] = 2049
    ids[2, :5], ids[2, 5:] = 26887, 27080
    ids[3] = 38403
    return np.roll(ids, number, axis=0)


def write_ade20k(root, count, folder="validation", name="ADE_val"):
    """ADE20K's release, ``count`` images."""
    root = root / "ADEChallengeData2016"
    for kind in ("images", "annotations", "annotations_instance"):
        (root / kind / folder).mkdir(parents=True)
    for i in range(1, count + 1):
        stem = f"{folder}/{name}_{i:08d}"
        semantic, instances = ade20k_annotations(i)
        cv2.imwrite(str(root / f"images/{stem}.jpg"), np.full((6, 8, 3), i, np.uint8))
        cv2.imwrite(str(root / f"annotations/{stem}.png"), semantic)
        cv2.imwrite(str(root / f"annotations_instance/{stem}.png"), instances[..., ::-1])
    return root


def cityscapes_ids(number=0):
    """instanceIds (5 x 12): void labels, stuff, a group, instances, classes that are not evaluated."""
    numbers = [0, 4, 7, 23, 26, 26001, 26002, 33000, 24, 29, 29001, 30003]
    return np.roll(np.tile(np.array(numbers, np.uint16), (5, 1)), number, axis=1)


# Of the numbers above: {segment id: (category id, iscrowd)}; 5 pixels each.
CITYSCAPES_SEGMENTS = {
    7: (7, 0),
    23: (23, 0),
    24: (24, 1),
    26: (26, 1),
    26001: (26, 0),
    26002: (26, 0),
    33000: (33, 0),
}
CITYSCAPES_LABELS = [255, 255, 1, 11, 0, 0, 0, 0, 0, 255, 255, 255]


def write_cityscapes(root, count, split="val", cities=("ulm", "bochum")):
    """Cityscapes' fine annotations and images, ``count`` per city."""
    root = root / "cityscapes"
    for city in cities:
        for kind in ("leftImg8bit", "gtFine"):
            (root / kind / split / city).mkdir(parents=True)
        for i in range(count):
            stem = f"{split}/{city}/{city}_{i:06d}_000019"
            cv2.imwrite(str(root / f"leftImg8bit/{stem}_leftImg8bit.png"), np.full((5, 12, 3), i, np.uint8))
            cv2.imwrite(str(root / f"gtFine/{stem}_gtFine_instanceIds.png"), cityscapes_ids(i))
    return root
