"""Every rule of the JSON files: what the check calls an error, loading refuses with the same line."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data_util import CATEGORIES, write_own
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from auto_panoptic.data import register_coco_panoptic
from auto_panoptic.data.check import check_data_set
from auto_panoptic.data.formats.instances_json import decode_counts
from auto_panoptic.errors import UserError

NAN = float("nan")


def each(key: str, change: Callable) -> Callable:
    """Change every entry of "images", "annotations" or "categories", or every segment."""

    def apply(content):
        entries = content["annotations"] if key == "segments" else content[key]
        for entry in entries:
            for target in entry["segments_info"] if key == "segments" else [entry]:
                change(target)

    return apply


def first(key: str, **changes) -> Callable:
    """Give the first entry these values; ``...`` removes the key."""

    def apply(content):
        entry = content["annotations"][0]["segments_info"][0] if key == "segments" else content[key][0]
        entry.update(changes)
        for name in [name for name, value in changes.items() if value is ...]:
            del entry[name]

    return apply


def add(key: str, **changes) -> Callable:
    """A second copy of the first entry, changed."""

    def apply(content):
        entries = content["annotations"][0]["segments_info"] if key == "segments" else content[key]
        entries.append({**entries[0], **changes})

    return apply


def whole(change: Callable) -> Callable:
    """Change the bytes of the file."""
    change.on_bytes = True
    return change


def only(**changes) -> Callable:
    return lambda content: content.update(changes)


STUFF = [{"id": i, "name": str(i), "isthing": 0} for i in range(255)]
# name -> (damage of the panoptic JSON, kind, part of the line)
PANOPTIC = {
    "a list": (whole(lambda b: b"[]"), "json-format", "holds a list"),
    "cut": (whole(lambda b: b[:-9]), "json-broken", "of a file of"),
    "too deep": (whole(lambda b: b"[" * 10**6), "json-broken", "recursion"),
    "with a mark": (whole(lambda b: b"\xef\xbb\xbf" + b), "json-broken", "BOM"),
    "latin-1": (whole(lambda b: b.replace(b"cat", b"\xe4")), "json-broken", "utf-8"),
    "no annotations": (lambda c: c.pop("annotations"), "json-format", "'annotations' is missing"),
    "images an object": (only(images={}), "json-format", "'images' is dict"),
    "annotations empty": (only(annotations=[]), "no-images", ""),
    "no class": (only(categories=[]), "bad-category", "at least one"),
    "class a number": (only(categories=[7]), "bad-category", "categories[0] is 7"),
    "class without isthing": (first("categories", isthing=...), "bad-category", "isthing None"),
    "class isthing 2": (first("categories", isthing=2), "bad-category", "(id 4, cat) has isthing 2"),
    "class isthing a string": (each("categories", lambda c: c.update(isthing="1")), "bad-category", "'1'"),
    "class id a string": (first("categories", id="1"), "bad-category", "id '1'"),
    "class id negative": (first("categories", id=-1), "bad-category", "id -1"),
    "class id a bool": (first("categories", id=True), "bad-category", "id True"),
    "class name a number": (first("categories", name=7), "bad-category", "name 7"),
    "class name missing": (first("categories", name=...), "bad-category", "name None"),
    **{
        f"class color {color}": (first("categories", color=color), "bad-category", f"color {color!r}")
        for color in (5, "red", {"r": 1}, [1, 2, "3"], [1, 2, [3]], [1, 2, 256], [1, 2, NAN], [1, 2])
    },
    "class twice": (add("categories", name="lion"), "duplicate-category-id", "has id 4 (lion), as 'cat'"),
    "255 stuff classes": (only(categories=STUFF), "bad-category", "255 stuff classes"),
    "image a number": (lambda c: c["images"].append(3), "json-format", "images[2] is 3"),
    "image id missing": (first("images", id=...), "json-format", "images[0] has id None"),
    "image id twice": (add("images", file_name="x.jpg"), "duplicate-image-id", "image id 41 stands for"),
    "image file twice": (add("images", id=9), "duplicate-image-file", "named by images 41 and 9"),
    "image ids of two kinds": (add("images", id="a", file_name="x.jpg"), "json-format", "others strings"),
    "image ids strings": (
        each("images", lambda i: i.update(id=str(i["id"]))),
        "annotation-without-image",
        "image 41",
    ),
    "size missing": (each("images", lambda i: i.pop("width")), "bad-size", "width None"),
    "size a string": (first("images", height="20"), "bad-size", "height '20'"),
    "size 0": (first("images", width=0), "bad-size", "width 0"),
    "annotation null": (lambda c: c["annotations"].append(None), "json-format", "annotations[2] is None"),
    "annotation of no image": (first("annotations", image_id=1), "annotation-without-image", "image 1"),
    "annotation of instances": (first("annotations", segments_info=...), "json-format", "segments_info None"),
    "annotations of one image": (first("annotations", image_id=42), "duplicate-annotation", "image 42"),
    "PNG of two images": (
        lambda c: c["annotations"][1].update(file_name="sub/b.png"),
        "duplicate-png-file",
        "images 41 and 42",
    ),
    "segment null": (lambda c: c["annotations"][0]["segments_info"].append(None), "json-format", "[4] is"),
    "segment id a string": (each("segments", lambda s: s.update(id=str(s["id"]))), "json-format", "'70000'"),
    "segment id a float": (each("segments", lambda s: s.update(id=float(s["id"]))), "json-format", "70000.0"),
    "segment id 0": (first("segments", id=0), "segment-id-zero", "segment 0 of class 2"),
    "segment id over 24 bits": (
        each("segments", lambda s: s.update(id=s["id"] + (1 << 24))),
        "segment-id-range",
        "24 bits",
    ),
    "segment id twice": (add("segments"), "duplicate-segment-id", "segment 70000 occurs twice"),
    "segment class unknown": (first("segments", category_id=202), "unknown-category", "category_id 202"),
    "segment class a string": (first("segments", category_id="2"), "unknown-category", "category_id '2'"),
    "segment class a list": (first("segments", category_id=[2]), "unknown-category", "category_id [2]"),
    "crowd a string": (each("segments", lambda s: s.update(iscrowd="0")), "bad-iscrowd", "iscrowd '0'"),
    "crowd null": (first("segments", iscrowd=None), "bad-iscrowd", "iscrowd None"),
    "area a string": (first("segments", area="3"), "bad-area", "area '3'"),
    "area NaN": (first("segments", area=NAN), "bad-area", "area nan"),
    "area of 400 digits": (first("segments", area=10**400), "bad-area", "area 1000"),
    "box null": (first("segments", bbox=None), "bad-box", "bbox None"),
    "box NaN": (first("segments", bbox=[0, NAN, 5, 5]), "bad-box", "nan"),
    "box of 400 digits": (first("segments", bbox=[0, 0, 10**400, 5]), "bad-box", "bbox [0, 0, 1000"),
    "box flat": (first("segments", bbox=[0, 0, 5, 0]), "bad-box", "[0, 0, 5, 0]"),
    "box outside": (first("segments", bbox=[30, 0, 5, 5]), "box-outside", "outside the image of 30 x 20"),
}
RLE = {"size": [20, 30], "counts": [0, 600]}
# name -> (damage of the instances JSON, kind, part of the line)
INSTANCES = {
    "cut": (whole(lambda b: b[:-9]), "json-broken", "instances JSON"),
    "a number": (whole(lambda b: b"7"), "json-format", "holds a int"),
    "class twice": (add("categories"), "duplicate-category-id", "has id 4"),
    "image absent": (lambda c: c["images"].pop(0), "instances-image", "image sub/b.jpg of the panoptic JSON"),
    "image of other size": (first("images", width=31), "instances-entry", "width 31"),
    "image of other name": (first("images", file_name="x.jpg"), "instances-entry", "'x.jpg'"),
    "image a number": (lambda c: c["images"].append(3), "instance-format", "images[2] is 3"),
    "image twice": (add("images"), "duplicate-image-id", "images[2]"),
    "other images": (
        each("images", lambda i: i.update(id=i["id"] + 1000)),
        "instances-image",
        "leave instances_json out",
    ),
    "annotation null": (lambda c: c["annotations"].append(None), "instance-format", "annotations[1] is None"),
    "of an image not listed": (first("annotations", image_id=7), "instance-without-image", "instance 1"),
    "id 0": (first("annotations", id=0), "instance-id-zero", "id 0"),
    "id a string": (first("annotations", id="1"), "instance-format", "id '1'"),
    "id twice": (add("annotations"), "duplicate-instance-id", "annotations[1] has id 1"),
    "class of stuff": (first("annotations", category_id=2), "instance-category", "category_id 2"),
    "class a list": (first("annotations", category_id=[4]), "instance-category", "category_id [4]"),
    "class missing": (first("annotations", category_id=...), "instance-category", "category_id None"),
    "box empty": (first("annotations", bbox=[]), "instance-box", "bbox []"),
    "box NaN": (first("annotations", bbox=[NAN, 1, 2, 3]), "instance-box", "nan"),
    "box negative": (first("annotations", bbox=[1, 1, -2, 3]), "instance-box", "-2"),
    "crowd a string": (first("annotations", iscrowd="no"), "bad-iscrowd", "'no'"),
    "mask missing": (first("annotations", segmentation=...), "mask-format", "segmentation is None"),
    "mask a string": (first("annotations", segmentation="x"), "mask-format", "segmentation is x"),
    "RLE of another size": (
        first("annotations", segmentation={"size": [10**5, 10**5], "counts": "52203"}),
        "mask-size",
        "RLE of size [100000, 100000]",
    ),
    "RLE too short": (first("annotations", segmentation={**RLE, "counts": [5, 5]}), "mask-format", "10 pix"),
    "RLE too long": (first("annotations", segmentation={**RLE, "counts": "^`0hn]1"}), "mask-format", "RLE"),
    "RLE cut": (first("annotations", segmentation={**RLE, "counts": "^`"}), "mask-format", "middle"),
    "RLE of letters": (first("annotations", segmentation={**RLE, "counts": "\x01é"}), "mask-format", "hold"),
    "RLE negative": (first("annotations", segmentation={**RLE, "counts": [-1, 601]}), "mask-format", "-1"),
    "RLE of floats": (first("annotations", segmentation={**RLE, "counts": [600.0]}), "mask-format", "600.0"),
    "polygon odd": (first("annotations", segmentation=[[1, 1, 9, 9, 1, 9, 5]]), "mask-format", "finite x, y"),
    "polygon a number": (first("annotations", segmentation=[7]), "mask-format", "polygon 7"),
    "polygon NaN": (first("annotations", segmentation=[[1, 1, 9, NAN, 1, 9]]), "mask-format", "nan"),
    "polygon of nulls": (first("annotations", segmentation=[[None] * 6]), "mask-format", "None"),
    "polygon outside": (
        first("annotations", segmentation=[[90, 90, 95, 90, 95, 95]]),
        "mask-outside",
        "from [90.0, 90.0] to [95.0, 95.0] lie outside the image of 30 x 20",
    ),
    "polygon far out": (first("annotations", segmentation=[[1, 1, 1e6, 1, 1, 9]]), "mask-outside", "leave"),
}


def write_instances(folder) -> str:
    """One object of the first image of ``write_own``, the cat."""
    images = json.loads((folder / "panoptic.json").read_text())["images"]
    polygon = [4, 5, 10, 5, 10, 15, 4, 15]
    cat = {"id": 1, "image_id": 41, "category_id": 4, "iscrowd": 0, "area": 60, "bbox": [4, 5, 6, 10]}
    things = [{"id": c["id"], "name": c["name"]} for c in CATEGORIES if c["isthing"]]
    content = {"images": images, "annotations": [{**cat, "segmentation": [polygon]}], "categories": things}
    (folder / "instances.json").write_text(json.dumps(content))
    return str(folder / "instances.json")


def damage(path: str, change: Callable) -> None:
    data = Path(path).read_bytes()
    if getattr(change, "on_bytes", False):
        data = change(data)
    else:
        content = json.loads(data)
        change(content)
        data = json.dumps(content).encode()
    Path(path).write_bytes(data)


def refused_alike(own: dict, path: str, kind: str, part: str) -> None:
    """The check lists an error of this kind, and loading raises the first error, before it makes anything."""
    paths = {key: value for key, value in own.items() if key != "derived_root"}
    found = [f for f in check_data_set(processes=1, **paths) if f.severity == "error" and f.file == path]
    assert [f for f in found if f.kind == kind and part in f.line()], found
    with pytest.raises(UserError) as error:
        register_coco_panoptic("own", **own, show_ids=False)
        DatasetCatalog.get("own")
    assert str(error.value) in {f.line() for f in found} and "\n" not in str(error.value)
    assert not list(Path(own["derived_root"]).glob("own-*/complete"))


@pytest.mark.parametrize("name", PANOPTIC)
def test_panoptic_json(tmp_path, name, forget_data_sets):
    change, kind, part = PANOPTIC[name]
    own = write_own(tmp_path)
    damage(own["panoptic_json"], change)
    refused_alike(own, own["panoptic_json"], kind, part)


@pytest.mark.parametrize("name", INSTANCES)
def test_instances_json(tmp_path, name, forget_data_sets):
    change, kind, part = INSTANCES[name]
    own = write_own(tmp_path)
    own["instances_json"] = write_instances(tmp_path)
    damage(own["instances_json"], change)
    refused_alike(own, own["instances_json"], kind, part)


def in_folders(content) -> None:
    for image, annotation in zip(content["images"], content["annotations"], strict=True):
        image["file_name"] = f"./{image['file_name']}"
        annotation["file_name"] = f".//{annotation['file_name']}"


def renumbered(content) -> None:
    """Ids as strings with zeros, in both lists."""
    for image, annotation in zip(content["images"], content["annotations"], strict=True):
        image["id"] = annotation["image_id"] = f"{image['id']:06d}"


def from_zero(content) -> None:
    """The first thing has id 0."""
    new = {4: 0, 2: 2, 9: 9, 7: 7}
    each("categories", lambda c: c.update(id=new[c["id"]]))(content)
    each("segments", lambda s: s.update(category_id=new[s["category_id"]]))(content)


@pytest.mark.parametrize(
    "change",
    [
        each("segments", lambda s: s.pop("iscrowd")),
        each("segments", lambda s: s.update(iscrowd=bool(s["iscrowd"]))),
        each("segments", lambda s: s.update(area=None)),
        each("segments", lambda s: s.update(area=float(s["area"]), isthing=True)),
        each("images", lambda i: i.update(license=1, coco_url="http://")),
        add("images", id=77, file_name="x.jpg"),
        add("categories", id=99),
        in_folders,
        renumbered,
        from_zero,
    ],
)
def test_what_the_check_passes_loads(tmp_path, change, forget_data_sets):
    """Unusual, but clear: at most warnings, and every object is there."""
    own = write_own(tmp_path)
    Image.new("RGB", (30, 20)).save(tmp_path / "images/x.jpg")
    damage(own["panoptic_json"], change)
    paths = {key: value for key, value in own.items() if key != "derived_root"}
    assert not [f for f in check_data_set(processes=1, **paths) if f.severity == "error"]
    register_coco_panoptic("own", **own, show_ids=False)
    records = DatasetCatalog.get("own")
    assert [len(r["annotations"]) for r in records] == [2, 0]
    assert [len(r["segments_info"]) for r in records] == [4, 1]


def test_instances_are_read_as_detectron2_reads_them(tmp_path, forget_data_sets):
    from detectron2.data.datasets import load_coco_json

    own = write_own(tmp_path)
    path = write_instances(tmp_path)
    masks = [RLE, {**RLE, "counts": "0hb0"}, [[4, 5, 10, 5, 10, 15], [1, 1, 2, 1, 2, 2]]]
    masks += [[[1, 1, 2, 2], [4, 5, 10, 5, 10, 15]], [[1, 1, 2, 2]]]  # without area: left out
    for i, mask in enumerate(masks, start=2):
        more = add("annotations", id=i, segmentation=mask, bbox=[0, 0, 1.5, 0], category_id=9, iscrowd=i % 2)
        damage(path, more)
    paths = {key: value for key, value in own.items() if key != "derived_root"}
    found = check_data_set(processes=1, instances_json=path, **paths)
    assert not [f for f in found if f.severity == "error"]
    assert [f.what[:11] for f in found if f.kind == "mask-points"] == ["instance 5:", "instance 6:"]
    register_coco_panoptic("own", **own, instances_json=path, show_ids=False)
    ours, theirs = DatasetCatalog.get("own"), load_coco_json(path, own["image_root"])
    ids = MetadataCatalog.get("own").thing_dataset_id_to_contiguous_id
    for mine, other in zip(ours, theirs, strict=True):
        expected = [{**a, "category_id": ids[a["category_id"]]} for a in other["annotations"]]
        assert mine["annotations"] == expected
        assert {k: mine[k] for k in ("file_name", "height", "width", "image_id")} == {
            k: other[k] for k in ("file_name", "height", "width", "image_id")
        }


def test_masks_of_instances_without_annotation(tmp_path, forget_data_sets):
    """An instance of an image that has no panoptic annotation is left out with its image."""
    own = write_own(tmp_path)
    path = write_instances(tmp_path)
    damage(own["panoptic_json"], lambda c: c["annotations"].pop(0))
    register_coco_panoptic("own", **own, instances_json=path, show_ids=False)
    assert [r["annotations"] for r in DatasetCatalog.get("own")] == [[]]


def test_run_lengths_equal_those_of_pycocotools():
    import pycocotools.mask as mask_util

    rng = np.random.default_rng(0)
    for _ in range(200):
        h, w = rng.integers(1, 60, 2)
        mask = (rng.random((h, w)) < rng.choice([0, 0.02, 0.5, 1])).astype(np.uint8)
        rle = mask_util.encode(np.asfortranarray(mask))
        runs = decode_counts(rle["counts"].decode())
        assert sum(runs) == h * w
        expected = np.diff(np.flatnonzero(np.diff(mask.ravel("F"), prepend=0, append=2) != 0), prepend=0)
        assert [run for run in runs if run] == [int(run) for run in expected if run]
