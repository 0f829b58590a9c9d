"""Converters into COCO-panoptic: every pixel by hand, and what cannot be drawn."""

import base64
import io
import json

import cv2
import numpy as np
import pycocotools.mask as mask_util
import pytest
from PIL import Image
from prepare_util import cityscapes_ids, data_root, write_cityscapes  # noqa: F401  data_root is a fixture

from auto_panoptic.data.check import main as check
from auto_panoptic.data.convert.command import main
from auto_panoptic.data.formats.panoptic_png import read_panoptic
from auto_panoptic.data.sets.cityscapes import CATEGORIES as CITYSCAPES
from auto_panoptic.data.sets.cityscapes import prepare_cityscapes
from auto_panoptic.errors import UserError

SIZE = (8, 10)  # height, width


def photo(folder, name="a.jpg", size=SIZE):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size[::-1], (9, 9, 9)).save(folder / name)


def result(output, name="a.png"):
    """Per pixel: name of the class, and the number of the segment, in the order of the JSON; "" is void."""
    content = json.loads((output / "panoptic.json").read_text())
    (annotation,) = (a for a in content["annotations"] if a["file_name"] == name)
    ids = read_panoptic(str(output / "panoptic" / name))
    names = {c["id"]: c["name"] for c in content["categories"]}
    kinds = {s["id"]: names[s["category_id"]] + "!" * s["iscrowd"] for s in annotation["segments_info"]}
    classes = np.vectorize(lambda i: kinds.get(i, ""))(ids)
    assert {s["id"]: s["area"] for s in annotation["segments_info"]} == {i: (ids == i).sum() for i in kinds}
    return classes, ids


def picture(rows):
    """The map of one letter per pixel, as names of classes."""
    names = {"r": "road", "s": "sky", "c": "car", "d": "dog", "D": "dog!", "b": "rest", ".": ""}
    return np.array([[names[letter] for letter in row] for row in rows.split()])


def box(x, y, w, h):
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def rle(x, y, w, h, compressed=True):
    mask = np.zeros(SIZE, np.uint8, order="F")
    mask[y : y + h, x : x + w] = 1
    if compressed:
        found = mask_util.encode(mask)
        return {"size": list(SIZE), "counts": found["counts"].decode()}
    flat = mask.ravel("F")
    ends = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *ends, flat.size]).tolist()
    return {"size": list(SIZE), "counts": runs if flat[0] == 0 else [0, *runs]}


def write_coco(folder, annotations, categories=("car", "dog", "road", "sky"), name="coco.json"):
    """An instances JSON of one image; ``annotations`` are (class, segmentation, iscrowd)."""
    ids = {name: 10 * i for i, name in enumerate(categories, 1)}
    content = {
        "images": [{"id": 5, "file_name": "a.jpg", "height": SIZE[0], "width": SIZE[1]}],
        "categories": [{"id": i, "name": n} for n, i in ids.items()],
        "annotations": [
            {"id": i, "image_id": 5, "category_id": ids[n], "segmentation": mask, "iscrowd": crowd}
            for i, (n, mask, crowd) in enumerate(annotations, 1)
        ],
    }
    photo(folder / "photos")
    (folder / name).write_text(json.dumps(content))
    return [
        *("coco", "--instances-json", folder / name, "--image-root", folder / "photos"),
        *("--processes", "1", "--output", folder / "out"),
    ]


def convert(arguments, *more):
    main([*map(str, arguments), *more])


SCENE = [
    ("car", rle(1, 1, 3, 3), 0),  # on the road, under the dog
    ("dog", box(3, 2, 2, 1), 0),
    ("road", box(0, 0, 10, 4), 0),
    ("sky", rle(0, 6, 10, 2, compressed=False), 0),
    ("dog", rle(6, 0, 4, 3), 1),  # a crowd, under the car
    ("car", box(7, 1, 4, 1), 0),  # leaves the image by a pixel
    ("car", [[1, 1, 2, 2]], 0),  # no polygon
    ("road", box(0, 5, 2, 1), 0),
]


def test_coco_small_objects_lie_on_large_ones_and_crowds_below(tmp_path):
    convert(write_coco(tmp_path, SCENE), "--stuff", "road", "sky", "--background", "rest")
    classes, ids = result(tmp_path / "out")
    expected = picture(
        """rrrrrrDDDD
           rcccrrDccc
           rccddrDDDD
           rcccrrrrrr
           bbbbbbbbbb
           rrbbbbbbbb
           ssssssssss
           ssssssssss"""
    )
    np.testing.assert_array_equal(classes, expected)
    assert ids[1, 1] != ids[1, 7] and ids[0, 0] == ids[5, 0]  # two cars, one road
    content = json.loads((tmp_path / "out/panoptic.json").read_text())
    assert [(c["id"], c["isthing"]) for c in content["categories"]] == [
        (10, 1), (20, 1), (30, 0), (40, 0), (41, 0),
    ]  # fmt: skip
    assert content["images"] == [{"id": 5, "file_name": "a.jpg", "height": 8, "width": 10}]
    check([str(tmp_path / "out")])  # a folder in place of a name


