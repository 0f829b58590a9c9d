"""What is read is checked where it is read: check, training and evaluation refuse the same, in one line."""

import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from data_util import CATEGORIES, agree, config_with, write_own, write_scenes
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from auto_panoptic.data import check_ground_truth, register_coco_panoptic
from auto_panoptic.data.check import check_data_set, format_report, run_check
from auto_panoptic.data.check.sets import from_paths
from auto_panoptic.data.derive.engine import STATE
from auto_panoptic.data.formats import panoptic_png
from auto_panoptic.data.formats.findings import KINDS
from auto_panoptic.data.formats.panoptic_png import areas_of, boxes_of, read_panoptic, semantic_labels
from auto_panoptic.data.register import find_source
from auto_panoptic.errors import UserError
from auto_panoptic.evaluation import PanopticQualityEvaluator

PATHS = ("panoptic_json", "panoptic_root", "image_root", "instances_json", "sem_seg_root")
METADATA = (*PATHS[:3], "json_file", "sem_seg_root")


@pytest.fixture
def own(tmp_path, forget_data_sets):
    return write_own(tmp_path)


def png(own, name="sub/b.png") -> Path:
    return Path(own["panoptic_root"], name)


def each_pixels(change):
    """Every PNG is written anew from its pixels (H, W, 3)."""

    def apply(own):
        for path in Path(own["panoptic_root"]).rglob("*.png"):
            change(np.asarray(Image.open(path)), path)

    return apply


def one_pixels(change):
    return lambda own: change(np.asarray(Image.open(png(own))), png(own))


def save(pixels, path, **options):
    Image.fromarray(np.ascontiguousarray(pixels)).save(path, "PNG", **options)


def segments(change):
    def apply(own):
        path = Path(own["panoptic_json"])
        content = json.loads(path.read_text())
        for annotation in content["annotations"]:
            for segment in annotation["segments_info"]:
                change(segment)
        path.write_text(json.dumps(content))

    return apply


