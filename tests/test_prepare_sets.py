"""From ADE20K's and Cityscapes' releases to COCO-panoptic format, and the search splits: by hand."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from prepare_util import (  # noqa: F401  data_root is a fixture
    ADE20K_SEGMENTS,
    CITYSCAPES_LABELS,
    CITYSCAPES_SEGMENTS,
    ade20k_annotations,
    ade20k_ids,
    cityscapes_ids,
    content,
    data_root,
    run,
    write_ade20k,
    write_cityscapes,
)
from test_data import PHOTOS

from auto_panoptic.data.derive import conversion
from auto_panoptic.data.formats.panoptic_png import read_panoptic
from auto_panoptic.data.search_split import draw_val_ids, split_json
from auto_panoptic.data.sets.ade20k import (
    THING_VALUES,
    ade20k_sources,
    describe,
    prepare_ade20k,
    read_ids,
)
from auto_panoptic.data.sets.cityscapes import cityscapes_sources, prepare_cityscapes
from auto_panoptic.data.sets.cityscapes import describe as describe_cityscapes
from auto_panoptic.errors import UserError


def source_of(sources, part):
    return next(s for s in sources if s.name.endswith(f"panoptic_{part}"))


def segments(annotation):
    return {s["id"]: (s["category_id"], s["area"]) for s in annotation["segments_info"]}


# ------------------------------------------------------------------ ADE20K


def test_ade20k_from_the_release(root):
    """Stuff by its value, instances over it; things without an instance and "other" are void."""
    folder = write_ade20k(root, 3)
    prepare_ade20k(root, "val")
    written = json.loads((folder / "ade20k_panoptic_val.json").read_text())
    assert [image["id"] for image in written["images"]] == [f"ADE_val_{i:08d}" for i in (1, 2, 3)]
    for i, (image, annotation) in enumerate(zip(written["images"], written["annotations"], strict=True), 1):
        assert image | {"id": 0} == {"id": 0, "file_name": image["id"] + ".jpg", "height": 6, "width": 8}
        assert annotation["file_name"] == image["id"] + ".png"
        ids = read_panoptic(folder / "ade20k_panoptic_val" / annotation["file_name"])
        np.testing.assert_array_equal(ids, ade20k_ids(i))
        assert segments(annotation) == ADE20K_SEGMENTS
        assert all(s["iscrowd"] == 0 for s in annotation["segments_info"])
    boxes = {s["id"]: s["bbox"] for s in written["annotations"][0]["segments_info"]}
    assert (boxes[1], boxes[2049]) == ([0, 1, 8, 2], [4, 2, 4, 1])


def test_ade20k_as_training_reads_it(root):
    write_ade20k(root, 3)
    prepare_ade20k(root, "val")
    made = root / "derived/ade20k_stuff_val"
    before = content(made)
    records = source_of(ade20k_sources(), "val").load()
    assert content(made) == before  # nothing is derived again
    for i, record in enumerate(records, 1):
        found = sorted((a["category_id"], a["bbox"][2] * a["bbox"][3]) for a in record["annotations"])
        assert found == [(0, 4), (66, 3), (66, 5), (99, 8)]  # bed, two fountains, flag
        labels = cv2.imread(record["sem_seg_file_name"], cv2.IMREAD_UNCHANGED)
        ids = ade20k_ids(i)
        np.testing.assert_array_equal(labels, np.where(ids == 0, 255, np.where(ids == 1, 1, 0)))
        assert Path(record["file_name"]).is_file()


def test_ade20k_instance_classes():
    """Class k of the instance challenge is the k-th thing; the pairs are those of its published table."""
    pairs = {1: 8, 2: 9, 3: 11, 4: 13, 5: 15, 23: 42, 50: 81, 66: 104, 67: 105, 89: 136, 99: 149, 100: 150}
    for kind, value in pairs.items():
        assert describe(256 * value + 1) == (value - 1, 0)
        assert THING_VALUES[kind - 1] == value and len(THING_VALUES) == 100
    assert describe(1) == (0, 0) and describe(8) is None and describe(256 + 1) is None
    assert describe(256 * 8) is None and describe(151) is None and describe(256 * 151 + 1) is None


def test_an_ade20k_conversion_is_repeated_where_it_stopped(root, monkeypatch):
    """Killed before the JSON is written: PNGs stay, a damaged one is made again, the bytes are the same."""
    folder = write_ade20k(root, 4)
    prepare_ade20k(root, "val")
    pngs, whole = folder / "ade20k_panoptic_val", {}
    for path in [*folder.glob("ade20k*.json"), *pngs.glob("*.png")]:
        whole[path] = path.read_bytes()
    for path in folder.glob("ade20k*.json"):
        path.unlink()
    (pngs / "ADE_val_00000002.png").unlink()
    cv2.imwrite(str(pngs / "ADE_val_00000003.png"), np.full((6, 8, 3), 7, np.uint8))
    written, write = [], conversion.coco.write_panoptic
    monkeypatch.setattr(
        conversion.coco,
        "write_panoptic",
        lambda path, ids: (written.append(Path(path).name[-6:]), write(path, ids)),
    )
    prepare_ade20k(root, "val")
    assert written == ["02.png", "03.png"]
    assert {path: path.read_bytes() for path in whole} == whole


def test_a_panoptic_json_that_is_there_is_used(root):
    """With other segment ids, as Mask2Former's scripts write; nothing of it is touched."""
    folder = write_ade20k(root, 2)
    prepare_ade20k(root, "val")
    (folder / "ade20k_instance_val.json").unlink()
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}
    report = prepare_ade20k(root, "val")
    assert report[str(folder / "ade20k_instance_val.json")] == "made"
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in before} == before