def test_coco_stuff_comes_from_a_second_file(tmp_path):
    arguments = write_coco(tmp_path, SCENE[:2], ["car", "dog"])
    write_coco(tmp_path, [("x", [], 0), ("sky", box(0, 0, 10, 8), 0)], ["x", "y", "sky"], "stuff.json")
    convert(arguments, "--stuff-json", str(tmp_path / "stuff.json"), "--void", "x", "y", "dog")
    classes, _ = result(tmp_path / "out")
    assert (classes == "car").sum() == 9 and (classes == "sky").sum() == 71
    write_coco(tmp_path, [], ["x"], "stuff.json")  # id 10 is a car
    with pytest.raises(UserError, match="has id 10 .x., as 'car' before it"):
        convert(arguments, "--stuff-json", str(tmp_path / "stuff.json"))


def test_coco_what_cannot_be_drawn(tmp_path):
    for mask, words in (([], "segmentation is"), (box(90, 90, 2, 2), "outside the image"), (None, "None")):
        with pytest.raises(UserError, match=f"annotation 1: .*{words}"):
            convert(write_coco(tmp_path, [("car", mask, 0)]))
    assert not (tmp_path / "out/panoptic.json").exists()
    with pytest.raises(UserError, match="--stuff 'tree': no class has this name; there are car, dog"):
        convert(write_coco(tmp_path, SCENE), "--stuff", "tree")
    arguments = write_coco(tmp_path, SCENE)
    path = tmp_path / "coco.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["image_id"] = 6
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="annotation 1 is of image 6, which .* does not list"):
        convert(arguments)


def test_changed_sources_are_converted_anew_and_the_work_of_others_is_kept(tmp_path):
    convert(write_coco(tmp_path, SCENE[:1]))
    png = tmp_path / "out/panoptic/a.png"
    before = png.stat().st_mtime_ns
    convert(write_coco(tmp_path, SCENE[:1]))
    assert png.stat().st_mtime_ns == before
    convert(write_coco(tmp_path, SCENE[:2]))
    assert (result(tmp_path / "out")[0] == "dog").sum() == 2
    convert(write_coco(tmp_path, SCENE[:2]), "--stuff", "dog")
    path = tmp_path / "out/panoptic.json"
    assert [c["name"] for c in json.loads(path.read_text())["categories"] if not c["isthing"]] == ["dog"]
    path.write_text(path.read_text() + " ")
    with pytest.raises(UserError, match="was made or changed by others"):
        convert(write_coco(tmp_path, SCENE))
    photo(tmp_path / "others")
    with pytest.raises(UserError, match="made or changed|holds other images"):
        convert([*write_coco(tmp_path, SCENE), "--image-root", tmp_path / "others"])


# ------------------------------------------------------------------ labelme


def write_labelme(folder, drawn, name="a.json", **changes):
    """A file of labelme; ``drawn`` are (label, kind, points, group)."""
    entries = [
        {"label": label, "points": points, "group_id": group, "shape_type": kind, "flags": {}}
        for label, kind, points, group in drawn
    ]
    content = {
        **{"version": "5.4.1", "flags": {}, "shapes": entries, "imagePath": "..\\photos\\a.jpg"},
        **{"imageData": None, "imageHeight": SIZE[0], "imageWidth": SIZE[1]},
        **changes,
    }
    photo(folder / "photos")
    (folder / "json").mkdir(exist_ok=True)
    (folder / "json" / name).write_text(json.dumps(content))
    return [
        *("labelme", folder / "json", "--image-root", folder / "photos"),
        *("--processes", "1", "--output", folder / "out"),
    ]


SHAPES = [
    ("road", "polygon", [[0, 4], [9, 4], [9, 7], [0, 7]], None),
    ("car", "rectangle", [[3, 5], [1, 2]], None),  # drawn from right below to left above
    ("dog", "rectangle", [[3, 3], [5, 4]], 7),
    ("dog", "rectangle", [[8, 0], [9, 0]], 7),  # its other half
    ("dog", "rectangle", [[0, 0], [0, 0]], None),
    ("__ignore__", "rectangle", [[0, 0], [9, 7]], None),
    ("car", "circle", [[7, 5], [8, 5]], None),
]


