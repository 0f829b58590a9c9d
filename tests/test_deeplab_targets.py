"""Targets of Panoptic-DeepLab, of either annotation, and the mapper that makes them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from data_util import agree, config_with, write_own
from detectron2.data import DatasetCatalog
from detectron2.projects.panoptic_deeplab import PanopticDeeplabDatasetMapper
from detectron2.projects.panoptic_deeplab.target_generator import PanopticDeepLabTargetGenerator

from auto_panoptic.data import build_mapper, data_set_for, register_coco_panoptic
from auto_panoptic.data.formats.panoptic_png import read_panoptic, write_panoptic
from auto_panoptic.data.mapper import seeded
from auto_panoptic.errors import UserError
from auto_panoptic.systems.panoptic_deeplab import PanopticDeepLabMapper, TargetGenerator

THINGS = (0, 1, 2)
SETTINGS = [
    {},
    {"sigma": 3, "ignore_stuff_in_offset": True, "small_instance_area": 60, "small_instance_weight": 3},
    {"sigma": 1, "ignore_crowd_in_semantic": True, "small_instance_area": 10**6, "small_instance_weight": 2},
]


def equal(found: dict, expected: dict) -> bool:
    """Whether both have the same targets, in type, shape and every value."""
    assert expected.keys() <= found.keys()
    for key, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert found[key].dtype == value.dtype and found[key].shape == value.shape, key
            if not torch.equal(found[key], value):
                return False
        elif found[key] != value:
            return False
    return True


def random_map(seed):
    """(ids, segments): rectangles over each other, some unlisted, some listed without a pixel."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 60, size=2)
    ids, segments = np.zeros((height, width), np.int32), []
    for number in rng.choice(1 << 24, size=rng.integers(0, 12), replace=False).tolist():
        y, x = rng.integers(0, height), rng.integers(0, width)
        ids[y : y + rng.integers(1, 30), x : x + rng.integers(1, 30)] = number
        if rng.random() < 0.9:
            category, crowd = int(rng.integers(0, 6)), int(rng.random() < 0.2)
            segments.append({"id": number, "category_id": category, "iscrowd": crowd})
    return ids, segments


@pytest.mark.parametrize("options", SETTINGS)
def test_targets_are_those_of_detectron2(options):
    ours, theirs = (
        kind(255, THINGS, **options) for kind in (TargetGenerator, PanopticDeepLabTargetGenerator)
    )
    crowds = 0
    for seed in range(150):
        ids, segments = random_map(seed)
        assert equal(ours(ids, segments), theirs(ids, segments)), seed
        crowds += sum(s["iscrowd"] for s in segments)
    assert crowds > 50