def test_instances_of_other_images_are_noticed(root):
    folder = write_ade20k(root, 2)
    prepare_ade20k(root, "val")
    path = folder / "ade20k_instance_val.json"
    whole = json.loads(path.read_text())
    for damage, message in (
        (whole | {"annotations": whole["annotations"][1:]}, "image ADE_val_00000001 has 3 instances, but 4"),
        (whole | {"images": whole["images"][:1]}, "image ADE_val_00000002 is absent"),
    ):
        path.write_text(json.dumps(damage))
        with pytest.raises(UserError, match=f"1 of 2 are wrong: {message}.*Delete .*instance_val.json"):
            prepare_ade20k(root, "val")


RED = [False, False, True]  # as OpenCV orders channels


def damage_annotation(root, kind, change):
    path = root / f"annotations{kind}/validation/ADE_val_00000001.png"
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    cv2.imwrite(str(path), change(image))


@pytest.mark.parametrize(
    "kind, change, message",
    [
        ("", lambda a: a[:-1], "differ in size"),
        ("", lambda a: np.where(a == 1, 151, a), "has the value 151; expected 0..150"),
        ("", lambda a: a.astype(np.uint16), "no 8-bit annotation image"),
        ("_instance", lambda a: np.where((a == 1) & RED, 101, a), "has the instance class 101"),
        ("_instance", lambda a: np.where(a == [9, 3, 100], [9, 1, 100], a), "several classes or none"),
        ("_instance", lambda a: np.where((a == 1) & RED, 0, a), "several classes or none"),
    ],
)
def test_damaged_ade20k_annotations_are_named(root, kind, change, message):
    folder = write_ade20k(root, 1)
    damage_annotation(folder, kind, lambda a: change(a).astype(np.uint16 if "8-bit" in message else np.uint8))
    with pytest.raises(UserError, match=message):
        prepare_ade20k(root, "val")
    assert not (folder / "ade20k_panoptic_val.json").exists()


def test_instance_classes_numbered_otherwise_are_refused(root):
    """From 0, or by the 150 classes: every pixel would contradict annotations/."""
    folder = write_ade20k(root, 1)
    damage_annotation(folder, "_instance", lambda a: np.where(a == 67, 66, np.where(a == 100, 99, a)))
    with pytest.raises(UserError, match="only 0 of 20 instance pixels have the class"):
        prepare_ade20k(root, "val")


def test_photographs_of_another_size_are_refused(root):
    folder = write_ade20k(root, 1)
    cv2.imwrite(str(folder / "images/validation/ADE_val_00000001.jpg"), np.zeros((8, 6, 3), np.uint8))
    with pytest.raises(UserError, match="has 8 x 6 pixels, but .*00000001.jpg 6 x 8"):
        prepare_ade20k(root, "val")
    (folder / "annotations_instance/validation/ADE_val_00000001.png").unlink()
    with pytest.raises(UserError, match="1 annotations of 1 images are missing.*annotations_instance.tar"):
        prepare_ade20k(root, "val")


