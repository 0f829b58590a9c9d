"""Metadata of any registered data set is checked before anything runs, and its ids can be shown."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from data_util import CATEGORIES, config_with, write_own
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_panoptic_separated
from toy import own_messages

from auto_panoptic.data import id_table, log_ids, panoptic_metadata, register_coco_panoptic, setup_datasets
from auto_panoptic.data.formats.categories import check_categories
from auto_panoptic.data.formats.panoptic_json import read_categories
from auto_panoptic.data.metadata import check_metadata
from auto_panoptic.errors import UserError

THING_MAP, STUFF_MAP = "thing_dataset_id_to_contiguous_id", "stuff_dataset_id_to_contiguous_id"


def metadata_with(**changes):
    """Metadata of the categories cat 4, dog 9, wall 2, floor 7; a change to None leaves the key out."""
    complete = {
        **panoptic_metadata(CATEGORIES),
        "ignore_label": 255,
        "label_divisor": 1000,
        "evaluator_type": "coco_panoptic_seg",
        "panoptic_json": "p.json",
        "panoptic_root": "p",
    }
    return {key: value for key, value in {**complete, **changes}.items() if value is not None}


@pytest.mark.parametrize(
    "key", sorted(set(metadata_with()) - {"thing_colors", "stuff_colors", "label_divisor"})
)
def test_a_missing_key_is_named_with_the_remedy(key):
    with pytest.raises(
        UserError, match=f"^data set own: {key} in its metadata is missing; .*register_coco_panoptic"
    ):
        check_metadata("own", metadata_with(**{key: None}), CATEGORIES)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"ignore_label": 0}, "ignore_label .* is 0, expected 255"),
        ({"label_divisor": "1000"}, "label_divisor .* is '1000'"),
        ({"evaluator_type": "sem_seg"}, "evaluator_type .* is 'sem_seg', expected 'coco_panoptic_seg'"),
        ({THING_MAP: {"4": 0, "9": 1}}, f"{THING_MAP} .* maps '4' to 0, expected integers"),
        ({THING_MAP: {4: 1, 9: 2}}, rf"{THING_MAP} .* has the values \[1, 2\], expected each of 0..1 once"),
        ({THING_MAP: {4: 0, 9: 0}}, rf"{THING_MAP} .* has the values \[0, 0\]"),
        ({THING_MAP: {4: 0}}, rf"{THING_MAP} .* has the values \[0\]"),
        (
            {STUFF_MAP: {2: 0, 7: 1}},
            rf"{STUFF_MAP} .* has the values \[1\] beside 0, expected each of 1..2 once",
        ),
        ({STUFF_MAP: {2: 1, 7: 3}}, rf"{STUFF_MAP} .* has the values \[1, 3\]"),
        ({"stuff_classes": ["wall", "floor"]}, r"stuff_classes .* starts with \['wall'\].*must be 'things'"),
        ({"thing_colors": [[1, 2, 3]]}, "thing_colors .* has 1 entries for 2 thing_classes"),
        ({"stuff_colors": [[1, 2, 3]]}, "stuff_colors .* has 1 entries for 3 stuff_classes"),
        ({STUFF_MAP: {4: 1, 7: 2}}, rf"{STUFF_MAP} .* holds \[4\], which {THING_MAP} holds too"),
        ({THING_MAP: {4: 0, 202: 1}}, rf"{THING_MAP} .* lacks \[9\], thing categories of its panoptic_json"),
        ({STUFF_MAP: {2: 1, 8: 2}}, rf"{STUFF_MAP} .* lacks \[7\], stuff categories"),
        (
            {"thing_classes": ["dog", "cat"]},
            "thing_classes .* calls category 4 'dog', .* 'cat', .* at position 1",
        ),
        (
            {"stuff_classes": ["things", "floor", "wall-other-merged"]},
            "stuff_classes .* calls category 2 'floor', .* 'wall-other-merged', .* at position 2",
        ),
    ],
)
def test_a_contradiction_is_named(changes, message):
    with pytest.raises(UserError, match=f"^data set own: {message}"):
        check_metadata("own", metadata_with(**changes), CATEGORIES)


def test_what_is_allowed():
    check_metadata("own", metadata_with(), CATEGORIES)
    check_metadata("own", metadata_with(label_divisor=None, thing_colors=None), CATEGORIES)
    check_metadata(
        "own", metadata_with(**{STUFF_MAP: {2: 1, 7: 2}}), CATEGORIES
    )  # "things" has no id of its own
    check_metadata(
        "own", metadata_with(**{STUFF_MAP: {4: 0, 9: 0, 2: 1, 7: 2}}), CATEGORIES
    )  # or those of all
    check_metadata("own", metadata_with(thing_classes=["Katze", "Hund"]), CATEGORIES)  # translated
    check_metadata("own", metadata_with(evaluator_type=None, panoptic_json=None), None, evaluated=False)


def test_categories_that_the_json_lacks_only_matter_for_evaluation():
    check_metadata("own", metadata_with(), CATEGORIES[:3], evaluated=False)
    with pytest.raises(UserError, match=rf"{STUFF_MAP} .* holds \[7\], which are no stuff categories"):
        check_metadata("own", metadata_with(), CATEGORIES[:3])


def test_detectron2s_data_sets():
    """Those with "things" as label 0 fit; those that number things and stuff in one range are refused."""
    for name in ("coco_2017_train_panoptic_separated", "coco_2017_val_panoptic_separated"):
        check_metadata(name, MetadataCatalog.get(name).as_dict())
    for name in ("cityscapes_fine_panoptic_train", "coco_2017_val_panoptic"):
        with pytest.raises(
            UserError, match=f"{name}: thing_dataset_id_to_contiguous_id|{name}: stuff_classes"
        ):
            check_metadata(name, MetadataCatalog.get(name).as_dict())


def test_colors_that_are_allowed():
    for color in (None, [0, 128, 255], (0.0, 1.5, 255.0), np.array([1, 2, 3], np.uint8)):
        check_categories([{**CATEGORIES[0], "color": color}], "own")


# ------------------------------------------------------------------ from a config


def register_by_hand(tmp_path, **changes):
    """Register the two images with Detectron2's own function, metadata by hand."""
    own = write_own(tmp_path)
    register_coco_panoptic("derived", **own, show_ids=False)
    DatasetCatalog.get("derived")  # makes the instances and semantic maps
    given = MetadataCatalog.get("derived")
    metadata = {**panoptic_metadata(CATEGORIES), **changes}
    metadata = {key: value for key, value in metadata.items() if value is not None}
    parts = (
        own["image_root"],
        own["panoptic_root"],
        own["panoptic_json"],
        given.sem_seg_root,
        given.json_file,
    )
    register_coco_panoptic_separated("hand", metadata, *parts)