def header_of(size):
    """A PNG of a few bytes whose header declares a size (W, H)."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0)
    end = chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + end


def fifo(path):
    path.unlink()
    os.mkfifo(path)


def device(path):
    path.unlink()
    path.symlink_to("/dev/zero")


def grey_ids(pixels, path):
    """As an 8-bit map of the ids 0, 1, 2, ..., which the JSON does not have."""
    ids = pixels.astype(int) @ [1, 256, 65536]
    save(np.unique(ids, return_inverse=True)[1].reshape(ids.shape).astype(np.uint8), path)


# name -> (damage, what training says); a note or warning of the check where that is None.
REFUSED = {
    "BGR": (each_pixels(lambda p, path: save(p[..., ::-1], path)), r"B \+ 256 G \+ 65536 R gives those of"),
    "one BGR": (one_pixels(lambda p, path: save(p[..., ::-1], path)), r"b.png .*B \+ 256 G \+ 65536 R gives"),
    "GBR": (one_pixels(lambda p, path: save(p[..., [1, 2, 0]], path)), r"B \+ 256 R \+ 65536 G gives"),
    "grey": (each_pixels(grey_ids), "the file is greyscale of 8 bits, expected RGB of 8 bits"),
    "palette": (
        one_pixels(lambda p, path: Image.fromarray(p).quantize(16).save(path)),
        "b.png .*the file is palette of .* bits",
    ),
    "16 bits": (
        one_pixels(lambda p, path: Image.fromarray(p[..., 0].astype(np.uint16)).save(path)),
        "b.png .*greyscale of 16 bits",
    ),
    "JPEG": (one_pixels(lambda p, path: Image.fromarray(p).save(path, "JPEG")), "b.png .*the file is JPEG"),
    "cut": (lambda own: png(own).write_bytes(png(own).read_bytes()[:-30]), "b.png .*cut or damaged"),
    "flipped": (
        lambda own: png(own).write_bytes(png(own).read_bytes().replace(b"IDAT", b"IDAS")),
        "b.png .*cut or damaged at byte 33",
    ),
    "turned": (one_pixels(lambda p, path: save(p.transpose(1, 0, 2), path)), "the PNG has 20 x 30 pixels"),
    "bomb": (
        lambda own: png(own).write_bytes(header_of((13300, 13300))),
        "13300 x 13300 pixels, allowed are",
    ),
    "larger": (lambda own: png(own).write_bytes(header_of((9000, 9000))), "has 9000 x 9000 pixels, the JSON"),
    "FIFO": (lambda own: fifo(png(own)), "b.png .*no plain file but a folder, pipe or device"),
    "device": (lambda own: device(png(own)), "b.png .*no plain file but a folder, pipe or device"),
    "photo FIFO": (lambda own: fifo(Path(own["image_root"], "a.png")), "a.png .*no plain file but"),
    "photo missing": (lambda own: Path(own["image_root"], "a.png").unlink(), "a.png .*does not exist"),
    "photo of another size": (
        lambda own: Image.new("RGB", (99, 30)).save(Path(own["image_root"], "a.png")),
        "a.png .*the image has 99 x 30 pixels, the JSON says 20 x 30",
    ),
    "photo bomb": (
        lambda own: Path(own["image_root"], "a.png").write_bytes(header_of((20000, 20000))),
        "a.png .*pixels",
    ),
    "area stale": (segments(lambda s: s.update(area=s["area"] // 4)), r"segment 3 has 60 pixels, .*says 15"),
    "area of one": (
        segments(lambda s: s.update(area=s["area"] + (s["id"] == 300))),
        "segment 300 has 30 pixels, the JSON says 31; write the number of pixels",
    ),
    "segment not in the PNG": (
        one_pixels(lambda p, path: save(p * (p[..., 1:2] != 1), path)),
        "segment 300 of class 9 has no pixel",
    ),
    "float ids": (segments(lambda s: s.update(id=float(s["id"]))), "expected an object with an integer id"),
    "box null": (segments(lambda s: s.update(bbox=None)), "bbox None; write x, y"),
    "id not in the JSON": (
        one_pixels(lambda p, path: save(np.where(p == 0, 255, p).astype(np.uint8), path)),
        "pixels, but no entry in the JSON",
    ),
}
SOUND = {
    "as it is": lambda own: None,
    "RGBA": each_pixels(lambda p, path: Image.fromarray(p).convert("RGBA").save(path)),
    "interlaced or not, 1 MB of text": one_pixels(lambda p, path: save(p, path, compress_level=0)),
    "area missing": segments(lambda s: s.pop("area")),
    "area a float": segments(lambda s: s.update(area=float(s["area"]))),
    "boxes that cut": segments(lambda s: s.update(bbox=[0, 0, 1, 1])),
}


def errors_of(own):
    return [f for f in check_data_set(**{k: own[k] for k in PATHS if k in own}, processes=1)
            if f.severity == "error"]  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_check_refuses_is_refused_at_the_start(own, name):
    damage, message = REFUSED[name]
    register_coco_panoptic("own", **own, show_ids=False)
    damage(own)
    lines = [finding.line() for finding in errors_of(own)]
    for use in (
        lambda: DatasetCatalog.get("own"),
        lambda: DatasetCatalog.get("own_separated"),
        lambda: check_ground_truth(config_with(TRAIN=(), TEST=("own",))),
        lambda: check_ground_truth(config_with(TRAIN=(), TEST=(), SEARCH=("own",))),
    ):
        with pytest.raises(UserError, match=message) as caught:
            use()
        assert "\n" not in str(caught.value)
    assert any(str(caught.value).split(" (box")[0].split(", but no")[0][:150] in line for line in lines), (
        lines
    )
    assert not list(Path(own["derived_root"]).rglob("instances.json"))  # nothing half-made


@pytest.mark.parametrize("name", SOUND)
def test_what_the_check_passes_loads_and_scores(own, name):
    register_coco_panoptic("own", **own, show_ids=False)
    maps = {i: read_panoptic(str(png(own, n))) for i, n in ((41, "sub/b.png"), (42, "a.png"))}
    SOUND[name](own)
    assert errors_of(own) == []
    check_ground_truth(config_with(TRAIN=(), TEST=("own",)))
    assert [len(r["annotations"]) for r in DatasetCatalog.get("own")] == [2, 0]
    evaluator = PanopticQualityEvaluator("own")
    for record in DatasetCatalog.get("own"):
        found = [{k: s[k] for k in ("id", "category_id", "isthing")} for s in record["segments_info"]]
        ids = torch.as_tensor(maps[record["image_id"]])
        evaluator.process([record], [{"panoptic_seg": (ids, found)}])
    assert evaluator.evaluate()["panoptic_seg"]["PQ"] == 100


def test_a_photo_that_is_turned_without_another_size_is_told(own, caplog):
    """Whether its annotation was drawn before or after turning, nobody can see."""
    exif, path = Image.Exif(), Path(own["image_root"], "sub/b.jpg")
    exif[0x0112] = 3
    Image.new("RGB", (30, 20)).save(path, exif=exif)
    register_coco_panoptic("own", **own, show_ids=False)
    DatasetCatalog.get("own")
    assert "own, 1 photos, such as " in caplog.text and "b.jpg (image 41): EXIF orientation 3" in caplog.text


def test_evaluation_compares_what_it_reads(own):
    """Also where a PNG is changed while a run is going on."""
    register_coco_panoptic("own", **own, show_ids=False)
    record = DatasetCatalog.get("own")[0]
    evaluator = PanopticQualityEvaluator("own")
    ids = read_panoptic(str(png(own)))
    found = [{k: s[k] for k in ("id", "category_id", "isthing")} for s in record["segments_info"]]
    for damage, message in (
        (lambda p, path: save(p[..., ::-1], path), r"image 41: .*b.png .image 41.: .*B \+ 256 G \+ 65536 R"),
        (lambda p, path: save(np.roll(p, 1, 2), path), "gives those of the JSON"),
        (lambda p, path: save(p[..., 0], path), "greyscale of 8 bits"),
        (lambda p, path: save(np.where(p[..., 1:2] == 1, p[:1, :1], p), path), "segment 300 .*no pixel"),
        (lambda p, path: save(np.roll(np.kron(p, np.ones((1, 1, 1), np.uint8)), 3, 0), path), None),
    ):
        before = png(own).read_bytes()
        one_pixels(damage)(own)
        evaluator.reset()
        if message is None:
            evaluator.process([record], [{"panoptic_seg": (torch.as_tensor(ids), found)}])
        else:
            with pytest.raises(UserError, match=message):
                evaluator.process([record], [{"panoptic_seg": (torch.as_tensor(ids), found)}])
        png(own).write_bytes(before)


def with_given_files(own) -> dict:
    """The set with the instances and label maps that were derived for it as files of its own."""
    register_coco_panoptic("first", **own, show_ids=False)
    source = find_source("first")
    DatasetCatalog.get("first_separated")
    folder = source.derived
    return {**own, "instances_json": str(folder / "instances.json"), "sem_seg_root": str(folder / "semantic")}


@pytest.mark.parametrize(
    "damage, message",
    [
        (one_pixels(lambda p, path: save(p[..., ::-1], path)), "65536 R gives those of the JSON"),
        (lambda own: save(np.full((20, 30), 9, np.uint8), semantic(own)), r"b.png .*labels \[9\] occur"),
        (
            lambda own: save(np.zeros((20, 30, 3), np.uint8), semantic(own)),
            "RGB of 8 bits, expected greyscale",
        ),
        (lambda own: save(np.zeros((20, 31), np.uint8), semantic(own)), "the PNG has 31 x 20 pixels"),
        (lambda own: semantic(own).unlink(), "b.png .*does not exist"),
        (lambda own: fifo(semantic(own)), "b.png .*no plain file"),
    ],
    ids=["PNG", "labels", "colours", "size", "missing", "FIFO"],
)
def test_given_label_maps_are_looked_at_once(own, damage, message, monkeypatch):
    given = with_given_files(own)
    register_coco_panoptic("own", **given, show_ids=False)
    before = {p: p.read_bytes() for p in Path(given["sem_seg_root"]).rglob("*.png")}
    DatasetCatalog.get("own_separated")
    with monkeypatch.context() as patch:
        patch.setattr(panoptic_png, "read_ids", None)  # nothing has changed: nothing is read
        DatasetCatalog.get("own_separated")
    damage(given)
    with pytest.raises(UserError, match=message):
        DatasetCatalog.get("own_separated")
    assert [f for f in errors_of(given)]
    assert sum(p.is_file() and p.read_bytes() == content for p, content in before.items()) >= 1
    folder = find_source("own").derived
    assert [p.name for p in folder.rglob("*") if p.is_file()] == [STATE]  # a note that they were looked at


def semantic(own) -> Path:
    return Path(own["sem_seg_root"], "sub/b.png")


def test_a_set_that_somebody_else_registered_is_looked_at(own, tmp_path, monkeypatch):
    """As Detectron2's own: its loader reads label maps alone, which say nothing of wrong PNGs."""
    given, paths = with_given_files(own), {}
    for key, name in zip(PATHS, METADATA, strict=True):
        paths[name] = given[key]
    DatasetCatalog.register("theirs", list)
    MetadataCatalog.get("theirs").set(**paths)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "sets"))
    cfg = config_with(TRAIN=("theirs",), TEST=())
    check_ground_truth(cfg)
    assert [p.name for p in (tmp_path / "sets").rglob("*") if p.suffix == ".json"] == [STATE]
    one_pixels(lambda p, path: save(p[..., ::-1], path))(own)
    with pytest.raises(UserError, match="65536 R"):
        check_ground_truth(cfg)
    DatasetCatalog.remove("theirs")
    MetadataCatalog.remove("theirs")


