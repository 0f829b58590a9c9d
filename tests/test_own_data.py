"""A user's own data set: the README's example, and what goes wrong without a word elsewhere."""

import ast
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import torch
import yaml
from data_util import CATEGORIES, config_with, write_own, write_scenes
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from toy import ROOT, SIZES, _own_logging

from auto_panoptic.data import register_coco_panoptic
from auto_panoptic.data.formats.panoptic_png import read_panoptic
from auto_panoptic.evaluation import PanopticQualityEvaluator
from auto_panoptic.training import build_train_loader


def edit(own, change):
    """Change the content of the JSON in place."""
    path = Path(own["panoptic_json"])
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return own


def own_quality(name):
    """PQ of the ground truth, as the model would predict it, against itself."""
    evaluator = PanopticQualityEvaluator(name, distributed=False)
    for record in DatasetCatalog.get(name):
        ids = read_panoptic(record["pan_seg_file_name"])
        segments = [dict(s) for s in record["segments_info"] if not s.get("iscrowd")]
        ids = np.where(np.isin(ids, [s["id"] for s in segments]), ids, 0)
        evaluator.process([record], [{"panoptic_seg": (torch.from_numpy(ids), segments)}])
    return evaluator.evaluate()["panoptic_seg"], evaluator.quality.compute()["per_class"]


def test_the_example_of_the_readme_trains(tmp_path, shapes, monkeypatch, capsys, forget_data_sets):
    """Its three lines, word for word, on the drawn photographs; only the number of iterations is ours."""
    example, *_ = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert len(ast.parse(example).body) == 3 and "register_coco_panoptic" in example
    short = {"_BASE_": str(ROOT / "configs/quick/supernet.yaml"), "SOLVER": {"MAX_ITER": 1, "STEPS": []}}
    (tmp_path / "configs/quick").mkdir(parents=True)
    (tmp_path / "configs/quick/supernet.yaml").write_text(yaml.safe_dump(short))
    (tmp_path / "my").mkdir()
    for ours, theirs in (
        ("annotations/panoptic_val.json", "panoptic_train.json"),
        ("panoptic_val", "panoptic_train"),
        ("val", "images"),
    ):
        (tmp_path / "my" / theirs).symlink_to(shapes / ours)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    with _own_logging():
        exec(compile(example, "README.md", "exec"), {})
    assert (tmp_path / "output/my/model_final.pth").is_file()
    out = capsys.readouterr().out
    assert out.startswith("Ids of my_train\n") and out.count("Ids of my_train\n") == 1
    assert "Ids of my_train\n" in (tmp_path / "output/my/log.txt").read_text()
    assert f"Training on {SIZES['val']} images of ['my_train']" in out


# ------------------------------------------------------------------ traps


def test_stuff_with_id_zero_and_gaps(tmp_path, forget_data_sets):
    """Id 0 is a class like any other, not "things"; the numbers between ids have no class."""
    new = {2: 0, 7: 100, 4: 50, 9: 1000}
    categories = [{**c, "id": new[c["id"]]} for c in CATEGORIES]
    own = write_own(tmp_path, categories=categories)

    def renumber(content):
        for annotation in content["annotations"]:
            for segment in annotation["segments_info"]:
                segment["category_id"] = new[segment["category_id"]]

    register_coco_panoptic("own", **edit(own, renumber))
    metadata = MetadataCatalog.get("own_separated")
    assert metadata.stuff_dataset_id_to_contiguous_id == {0: 1, 100: 2, -1: 0}
    assert metadata.thing_dataset_id_to_contiguous_id == {50: 0, 1000: 1}
    first = DatasetCatalog.get("own_separated")[0]
    semantic = np.array(Image.open(first["sem_seg_file_name"]))
    assert (semantic[0, 0], semantic[19, 0], semantic[10, 5], semantic[10, 0]) == (1, 2, 0, 255)
    result, per_class = own_quality("own")
    assert (result["PQ"], result["PQ_th"], result["PQ_st"]) == (100, 100, 100)
    assert {i: (c["TP"], c["FP"], c["FN"]) for i, c in per_class.items()} == {
        0: (2, 0, 0),
        100: (1, 0, 0),
        50: (1, 0, 0),
        1000: (0, 0, 0),  # a crowd only
    }


def test_equal_basenames_in_two_folders(tmp_path, forget_data_sets):
    """a/x.png and b/x.png stay two images, in everything that is derived."""
    own = write_scenes(tmp_path / "flat", ["objects", "stuff only"])

    def into_folders(content):
        for folder, image, annotation in zip("ab", content["images"], content["annotations"], strict=True):
            for part, entry in (("images", image), ("panoptic", annotation)):
                new = tmp_path / "flat" / part / folder / "x.png"
                new.parent.mkdir()
                (tmp_path / "flat" / part / entry["file_name"]).rename(new)
                entry["file_name"] = f"{folder}/x.png"

    register_coco_panoptic("own", **edit(own, into_folders))
    records = DatasetCatalog.get("own_separated")
    assert [Path(r["file_name"]).parts[-2:] for r in records] == [("a", "x.png"), ("b", "x.png")]
    labels = [set(np.unique(np.array(Image.open(r["sem_seg_file_name"])))) for r in records]
    assert labels == [{0, 1, 255}, {1, 255}]
    assert [len(r["annotations"]) for r in records] == [1, 0]
    assert own_quality("own")[0]["PQ"] == 100


def test_colors_are_made_where_they_are_missing(tmp_path, forget_data_sets):
    """As many as classes, all different: Detectron2's visualizer indexes them by class."""
    categories = [{"id": i, "name": f"c{i}", "isthing": i % 2} for i in range(1, 134)]
    categories[4]["color"] = None
    register_coco_panoptic("own", **write_own(tmp_path, categories=categories))
    metadata = MetadataCatalog.get("own_separated")
    assert (len(metadata.thing_colors), len(metadata.stuff_colors)) == (67, 67)
    colors = Counter(map(tuple, [*metadata.thing_colors, *metadata.stuff_colors[1:]]))
    assert len(colors) > 120 and all(0 <= v <= 255 for color in colors for v in color)


def test_a_set_without_any_object_is_trained_on(tmp_path, caplog, forget_data_sets):
    register_coco_panoptic("own", **write_scenes(tmp_path / "x", ["stuff only", "crowd only", "all void"]))
    cfg = config_with(TRAIN=("own",), TEST=())
    cfg.MODEL.MASK_ON, cfg.DATALOADER.NUM_WORKERS, cfg.SOLVER.IMS_PER_BATCH = True, 0, 3
    batch = next(iter(build_train_loader(cfg, seed=0)))
    assert [len(sample["instances"]) for sample in batch] == [0, 0, 0]
    assert "no image has objects that are no crowds; all are used" in caplog.text
    kinds = {tuple(sample["sem_seg"].unique().tolist()) for sample in batch}
    assert kinds == {(1, 255), (0, 255), (255,)}


def test_every_image_without_objects_evaluates(tmp_path, forget_data_sets):
    """Perfect predictions of images with stuff, a crowd, or nothing: no class is wrong."""
    kinds = ["stuff only", "crowd only", "all void", "objects"]
    register_coco_panoptic("own", **write_scenes(tmp_path / "x", kinds))
    result, per_class = own_quality("own")
    assert result["PQ"] == 100
    assert {i: (c["TP"], c["FP"], c["FN"]) for i, c in per_class.items() if c["TP"]} == {
        2: (2, 0, 0),
        4: (1, 0, 0),
    }