def test_a_set_registered_with_detectron2_is_checked(tmp_path, forget_data_sets):
    register_by_hand(tmp_path)
    cfg = config_with(TRAIN=("hand_separated",), TEST=("hand_separated",))
    setup_datasets(cfg)
    assert (cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES) == (2, 3)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({STUFF_MAP: None}, f"hand_separated: {STUFF_MAP} in its metadata is missing"),
        ({STUFF_MAP: {0: 0, 2: 2, 7: 3}}, rf"{STUFF_MAP} .* has the values \[2, 3\]"),
        ({"thing_classes": ["dog", "cat"]}, "calls category 4 'dog'"),  # found in the JSON
    ],
)
@pytest.mark.parametrize("key", ["TRAIN", "TEST", "SEARCH"])
def test_its_mistakes_stop_any_command(tmp_path, changes, message, key, forget_data_sets):
    register_by_hand(tmp_path, **changes)
    sets = {"TRAIN": (), "TEST": (), "SEARCH": (), key: ("hand_separated",)}
    with pytest.raises(UserError, match=message):
        setup_datasets(config_with(**sets))


def test_class_counts_of_the_config_give_way_with_a_line(tmp_path, caplog, forget_data_sets):
    register_coco_panoptic("own", **write_own(tmp_path))
    cfg = config_with(TRAIN=("own",), TEST=())
    cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 81, 3
    with caplog.at_level(logging.WARNING):
        setup_datasets(cfg)
        setup_datasets(cfg)
    assert own_messages(caplog) == [
        "MODEL.ROI_HEADS.NUM_CLASSES is 2, not 81 as in the config: the thing classes of own"
    ]


# ------------------------------------------------------------------ the id table