@pytest.mark.parametrize("key", ["panoptic_json", "instances_json"])
def test_pipes_and_devices_in_place_of_a_json(own, key):
    given = with_given_files(own)
    register_coco_panoptic("own", **given, show_ids=False)
    for replace in (fifo, device):
        replace(Path(given[key]))
        with pytest.raises(UserError, match=f"{given[key]}"):
            DatasetCatalog.get("own")
        assert [f.kind for f in errors_of(given)] == ["json-broken"]


def test_given_files_are_used_where_nothing_can_be_written(own, monkeypatch):
    given = with_given_files(own)
    register_coco_panoptic("own", **given, show_ids=False)
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert len(DatasetCatalog.get("own_separated")) == 2
    assert not find_source("own").derived.exists()
    one_pixels(lambda p, path: save(p[..., ::-1], path))(own)
    with pytest.raises(UserError, match="65536 R"):
        DatasetCatalog.get("own_separated")


def test_one_line_for_an_encoding_of_all_files(tmp_path, forget_data_sets):
    own = write_scenes(tmp_path / "x", ["objects"] * 30)
    each_pixels(lambda p, path: save(p[..., ::-1], path))(own)
    report = run_check(from_paths("own", own), processes=1, progress=False)
    text = format_report(report)
    (line,) = [line for line in text.splitlines() if "65536 R" in line]
    assert "30 files: " in line and "such as" in line and "001.png" in line
    assert report.number("error") == 30


