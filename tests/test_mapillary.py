"""Mapillary Vistas as its release lays it out."""

import dataclasses
import json

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from auto_panoptic.data.formats.panoptic_png import segment_records, write_panoptic
from auto_panoptic.data.register import register_source
from auto_panoptic.data.sets.mapillary import CATEGORIES, mapillary_sources
from auto_panoptic.errors import UserError

CAR, ROAD, EGO = 56, 14, 65


@pytest.fixture
def root(tmp_path, monkeypatch, forget_data_sets):
    """A folder of our own with one photograph of each part; the sets in it are called "own_<name>"."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    ids = np.zeros((12, 20), np.int32)
    ids[4:], ids[10:] = 300, 7
    ids[5:9, 2:6], ids[5:9, 8:14] = 70_000, 70_001
    classes = {300: ROAD, 7: EGO, 70_000: CAR, 70_001: CAR}
    for folder in ("training", "validation"):
        base, name = tmp_path / "mapillary_vistas" / folder, f"{folder}-Aa_1"
        for part in ("images", "panoptic"):
            (base / part).mkdir(parents=True)
        Image.new("RGB", (20, 12), (9, 9, 9)).save(base / "images" / f"{name}.jpg")
        write_panoptic(str(base / "panoptic" / f"{name}.png"), ids)
        info = segment_records(ids, classes, crowds=set())
        content = {
            "images": [{"id": name, "file_name": f"{name}.jpg", "width": 20, "height": 12}],
            "annotations": [{"image_id": name, "file_name": f"{name}.png", "segments_info": info}],
            "categories": [{**c, "supercategory": "any"} for c in CATEGORIES],
        }
        (base / "panoptic" / "panoptic_2018.json").write_text(json.dumps(content))
    for source in mapillary_sources():
        register_source(dataclasses.replace(source, name=f"own_{source.name}"))
    return tmp_path


def test_thirty_seven_things_and_twenty_eight_stuff_classes():
    metadata = MetadataCatalog.get("mapillary_vistas_panoptic_train")
    assert len(CATEGORIES) == 65 and [c["id"] for c in CATEGORIES] == list(range(1, 66))
    assert len(metadata.thing_classes) == 37 and len(metadata.stuff_classes) == 65
    assert metadata.thing_classes[:3] == ["Bird", "Ground Animal", "Crosswalk - Plain"]
    assert metadata.thing_classes[-1] == "Wheeled Slow"
    assert metadata.stuff_classes[37:40] == ["Curb", "Fence", "Guard Rail"]
    assert metadata.stuff_classes[-1] == "Ego Vehicle"
    separated = MetadataCatalog.get("mapillary_vistas_panoptic_val_separated")
    assert len(separated.stuff_classes) == 29 and separated.label_divisor == 1000


def test_the_release_is_read_as_it_is(root):
    for part in ("train", "val"):
        (record,) = DatasetCatalog.get(f"own_mapillary_vistas_panoptic_{part}")
        assert record["file_name"].endswith("-Aa_1.jpg")
        metadata = MetadataCatalog.get(f"own_mapillary_vistas_panoptic_{part}")
        names = [(metadata.stuff_classes[s["category_id"]], s["isthing"]) for s in record["segments_info"]]
        assert sorted(names) == [("Car", True), ("Car", True), ("Ego Vehicle", False), ("Road", False)]
        labels = np.array(Image.open(record["sem_seg_file_name"]))
        assert labels[0, 0] == 255 and metadata.stuff_classes[labels[6, 3]] == "Car"
        assert [a["category_id"] for a in record["annotations"]] == [metadata.thing_classes.index("Car")] * 2
        assert (root / f"derived/mapillary_{part}/instances.json").is_file()


def test_other_categories_and_missing_files_are_told(root):
    path = root / "mapillary_vistas/training/panoptic/panoptic_2018.json"
    content = json.loads(path.read_text())
    del content["categories"][0]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="its categories are not those of data set own_mapillary"):
        DatasetCatalog.get("own_mapillary_vistas_panoptic_train")
    path.unlink()
    with pytest.raises(UserError, match="panoptic_2018.json does not exist.*Unpack Mapillary Vistas v1.2"):
        DatasetCatalog.get("own_mapillary_vistas_panoptic_train_separated")
