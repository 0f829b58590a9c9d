"""Data of the ImageNet stage: folders of images, their mapper, accuracy."""

import contextlib
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from data_util import config_with
from detectron2.data import DatasetCatalog
from PIL import Image

from auto_panoptic.data import (
    find_image_folder,
    register_image_folder,
    setup_datasets,
)
from auto_panoptic.errors import UserError
from auto_panoptic.evaluation import ClassificationEvaluator, build_evaluators, results_table
from auto_panoptic.systems.classifier import ClassificationMapper

pytestmark = pytest.mark.usefixtures("forget_data_sets")


def write_folders(root, files):
    """{"class/name": (width, height)} -> images; returns the root."""
    for i, (name, size) in enumerate(files.items()):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (10 * i, 20, 30)).save(root / name, "JPEG" if name.endswith("G") else None)
    return root


FILES = {"zebra/2.png": (30, 40), "zebra/10.JPEG": (40, 30), "apple/x.jpg": (20, 20), "mug/b.png": (9, 70)}


def classifier_cfg(**datasets):
    cfg = config_with(**datasets)
    cfg.MODEL.META_ARCHITECTURE = "BackboneClassifier"
    return cfg


# ------------------------------------------------------------------ registration


def test_labels_follow_the_sorted_folder_names(tmp_path, monkeypatch):
    @contextlib.contextmanager
    def backwards(path):
        with scandir(path) as entries:
            yield sorted(entries, key=lambda entry: entry.name, reverse=True)

    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", backwards)  # its order is the file system's
    write_folders(tmp_path, FILES)
    (tmp_path / "LICENSE.jpg").touch()  # neither a folder
    (tmp_path / ".cache").mkdir()  # nor a class
    (tmp_path / "mug" / "notes.txt").touch()  # nor an image
    register_image_folder("own", tmp_path)
    assert find_image_folder("own").classes == ["apple", "mug", "zebra"]
    names = ["apple/x.jpg", "mug/b.png", "zebra/10.JPEG", "zebra/2.png"]
    expected = [(str(tmp_path / name), label) for name, label in zip(names, (0, 1, 2, 2), strict=True)]
    assert [(r["file_name"], r["label"]) for r in DatasetCatalog.get("own")] == expected


def test_imagenet_is_registered_without_being_there():
    for split in ("train", "val"):
        folder = find_image_folder(f"imagenet_{split}")
        assert folder.root.endswith(f"imagenet/{split}")


@pytest.mark.parametrize("exists", [False, True])
def test_a_missing_folder_is_named_with_the_layout(tmp_path, exists):
    root = tmp_path / "train"
    if exists:
        root.mkdir()
    register_image_folder("own", root)  # reads nothing
    with pytest.raises(UserError, match=f"data set own: {root} must hold .*/train/<class>/.*README.md"):
        setup_datasets(classifier_cfg(TRAIN=("own",), TEST=()))


def test_a_class_without_images_is_named(tmp_path):
    write_folders(tmp_path, FILES)
    (tmp_path / "empty").mkdir()
    register_image_folder("own", tmp_path)
    with pytest.raises(UserError, match="data set own: .*/empty holds no image"):
        DatasetCatalog.get("own")


def test_registering_again_reads_the_folders_anew(tmp_path):
    root = write_folders(tmp_path, FILES)
    register_image_folder("own", root)
    assert len(DatasetCatalog.get("own")) == 4
    (root / "mug").rename(root / "bowl")
    (root / "zebra" / "2.png").unlink()
    register_image_folder("own", root)
    assert find_image_folder("own").classes == ["apple", "bowl", "zebra"]
    assert [Path(record["file_name"]).name for record in DatasetCatalog.get("own")] == [
        "x.jpg",
        "b.png",
        "10.JPEG",
    ]


def test_the_files_are_listed_once(tmp_path):
    register_image_folder("own", write_folders(tmp_path, FILES))
    records = DatasetCatalog.get("own")
    records[0]["label"] = 99  # what a caller does to its records stays with it
    (tmp_path / "mug" / "b.png").unlink()
    assert [r["label"] for r in DatasetCatalog.get("own")] == [0, 1, 2, 2]


def test_names_are_taken_once(tmp_path):
    register_image_folder("own", tmp_path)
    register_image_folder("own", tmp_path)
    for name in ("own", "coco_2017_train_panoptic_separated"):
        with pytest.raises(UserError, match=f"'{name}' is already registered"):
            register_image_folder(name, tmp_path / "other")


def test_a_config_registers_folders_and_learns_the_classes(tmp_path):
    write_folders(tmp_path, FILES)
    entries = [{"name": name, "root": str(tmp_path)} for name in ("own_train", "own_val")]
    cfg = classifier_cfg(IMAGE_FOLDERS=entries, TRAIN=("own_train",), TEST=("own_val",))
    cfg.freeze()
    setup_datasets(cfg)
    assert cfg.MODEL.CLASSIFIER.NUM_CLASSES == 3 and cfg.is_frozen()


