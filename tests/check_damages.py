"""Damages of single images: the photograph, the panoptic PNG, the panoptic JSON, the label map."""

import copy
import shutil
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

NAN, INF = float("nan"), float("inf")

# name -> (function, file that is named, kinds): the first kind must be found in that file, and the errors and
# warnings of the image must be exactly the kinds.
DAMAGES = {}


def damage(where: str, *kinds: str):
    def keep(function):
        assert function.__name__ not in DAMAGES
        DAMAGES[function.__name__] = (function, where, kinds)
        return function

    return keep


def change(name: str, where: str, *kinds: str):
    """A damage given by an expression: ``change(...)(lambda item: ...)``."""

    def keep(function):
        assert name not in DAMAGES
        DAMAGES[name] = (function, where, kinds)

    return keep


def cut(path: Path, size) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: size if size > 0 else len(data) + size])


def half(path: Path) -> None:
    cut(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    """Invert a byte in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)


def rotated(item, orientation, turn=None) -> None:
    image = Image.open(item.image)
    exif = Image.Exif()
    exif[0x0112] = orientation
    (image if turn is None else image.transpose(turn)).save(item.image, "JPEG", exif=exif)


# The photograph.
change("image removed", "image", "image-missing")(lambda i: i.image.unlink())
change("image empty", "image", "image-unreadable")(lambda i: i.image.write_bytes(b""))
change("image is text", "image", "image-unreadable")(lambda i: i.image.write_text("<html>not found</html>"))
change("image cut in half", "image", "image-truncated")(lambda i: half(i.image))
change("image header cut", "image", "image-truncated")(lambda i: cut(i.image, 100))
change("image end cut", "image", "image-truncated")(lambda i: cut(i.image, -200))
change("image end marker cut", "image", "image-truncated")(lambda i: cut(i.image, -2))
change("image turned by EXIF", "image", "image-rotated")(lambda i: rotated(i, 6))
change("image turned back by EXIF", "image", "image-orientation")(
    lambda i: rotated(i, 6, Image.Transpose.ROTATE_90)
)
change("image upside down by EXIF", "image", "image-orientation")(lambda i: rotated(i, 3))
change("image of other size", "image", "image-size")(
    lambda i: Image.open(i.image).resize((50, 40)).save(i.image)
)
change("image of 16 bits", "image", "image-depth")(
    lambda i: Image.fromarray(np.zeros(i.size[::-1], np.uint16)).save(i.image, "PNG")
)


@damage("image", "image-missing")
def image_is_dangling_link(item):
    item.image.unlink()
    item.image.symlink_to("nowhere.jpg")


@damage("image", "image-unreadable")
def image_is_folder(item):
    item.image.unlink()
    item.image.mkdir()


@damage("image", "image-truncated")
def image_png_with_flipped_byte(item):
    Image.open(item.image).save(item.image, "PNG")
    flip(item.image)


@damage("image", "image-unreadable")
def image_of_absurd_size(item):
    Image.new("L", (10, 10)).save(item.image, "BMP")
    data = bytearray(item.image.read_bytes())
    data[18:26] = (60_000).to_bytes(4, "little") * 2
    item.image.write_bytes(data)


# The panoptic PNG.
def as_grey(item) -> None:
    """Small ids, each written into all three channels."""
    ids, new = item.ids_map(), np.zeros(item.size[::-1], int)
    for number, segment in enumerate(item.segments, start=1):
        new[ids == segment["id"]] = number
        segment["id"] = number
    item.write_ids(new * 0x010101)


change("PNG removed", "png", "png-missing")(lambda i: i.png.unlink())
change("PNG empty", "png", "png-unreadable")(lambda i: i.png.write_bytes(b""))
change("PNG is text", "png", "png-unreadable")(lambda i: i.png.write_text("x" * 1000))
change("PNG cut in half", "png", "png-truncated")(lambda i: half(i.png))
change("PNG header cut", "png", "png-truncated")(lambda i: cut(i.png, 20))
change("PNG end cut", "png", "png-truncated")(lambda i: cut(i.png, -12))
change("PNG byte flipped", "png", "png-truncated")(lambda i: flip(i.png))
change("PNG with palette", "png", "png-format")(
    lambda i: Image.fromarray(i.pixels()).quantize(64).save(i.png)
)
change("PNG grey", "png", "png-format")(lambda i: Image.fromarray(i.pixels()[..., 0]).save(i.png))
change("PNG grey in three channels", "png", "png-format", "semantic-differs")(lambda i: as_grey(i))
change("PNG of two channels", "png", "png-format")(
    lambda i: Image.fromarray(i.pixels()[..., 0]).convert("LA").save(i.png)
)
change("PNG of 16 bits", "png", "png-format")(
    lambda i: cv2.imwrite(str(i.png), i.pixels().astype(np.uint16) * 257)
)
change("PNG is JPEG", "png", "png-format")(lambda i: Image.fromarray(i.pixels()).save(i.png, "JPEG"))
change("PNG of double size", "png", "png-size")(
    lambda i: i.write_ids(np.kron(i.ids_map(), np.ones((2, 2), int)))
)
change("PNG turned", "png", "png-size")(lambda i: i.write_ids(i.ids_map().T))
change("PNG as BGR", "png", "png-format", "semantic-differs")(
    lambda i: Image.fromarray(np.ascontiguousarray(i.pixels()[..., ::-1])).save(i.png)
)


@damage("png", "id-not-in-png", "semantic-differs")
def segment_painted_void(item):
    ids = item.ids_map()
    ids[ids == item.segment()["id"]] = 0
    item.write_ids(ids)


@damage("png", "id-not-in-json", "semantic-differs")
def segment_missing_in_json(item):
    item.segments.remove(item.segment(thing=False))


@damage("png", "id-not-in-json", "area-differs")
def one_stray_pixel(item):
    ids = item.ids_map()
    rows, columns = np.nonzero(ids == item.segment(thing=False)["id"])
    middle = len(rows) // 2
    ids[rows[middle], columns[middle]] = 123_456
    item.write_ids(ids)
    labels = item.labels()
    labels[rows[middle], columns[middle]] = 255
    Image.fromarray(labels).save(item.semantic)


# Segments in the JSON.
def extra(item, **changes) -> None:
    item.segments.append({**item.segment(), "id": 1_234_567, "area": 10, **changes})


change("segment without pixels", "png", "id-not-in-png")(lambda i: extra(i))
change("segment twice", "panoptic", "duplicate-segment-id")(lambda i: extra(i, id=i.segment()["id"]))
change("segment id 0", "panoptic", "segment-id-zero")(lambda i: extra(i, id=0))
change("segment id too large", "panoptic", "segment-id-range")(lambda i: extra(i, id=1 << 24))
change("segment id negative", "panoptic", "segment-id-range")(lambda i: extra(i, id=-3))
change("segment id a string", "panoptic", "json-format")(lambda i: extra(i, id="7"))
change("segment is null", "panoptic", "json-format")(lambda i: i.segments.append(None))
change("class unknown", "panoptic", "unknown-category", "semantic-differs")(
    lambda i: i.segment().update(category_id=77)
)
change("class a string", "panoptic", "unknown-category", "semantic-differs")(
    lambda i: i.segments[0].update(category_id="106")
)
change("crowd flag 2", "panoptic", "bad-iscrowd")(lambda i: i.segment().update(iscrowd=2))
change("crowd of stuff", "panoptic", "stuff-crowd")(lambda i: i.segment(thing=False).update(iscrowd=1))
change("area wrong", "png", "area-differs")(lambda i: i.segment().update(area=i.segment()["area"] + 1))
change("area 0", "png", "area-differs")(lambda i: i.segment(thing=False).update(area=0))
change("area NaN", "panoptic", "bad-area")(lambda i: i.segment(thing=False).update(area=NAN))
change("area negative", "panoptic", "bad-area")(lambda i: i.segment(thing=False).update(area=-4))
change("area missing", "panoptic", "area-missing")(lambda i: i.segment().pop("area"))
change("box NaN", "panoptic", "bad-box")(lambda i: i.segment().update(bbox=[0, NAN, 5, 5]))
change("box infinite", "panoptic", "bad-box")(lambda i: i.segment().update(bbox=[0, 0, INF, 5]))
change("box of 3 numbers", "panoptic", "bad-box")(lambda i: i.segment().update(bbox=[0, 0, 5]))
change("box without width", "panoptic", "bad-box")(lambda i: i.segment().update(bbox=[3, 3, 0, 5]))
change("box elsewhere", "panoptic", "box-outside", "box-cuts")(
    lambda i: i.segment().update(bbox=[500, 500, 9, 9])
)
change("box too small", "png", "box-cuts")(
    lambda i: i.segment()["bbox"].__setitem__(2, i.segment()["bbox"][2] - 4)
)
change("box off by one", "png", "box-loose")(
    lambda i: i.segment()["bbox"].__setitem__(3, i.segment()["bbox"][3] - 1)
)
change("segments not a list", "panoptic", "json-format")(lambda i: i.annotation.update(segments_info={}))


@damage("panoptic", "stuff-split")
def stuff_in_two_segments(item):
    segment, ids = item.segment(thing=False), item.ids_map()
    rows, columns = np.nonzero(ids == segment["id"])
    other = rows > np.median(rows)
    ids[rows[other], columns[other]] = 4_321
    item.write_ids(ids)
    for number in (segment["id"], 4_321):
        mask = (ids == number).astype(np.uint8)
        measures = {"area": int(mask.sum()), "bbox": list(cv2.boundingRect(mask))}
        if number == segment["id"]:
            segment.update(measures)
        else:
            item.segments.append({**segment, "id": number, **measures})


# Image entries and annotations in the JSON.
change("width wrong", "image", "image-size", "png-size", "semantic-size", "instances-entry", "mask-size")(
    lambda i: i.entry.update(width=i.entry["width"] + 1)
)
change("width 0", "panoptic", "bad-size")(lambda i: i.entry.update(width=0))
change("height negative", "panoptic", "bad-size")(lambda i: i.entry.update(height=-5))
change("height a string", "panoptic", "bad-size")(lambda i: i.entry.update(height="160"))
change("width missing", "panoptic", "bad-size")(lambda i: i.entry.pop("width"))
change("image file null", "panoptic", "file-name", "annotation-without-image", "instances-image")(
    lambda i: i.entry.update(file_name=None)
)
change("PNG name leads out", "panoptic", "file-name")(
    lambda i: i.annotation.update(file_name=f"../panoptic/{i.png.name}")
)
change("image without annotation", "panoptic", "image-without-annotation")(
    lambda i: i.corpus.panoptic["annotations"].remove(i.annotation)
)
change("annotation and PNG twice", "panoptic", "duplicate-annotation", "duplicate-png-file")(
    lambda i: i.corpus.panoptic["annotations"].append(copy.deepcopy(i.annotation))
)


@damage("panoptic", "duplicate-annotation")
def second_annotation(item):
    other = item.png.with_name("second.png")
    shutil.copyfile(item.png, other)
    shutil.copyfile(item.semantic, item.semantic.with_name("second.png"))
    item.corpus.panoptic["annotations"].append({**copy.deepcopy(item.annotation), "file_name": other.name})


@damage("panoptic", "duplicate-image-id")
def image_id_twice(item):
    other = item.image.with_name("twice.jpg")
    shutil.copyfile(item.image, other)
    item.corpus.panoptic["images"].append({**item.entry, "file_name": other.name})


@damage("panoptic", "duplicate-image-file", "image-without-annotation", "instances-image")
def image_file_twice(item):
    item.corpus.panoptic["images"].append({**item.entry, "id": item.new_id()})


@damage("panoptic", "annotation-without-image")
def annotation_of_no_image(item):
    other = item.png.with_name("alone.png")
    shutil.copyfile(item.png, other)
    shutil.copyfile(item.semantic, item.semantic.with_name("alone.png"))
    changes = {"file_name": other.name, "image_id": item.new_id()}
    item.corpus.panoptic["annotations"].append({**copy.deepcopy(item.annotation), **changes})


# The semantic PNG.
change("label map removed", "semantic", "semantic-missing")(lambda i: i.semantic.unlink())
change("label map cut", "semantic", "semantic-truncated")(lambda i: half(i.semantic))
change("label map is text", "semantic", "semantic-unreadable")(lambda i: i.semantic.write_text("no" * 100))
change("label map of other size", "semantic", "semantic-size")(
    lambda i: Image.fromarray(i.labels()[1:]).save(i.semantic)
)
change("label map with palette", "semantic", "semantic-format")(
    lambda i: Image.fromarray(i.labels()).convert("P").save(i.semantic)
)
change("label map in colour", "semantic", "semantic-format")(
    lambda i: Image.fromarray(i.labels()).convert("RGB").save(i.semantic)
)
change("label map out of range", "semantic", "semantic-values")(
    lambda i: Image.fromarray(np.where(i.labels() == 0, 6, i.labels()).astype(np.uint8)).save(i.semantic)
)
change("label map shifted", "semantic", "semantic-differs")(
    lambda i: Image.fromarray(np.roll(i.labels(), 3, 0)).save(i.semantic)
)
