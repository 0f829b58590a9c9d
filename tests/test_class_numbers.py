"""Files of one set, or of two, that number equal classes differently: found by name, or refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from data_util import CATEGORIES, config_with, write_own
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from auto_panoptic.data import register_coco_panoptic, setup_datasets
from auto_panoptic.data.check import check_data_set
from auto_panoptic.data.classes import class_difference, class_record
from auto_panoptic.data.derive.engine import derive
from auto_panoptic.data.register import find_source
from auto_panoptic.errors import UserError

pytestmark = pytest.mark.usefixtures("forget_data_sets")
OTHER = {4: 9, 9: 4, 2: 7, 7: 2}  # a converter that numbered by first occurrence


def edit(path, change):
    content = json.loads(Path(path).read_text())
    change(content)
    Path(path).write_text(json.dumps(content))


def renumber(content, numbers=OTHER):
    """The same set under other ids, in a panoptic or an instances JSON."""
    for category in content["categories"]:
        category["id"] = numbers.get(category["id"], category["id"])
    for annotation in content["annotations"]:
        for entry in annotation.get("segments_info", [annotation]):
            entry["category_id"] = numbers.get(entry["category_id"], entry["category_id"])


def with_instances(folder):
    """Arguments of a set whose instances JSON was derived; its objects are no crowds."""
    own = write_own(folder)

    def complete(content):
        for annotation in content["annotations"]:
            ids = np.asarray(Image.open(folder / "panoptic" / annotation["file_name"])).astype(int) @ [
                1,
                256,
                65536,
            ]
            for s in annotation["segments_info"]:
                y, x = np.nonzero(ids == s["id"])
                s["bbox"] = [int(v) for v in (x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1)]
                s["iscrowd"] = 0

    edit(own["panoptic_json"], complete)
    name = f"derived-{folder.name}"
    register_coco_panoptic(name, **own, show_ids=False)
    task = find_source(name).derivation("all")
    derive(task)
    (folder / "instances.json").write_bytes(task.instances_json.read_bytes())
    return {**own, "instances_json": str(folder / "instances.json")}


def load(name, own):
    """{image: names of its objects}, and of its segments, as a model learns them; the label maps."""
    register_coco_panoptic(name, **own, show_ids=False)
    metadata = MetadataCatalog.get(name)
    found = []
    for r in DatasetCatalog.get(name):
        objects = [metadata.thing_classes[a["category_id"]] for a in r["annotations"]]
        segments = [
            (metadata.thing_classes if s["isthing"] else metadata.stuff_classes[2:])[
                s["category_id"] - 2 * (not s["isthing"])
            ]
            for s in r["segments_info"]
        ]
        found.append((objects, segments, np.asarray(Image.open(r["sem_seg_file_name"])).tolist()))
    return found


def errors(own):
    return [f for f in check_data_set(processes=1, **own) if f.severity == "error"]


@pytest.mark.parametrize("instances", [False, True], ids=["derived", "given"])
def test_categories_of_another_set_are_found_by_name(tmp_path, instances):
    """The remedy for weights and sets under other numbers: the same 'categories'."""
    own = with_instances(tmp_path / "a")
    expected = load("own", own)
    other = with_instances(tmp_path / "b")
    for key in ("panoptic_json", "instances_json"):
        edit(other[key], renumber)
    if not instances:
        del other["instances_json"]
    register_coco_panoptic("wrong", **other, show_ids=False)
    assert "another order" in class_difference(class_record("own"), class_record("wrong"))
    given = {**other, "categories": own["panoptic_json"]}
    assert load("right", given) == expected
    assert class_difference(class_record("own"), class_record("right")) == ""
    copy = json.loads(Path(MetadataCatalog.get("right").panoptic_json).read_text())
    assert copy["annotations"] == json.loads(Path(own["panoptic_json"]).read_text())["annotations"]
    assert errors({k: v for k, v in given.items() if k != "derived_root"}) == []


def test_names_and_ids_that_contradict_are_refused(tmp_path):
    own = write_own(tmp_path)
    names = {"cat": "dog", "dog": "lynx"}
    given = [{**c, "name": names.get(c["name"], c["name"])} for c in CATEGORIES]
    with pytest.raises(UserError, match=r"panoptic.json: class 9, 'dog', is 4 in the given .* lack 'cat'"):
        load("own", {**own, "categories": given})
    del own["derived_root"]
    assert [f.kind for f in errors({**own, "categories": given})] == ["bad-categories"]
    renamed = [{**c, "name": c["name"].upper()} for c in CATEGORIES]  # by id: none of its names occurs
    assert load("own", {**own, "categories": renamed})[0][0] == ["CAT", "DOG"]


@pytest.mark.parametrize("names", ["equal", "none", "others", "right"])
def test_an_instances_json_of_other_numbers_is_refused(tmp_path, names):
    own = with_instances(tmp_path)

    def change(content):
        renumber(content)
        for category in content["categories"]:
            if names == "none":
                del category["name"]
            if names == "others":
                category["name"] += " (animal)"
            if names == "right":  # the masks alone contradict
                category["name"] = {4: "cat", 9: "dog"}[category["id"]]

    assert errors({k: v for k, v in own.items() if k != "derived_root"}) == []
    edit(own["instances_json"], change)
    message = (
        r"category 9 is 'cat' here, which the panoptic JSON numbers 4"
        if names == "equal"
        else r"1 objects are '(cat|dog)' in the panoptic JSON and '(dog|cat)' here, 0 agree"
    )
    with pytest.raises(
        UserError, match=rf"instances.json: {message}; number the classes of both JSONs alike, or leave"
    ):
        load("own", own)
    del own["derived_root"]
    found = errors(own)
    assert {f.kind for f in found} == {"instances-classes"}
    del own["instances_json"]
    assert errors(own) == []


def test_a_corrected_set_is_registered_again_in_the_same_process(tmp_path):
    """PNGs, classes of the JSON, categories, instances: whatever was corrected counts."""
    own = with_instances(tmp_path)
    instances = own.pop("instances_json")
    before = load("own", own)
    assert [found[0] for found in before] == [["cat", "dog"], []]

    def swap(content):
        for category in content["categories"]:
            category["name"] = {"cat": "dog", "dog": "cat"}.get(category["name"], category["name"])

    edit(own["panoptic_json"], swap)
    with pytest.raises(UserError, match="categories in .* have changed since"):
        DatasetCatalog.get("own_separated")
    assert load("own", own)[0][:2] == (["dog", "cat"], before[0][1][:2] + ["dog", "cat"])
    edit(own["panoptic_json"], swap)
    categories = [{**c, "name": {"cat": "lion"}.get(c["name"], c["name"])} for c in CATEGORIES]
    assert load("own", {**own, "categories": categories})[0][0] == ["lion", "dog"]
    assert load("own", own) == before
    edit(instances, lambda content: content["annotations"].pop(0))
    assert load("own", {**own, "instances_json": instances})[0][0] == ["dog"]
    assert load("own", own) == before
    png = tmp_path / "panoptic" / "sub/b.png"
    Image.fromarray(np.asarray(Image.open(png))[:, ::-1]).save(png)
    after = load("own", own)
    assert after[0][2] == np.asarray(before[0][2])[:, ::-1].tolist()


def test_two_entries_of_one_name_are_refused(tmp_path):
    own = {"name": "own", **write_own(tmp_path)}
    cfg = config_with(TRAIN=("own",), TEST=(), COCO_PANOPTIC=[own, {**own, "categories": CATEGORIES[:3]}])
    with pytest.raises(UserError, match="COCO_PANOPTIC: two different entries are named 'own'; rename one"):
        setup_datasets(cfg)