def test_targets_by_hand():
    """A thing of label 1 at y 0..1, x 2..4, a crowd of label 0, and stuff of label 3; sigma 1."""
    ids = np.array([[0, 5, 7, 7, 7], [9, 9, 7, 7, 7]])
    segments = [{"id": 7, "category_id": 1}, {"id": 5, "category_id": 0, "iscrowd": 1}]
    found = TargetGenerator(255, THINGS, 1, True, 7, 4)(ids, [*segments, {"id": 9, "category_id": 3}])
    assert found["sem_seg"].tolist() == [[255, 0, 1, 1, 1], [3, 3, 1, 1, 1]]
    assert found["center_points"] == [[0.5, 3.0], [0.0, 1.0]]
    assert found["center"][0].tolist() == pytest.approx([np.exp(-v / 2) for v in (1, 0, 1, 0, 1)])
    assert found["offset"][0].tolist() == [[0, 0, 0.5, 0.5, 0.5], [0, 0, -0.5, -0.5, -0.5]]
    assert found["offset"][1].tolist() == [[0, 0, 1, 0, -1], [0, 0, 1, 0, -1]]
    assert found["sem_seg_weights"].tolist() == [[1, 4, 4, 4, 4], [1, 1, 4, 4, 4]]
    assert found["center_weights"].tolist() == [[[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]]
    assert found["offset_weights"].tolist() == [[[0, 0, 1, 1, 1], [0, 0, 1, 1, 1]]]


# ------------------------------------------------------------------ instance annotation


def things_of(ids, segments):
    return [(ids == s["id"], bool(s["iscrowd"])) for s in segments if s["category_id"] in THINGS]


@pytest.mark.parametrize("options", SETTINGS)
def test_both_annotations_agree_where_nothing_overlaps(options):
    generator = TargetGenerator(255, THINGS, **options)
    for seed in range(100):
        ids, segments = random_map(seed)
        assert equal(generator(ids, segments, things_of(ids, segments)), generator(ids, segments)), seed


def test_an_overlapping_pair_has_other_targets():
    """A row of 7 pixels: a person on 0..6, whose tie on 2..3 the panoptic annotation cuts out."""
    ids = np.array([[1, 1, 2, 2, 1, 1, 1, 3]])
    labels = {1: 0, 2: 1, 3: 4}
    segments = [{"id": i, "category_id": c, "iscrowd": 0} for i, c in labels.items()]
    person, tie = (np.zeros((1, 8), bool) for _ in range(2))
    person[0, :7], tie[0, 2:4] = True, True
    generator = TargetGenerator(255, THINGS, 1, True)
    panoptic = generator(ids, segments)
    found = generator(ids, segments, [(person, False), (tie, False)])
    assert panoptic["center_points"] == [[0.0, 3.2], [0.0, 2.5]]
    assert found["center_points"] == [[0.0, 3.0], [0.0, 2.5]]
    assert found["offset"][1].tolist() == [[3, 2, 0.5, -0.5, -1, -2, -3, 0]]
    assert not equal(found, panoptic)
    for key in ("sem_seg", "sem_seg_weights", "center_weights", "offset_weights"):
        assert torch.equal(found[key], panoptic[key])
    hidden = generator(ids, segments, [(tie, False), (person, False)])
    assert hidden["offset"][1].tolist() == [[3, 2, 1, 0, -1, -2, -3, 0]]


def test_things_without_an_instance_are_not_learnt():
    ids = np.array([[1, 1, 2, 3, 0]])
    segments = [{"id": i, "category_id": c, "iscrowd": 0} for i, c in {1: 0, 2: 1, 3: 4}.items()]
    mask = np.array([[False, True, False, False, True]])
    found = TargetGenerator(255, THINGS, 1, True)(ids, segments, [(mask, False), (mask & False, False)])
    assert found["center_points"] == [[0.0, 2.5]]
    assert found["center_weights"].tolist() == [[[0, 1, 0, 1, 1]]]
    assert found["offset_weights"].tolist() == [[[0, 1, 0, 0, 1]]]
    assert found["sem_seg"].tolist() == [[0, 0, 1, 4, 255]]


# ------------------------------------------------------------------ the mapper


def recipe(**model):
    cfg = config_with(TRAIN=("own",), TEST=("own",))
    cfg.MODEL.META_ARCHITECTURE = "PanopticDeepLab"
    cfg.MODEL.PANOPTIC_DEEPLAB.merge_from_list([x for item in model.items() for x in item])
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = (10, 40), "range"
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = True, "absolute", [16, 24]
    return cfg


@pytest.fixture
def own(tmp_path, forget_data_sets):
    """The folders of a set whose first image has a cat, a crowd of dogs, wall, floor and void."""
    folders = write_own(tmp_path)
    register_coco_panoptic("own", **folders, show_ids=False)
    return folders


def test_the_mapper_is_detectron2s_with_a_seed(own):
    cfg = recipe()
    mapper = build_mapper(cfg, is_train=True)
    assert type(mapper) is PanopticDeepLabMapper
    theirs, sizes, cats = PanopticDeeplabDatasetMapper(cfg), set(), 0
    for record in DatasetCatalog.get("own"):
        for seed in range(40):
            found = mapper({**record, "sample_seed": seed})
            with seeded(seed):
                expected = theirs(record)
            names = ("sem_seg", "center", "center_points", "offset", "image")
            names += ("sem_seg_weights", "center_weights", "offset_weights")
            assert equal(found, {name: expected[name] for name in names})
            assert not {"annotations", "segments_info", "pan_seg_file_name"} & found.keys()
            sizes.add(tuple(found["image"].shape))
            cats += int((found["sem_seg"] == 0).any())
    assert len(sizes) > 4 and cats > 20


def test_the_seed_alone_decides(own):
    record, mapper = DatasetCatalog.get("own")[0], build_mapper(recipe(), is_train=True)
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    first = mapper({**record, "sample_seed": 5})
    assert np.array_equal(before, np.random.get_state()[1])
    np.random.seed(7)
    assert equal(mapper({**record, "sample_seed": 5}), first)


def test_inference_has_the_image_and_no_targets(own):
    record = DatasetCatalog.get("own")[0]
    found = build_mapper(recipe(), is_train=False)(record)
    assert found["image"].shape[0] == 3 and (found["height"], found["width"]) == (20, 30)
    assert not {"sem_seg", "center", "annotations", "sem_seg_file_name"} & found.keys()


def test_every_class_has_a_label_for_both_meta_architectures(own):
    for name in ("PanopticDeepLab", "AutoPanopticDeepLab"):
        cfg = recipe()
        cfg.MODEL.META_ARCHITECTURE = name
        assert data_set_for(cfg, "own_separated") == data_set_for(cfg, "own") == "own"
        cfg.DATASETS.TRAIN = ("own_separated",)
        assert build_mapper(cfg, is_train=True).targets.things.tolist() == [0, 1]


def test_instances_that_do_not_overlap_give_the_targets_of_the_map(own):
    """The derived instances are the visible regions, the crowd among them."""
    mappers = [build_mapper(recipe(GT_SOURCE=source), is_train=True) for source in ("panoptic", "instance")]
    for record in DatasetCatalog.get("own"):
        for seed in range(20):
            panoptic, instance = (mapper({**record, "sample_seed": seed}) for mapper in mappers)
            for found in (panoptic, instance):
                found["center_points"].sort()  # the crowd comes first in one
            assert equal(instance, panoptic)


def test_larger_instances_are_painted_first_and_crowds_before_them(own):
    """Polygons of 3 x 3, 5 x 8 and 9 x 9 pixels and a crowd of the whole image, in any order."""
    record = DatasetCatalog.get("own")[0]

    def box(x, y, width, height):
        return [[x, y, x + width, y, x + width, y + height, x, y + height]]

    masks = {9: box(2, 2, 3, 3), 40: box(2, 2, 8, 5), 81: box(2, 2, 9, 9)}
    instances = [{"segmentation": mask, "category_id": 0, "iscrowd": 0} for mask in masks.values()]
    crowd = {"segmentation": {"size": [20, 30], "counts": [0, 600]}, "category_id": 0, "iscrowd": 1}
    cfg = recipe(GT_SOURCE="instance")
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.RANDOM_FLIP, cfg.INPUT.MIN_SIZE_TRAIN = False, "none", (20, 20)
    mapper = build_mapper(cfg, is_train=True)
    for order in ([*instances, crowd], [crowd, *instances[::-1]]):
        found = mapper({**record, "annotations": order})
        weights, offset = found["center_weights"][0], found["offset"]
        assert [tuple(offset[:, y, x].tolist()) for y, x in ((3, 3), (6, 9), (10, 10))] == [
            (0, 0), (-2, -3.5), (-4, -4)
        ]  # fmt: skip
        assert weights[2:11, 2:11].all() and weights.sum() == 81
        assert len(found["center_points"]) == 4


@pytest.mark.parametrize(
    "change, message",
    [
        ({"annotations": None}, "no instances; set MODEL.PANOPTIC_DEEPLAB.GT_SOURCE panoptic"),
        ({"pan_seg_file_name": None}, "its record has no panoptic map.*train on a panoptic data set"),
        (
            {"annotations": [{"segmentation": {"size": [9, 9], "counts": [81]}}]},
            "the mask of an instance: RLE of size",
        ),
        ({"annotations": [{"segmentation": [[1, 2, 3]]}]}, "the mask of an instance: polygon"),
    ],
)
def test_what_a_record_lacks_is_told_in_one_line(own, change, message):
    record = {**DatasetCatalog.get("own")[0], **change}
    record = {key: value for key, value in record.items() if value is not None}
    with pytest.raises(UserError, match=message):
        build_mapper(recipe(GT_SOURCE="instance"), is_train=True)(record)


def test_damaged_files_are_named(own):
    mapper, record = build_mapper(recipe(), is_train=True), DatasetCatalog.get("own")[0]
    png, photo = Path(record["pan_seg_file_name"]), Path(record["file_name"])
    data = png.read_bytes()
    write_panoptic(str(png), np.zeros((20, 31), np.int32))
    with pytest.raises(UserError, match=r"b.png .image 41.: .*31.*20.*the image says"):
        mapper(record)
    png.write_bytes(data[:-40])
    with pytest.raises(UserError, match=r"b.png .image 41.: "):
        mapper(record)
    photo.write_bytes(b"<html>")
    with pytest.raises(UserError, match="b.jpg .image 41.: it is no image"):
        mapper(record)


def test_a_segment_may_lack_iscrowd(tmp_path, forget_data_sets):
    folders = write_own(tmp_path)
    path = Path(folders["panoptic_json"])
    content = json.loads(path.read_text())
    for annotation in content["annotations"]:
        for segment in annotation["segments_info"]:
            del segment["iscrowd"]
    path.write_text(json.dumps(content))
    agree(folders)
    register_coco_panoptic("own", **folders, show_ids=False)
    record = DatasetCatalog.get("own")[0]
    found = build_mapper(recipe(), is_train=True)({**record, "sample_seed": 0})
    assert len(found["center_points"]) <= 2
    assert (read_panoptic(record["pan_seg_file_name"]) == 300).any()