TABLE = """\
data set id -> thing id, of the box and mask heads:
  4 -> 0 cat   9 -> 1 dog
data set id -> stuff label, of the semantic head (0 is any thing, 255 void):
  2 -> 1 wall    7 -> 2 floor
"""


def test_registration_prints_the_ids_once(tmp_path, capsys, monkeypatch, forget_data_sets):
    own = write_own(tmp_path)
    register_coco_panoptic("own", **own)
    register_coco_panoptic("own", **own)
    assert capsys.readouterr().out == "Ids of own\n" + TABLE
    register_coco_panoptic("quiet", **own, show_ids=False)
    monkeypatch.setenv("RANK", "1")  # as torchrun sets it for the second process
    register_coco_panoptic("second", **own)
    assert capsys.readouterr().out == ""


def test_a_config_logs_the_ids_once_for_sets_that_agree(tmp_path, caplog, capsys, forget_data_sets):
    own = write_own(tmp_path)
    cfg = config_with(COCO_PANOPTIC=[{"name": name, **own} for name in "ab"], TRAIN=("a",), TEST=("b", "a"))
    setup_datasets(cfg)
    assert capsys.readouterr().out == ""
    caplog.clear()
    with caplog.at_level(logging.INFO, "auto_panoptic"):
        log_ids(cfg)
    assert [f"{message}\n" for message in own_messages(caplog)] == [
        "Read as a_separated, b_separated, which has the labels that MODEL.META_ARCHITECTURE AutoPanopticFPN "
        "needs\n",
        "Ids of a, b\n" + TABLE,
    ]


def test_the_table_of_133_classes_is_readable():
    table = id_table("coco_2017_val_panoptic_separated")
    lines = table.splitlines()
    assert len(lines) < 45 and max(map(len, lines)) <= 110
    cells = " ".join(table.split())
    for cell in ("1 -> 0 person", "90 -> 79 toothbrush", "92 -> 1 banner", "200 -> 53 rug"):
        assert cell in cells
    assert cells.count("->") == 133 + 2


def test_things_only(tmp_path, forget_data_sets):
    things = [{"id": 3, "name": "cat", "isthing": 1}]
    register_coco_panoptic("own", **write_own(tmp_path, categories=things))
    assert id_table("own_separated").splitlines()[-1].endswith("void): none")


# ------------------------------------------------------------------ categories


def test_categories_of_a_long_json_are_read_alone(tmp_path, monkeypatch):
    """Only the list after the last "categories" is parsed; anything odd falls back to the whole file."""
    monkeypatch.setattr("auto_panoptic.data.formats.panoptic_json.LONG", 100)
    own = write_own(tmp_path)
    content = json.loads(Path(own["panoptic_json"]).read_text())
    whole = []
    monkeypatch.setattr(
        "auto_panoptic.data.formats.panoptic_json.read_panoptic_json",
        lambda path: whole.append(path) or content,
    )
    for i, (order, damage, parsed) in enumerate(
        [
            (("images", "annotations", "categories"), "", False),
            (("categories", "images", "annotations"), "", False),
            (("categories", "images", "annotations"), ', "note": "categories"', True),
        ]
    ):
        monkeypatch.setattr("auto_panoptic.data.formats.panoptic_json.LONG", 300)
        path = tmp_path / f"{i}.json"
        path.write_text(json.dumps({key: content[key] for key in order}, indent=1)[:-2] + damage + "}")
        assert path.stat().st_size > 300
        whole.clear()
        assert read_categories(str(path)) == CATEGORIES
        assert bool(whole) == parsed


@pytest.mark.parametrize("isthing", [(True, False), (np.bool_(True), np.bool_(False)), (1, 0)])
def test_isthing_may_be_a_bool(tmp_path, isthing, forget_data_sets):
    """Also numpy's, which Detectron2's evaluator takes for stuff: records carry Python's."""
    categories = [{**c, "isthing": isthing[0 if c["isthing"] else 1]} for c in CATEGORIES]
    register_coco_panoptic("own", **write_own(tmp_path), categories=categories)
    assert MetadataCatalog.get("own_separated").thing_dataset_id_to_contiguous_id == {4: 0, 9: 1}
    segments = DatasetCatalog.get("own_separated")[0]["segments_info"]
    assert [s["isthing"] for s in segments] == [False, False, True, True]
    assert all(type(s["isthing"]) is bool for s in segments)