def test_a_size_beyond_the_bound_is_refused_in_the_json(own):
    path = Path(own["panoptic_json"])
    content = json.loads(path.read_text())
    content["images"][0].update(width=100_000, height=100_000)
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="width 100000 and height 100000; .*89 million at most"):
        register_coco_panoptic("own", **own, show_ids=False)
        DatasetCatalog.get("own")


def test_measures_are_those_of_each_segment():
    rng = np.random.default_rng(0)
    for _ in range(20):
        ids = np.kron(rng.integers(0, 9, (7, 11)), np.ones((3, 2), int)).astype(np.int32) * 70_000
        boxes, areas = boxes_of(ids), areas_of(ids)
        for number in np.unique(ids).tolist():
            rows, columns = np.nonzero(ids == number)
            corner = columns.min(), rows.min()
            assert areas[number] == len(rows)
            assert boxes[number] == (*corner, np.ptp(columns) + 1, np.ptp(rows) + 1)
        listed = [{"id": n, "category_id": n % 4} for n in np.unique(ids).tolist()[::2] if n]
        labels = np.full(ids.shape, 255)
        for segment in listed:
            labels[ids == segment["id"]] = segment["category_id"] + 1
        assert (semantic_labels(ids, listed, {0: 1, 1: 2, 2: 3, 3: 4}) == labels).all()


def test_a_partial_set_can_be_made_to_agree(own):
    segments(lambda s: s.update(area=1))(own)
    agree(own)
    assert errors_of(own) == [] and len(CATEGORIES) == 4
    assert KINDS["area-differs"][0] == "error" and KINDS["box-cuts"][0] == "warning"