def test_labelme_later_shapes_lie_on_earlier_ones(tmp_path):
    convert(write_labelme(tmp_path, SHAPES), "--stuff", "road")
    classes, ids = result(tmp_path / "out")
    expected = picture(
        """d.......dd
           ..........
           .ccc......
           .ccddd....
           rccdddrcrr
           rcccrrcccr
           rrrrrrrcrr
           rrrrrrrrrr"""
    )
    np.testing.assert_array_equal(classes, expected)
    assert ids[3, 3] == ids[0, 8] != ids[0, 0] and ids[2, 1] != ids[5, 7]
    content = json.loads((tmp_path / "out/panoptic.json").read_text())
    assert content["categories"] == [
        {"id": 1, "name": "car", "isthing": 1},
        {"id": 2, "name": "dog", "isthing": 1},
        {"id": 3, "name": "road", "isthing": 0},
    ]


def test_labelme_masks_and_given_classes(tmp_path):
    arguments = write_labelme(tmp_path, [("car", "mask", [[2, 3], [4, 4]], None)])
    path, stream = tmp_path / "json/a.json", io.BytesIO()
    Image.fromarray(np.array([[0, 255, 255], [255, 0, 255]], np.uint8)).save(stream, "PNG")
    content = json.loads(path.read_text())
    content["shapes"][0]["mask"] = base64.b64encode(stream.getvalue()).decode()
    path.write_text(json.dumps(content))
    classes = tmp_path / "classes.json"
    classes.write_text(json.dumps({"categories": [{"id": 7, "name": "car", "isthing": True}]}))
    convert(arguments, "--classes", str(classes), "--background", "rest")
    found, _ = result(tmp_path / "out")
    assert list(zip(*np.nonzero(found == "car"), strict=True)) == [(3, 3), (3, 4), (4, 2), (4, 4)]
    assert (found == "rest").sum() == 76
    content["shapes"][0]["points"] = [[2, 3], [5, 4]]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"its mask has \(3, 2\) pixels for the box"):
        convert([*arguments[:-1], tmp_path / "other"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shapes": [{"label": "car", "shape_type": "line", "points": [[0, 0], [1, 1]]}]}, "no area"),
        ({"shapes": [{"label": "car", "points": [[0, 0], [1, 1]]}]}, "make no polygon"),
        ({"shapes": [{"points": [[0, 0]]}]}, r"shapes\[0\] has no label"),
        ({"imagePath": "b.jpg"}, "its imagePath 'b.jpg' is not to be found"),
        ({"imageHeight": None}, "'imageHeight' is NoneType"),
        ({"imageHeight": 9}, "has 10 x 9 pixels, but"),
    ],
)
def test_labelme_what_cannot_be_drawn(tmp_path, change, words):
    with pytest.raises(UserError, match=words):
        convert(write_labelme(tmp_path, SHAPES[1:2], **change))
    assert not (tmp_path / "out/panoptic.json").exists()


def test_labelme_two_files_of_one_photograph(tmp_path):
    write_labelme(tmp_path, SHAPES[1:2], "b.json")
    with pytest.raises(UserError, match="a.jpg and a.jpg would have one PNG"):
        convert(write_labelme(tmp_path, SHAPES[1:2]))


# ------------------------------------------------------------------ label images

CLASSES = [
    {"id": 1, "name": "road", "isthing": 0, "color": [0, 0, 90]},
    {"id": 3, "name": "car", "isthing": 1, "color": [1, 2, 3]},
    {"id": 0, "name": "dog", "isthing": 1},
]
LABELS = np.array([[1, 1, 3, 3, 7], [3, 1, 1, 1, 3], [1, 3, 7, 3, 0]], np.uint8)


def write_labels(folder, values, palette=False, classes=CLASSES, **folders):
    """Label images in ``folder``/labels, and others by name."""
    photo(folder / "photos", size=(3, 5))
    for name, image in {"labels": values, **folders}.items():
        (folder / name).mkdir(exist_ok=True)
        image = Image.fromarray(image)
        if palette:
            image.putpalette([i * 7 % 256 for i in range(768)])
        image.save(folder / name / "a.png")
    (folder / "classes.json").write_text(json.dumps({"categories": classes}))
    return [
        *("png", "--labels", folder / "labels", "--image-root", folder / "photos"),
        *("--classes", folder / "classes.json", "--processes", "1", "--output", folder / "out"),
    ]


