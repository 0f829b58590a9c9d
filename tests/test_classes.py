"""Weights know their classes: those of another set, or of equal names under other numbers, are refused."""

import json
import logging

import pytest
import torch
from data_util import CATEGORIES, config_with, write_own
from toy import own_messages

from auto_panoptic.data import register_coco_panoptic, register_image_folder
from auto_panoptic.data.classes import class_difference, class_record, config_classes
from auto_panoptic.errors import UserError
from auto_panoptic.training import AtomicCheckpointer, check_weights, load_weights

pytestmark = pytest.mark.usefixtures("forget_data_sets")
SWAP = {"cat": "dog", "dog": "cat", "floor": "wall-other-merged", "wall-other-merged": "floor"}
BY_NAME = r"register the data sets with the 'categories' of the set .* found by name"
OTHER = "give weights that were trained on the classes of the data sets"


def renamed(**names):
    return [{**c, "name": names.get(c["name"], c["name"])} for c in CATEGORIES]


def of_kind(name, isthing):
    return [{**c, "isthing": isthing} if c["name"] == name else c for c in CATEGORIES]


def config_of(name, tmp_path, categories=CATEGORIES, key="TRAIN"):
    """A config that names a data set of these categories."""
    register_coco_panoptic(name, **write_own(tmp_path / name, categories=categories), show_ids=False)
    cfg = config_with(**{"TRAIN": (), "TEST": (), key: (name,)})
    cfg.OUTPUT_DIR = str(tmp_path / "out")
    return cfg


@pytest.fixture
def trained(tmp_path):
    """Path of a checkpoint that was trained on a set with CATEGORIES."""
    cfg = config_of("trained", tmp_path)
    AtomicCheckpointer(torch.nn.Linear(1, 1), str(tmp_path), cfg=cfg).save("model_final", iteration=1)
    return str(tmp_path / "model_final.pth")


def test_the_record_of_a_set(tmp_path):
    cfg = config_of("own", tmp_path)
    record = config_classes(cfg)
    assert record["labels"] == "separated" and record == json.loads(json.dumps(record))
    assert record["things"] == [[4, "cat", [10, 20, 30]], [9, "dog", record["things"][1][2]]]
    assert [entry[:2] for entry in record["stuff"]] == [[0, "things"], [2, "wall"], [7, "floor"]]
    whole = class_record("own")
    assert (whole["labels"], [entry[:2] for entry in whole["stuff"]][0]) == ("all", [4, "cat"])
    ours, theirs = (class_record(f"coco_2017_{part}_panoptic") for part in ("nas_train", "val"))
    assert len(theirs["things"]) == 80 and class_difference(ours, theirs) == ""
    for folder in ("b", "a"):
        (tmp_path / "images" / folder).mkdir(parents=True)
    register_image_folder("folders", str(tmp_path / "images"))
    assert class_record("folders") == {"labels": "classes", "classes": [[0, "a", None], [1, "b", None]]}
    assert config_classes(config_with(TRAIN=(), TEST=())) is None


@pytest.mark.parametrize("key", ["TRAIN", "TEST", "SEARCH"])
@pytest.mark.parametrize(
    "categories, message",
    [
        (
            renamed(cat="dog", dog="cat"),
            rf"thing classes \(2 and 2; in another order, by their ids: 0 is 'cat' / 'dog', 1 .*; {BY_NAME}",
        ),
        (
            renamed(**{"floor": "wall-other-merged", "wall-other-merged": "floor"}),
            rf"stuff classes \(3 and 3; in another order, .*1 is 'wall' / 'floor', 2 .*; {BY_NAME}",
        ),
        (renamed(cat="cow"), rf"thing classes \(2 and 2; e.g. \['cat', 'cow'\]\); {OTHER}"),
        (
            of_kind("dog", 0),
            rf"thing classes \(2 and 1; e.g. \['dog'\], a thing in one and stuff in the other\); {BY_NAME}",
        ),
        (CATEGORIES[:2] + CATEGORIES[3:], rf"thing classes \(2 and 1; e.g. \['dog'\]\); {BY_NAME}"),
    ],
    ids=["things", "stuff", "names", "kinds", "part"],
)
def test_weights_of_other_classes_are_refused(trained, tmp_path, monkeypatch, categories, message, key):
    changes = {} if len(categories) == 4 else {"annotations": [], "images": []}
    register_coco_panoptic(
        "other", **write_own(tmp_path / "b", categories=categories, **changes), show_ids=False
    )
    cfg = config_with(**{"TRAIN": (), "TEST": (), key: ("other",)})
    refused = []
    for attempt in (
        lambda: check_weights(cfg, trained, model=torch.nn.Linear(1, 1)),
        lambda: load_weights(torch.nn.Linear(1, 1), trained, cfg=cfg),
    ):
        with pytest.raises(
            UserError, match=rf"MODEL.WEIGHTS: '.*' and the data sets have different {message}"
        ) as error:
            attempt()
        refused.append(str(error.value))
    assert len(set(refused)) == 1 and "\n" not in refused[0]
    monkeypatch.setattr("auto_panoptic.training.weights.class_layers", lambda cfg: ["fc.weight"])
    with pytest.raises(UserError) as error:
        check_weights(cfg, trained, to_train=True, model=torch.nn.Linear(1, 1))
    assert str(error.value).startswith(
        f"{refused[0]}; to start fc anew and load the rest, add MODEL.WEIGHTS_CL"
    )


def test_the_same_classes_under_other_ids_of_the_data_set_pass(trained, tmp_path):
    """What counts is the order, by which a model numbers the classes."""
    own = write_own(
        tmp_path / "b", categories=[{**c, "id": 10 * c["id"]} for c in CATEGORIES], images=[], annotations=[]
    )
    register_coco_panoptic("other", **own, show_ids=False)
    cfg = config_with(TRAIN=(), TEST=("other",))
    check_weights(cfg, trained, model=torch.nn.Linear(1, 1))


def test_resuming_compares_the_classes(tmp_path):
    cfg = config_of("own", tmp_path)
    folder = tmp_path / "out"
    AtomicCheckpointer(torch.nn.Linear(1, 1), str(folder), cfg=cfg).save("model_0000001", iteration=1)
    write_own(tmp_path / "own", categories=renamed(cat="dog", dog="cat"))
    register_coco_panoptic("own", **write_own(tmp_path / "own", categories=renamed(cat="dog", dog="cat")))
    with pytest.raises(UserError, match="--resume: .* different thing classes"):
        AtomicCheckpointer(torch.nn.Linear(1, 1), str(folder), cfg=cfg).resume()


def test_weights_without_a_record_load_with_a_line_in_the_log(tmp_path, caplog):
    AtomicCheckpointer(torch.nn.Linear(1, 1), str(tmp_path)).save("model_final")
    cfg = config_of("own", tmp_path)
    with caplog.at_level(logging.INFO):
        load_weights(torch.nn.Linear(1, 1), str(tmp_path / "model_final.pth"), cfg=cfg)
    assert sum("does not say its classes" in message for message in own_messages(caplog)) == 1


@pytest.mark.parametrize(
    "record", [1, "classes", ["things"], {"things": [1]}, {"things": [[]]}, {"things": []}]
)
def test_a_malformed_record_is_one_line(tmp_path, trained, record):
    data = torch.load(trained, weights_only=True)
    torch.save(data | {"classes": record}, trained)
    cfg = config_of("own", tmp_path)
    with pytest.raises(UserError, match="malformed record|different thing classes"):
        load_weights(torch.nn.Linear(1, 1), trained, cfg=cfg)
