"""A user's data set of two images, and configs that name data sets."""

import json
from pathlib import Path

import numpy as np
from detectron2.config import get_cfg
from PIL import Image

from auto_panoptic import add_auto_panoptic_config
from auto_panoptic.data.formats.panoptic_png import read_panoptic, write_panoptic

CATEGORIES = [
    {"id": 4, "name": "cat", "isthing": 1, "color": [10, 20, 30]},
    {"id": 2, "name": "wall-other-merged", "isthing": 0},
    {"id": 9, "name": "dog", "isthing": 1},
    {"id": 7, "name": "floor", "isthing": 0},
]


def config_with(**datasets):
    """The default config with these keys of DATASETS."""
    cfg = get_cfg()
    add_auto_panoptic_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "AutoPanopticFPN"
    for key, value in datasets.items():
        cfg.DATASETS[key] = value
    return cfg


def agree(own: dict) -> None:
    """Make PNGs and JSON agree after a change: unlisted pixels become void, areas are counted."""
    path = Path(own["panoptic_json"])
    content = json.loads(path.read_text())
    for annotation in content["annotations"]:
        png = Path(own["panoptic_root"]) / annotation["file_name"]
        ids, segments = read_panoptic(str(png)), annotation["segments_info"]
        kept = np.where(np.isin(ids, [s["id"] for s in segments]), ids, 0)
        if (kept != ids).any():
            write_panoptic(str(png), kept)
        annotation["segments_info"] = [s for s in segments if (ids == s["id"]).any()]
        for segment in annotation["segments_info"]:
            segment["area"] = int((ids == segment["id"]).sum())
    path.write_text(json.dumps(content))


def write_own(folder, categories=CATEGORIES, **changes) -> dict:
    """A user's data set of two images: a cat, a crowd of dogs, wall, floor, void; then only wall."""
    ids = np.zeros((20, 30), np.int32)
    ids[:8] = 70_000
    ids[12:] = 513
    ids[5:15, 4:10] = 3
    ids[5:10, 20:26] = 300
    first = [(70_000, 2, 0), (513, 7, 0), (3, 4, 0), (300, 9, 1)]
    plain = np.full((30, 20), 5, np.int32)
    images, annotations = [], []
    for image_id, (name, image_map, segments) in enumerate(
        [("sub/b.jpg", ids, first), ("a.png", plain, [(5, 2, 0)])], start=41
    ):
        for part in ("images", "panoptic"):
            (folder / part / Path(name).parent).mkdir(parents=True, exist_ok=True)
        h, w = image_map.shape
        png = str(Path(name).with_suffix(".png"))
        Image.new("RGB", (w, h), (image_id, 100, 0)).save(folder / "images" / name)
        rgb = np.stack([image_map & 255, image_map >> 8 & 255, image_map >> 16], axis=-1).astype(np.uint8)
        Image.fromarray(rgb).save(folder / "panoptic" / png)
        images.append({"id": image_id, "file_name": name, "height": h, "width": w})
        info = [
            {"id": i, "category_id": c, "iscrowd": crowd, "area": int((image_map == i).sum())}
            for i, c, crowd in segments
        ]
        annotations.append({"image_id": image_id, "file_name": png, "segments_info": info})
    content = {"images": images, "annotations": annotations, "categories": categories, **changes}
    (folder / "panoptic.json").write_text(json.dumps(content))
    return {
        "panoptic_json": str(folder / "panoptic.json"),
        "panoptic_root": str(folder / "panoptic"),
        "image_root": str(folder / "images"),
        "derived_root": str(folder / "derived"),
    }


EMPTY = ("stuff only", "crowd only", "all void")


def write_scenes(folder, kinds, height=48, width=64) -> dict:
    """A user's data set with one image per kind: "objects", or one of :data:`EMPTY`."""
    for part in ("images", "panoptic"):
        (folder / part).mkdir(parents=True)
    images, annotations = [], []
    for image_id, kind in enumerate(kinds, start=1):
        ids, segments = np.zeros((height, width), np.int32), []
        if kind in ("objects", "stuff only"):
            ids[:20] = 10
            segments.append({"id": 10, "category_id": 2, "iscrowd": 0})
        if kind in ("objects", "crowd only"):
            ids[10:40, 10:40] = 20
            segments.append({"id": 20, "category_id": 4, "iscrowd": int(kind == "crowd only")})
        for segment in segments:
            segment.update(area=int((ids == segment["id"]).sum()), bbox=[10, 10, 30, 30])
        name = f"{image_id:03d}"
        noise = np.random.default_rng(image_id).integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"images/{name}.png")
        rgb = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=-1).astype(np.uint8)
        Image.fromarray(rgb).save(folder / f"panoptic/{name}.png")
        images.append({"id": image_id, "file_name": f"{name}.png", "height": height, "width": width})
        annotations.append({"image_id": image_id, "file_name": f"{name}.png", "segments_info": segments})
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    (folder / "panoptic.json").write_text(json.dumps(content))
    return {
        "panoptic_json": str(folder / "panoptic.json"),
        "panoptic_root": str(folder / "panoptic"),
        "image_root": str(folder / "images"),
        "derived_root": str(folder / "derived"),
    }
