"""Instances and label maps that are given beside the panoptic JSON, and contradict it as a whole."""

import json
from pathlib import Path

import numpy as np
import pytest
from check_corpus import Corpus
from detectron2.data import DatasetCatalog
from PIL import Image

from auto_panoptic.data import register_coco_panoptic
from auto_panoptic.data.check import check_data_set
from auto_panoptic.data.search_split import write_split
from auto_panoptic.errors import UserError


@pytest.fixture
def given(shapes, tmp_path, forget_data_sets):
    """A whole set of its own files."""
    corpus = Corpus(tmp_path / "given", shapes, copies=1, images=3)
    corpus.write()
    return corpus


def each_instance(change):
    def apply(corpus):
        for instance in corpus.instances["annotations"]:
            change(instance)
        corpus.write()

    return apply


def corners(instance):
    x, y, w, h = instance["bbox"]
    instance["bbox"] = [x, y, x + w, y + h]


def none(corpus):
    corpus.instances["annotations"] = []
    corpus.write()


def each_label(table):
    def apply(corpus):
        for path in Path(corpus.paths["sem_seg_root"]).rglob("*.png"):
            labels = np.array(Image.open(path))
            numbers = np.arange(256)
            numbers[list(table)] = list(table.values())
            Image.fromarray(numbers[labels].astype(np.uint8)).save(path)

    return apply


STUFF = (1, 2, 3, 4)
CONTRADICTIONS = {
    "boxes as corners": (each_instance(corners), "instances-boxes"),
    "boxes as fractions": (
        each_instance(lambda i: i.update(bbox=[v / 128 for v in i["bbox"]])),
        "instances-boxes",
    ),
    "no instances": (none, "instances-boxes"),
    "only crowds": (each_instance(lambda i: i.update(iscrowd=1)), "instances-boxes"),
    "stuff exchanged": (each_label({1: 2, 2: 1}), "semantic-classes"),
    "stuff from 0": (each_label({0: 255, **{n: n - 1 for n in STUFF}}), "semantic-classes"),
}


def load(corpus, name):
    register_coco_panoptic(name, **corpus.paths, derived_root=str(corpus.folder / "derived"), show_ids=False)
    return DatasetCatalog.get(name + "_separated")


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_contradictions_stop_check_and_training(given, case):
    change, kind = CONTRADICTIONS[case]
    change(given)
    errors = {f.kind for f in check_data_set(processes=1, **given.paths) if f.severity == "error"}
    assert errors == {kind}
    with pytest.raises(UserError, match="no box here around them|lies where the panoptic PNGs have"):
        load(given, "given_wrong")


def some_class_absent(corpus):
    used = sorted({i["category_id"] for i in corpus.instances["annotations"]})
    kept = [i for i in corpus.instances["annotations"] if i["category_id"] == used[0]]
    corpus.instances["annotations"] = kept
    corpus.write()


ALLOWED = {
    "nothing": lambda corpus: None,
    "rounded boxes": each_instance(lambda i: i.update(bbox=[v + 0.4 for v in i["bbox"]])),
    "a class without instances": some_class_absent,
    "things void in the label maps": each_label({0: 255}),
    "stuff merged in the label maps": each_label({2: 1}),
}


@pytest.mark.parametrize("case", ALLOWED)
def test_what_may_differ_trains(given, case):
    ALLOWED[case](given)
    assert not [f for f in check_data_set(processes=1, **given.paths) if f.severity == "error"]
    assert len(load(given, "given_other")) == 3


ENTRIES = {
    "image without id": ("images", {"file_name": "a.jpg"}),
    "image as text": ("images", "a.jpg"),
    "image with another type of id": ("images", {"id": "7"}),
    "image with a list as id": ("images", {"id": [7]}),
    "annotation without image": ("annotations", {"id": 7}),
    "annotation as number": ("annotations", 7),
}


@pytest.mark.parametrize("file", ["panoptic_json", "instances_json"])
@pytest.mark.parametrize("case", ENTRIES)
def test_a_set_with_odd_entries_is_not_split(given, file, case):
    part, entry = ENTRIES[case]
    path = Path(given.paths[file])
    content = json.loads(path.read_text())
    content[part].append(entry)
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"{path.name}: {part}\[\d+\] is .* expected an object with"):
        sources = [Path(given.paths[key]) for key in ("panoptic_json", "instances_json")]
        write_split(sources, lambda p, part: p.with_name(f"{p.stem}_{part}.json"), 1, 0)
    assert not list(given.folder.glob("*_nas_*"))


@pytest.mark.parametrize("wrong", [{"categories": 5}, {"panoptic_json": None}, {"image_root": None}])
def test_arguments_of_other_types_are_one_line(given, forget_data_sets, wrong):
    with pytest.raises(UserError, match="'categories' is not a list|None.* does not exist"):
        register_coco_panoptic("given_odd", **given.paths | wrong, show_ids=False)
        DatasetCatalog.get("given_odd")