def segments(output):
    """{class: sorted lists of the pixels (row, column) of its segments}."""
    classes, ids = result(output)
    found = {}
    for i in np.unique(ids[ids > 0]):
        pixels = list(zip(*(v.tolist() for v in np.nonzero(ids == i)), strict=True))
        found.setdefault(str(classes[pixels[0]]), []).append(pixels)
    return {name: sorted(lists) for name, lists in found.items()}


ROAD = [(0, 0), (0, 1), (1, 1), (1, 2), (1, 3), (2, 0)]


def test_png_objects_that_touch_nowhere_are_apart(tmp_path):
    expected = {
        "road": [ROAD],
        "car": [[(0, 2), (0, 3), (1, 4), (2, 3)], [(1, 0), (2, 1)]],
        "dog": [[(2, 4)]],
    }
    convert(write_labels(tmp_path, LABELS))
    assert segments(tmp_path / "out") == expected
    convert(write_labels(tmp_path, LABELS, palette=True))
    assert segments(tmp_path / "out") == expected


def test_png_objects_by_numbers(tmp_path):
    numbers = np.array([[0, 5, 1, 2, 9], [1, 0, 0, 0, 0], [0, 0, 0, 2, 1]], np.uint16)
    arguments = write_labels(tmp_path, LABELS, numbers=numbers)
    convert([*arguments, "--instances", tmp_path / "numbers"])
    assert segments(tmp_path / "out") == {
        "road": [ROAD],
        "car": [[(0, 2), (1, 0)], [(0, 3), (2, 3)]],
        "car!": [[(1, 4), (2, 1)]],  # without a number
        "dog": [[(2, 4)]],  # its number 1 is another dog's than the car's
    }


def test_png_colours(tmp_path):
    rgb = np.zeros((3, 5, 3), np.uint8)
    rgb[LABELS == 1], rgb[LABELS == 3], rgb[LABELS == 7] = (0, 0, 90), (1, 2, 3), (3, 2, 1)
    numbers = np.zeros_like(rgb)
    numbers[LABELS == 3] = (200, 0, 0)
    convert([*write_labels(tmp_path, rgb, numbers=numbers), "--instances", tmp_path / "numbers"])
    (cars,) = segments(tmp_path / "out").pop("car")
    assert cars == list(zip(*(v.tolist() for v in np.nonzero(LABELS == 3)), strict=True))
    plain = [{k: v for k, v in c.items() if k != "color"} for c in CLASSES]
    with pytest.raises(UserError, match="holds colours; give each class of --classes its color"):
        convert([*write_labels(tmp_path, rgb, classes=plain)[:-1], tmp_path / "other"])


def test_png_of_cityscapes_equals_the_set_made_from_it(root):
    """The ids of the official release, with its own suffixes, against ``prepare_cityscapes.py``."""
    write_cityscapes(root, 2)
    prepare_cityscapes(root, "val", processes=1)
    gt = root / "cityscapes/gtFine"
    (root / "classes.json").write_text(json.dumps({"categories": list(CITYSCAPES)}))
    convert([
        *("png", "--labels", gt / "val", "--image-root", root / "cityscapes/leftImg8bit/val"),
        *("--classes", root / "classes.json", "--divisor", "1000", "--output", root / "out"),
        *("--label-suffix", "_gtFine_instanceIds.png", "--image-suffix", "_leftImg8bit.png"),
    ])  # fmt: skip
    found, expected = (
        json.loads(path.read_text())
        for path in (root / "out/panoptic.json", gt / "cityscapes_panoptic_val.json")
    )
    assert [i["file_name"] for i in found["images"]] == [i["file_name"] for i in expected["images"]]
    for ours, theirs in zip(found["annotations"], expected["annotations"], strict=True):
        key = lambda s: (s["category_id"], s["iscrowd"], s["area"], s["bbox"])  # noqa: E731
        lists = (sorted(map(key, a["segments_info"])) for a in (ours, theirs))
        assert next(lists) == next(lists)


def test_png_partners_that_are_missing(tmp_path):
    arguments = write_labels(tmp_path, LABELS)
    with pytest.raises(UserError, match="there is no photograph .*a_left.jpg; give --image-suffix"):
        convert([*arguments, "--image-suffix", "_left.jpg"])
    with pytest.raises(UserError, match="--divisor are two ways"):
        convert([*arguments, "--instances", tmp_path / "labels", "--divisor", "1000"])
    (tmp_path / "labels/a.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="a.png cannot be read as a picture"):
        convert(arguments)
    cv2.imwrite(str(tmp_path / "labels/a.png"), np.zeros((4, 5), np.uint8))
    with pytest.raises(UserError, match="has 5 x 4 pixels, but"):
        convert(arguments)
