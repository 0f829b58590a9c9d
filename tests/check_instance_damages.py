"""Damages of the instances of single images, which join ``DAMAGES``, and what is allowed: ``NOTES``."""

import copy

import numpy as np
import pycocotools.mask as mask_util
from check_damages import DAMAGES, NAN, change, damage
from PIL import Image

__all__ = ["DAMAGES", "NOTES"]

# The instances JSON.
DIFFERS = "instances-differ"
change("instance id 0", "instances", "instance-id-zero")(lambda i: i.instance.update(id=0))
change("instance of stuff", "instances", "instance-category", DIFFERS)(
    lambda i: i.instance.update(category_id=106)
)
change("instance of no class", "instances", "instance-category", DIFFERS)(
    lambda i: i.instance.update(category_id=[7])
)
change("instance box NaN", "instances", "instance-box")(lambda i: i.instance.update(bbox=[NAN, 1, 2, 3]))
change("instance box flat", "instances", "instance-box-flat")(lambda i: i.instance.update(bbox=[1, 1, 2, 0]))
change("instance box small", "instances", "instance-box-cuts")(
    lambda i: i.instance["bbox"].__setitem__(2, i.instance["bbox"][2] - 5)
)
change("instance area wrong", "instances", "instance-area")(lambda i: i.instance.update(area=9_999))
change("instance crowd flag", "instances", "bad-iscrowd", DIFFERS)(lambda i: i.instance.update(iscrowd="no"))
change("mask of other size", "instances", "mask-size", DIFFERS)(
    lambda i: i.instance["segmentation"]["size"].reverse()
)
change("mask RLE cut", "instances", "mask-format", DIFFERS)(
    lambda i: i.instance["segmentation"].update(counts=i.instance["segmentation"]["counts"][:-3])
)
change("mask RLE not ASCII", "instances", "mask-format", DIFFERS)(
    lambda i: i.instance["segmentation"].update(counts="\x01\xff")
)
change("mask RLE too short", "instances", "mask-format", DIFFERS)(
    lambda i: i.instance["segmentation"].update(counts=[5, 5])
)
change("polygon of odd length", "instances", "mask-format", DIFFERS)(
    lambda i: i.instance.update(segmentation=[[1, 1, 9, 9, 1, 9, 5]])
)
change("polygon NaN", "instances", "mask-format", DIFFERS)(
    lambda i: i.instance.update(segmentation=[[1, 1, 9, NAN, 1, 9]])
)
change("polygon outside", "instances", "mask-outside", DIFFERS)(
    lambda i: i.instance.update(segmentation=[[900, 900, 950, 900, 950, 950]])
)
change("segmentation missing", "instances", "mask-format", DIFFERS)(lambda i: i.instance.pop("segmentation"))
change("instances removed", "instances", DIFFERS)(lambda i: i.remove_instances(i.instances))
change("instances entry of other height", "instances", "instances-entry")(lambda i: i.listed.update(height=1))
change("instances entry of other file", "instances", "instances-entry")(
    lambda i: i.listed.update(file_name="x.jpg")
)
change("image absent from instances", "instances", "instances-image", "instance-without-image", DIFFERS)(
    lambda i: i.corpus.instances["images"].remove(i.listed)
)


def another(item, **changes) -> None:
    number = 10**6 + len(item.corpus.instances["annotations"])
    item.corpus.instances["annotations"].append({**copy.deepcopy(item.instance), "id": number, **changes})


change("instance id twice", "instances", "duplicate-instance-id", "instance-duplicate")(
    lambda i: another(i, id=i.instance["id"])
)
change("instance twice", "instances", "instance-duplicate")(lambda i: another(i))
change("instance of no image", "instances", "instance-without-image")(
    lambda i: another(i, image_id=i.new_id())
)


@damage("instances", "mask-leaves-image", "instance-area", DIFFERS)
def polygon_leaves_image(item):
    width, height = item.size
    polygon = [[0, 0, width + 20, 0, width + 20, height, 0, height]]
    item.instance.update(segmentation=polygon, bbox=[0, 0, width, height], area=3)


@damage("instances", "instance-empty", DIFFERS)
def mask_without_pixel(item):
    width, height = item.size
    rle = mask_util.encode(np.zeros((height, width), np.uint8, order="F"))
    item.instance.update(segmentation={**rle, "counts": rle["counts"].decode()})


# Allowed: notes. Kinds as above, but of severity "note".
NOTES = {}


def note(kind):
    def keep(function):
        NOTES[kind] = function
        return function

    return keep


def _drop_things(item, crowd=False):
    ids, labels = item.ids_map(), item.labels()
    for segment in [s for s in item.segments if s["category_id"] < 100]:
        if crowd:
            segment["iscrowd"] = 1
            continue
        labels[ids == segment["id"]] = 255
        ids[ids == segment["id"]] = 0
        item.segments.remove(segment)
    item.write_ids(ids)
    Image.fromarray(labels).save(item.semantic)
    if crowd:
        for instance in item.instances:
            instance["iscrowd"] = 1
    else:
        item.remove_instances(item.instances)


@note("no-object")
def _(item):
    _drop_things(item)


@note("crowd-only")
def _(item):
    _drop_things(item, crowd=True)


@note("all-void")
def _(item):
    width, height = item.size
    item.write_ids(np.zeros((height, width), int))
    Image.new("L", item.size, 255).save(item.semantic)
    item.segments.clear()
    item.remove_instances(item.instances)


@note("instance-overlap")
def _(item):
    x, y, w, h = item.instance["bbox"]
    box = [x, y, x + w, y, x + w, y + h, x, y + h]
    category = next(c for c in (1, 2, 3) if c != item.instance["category_id"])
    another(item, category_id=category, segmentation=[box], area=w * h)