@pytest.mark.parametrize("entry", [{"name": "own"}, {"name": "own", "root": "x", "json": "y"}, "own"])
def test_a_wrong_entry_is_explained(entry):
    with pytest.raises(UserError, match=r"DATASETS.IMAGE_FOLDERS: .*own.*root"):
        setup_datasets(classifier_cfg(IMAGE_FOLDERS=[entry], TRAIN=("own",)))


def test_training_and_validation_must_have_the_same_classes(tmp_path):
    for name, files in (("a", FILES), ("b", {k: v for k, v in FILES.items() if "mug" not in k})):
        register_image_folder(name, write_folders(tmp_path / name, files))
    with pytest.raises(UserError, match=r"a and b have different classes \(3 and 2; e.g. \['mug'\]\)"):
        setup_datasets(classifier_cfg(TRAIN=("a",), TEST=("b",)))


def test_model_and_data_must_be_of_one_kind(tmp_path):
    register_image_folder("own", write_folders(tmp_path, FILES))
    with pytest.raises(UserError, match="shapes_panoptic_val is no folder of classified.*imagenet_train"):
        setup_datasets(classifier_cfg(TRAIN=("own",), TEST=("shapes_panoptic_val",)))
    with pytest.raises(UserError, match="own holds classified images.*needs a panoptic data set"):
        setup_datasets(config_with(TRAIN=("shapes_panoptic_train",), TEST=("own",)))


# ------------------------------------------------------------------ the mapper


def mapper(is_train, **changes):
    cfg = classifier_cfg()
    for key, value in changes.items():
        (cfg.INPUT if key == "FORMAT" else cfg.INPUT.CLASSIFICATION)[key] = value
    return ClassificationMapper(cfg, is_train)