def test_ade20k_ids_of_one_image(tmp_path):
    paths = (tmp_path / "a.png", tmp_path / "b.png")
    semantic, instances = ade20k_annotations(0)
    cv2.imwrite(str(paths[0]), semantic)
    cv2.imwrite(str(paths[1]), instances[..., ::-1])
    np.testing.assert_array_equal(read_ids(paths), ade20k_ids(0))
    cv2.imwrite(str(paths[1]), 0 * instances)  # no instances at all
    np.testing.assert_array_equal(np.unique(read_ids(paths)), [0, 1])


# ------------------------------------------------------------------ Cityscapes


def test_cityscapes_from_the_release(root):
    """Bare thing labels are crowds, 29 (caravan) and 30 (trailer) void, ids and boxes the official ones."""
    folder = write_cityscapes(root, 2)
    prepare_cityscapes(root, "val")
    written = json.loads((folder / "gtFine/cityscapes_panoptic_val.json").read_text())
    names = [f"{city}_{i:06d}_000019" for city in ("bochum", "ulm") for i in range(2)]
    assert [image["id"] for image in written["images"]] == names
    assert {(c["id"], c["isthing"]) for c in written["categories"]} >= {(7, 0), (23, 0), (24, 1), (33, 1)}
    assert (len(written["categories"]), sum(c["isthing"] for c in written["categories"])) == (19, 8)
    for i, (name, annotation) in enumerate(zip(names, written["annotations"], strict=True)):
        assert (annotation["image_id"], annotation["file_name"]) == (name, f"{name}_gtFine_panoptic.png")
        numbers = cityscapes_ids(i % 2).astype(int)
        expected = np.where(np.isin(numbers, list(CITYSCAPES_SEGMENTS)), numbers, 0)
        ids = read_panoptic(folder / "gtFine/cityscapes_panoptic_val" / annotation["file_name"])
        np.testing.assert_array_equal(ids, expected)
        found = {s["id"]: (s["category_id"], s["iscrowd"]) for s in annotation["segments_info"]}
        assert found == CITYSCAPES_SEGMENTS
        assert all(s["area"] == 5 and s["bbox"][1:] == [0, 1, 5] for s in annotation["segments_info"])