def test_evaluation_takes_the_centre(tmp_path):
    """Short side to 256, the central 224 x 224, BGR."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8))
    image.save(tmp_path / "a.png")
    record = {"file_name": str(tmp_path / "a.png"), "label": 4}
    result = mapper(False)(record)
    resized = image.resize((341, 256), Image.Resampling.BILINEAR)  # 256 * 400 / 300 = 341.3
    left, top = round((341 - 224) / 2), (256 - 224) // 2
    expected = np.asarray(resized.crop((left, top, left + 224, top + 224)))[:, :, ::-1].transpose(2, 0, 1)
    assert result["image"].dtype == torch.uint8 and result["label"] == 4
    torch.testing.assert_close(result["image"], torch.tensor(expected.copy()), rtol=0, atol=0)
    torch.testing.assert_close(mapper(False, FORMAT="RGB")(record)["image"], result["image"].flip(0))
    assert "image" not in record


@pytest.fixture
def ramp(tmp_path):
    """An image of 200 x 120 whose red is x and whose green is 2 y."""
    x, y = np.meshgrid(np.arange(200), np.arange(120))
    pixels = np.stack([x, 2 * y, 0 * x], axis=-1).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "ramp.png")
    return {"file_name": str(tmp_path / "ramp.png"), "label": 0}


def test_training_crops_and_flips_at_random(ramp):
    """The corners of the result tell the box: 8 to 100 % of the area, aspect ratio 3/4 to 4/3."""
    train = mapper(True, TRAIN_SIZE=64, COLOR_JITTER=[0.0, 0.0, 0.0])
    areas, ratios, flips = [], [], 0
    for seed in range(300):
        image = train({**ramp, "sample_seed": seed})["image"].float()
        assert image.shape == (3, 64, 64)
        width = (image[2, 32, 63] - image[2, 32, 0]).item() * 64 / 63
        height = (image[1, 63, 32] - image[1, 0, 32]).item() / 2 * 64 / 63
        flips += width < 0
        areas.append(abs(width) * height / (200 * 120))
        ratios.append(abs(width) / height)
    assert 0.06 < min(areas) < 0.12 and 0.7 < max(areas) < 1.02
    assert 0.71 < min(ratios) < 0.8 and 1.25 < max(ratios) < 1.41
    assert 115 < flips < 185


def test_brightness_varies_by_forty_percent(tmp_path):
    Image.new("RGB", (50, 50), (100, 100, 100)).save(tmp_path / "grey.png")
    train = mapper(True, TRAIN_SIZE=8, COLOR_JITTER=[0.4, 0.0, 0.0])
    record = {"file_name": str(tmp_path / "grey.png"), "label": 0}
    values = [train({**record, "sample_seed": seed})["image"] for seed in range(150)]
    assert all(v.min() == v.max() for v in values)
    levels = [int(v.max()) for v in values]
    assert 59 <= min(levels) < 65 and 135 < max(levels) <= 140


def test_colours_vary_by_default(ramp):
    """All three strengths are in use: without one of them the same seed gives another image."""
    whole = mapper(True)({**ramp, "sample_seed": 3})["image"]
    for i in range(3):
        jitter = [0.0 if j == i else 0.4 for j in range(3)]
        assert not torch.equal(mapper(True, COLOR_JITTER=jitter)({**ramp, "sample_seed": 3})["image"], whole)


def test_the_seed_of_the_sample_decides_alone(ramp):
    train = mapper(True)
    images = []
    for state in (0, 1):
        torch.manual_seed(state)
        np.random.seed(state)
        images.append(train({**ramp, "sample_seed": 2**32 - 1})["image"])
        after = torch.rand(()), np.random.rand()
        torch.manual_seed(state)
        np.random.seed(state)
        assert after == (torch.rand(()), np.random.rand())  # the global generators did not move
    torch.testing.assert_close(*images, rtol=0, atol=0)
    assert not torch.equal(train({**ramp, "sample_seed": 5})["image"], images[0])


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
def test_every_colour_mode_gives_three_channels(tmp_path, mode):
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    grey = Image.new("RGB", (40, 40), (200, 200, 200))
    (grey.quantize(4) if mode == "P" else grey.convert(mode)).save(path)
    image = mapper(False)({"file_name": str(path), "label": 0})["image"]
    assert image.shape == (3, 224, 224)
    assert (image.int() - 200).abs().max() <= 3


@pytest.mark.parametrize("damage", ["text", "cut", "gone"])
def test_a_damaged_image_is_named(tmp_path, damage):
    path = tmp_path / "a.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (99, 99, 3), dtype=np.uint8)).save(path)
    content = path.read_bytes()
    path.write_bytes(b"no image" if damage == "text" else content[: len(content) // 2])
    if damage == "gone":
        path.unlink()
    with pytest.raises(UserError, match=f"image {path} cannot be read"):
        mapper(False)({"file_name": str(path), "label": 0})


# ------------------------------------------------------------------ accuracy


def logits(*ranking, classes=7):
    """Logits whose best classes are ``ranking``, in this order."""
    values = torch.full((classes,), -9.0)
    for place, label in enumerate(ranking):
        values[label] = 9.0 - place
    return {"logits": values}


@pytest.fixture
def eight(tmp_path):
    """A data set of eight images."""
    register_image_folder("eight", write_folders(tmp_path / "8", {f"c/{i}.png": (4, 4) for i in range(8)}))
    return "eight"


# Right at once, second, fifth, sixth, and right.
CASES = [
    (0, logits(0, 1, 2, 3, 4)),
    (1, logits(0, 1, 2, 3, 4)),
    (6, logits(0, 1, 2, 3, 6)),
    (6, logits(0, 1, 2, 3, 4, 6)),
    (5, logits(5)),
]


def test_top1_and_top5(eight):
    evaluator = ClassificationEvaluator(eight)
    inputs, outputs = [{"label": label} for label, _ in CASES], [output for _, output in CASES]
    for _ in range(2):  # the counts of an earlier evaluation are gone
        evaluator.reset()
        evaluator.process(inputs, outputs)
        evaluator.process(inputs[:3], outputs[:3])
        # Of 8: top-1 of images 0, 4, 0; top-5 of all but image 3.
        assert evaluator.evaluate() == {"classification": {"top1": 37.5, "top5": 87.5}}


def test_fewer_than_five_classes(eight):
    evaluator = ClassificationEvaluator(eight)
    evaluator.process([{"label": i % 3} for i in range(8)], [logits(0, classes=3)] * 8)
    assert evaluator.evaluate() == {"classification": {"top1": 37.5, "top5": 100.0}}


def test_processes_add_their_counts(eight, monkeypatch):
    from auto_panoptic.evaluation import classification

    parts = []
    for chunk in (CASES[:3], CASES):
        evaluator = ClassificationEvaluator(eight)
        evaluator.process([{"label": label} for label, _ in chunk], [output for _, output in chunk])
        monkeypatch.setattr(classification.comm, "get_world_size", lambda: 2)
        monkeypatch.setattr(classification.comm, "is_main_process", lambda: False)
        monkeypatch.setattr(classification.comm, "gather", lambda counts, dst: parts.append(counts))
        assert evaluator.evaluate() is None
    monkeypatch.setattr(classification.comm, "is_main_process", lambda: True)
    monkeypatch.setattr(classification.comm, "gather", lambda counts, dst: parts)
    assert evaluator.evaluate() == {"classification": {"top1": 37.5, "top5": 87.5}}


def test_images_left_out_are_noticed(eight):
    evaluator = ClassificationEvaluator(eight)
    evaluator.process([{"label": 0}] * 7, [logits(0)] * 7)
    with pytest.raises(UserError, match="7 predictions for 8 images"):
        evaluator.evaluate()


def test_the_data_set_chooses_the_evaluator(eight):
    (evaluator,) = build_evaluators(config_with(), eight)._evaluators
    assert isinstance(evaluator, ClassificationEvaluator)


def test_the_table_shows_accuracy():
    table = results_table({"classification": {"top1": 37.5, "top5": 87.125}})
    assert table.splitlines() == ["|   top-1 |   top-5 |", "|--------:|--------:|", "|   37.50 |   87.12 |"]