def test_cityscapes_as_training_reads_it(root):
    write_cityscapes(root, 2)
    report = prepare_cityscapes(root, "val")
    derived = root / "derived/cityscapes_val"
    assert report[str(derived / "semantic")] == "4 made, 0 kept"
    inode = derived.stat().st_ino
    records = source_of(cityscapes_sources(), "val").load()
    assert derived.stat().st_ino == inode  # nothing is derived again
    assert len(records) == 4
    for record in records:
        assert Path(record["file_name"]).is_file() and record["image_id"] in record["file_name"]
        shift = int(record["image_id"].split("_")[1])
        labels = cv2.imread(record["sem_seg_file_name"], cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(labels, np.tile(np.roll(CITYSCAPES_LABELS, shift), (5, 1)))
        # person 0, car 2, bicycle 7
        found = sorted((a["category_id"], a["iscrowd"]) for a in record["annotations"])
        assert found == [(0, 1), (2, 0), (2, 0), (2, 1), (7, 0)]


def test_the_official_conversion_is_used_where_it_is_there(root):
    """Its image names lack the city and are spelt otherwise than the images."""
    folder = write_cityscapes(root, 2)
    prepare_cityscapes(root, "val")
    path = folder / "gtFine/cityscapes_panoptic_val.json"
    official = json.loads(path.read_text())
    for image in official["images"]:
        image["file_name"] = f"{image['id']}_gtFine_leftImg8bit.png"
    path.write_text(json.dumps(official, sort_keys=True, indent=4))
    text = path.read_text()
    assert str(path) not in prepare_cityscapes(root, "val")
    assert path.read_text() == text
    assert all(Path(r["file_name"]).is_file() for r in source_of(cityscapes_sources(), "val").load())


@pytest.mark.skipif(not (PHOTOS / "cityscapes19").is_dir(), reason="annotated photographs are not here")
def test_cityscapes_segments_of_a_real_annotation():
    found = json.loads((PHOTOS / "cityscapes19/panoptic.json").read_text())
    names = {c["id"]: c["name"] for c in found["categories"]}
    ours = {c["id"]: c["name"] for c in source_of(cityscapes_sources(), "val").categories}
    for segment in found["annotations"][0]["segments_info"]:
        category, crowd = describe_cityscapes(segment["id"])
        assert (ours[category], crowd) == (names[segment["category_id"]], segment["iscrowd"])


def test_cityscapes_label_ids_are_no_instance_ids(root):
    """Without instances every thing would become a crowd."""
    folder = write_cityscapes(root, 1)
    path = next(folder.glob("gtFine/val/bochum/*_instanceIds.png"))
    numbers = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    cv2.imwrite(str(path), np.where(numbers < 1000, numbers, numbers // 1000).astype(np.uint8))
    with pytest.raises(
        UserError, match="bochum_000000_000019_gtFine_instanceIds.png is damaged or no .* 16 bits"
    ):
        prepare_cityscapes(root, "val")


# ------------------------------------------------------------------ search splits


def test_sizes_of_the_cityscapes_split():
    ids = [{"id": f"aachen_{i:06d}_000019"} for i in range(2975)]
    parts = split_json({"images": ids, "annotations": []}, draw_val_ids({"images": ids}, 500, seed=0))
    assert (len(parts["nas_train"]["images"]), len(parts["nas_val"]["images"])) == (2475, 500)


def test_the_cityscapes_split(root, capsys):
    folder = write_cityscapes(root, 3, split="train")
    prepare_cityscapes(root, "train")
    assert run("prepare_nas_split.py", "--dataset", "cityscapes", "--size", 2) == 0
    gt_fine = folder / "gtFine"
    assert capsys.readouterr().out.splitlines() == [
        f"{gt_fine / 'cityscapes_panoptic_nas_train.json'}: 4 images",
        f"{gt_fine / 'cityscapes_panoptic_nas_val.json'}: 2 images",
    ]
    loaded = {p: source_of(cityscapes_sources(), p).load() for p in ("nas_train", "nas_val", "train")}
    ids = {part: {r["image_id"] for r in records} for part, records in loaded.items()}
    assert not ids["nas_train"] & ids["nas_val"] and ids["nas_train"] | ids["nas_val"] == ids["train"]
    assert all(Path(r["sem_seg_file_name"]).is_file() for r in loaded["nas_val"])


def test_another_draw_is_not_overwritten(root, capsys):
    """A supernet may have been trained with the parts that are there."""
    folder = write_cityscapes(root, 3, split="train") / "gtFine"
    prepare_cityscapes(root, "train")
    command = ("prepare_nas_split.py", "--dataset", "cityscapes", "--size")
    assert run(*command, 2) == 0
    parts = {p: p.read_bytes() for p in folder.glob("*_nas_*.json")}
    assert run(*command, 2) == 0
    assert run(*command, 2, "--seed", 1) == 2 and run(*command, 3) == 2
    assert "another draw of images" in capsys.readouterr().err
    assert len(parts) == 2 and {p: p.read_bytes() for p in parts} == parts
    assert run(*command, 3, "--seed", 1, "--overwrite") == 0
    assert len(json.loads((folder / "cityscapes_panoptic_nas_val.json").read_text())["images"]) == 3
    assert run(*command, 3, "--seed", 1) == 0  # the same draw again


def test_a_split_of_ones_own_set(tmp_path, capsys):
    images = [{"id": i, "file_name": f"{i}.jpg"} for i in range(10)]
    whole = {"images": images, "annotations": [{"image_id": i} for i in range(10)], "categories": []}
    for kind in ("panoptic", "instances"):
        (tmp_path / f"{kind}.json").write_text(json.dumps(whole))
    files = ("--panoptic-json", tmp_path / "panoptic.json", "--instances-json", tmp_path / "instances.json")
    assert run("prepare_nas_split.py", *files) == 2  # no size
    assert run("prepare_nas_split.py", *files, "--size", 3) == 0
    assert f"{tmp_path / 'panoptic_nas_val.json'}: 3 images" in capsys.readouterr().out
    read = {p.name: json.loads(p.read_text()) for p in tmp_path.glob("*_nas_*.json")}
    assert len(read) == 4
    for part, count in (("nas_train", 7), ("nas_val", 3)):
        assert read[f"panoptic_{part}.json"] == read[f"instances_{part}.json"]
        assert len(read[f"panoptic_{part}.json"]["annotations"]) == count
    (tmp_path / "instances.json").write_text(json.dumps(whole | {"images": images[:1]}))
    assert run("prepare_nas_split.py", *files, "--size", 3) == 2
    assert "instances.json lacks" in capsys.readouterr().err
